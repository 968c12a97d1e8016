"""The self-test: whether captures and replays of a model can be trusted, proved on one prompt in a few forwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from analyses.runs import HorizonError
from probes.data.samples import Sample, SampleError
from probes.models.probed import ATTENTION, ProbedModel
from probes.models.prompts import Prompt, encode
from probes.models.targets import gold_target
from probes.replay.ablations import Ablations
from probes.replay.capture import Capture, capture_prompt, log_softmax
from probes.replay.replay import replay, run_layer
from probes.replay.visibility import Rows, additive, visible

# What rounding may do, relative to the largest state and in log p of the likely tokens; a missed step does far more.
STATE_TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
LOG_P_TOLERANCE = {"float64": 1e-8, "float32": 5e-3, "float16": 0.1, "bfloat16": 0.5}
EAGER_TOLERANCE = 1e-4  # transformers' eager softmax is in float32 whatever the model's dtype
LIKELY = 20  # tokens whose log p is compared, by the model's own forward
BETWEEN = "read the family's source for what it does between its layers, and describe it in probes/models/families.py"


@dataclass(frozen=True)
class Property:
    """One property that was tested.

    Attributes:
        name: what must hold.
        error: how far it is from holding.
        tolerance: how far rounding may carry it; `unit` of both.
        unit: "relative" to the largest state, or "nats".
        effect: what the ablation itself moved, in nats, where there was one: a test without effect proves nothing.
        remedy: what to do if it fails.
    """

    name: str
    error: float
    tolerance: float
    unit: str
    remedy: str
    effect: float | None = None

    @property
    def passed(self) -> bool:
        """Whether it holds; an error that is not a number fails."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class ModelCheck:
    """What the self-test found.

    Attributes:
        model: the model.
        n_prompt, n_visual, n_placeless: tokens of the prompt it was tested on.
        grids: (rows, columns) of each patch grid in it.
        additions: layers behind which the model itself adds to its rows.
        properties: what was tested, in order.
    """

    model: ProbedModel
    n_prompt: int
    n_visual: int
    n_placeless: int
    grids: tuple[tuple[int, int], ...]
    additions: tuple[int, ...]
    properties: tuple[Property, ...]

    @property
    def passed(self) -> bool:
        """The verdict."""
        return all(found.passed for found in self.properties)

    @property
    def refusal(self) -> str:
        """Which property failed, by how much and what to do, in a sentence; empty where all hold."""
        failed = [found for found in self.properties if not found.passed]
        if not failed:
            return ""
        first = failed[0]
        unit = "" if first.unit == "relative" else f" {first.unit}"
        return (
            f"{self.model.name!r} cannot be measured: it fails the self-test {first.name!r} by {first.error:.2g}{unit} "
            f"(rounding explains {first.tolerance:.0e}): {first.remedy}"
        )


def check_model(model: ProbedModel, sample: Sample | None = None) -> ModelCheck:
    """Prove on one prompt that captures and replays of a model are exact.

    Layer inputs are those that the model reports; every layer, called alone on its captured input, gives the next
    one; nothing removed and replayed from layer 0 gives the model's own output; visual tokens, and half of the text,
    removed in a replay give what the model itself gives when their columns are masked; queries and keys are those that
    its attention receives. This takes about as long as ten forwards.

    Args:
        model: as loaded.
        sample: the prompt; a picture of noise and a short question by default.

    Raises:
        HorizonError: the prompt cannot be encoded as the family says, or the forward cannot be captured.
    """
    prompt = encode(model, sample or default_sample())
    captured = _captured(model, prompt)
    properties = [
        _captured_in_order(model, captured),
        _layers_repeat(model, captured),
        _null_replay(model, captured),
        *_ablated_replays(model, captured),
        *_attention_receives(model, prompt),
        _answer_tokenizes(model, captured, sample),
    ]
    return ModelCheck(
        model=model,
        n_prompt=prompt.n_tokens,
        n_visual=len(prompt.visual),
        n_placeless=prompt.placeless,
        grids=tuple((grid.rows, grid.columns) for grid in prompt.grids),
        additions=tuple(sorted(captured.additions)),
        properties=tuple(properties),
    )


def _captured(model: ProbedModel, prompt: Prompt) -> Capture:
    try:
        return capture_prompt(model, prompt, ())
    except HorizonError:
        raise
    except Exception as error:  # whatever a model of unknown make raises, inside a trace
        reason = str(error).strip().split("\n", 1)[0]
        if model.quantization is not None:  # whose products are another package's, and differ by processor
            raise HorizonError(
                f"{model.name!r} cannot be run with {model.quantization} weights on {model.device} "
                f"({type(error).__name__}: {reason}): leave quantization out, or run it on another device"
            ) from error
        raise HorizonError(
            f"{model.name!r} cannot be captured: its layers do not run once each and in order, or its forward fails "
            f"({type(error).__name__}: {reason})"
        ) from error


def default_sample() -> Sample:
    """Noise over a gradient, wider than high, and a question that every chat template takes."""
    random = np.random.default_rng(0)
    height, width = 240, 360
    gradient = np.linspace(0, 200, width)[None, :, None] * np.array([1.0, 0.6, 0.3])
    pixels = gradient + random.integers(0, 56, (height, width, 3))
    return Sample("self-test", Image.fromarray(pixels.astype(np.uint8)), "What is in the image?", ())


def _captured_in_order(model: ProbedModel, captured: Capture) -> Property:
    """What plain hooks see of the residual stream: every layer called once, from the first to the last."""
    seen: list[tuple[int, torch.Tensor]] = []

    def note(k: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen.append((k, args[0] if args else kwargs["hidden_states"]))

        return hook

    _forward_with(model, captured.prompt, [(layer, note(k)) for k, layer in enumerate(model.layers)])
    in_order = [k for k, _ in seen] == list(range(model.n_layers))
    pairs = zip(captured.inputs, seen, strict=False)
    worst = max(_apart(ours, states[0]) for ours, (_, states) in pairs) if in_order else float("inf")
    remedy = "its layers do not run once each and in order, which captures assume"
    return Property("layer inputs are the model's own", worst, _state_tolerance(model), "relative", remedy)


@torch.no_grad()
def _forward_with(model: ProbedModel, prompt: Prompt, hooks: Sequence[tuple[torch.nn.Module, Any]]) -> torch.Tensor:
    """(vocabulary,) log-softmax at the prompt's end of the plain model, with hooks before some of its modules."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        logits = model.model(**prompt.inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return log_softmax(logits[0, -1])


def _layers_repeat(model: ProbedModel, captured: Capture) -> Property:
    """Every layer called alone on its captured input: one forward's work for all of them."""
    everything = torch.arange(captured.prompt.n_tokens, device=model.device)
    rows = Rows(everything[None], everything[:0])
    following = [*captured.inputs[1:], captured.final]
    worst = 0.0
    with torch.no_grad():
        for k, (states, expected) in enumerate(zip(captured.inputs, following, strict=True)):
            found = run_layer(model, captured, rows, states[None], k)[0]
            found = found + captured.additions[k] if k in captured.additions else found
            worst = np.nanmax([worst, _apart(found, expected)]) if np.isfinite(worst) else worst
    return Property("every layer repeats alone", float(worst), _state_tolerance(model), "relative", BETWEEN)


def _null_replay(model: ProbedModel, captured: Capture) -> Property:
    """Nothing removed, from layer 0, all rows from the first visual one on run again."""
    places = torch.arange(captured.prompt.n_tokens, device=model.device)
    nothing = Ablations(places[:1] * 0, (places < 0)[None])
    _, found = next(replay(model, captured, nothing, recompute=places >= captured.prompt.visual[0]))
    error = _log_p_apart(found[0, -1], captured.log_probs[-1], captured.log_probs[-1])
    return Property("an unablated replay is the model", error, _log_p_tolerance(model), "nats", BETWEEN)


def _ablated_replays(model: ProbedModel, captured: Capture) -> list[Property]:
    """Visual tokens (all, half) and half of the text removed in replays, and by the model with masked columns."""
    visual, text = captured.prompt.visual, replace(captured.prompt, tokens="text").removable
    layers = sorted({0, min(1, model.n_layers - 1), model.n_layers // 2, *_below(captured.additions, model.n_layers)})
    everything, half = "all of the visual tokens", "half of the visual tokens"
    parts = [(everything, visual), (half, visual[::2]), (everything, visual), (half, visual[1::2])] * 2
    chosen = [(words, tokens, k) for (words, tokens), k in zip(parts, layers, strict=False)]
    if len(text):  # from the first token on, so that everything is run again
        chosen.append(("half of the text", text[::2], 0))
    found = []
    for words, tokens, k in chosen:
        removed = torch.zeros(captured.prompt.n_tokens, dtype=torch.bool, device=model.device)
        removed[tokens] = True
        _, replayed = next(replay(model, captured, Ablations(visual[:1] * 0 + k, removed[None])))
        own, masked = captured.log_probs[-1], _masked_forward(model, captured, k, removed)
        error, effect = _log_p_apart(replayed[0, -1], masked, own), _log_p_apart(masked, own, own)
        remedy = "a replay differs from the model's own masked run; " + BETWEEN
        name = f"{words} removed from layer {k} on"
        found.append(Property(name, error, _log_p_tolerance(model), "nats", remedy, effect))
    return found


def _below(additions: Any, n_layers: int) -> list[int]:
    """The first layer above the last addition, if there is any."""
    return [min(max(additions) + 1, n_layers - 1)] if additions else []


def _masked_forward(model: ProbedModel, captured: Capture, k: int, removed: torch.Tensor) -> torch.Tensor:
    """(vocabulary,) log-softmax of the plain model in which, from layer k on, no other row sees a removed token."""
    diagonal = torch.eye(len(removed), dtype=torch.bool, device=removed.device)

    def hide(index: int) -> Any:
        matrix = visible(captured.arguments[index]["attention_mask"])
        matrix = torch.ones_like(diagonal).tril() if matrix is None else matrix
        allowed = (matrix & (~removed | diagonal))[None, None]
        mask = additive(allowed, model.dtype) if model.attn == "eager" else allowed
        return lambda _module, args, kwargs: (args, {**kwargs, "attention_mask": mask})

    hooks = [(model.layers[i], hide(i)) for i in range(k, model.n_layers)]
    with _taking_masks(model):
        return _forward_with(model, captured.prompt, hooks)


@contextmanager
def _taking_masks(model: ProbedModel) -> Iterator[None]:
    """FlashAttention takes no mask: for a masked run the model attends by sdpa."""
    plain: Any = model.model
    if model.attn != "flash":
        yield
        return
    plain.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        plain.set_attn_implementation(ATTENTION["flash"])


def _attention_receives(model: ProbedModel, prompt: Prompt) -> list[Property]:
    """Rotated queries and keys as the streams hold them against what the attention function is handed."""
    if model.attn not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        return []  # eager attention is a function of the architecture's own module: proved under sdpa
    with _recorded_attention(model) as received, torch.no_grad():
        model.model(**prompt.inputs, use_cache=False)
    found = []
    for stream, handed in zip(("query", "key"), zip(*received, strict=True), strict=True):
        try:
            states = capture_prompt(model, prompt, (stream,)).visual.states[stream]
        except HorizonError:  # the stream is refused with a sentence of its own where someone asks for it
            continue
        rows = torch.stack([state[0][:, prompt.visual].transpose(0, 1).flatten(1) for state in handed])
        error = _apart(states, rows) if rows.shape == states.shape else float("inf")
        remedy = f"leave the stream {stream!r} out: it is not what the attention receives"
        name = f"the stream {stream} is what attention receives"
        found.append(Property(name, error, _state_tolerance(model), "relative", remedy))
    return found


@contextmanager
def _recorded_attention(model: ProbedModel) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Queries and keys of every decoder layer, in order, as its attention function is handed them."""
    plain = ALL_ATTENTION_FUNCTIONS[model.attn]
    attentions = {id(module) for layer in model.layers for module in layer.modules()}
    received: list[tuple[torch.Tensor, torch.Tensor]] = []

    def recording(module: Any, query: torch.Tensor, key: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        if id(module) in attentions:
            received.append((query, key))
        return plain(module, query, key, *rest, **kwargs)

    AttentionInterface.register(model.attn, recording)
    try:
        yield received
    finally:
        AttentionInterface.register(model.attn, plain)


def _answer_tokenizes(model: ProbedModel, captured: Capture, sample: Sample | None) -> Property:
    """The sample's gold answer, or else one that the model itself finds likely, has a token to measure."""
    likely = captured.log_probs[-1].topk(min(LIKELY, model.vocab_size)).indices.tolist()
    texts = [text for token in likely if (text := model.tokenizer.decode([token], skip_special_tokens=True).strip())]
    samples = [sample] if sample and sample.answers else [replace(default_sample(), answers=(text,)) for text in texts]
    readable = any(_has_target(model, one) for one in samples)
    remedy = f"its tokenizer ({type(model.tokenizer).__name__}) gives no token for the answer: is it the model's own?"
    return Property("an answer has a token", 0.0 if readable else 1.0, 0.5, "relative", remedy)


def _has_target(model: ProbedModel, sample: Sample) -> bool:
    try:
        return bool(gold_target(model.tokenizer, sample).ids)
    except SampleError:
        return False


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    scale = float(theirs.double().abs().max())
    return float((ours.double() - theirs.double()).abs().max()) / (scale or 1.0)


def _log_p_apart(a: torch.Tensor, b: torch.Tensor, own: torch.Tensor) -> float:
    """Largest difference in log p of the tokens that are likely by the model's own forward."""
    likely = own.topk(min(LIKELY, len(own))).indices
    return float((a[likely] - b[likely]).abs().max())


def _state_tolerance(model: ProbedModel) -> float:
    return _tolerance(model, STATE_TOLERANCE)


def _log_p_tolerance(model: ProbedModel) -> float:
    return _tolerance(model, LOG_P_TOLERANCE)


def _tolerance(model: ProbedModel, by_dtype: dict[str, float]) -> float:
    tolerance = by_dtype[str(model.dtype).removeprefix("torch.")]
    if model.quantization == "8bit":  # its products are in float16, of columns that the rest of the batch decides
        tolerance = max(tolerance, by_dtype["float16"])
    return max(tolerance, EAGER_TOLERANCE) if model.attn == "eager" else tolerance
