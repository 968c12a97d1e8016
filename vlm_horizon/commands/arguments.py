"""Options that several commands share, in groups: how the model is loaded, how data is read, what is measured.

A command takes a group as one parameter, and `with_groups` spells it out as options of their own: read from text as
their types say, words held against the vocabulary before the command begins, and completed by shells.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, get_origin, get_type_hints

import typer

from analyses.runs import AdaptiveOptions, HorizonError, RunOptions, check_options, check_words
from analyses.runs.option_checks import check_number
from analyses.runs.options import Option, choices_of, description, hints_of, options_of, plain_type, value_type
from analyses.runs.schema import AttentionName, DtypeName, QuantizationName
from analyses.runs.signatures import sentence
from vlm_horizon.workflows.adaptive import check_choosable

if TYPE_CHECKING:
    from probes.data.readers import SampleStream
    from probes.data.samples import Sample
    from probes.models.probed import ProbedModel

ModelName = Annotated[str, typer.Argument(help="Model directory or hub id.")]


@dataclass(frozen=True)
class Loading:
    """How a model is loaded: what `load_model` takes by the same names."""

    PANEL: ClassVar = "Model"

    revision: Annotated[str | None, Option(text="branch, tag or commit of a hub model.")] = None
    dtype: Annotated[DtypeName, Option(text="of weights and states.")] = "auto"
    attn: Annotated[AttentionName, Option(text="attention; flash where it is exact.")] = "sdpa"
    device_map: Annotated[
        str | None, Option(text="a device, as cuda:0, or auto: one GPU, what does not fit in main memory.")
    ] = None
    quantization: Annotated[QuantizationName | None, Option(text="of the weights (needs bitsandbytes).")] = None

    def load(self, model: str, *, check: bool = True) -> ProbedModel:
        """Return the loaded model; raise HorizonError where it cannot be measured."""
        from probes.loading.loading import load_model

        return load_model(model, check=check, **asdict(self))


@dataclass(frozen=True)
class DataOptions:
    """How data is read: what `read_samples` takes by the same names, None where its default holds."""

    PANEL: ClassVar = "Data"

    task: Annotated[
        str | None, Option(text="the benchmark (see `vlm-horizon tasks`); guessed from DATA's name if clear.")
    ] = None
    task_type: Annotated[str | None, Option(text="overrides the samples' task type.")] = None
    prompt: Annotated[
        str | None,
        Option(text="question template with {question} in it, and if you like {options}, {hint}, {ocr_tokens}."),
    ] = None
    limit: Annotated[int | None, Option(text="at most so many samples of each of DATA.")] = None
    seed: Annotated[int | None, Option(text="takes a random subset of `limit` samples, not the first.")] = None
    category: Annotated[list[str] | None, Option(text="only this category; may be repeated.")] = None
    where: Annotated[
        list[str] | None, Option(text='only rows like "split=val" or "n>3", by column; may be repeated.')
    ] = None
    question: Annotated[
        str | None, Option(text="column of the question; for a folder of images the question itself.")
    ] = None
    answer: Annotated[str | None, Option(text="column of the answers; for a folder of images the answer itself.")] = (
        None
    )
    image: Annotated[str | None, Option(text="column of the image.")] = None
    images_dir: Annotated[
        Path | None, Option(text="folder that image and video paths are relative to.", flag="images")
    ] = None
    annotations: Annotated[Path | None, Option(text="answers to a LLaVA question file.")] = None
    with_ocr_tokens: Annotated[bool, Option(text="put the reference OCR tokens into the prompt (TextVQA).")] = False
    revision: Annotated[str | None, Option(text="branch, tag or commit of the dataset ids.", flag="data_revision")] = (
        None
    )
    frames: Annotated[int | None, Option(text="of videos: so many frames; 8 by default.")] = None
    fps: Annotated[float | None, Option(text="of videos: so many frames a second instead.")] = None

    def open(self, data: Sequence[str]) -> list[SampleStream]:
        """Return the stream of samples of each name in `data`, not read yet; raise HorizonError where one has none."""
        from probes.data.readers import read_samples

        settings = {name: value for name, value in asdict(self).items() if value is not None}
        return [read_samples(name, **settings) for name in data]

    def run_options(self, streams: Sequence[SampleStream], samples: Sequence[Sample]) -> dict[str, Any]:
        """Return the options of `run` that follow from how the data was read."""
        from probes.data.video import frame_rule

        return {
            "prompt": self.prompt,
            "sources": [name for stream in streams for name in stream.run_options["sources"]],
            "with_ocr_tokens": self.with_ocr_tokens,
            "video": next((rule for sample in samples if (rule := frame_rule(sample.frames))), ""),
        }


@dataclass(frozen=True, kw_only=True)
class Measuring(AdaptiveOptions):
    """What is measured; layers may be "auto", to be chosen on the way."""

    PANEL: ClassVar = "Measurement"

    @property
    def auto(self) -> bool:
        """Whether the run is to choose its layers; raises HorizonError for a budget without a choice."""
        auto = isinstance(self.layers, str)
        if self.budget is not None and not auto:
            raise HorizonError(f"--layer-budget {self.budget} says how --layers auto chooses: give both or neither")
        return auto

    def options(self) -> dict[str, Any]:
        """Return the options that `run` takes, without layers where the run is to choose them.

        Raises:
            HorizonError: an option is unusable.
        """
        settings = {name: getattr(self, name) for name in spelled_out(Measuring) if name != "budget"}
        if self.auto:
            settings["layers"] = None
            check_choosable(settings)
        check_options(RunOptions(**settings))
        return settings


class TextForm(NamedTuple):
    """How values of one type stand on the command line.

    Attributes:
        read: returns the value of a text.
        write: returns the text of a default value.
        hint: the sentence on it in the help.
    """

    read: Callable[[str], Any]
    write: Callable[[Any], str]
    hint: str


def with_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """Spell out a command's parameters that are groups of options (dataclasses), as typer reads a command."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            group = groups[parameter.name]
            parameters += [_parameter(parameter.name, group, name) for name in spelled_out(group)]
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY))

    @wraps(command)
    def wrapper(**values: Any) -> Any:
        for title, group in groups.items():
            texts = {name: values.pop(f"{title}_{name}") for name in spelled_out(group)}
            values[title] = group(**{name: _value(group, name, text) for name, text in texts.items()})
        return command(**values)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def spelled_out(group: type) -> dict[str, str]:
    """Return the flag, without leading dashes, of each option of a group that commands take, by the option's name."""
    options = options_of(group)
    if undeclared := [field.name for field in fields(group) if field.name not in options]:
        raise TypeError(f"{group.__name__} declares no Option for {', '.join(undeclared)}")
    flags = {name: name if option.flag is None else option.flag for name, option in options.items()}
    return {name: flag.replace("_", "-") for name, flag in flags.items() if flag}


def _parameter(title: str, group: Any, name: str) -> inspect.Parameter:
    """Return one option of a group as a parameter of a command, listed under the group's heading in the help."""
    hint = hints_of(group)[name]
    choices, form = choices_of(hint), _form(hint)
    several = get_origin(value_type(hint)) is Sequence
    option = typer.Option(
        f"--{spelled_out(group)[name]}",
        help=_help(group, name),
        rich_help_panel=group.PANEL,
        autocompletion=completion(choices, several=several) if choices else None,
    )
    default = getattr(group, name)
    if form is not None and default is not None:
        default = form.write(default)
    text = str | None if default is None else str
    annotation = Annotated[text if form or choices else plain_type(hint), option]  # type: ignore[valid-type]
    return inspect.Parameter(f"{title}_{name}", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _help(group: Any, name: str) -> str:
    """Return the help of an option, in which other options are named by their flags."""
    text = sentence(description(group, name))
    for option_name, flag in spelled_out(group).items():
        text = text.replace(f"`{option_name}`", f"--{flag}")
    form = _form(hints_of(group)[name])
    return text if form is None else f"{text} {form.hint}"


def _form(hint: Any) -> TextForm | None:
    """Return how a type is read from text; None where typer reads it. Sequences are read by the type of their items."""
    kind = value_type(hint)
    if kind in FORMS:
        return FORMS[kind]
    return FORMS[Sequence[str]] if get_origin(kind) is Sequence and choices_of(kind) else None


def _value(group: Any, name: str, text: Any) -> Any:
    """Return the value of an option's text; raise HorizonError where it has none."""
    hint = hints_of(group)[name]
    form = _form(hint)
    value = text if form is None or text is None else form.read(text)
    check_words(name, value, hint)
    if value is not None:
        check_number(name, value, options_of(group)[name])
    return value


def completion(choices: Sequence[str], *, several: bool = False) -> Callable[[str], list[str]]:
    """Return the function that gives a shell the choices for the beginning of a word.

    Where several words may stand between commas, it completes the last one.

    >>> completion(["exact", "gate"])("g"), completion(["zero", "mean"], several=True)("zero,")
    (['gate'], ['zero,mean'])
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        candidates = [choice for choice in choices if choice not in before.split(",")]
        return [f"{before}{comma}{choice}" for choice in candidates if choice.startswith(last)]

    return complete


def words(text: str) -> tuple[str, ...]:
    """Return the words between commas, without blanks around them and without empty words."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def parse_layers(text: str) -> list[int] | str:
    """Return the layers that "0,4,8" or "0-7" name; "auto" is returned as it is."""
    if text.strip() == "auto":
        return "auto"
    layers: list[int] = []
    for word in words(text):
        first, dash, last = word.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise HorizonError(f"layers {text!r} cannot be read; write them as 0,4,8 or 0-7")
        layers += range(int(first), int(last if dash else first) + 1)
    return layers


def parse_shard(text: str) -> tuple[int, int]:
    """Return the index and the number of shards that "0/4" names."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise HorizonError(f"shard {text!r} cannot be read; write it as i/n, for example 0/4")
    return int(index), int(count)


FORMS: dict[Any, TextForm] = {
    Sequence[str]: TextForm(words, ",".join, "Separated by commas."),
    Sequence[int]: TextForm(
        parse_layers,
        lambda layers: ",".join(map(str, layers)),
        "Written as 0,4,8 or 0-7; auto: token grids only around the horizons.",
    ),
    tuple[int, int]: TextForm(parse_shard, lambda shard: "/".join(map(str, shard)), "Written as i/n."),
}
