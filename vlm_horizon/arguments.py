"""Options that several commands share, in groups: how the model is loaded, how data is read, what is measured.

A command takes a group as one parameter, and `with_groups` spells it out as options of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_type_hints

import typer
from typer.models import OptionInfo

from analyses.runs import CONTEXTS, KINDS, METHODS, PROBES, STREAMS, TARGETS, TOKENS, HorizonError

if TYPE_CHECKING:
    from probes.data.readers import SampleStream
    from probes.data.samples import Sample
    from probes.models.probed import ProbedModel

STREAM_HELP = f"Of the entropies: {', '.join(STREAMS)}; of the text or all tokens as text:query, all:query."

ModelName = Annotated[str, typer.Argument(help="Model directory or hub id.")]


@dataclass(frozen=True)
class Loading:
    """How a model is loaded."""

    PANEL: ClassVar = "Model"

    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto"
    attn: Annotated[str, typer.Option(help="Attention: sdpa, eager, or flash where it is exact.")] = "sdpa"
    device_map: Annotated[
        str | None, typer.Option(help="A device, as cuda:0, or auto: one GPU, what does not fit in main memory.")
    ] = None
    quantization: Annotated[str | None, typer.Option(help="4bit or 8bit (needs bitsandbytes).")] = None

    def load(self, model: str, *, check: bool = True) -> ProbedModel:
        """Load a model; raises HorizonError where it cannot be measured."""
        from probes.loading.loading import load_model

        return load_model(
            model,
            revision=self.revision,
            dtype=self.dtype,
            attn=self.attn,
            device_map=self.device_map,
            quantization=self.quantization,
            check=check,
        )


@dataclass(frozen=True)
class Reading:
    """How data is read."""

    PANEL: ClassVar = "Data"

    task: Annotated[
        str | None, typer.Option(help="The benchmark (see `vlm-horizon tasks`); guessed from DATA's name if clear.")
    ] = None
    task_type: Annotated[str | None, typer.Option(help="Overrides the samples' task type.")] = None
    prompt: Annotated[
        str | None,
        typer.Option(help="Question template with {question} in it, and if you like {options}, {hint}, {ocr_tokens}."),
    ] = None
    limit: Annotated[int | None, typer.Option(help="At most so many samples of each of DATA.")] = None
    seed: Annotated[int | None, typer.Option(help="Takes a random subset of --limit samples, not the first.")] = None
    category: Annotated[list[str] | None, typer.Option(help="Only this category; may be repeated.")] = None
    where: Annotated[
        list[str] | None, typer.Option(help='Only rows like "split=val" or "n>3", by column; may be repeated.')
    ] = None
    question: Annotated[
        str | None, typer.Option(help="Column of the question; for a folder of images the question itself.")
    ] = None
    answer: Annotated[
        str | None, typer.Option(help="Column of the answers; for a folder of images the answer itself.")
    ] = None
    image: Annotated[str | None, typer.Option(help="Column of the image.")] = None
    images: Annotated[Path | None, typer.Option(help="Folder that image and video paths are relative to.")] = None
    annotations: Annotated[Path | None, typer.Option(help="Answers to a LLaVA question file.")] = None
    with_ocr_tokens: Annotated[
        bool, typer.Option("--with-ocr-tokens", help="Put the reference OCR tokens into the prompt (TextVQA).")
    ] = False
    data_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the dataset ids.")] = None
    frames: Annotated[int | None, typer.Option(help="Of videos: so many frames; 8 by default.")] = None
    fps: Annotated[float | None, typer.Option(help="Of videos: so many frames a second instead.")] = None

    def open(self, data: Sequence[str]) -> list[SampleStream]:
        """The samples of each name of data, not read yet; raises HorizonError where there are none."""
        from probes.data.readers import read_samples

        return [
            read_samples(
                name,
                task=self.task,
                task_type=self.task_type,
                limit=self.limit,
                prompt=self.prompt,
                seed=self.seed,
                category=self.category or (),
                where=self.where or (),
                question=self.question,
                answer=self.answer,
                image=self.image,
                with_ocr_tokens=self.with_ocr_tokens,
                revision=self.data_revision,
                images_dir=self.images,
                annotations=self.annotations,
                frames=self.frames,
                fps=self.fps,
            )
            for name in data
        ]

    def told(self, streams: Sequence[SampleStream], samples: Sequence[Sample]) -> dict[str, Any]:
        """Options of `run` that follow from how data was read."""
        from probes.data.video import frame_rule

        return {
            "prompt": self.prompt,
            "sources": [name for stream in streams for name in stream.told["sources"]],
            "with_ocr_tokens": self.with_ocr_tokens,
            "video": next((rule for sample in samples if (rule := frame_rule(sample.frames))), ""),
        }


@dataclass(frozen=True)
class Measuring:
    """What is measured."""

    PANEL: ClassVar = "Measurement"

    probes: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(PROBES)}.")] = ",".join(PROBES)
    tokens: Annotated[
        str, typer.Option(help=f"That removals and token grids take away: {', '.join(TOKENS)}; entropies follow.")
    ] = "visual"
    streams: Annotated[
        str | None, typer.Option(help=f"{STREAM_HELP} By default query, key and hidden of --tokens.")
    ] = None
    targets: Annotated[str, typer.Option(help=f"Of {', '.join(TARGETS)}; the first leads.")] = "gold"
    contexts: Annotated[str, typer.Option(help=f"Of the token grids: {', '.join(CONTEXTS)}.")] = "keep-one"
    window: Annotated[int | None, typer.Option(help="Side of the token grids' windows, in tokens; 2 by default.")] = (
        None
    )
    max_windows: Annotated[
        int | None, typer.Option(help="The smallest windows that are at most so many, instead of --window.")
    ] = None
    coarse: Annotated[
        int | None,
        typer.Option(help="Windows of this side first; --window only inside those with an effect above the floor."),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(help="Cuts, as 0,4,8 or 0-7; all by default. auto: token grids only around the horizons."),
    ] = None
    layer_budget: Annotated[
        int | None,
        typer.Option(
            help="With --layers auto: token grids for so many layers a sample; by default a quarter, at least 8."
        ),
    ] = None
    kind: Annotated[str, typer.Option(help=f"Removal kind: {', '.join(KINDS)}.")] = "delete"
    method: Annotated[
        str, typer.Option(help=f"Of the token grids: {', '.join(METHODS)} (first order, by backward passes).")
    ] = "exact"
    gate_checks: Annotated[
        int, typer.Option(help="With --method gate: samples of each task that also get exact values.", min=0)
    ] = 2
    alpha: Annotated[float, typer.Option(help="Renyi order of the entropies.")] = 1.0
    token_samples: Annotated[
        int | None, typer.Option(help="Token grids for the first so many samples of each task; all by default.", min=0)
    ] = None
    spectra: Annotated[int, typer.Option(help="Keep eigenvalues of the first so many samples of each task.", min=0)] = 0
    only_correct: Annotated[
        bool, typer.Option("--only-correct", help="Exclude what the model answers wrong, before all ablations.")
    ] = False
    generate: Annotated[
        int | None, typer.Option(help="Also write out whole answers of at most so many tokens, to be scored.", min=1)
    ] = None
    shard: Annotated[str, typer.Option(help="i/n: only every n-th sample, from the i-th (0-based).")] = "0/1"
    batch_size: Annotated[int | None, typer.Option(help="Ablations at once.", min=1)] = None

    @property
    def auto(self) -> bool:
        """Whether layers are to be chosen; raises HorizonError for a budget without a choice."""
        auto = self.layers is not None and self.layers.strip() == "auto"
        if self.layer_budget is not None and not auto:
            raise HorizonError(
                f"--layer-budget {self.layer_budget} says how --layers auto chooses: give both or neither"
            )
        return auto

    def options(self) -> dict[str, Any]:
        """As `run` takes them; no layers where they are to be chosen."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "layer_budget"}
        given |= {name: words(given[name]) for name in ("probes", "targets", "contexts")}
        given["streams"] = None if self.streams is None else words(self.streams)
        given["layers"] = None if self.auto else parse_layers(self.layers)
        return given | {"shard": parse_shard(self.shard)}


def with_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """Spell out a command's parameters that are groups of options (dataclasses), as typer reads a command."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _spelled_out(groups[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY))

    @wraps(command)
    def called(**given: Any) -> Any:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        return command(**given)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _spelled_out(group: Any) -> list[inspect.Parameter]:
    """The options of a group, under its heading in the help."""
    hints = get_type_hints(group, include_extras=True)
    found = []
    for field in fields(group):
        for option in hints[field.name].__metadata__:
            if isinstance(option, OptionInfo):
                option.rich_help_panel = group.PANEL
        kind = inspect.Parameter.KEYWORD_ONLY
        found.append(inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name]))
    return found


def words(text: str) -> tuple[str, ...]:
    """Split at commas; blanks around words and empty words do not count."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def parse_layers(text: str | None) -> list[int] | None:
    """Read "0,4,8" or "0-7" as layers."""
    if text is None:
        return None
    layers: list[int] = []
    for word in words(text):
        first, dash, last = word.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise HorizonError(f"layers {text!r} cannot be read; write them as 0,4,8 or 0-7")
        layers += range(int(first), int(last if dash else first) + 1)
    return layers


def parse_shard(text: str) -> tuple[int, int]:
    """Read "0/4" as a shard."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise HorizonError(f"shard {text!r} cannot be read; write it as i/n, for example 0/4")
    return int(index), int(count)
