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
from probes.data.samples import Sample, SampleError, first_line
from probes.loading.readouts import TOLERANCE, relative_error
from probes.models.probed import ATTENTION, ProbedModel
from probes.models.prompts import Prompt, encode
from probes.models.targets import gold_target
from probes.replay.ablations import Ablations
from probes.replay.capture import Capture, capture_prompt, log_softmax
from probes.replay.replay import replay, run_layer
from probes.replay.visibility import Rows, additive, visible

# The errors that rounding may cause, relative to the largest state and in log p of the likely tokens in nats: a step
# that a replay misses causes far larger ones.
TOLERANCES = {
    "relative": TOLERANCE,
    "nats": {torch.float64: 1e-8, torch.float32: 5e-3, torch.float16: 0.1, torch.bfloat16: 0.5},
}
EAGER_TOLERANCE = 1e-4  # transformers' eager softmax is in float32 whatever the model's dtype
LIKELY = 20  # number of tokens whose log p is compared, the most likely ones of the model's own forward
BETWEEN = "read the family's source for what it does between its layers, and describe it in probes/models/families.py"


@dataclass(frozen=True)
class Property:
    """One property of a model, with the result of its test.

    Attributes:
        name: the property, in words.
        error: the largest difference that the test measured, in `unit`.
        tolerance: the largest difference that rounding explains, in `unit`.
        unit: "relative" to the largest state, or "nats".
        remedy: the user's next step if the property fails.
        effect: the change that the ablation itself caused, in nats, since a test without effect proves nothing; None
            for a test without ablation.
    """

    name: str
    error: float
    tolerance: float
    unit: str
    remedy: str
    effect: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the property holds; an error that is not a number fails."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class ModelCheck:
    """The result of the self-test.

    Attributes:
        model: the model under test.
        n_prompt, n_visual, n_placeless: number of all, visual and placeless tokens of the test's prompt.
        grids: (rows, columns) of each patch grid in the prompt.
        additions: layers after which the model itself adds to the residual stream.
        properties: the properties in the order of their tests.
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
        """Whether every property holds."""
        return all(test.passed for test in self.properties)

    @property
    def refusal(self) -> str:
        """A sentence that says which property fails, by how much and what to do; empty where all hold."""
        failures = [test for test in self.properties if not test.passed]
        if not failures:
            return ""
        first = failures[0]
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
        model: the model under test.
        sample: the sample to test with; a picture of noise and a short question by default.

    Raises:
        HorizonError: the prompt cannot be encoded as the family says, or the forward cannot be captured.
    """
    prompt = encode(model, sample or default_sample())
    captured = _capture(model, prompt)
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


def _capture(model: ProbedModel, prompt: Prompt) -> Capture:
    """Return the capture of a prompt, and raise HorizonError with the reason where it fails."""
    try:
        return capture_prompt(model, prompt, ())
    except HorizonError:
        raise
    except Exception as error:  # a model of an unknown family may raise anything inside a trace
        reason = first_line(error)
        if model.quantization is not None:  # its products come from another package and differ by processor
            raise HorizonError(
                f"{model.name!r} cannot be run with {model.quantization} weights on {model.device} "
                f"({type(error).__name__}: {reason}): leave quantization out, or run it on another device"
            ) from error
        raise HorizonError(
            f"{model.name!r} cannot be captured: its layers do not run once each and in order, or its forward fails "
            f"({type(error).__name__}: {reason})"
        ) from error


def default_sample() -> Sample:
    """Return a sample of noise over a gradient, wider than high, with a question that every chat template takes."""
    random = np.random.default_rng(0)
    height, width = 240, 360
    gradient = np.linspace(0, 200, width)[None, :, None] * np.array([1.0, 0.6, 0.3])
    pixels = gradient + random.integers(0, 56, (height, width, 3))
    return Sample("self-test", Image.fromarray(pixels.astype(np.uint8)), "What is in the image?", ())


def _captured_in_order(model: ProbedModel, captured: Capture) -> Property:
    """Test that plain hooks see the captured layer inputs, every layer called once, from the first to the last."""
    calls: list[tuple[int, torch.Tensor]] = []

    def note(k: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            calls.append((k, args[0] if args else kwargs["hidden_states"]))

        return hook

    _forward_with(model, captured.prompt, [(layer, note(k)) for k, layer in enumerate(model.layers)])
    in_order = [k for k, _ in calls] == list(range(model.n_layers))
    pairs = zip(captured.inputs, calls, strict=False)
    error = max(relative_error(ours, states[0]) for ours, (_, states) in pairs) if in_order else float("inf")
    remedy = "its layers do not run once each and in order, which captures assume"
    return _property(model, "layer inputs are the model's own", error, "relative", remedy)


@torch.no_grad()
def _forward_with(model: ProbedModel, prompt: Prompt, hooks: Sequence[tuple[torch.nn.Module, Any]]) -> torch.Tensor:
    """Return the plain model's log-softmax at the prompt's end, (vocabulary,), with hooks before some modules."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        logits = model.model(**prompt.inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return log_softmax(logits[0, -1])


def _layers_repeat(model: ProbedModel, captured: Capture) -> Property:
    """Test that every layer, called alone on its captured input, gives the next input; this costs one forward."""
    positions = torch.arange(captured.prompt.n_tokens, device=model.device)
    rows = Rows(positions[None], positions[:0])
    following = [*captured.inputs[1:], captured.final]
    error = 0.0
    with torch.no_grad():
        for k, (states, expected) in enumerate(zip(captured.inputs, following, strict=True)):
            output = run_layer(model, captured, rows, states[None], k)[0]
            output = output + captured.additions[k] if k in captured.additions else output
            error = np.nanmax([error, relative_error(output, expected)]) if np.isfinite(error) else error
    return _property(model, "every layer repeats alone", float(error), "relative", BETWEEN)


def _null_replay(model: ProbedModel, captured: Capture) -> Property:
    """Test that a replay that removes nothing and runs all rows from the first visual one on is the model."""
    positions = torch.arange(captured.prompt.n_tokens, device=model.device)
    null_ablation = Ablations(positions[:1] * 0, (positions < 0)[None])
    _, log_probs = next(replay(model, captured, null_ablation, recompute=positions >= captured.prompt.visual[0]))
    error = _log_p_error(log_probs[0, -1], captured.log_probs[-1], captured.log_probs[-1])
    return _property(model, "an unablated replay is the model", error, "nats", BETWEEN)


def _ablated_replays(model: ProbedModel, captured: Capture) -> list[Property]:
    """Test that replays without visual tokens (all, half) or half of the text equal the model with masked columns."""
    visual, text = captured.prompt.visual, replace(captured.prompt, tokens="text").removable
    last = model.n_layers - 1
    above_additions = {min(max(captured.additions) + 1, last)} if captured.additions else set()
    layers = sorted({0, min(1, last), model.n_layers // 2} | above_additions)
    every_visual, half_visual = "all of the visual tokens", "half of the visual tokens"
    parts = [
        (every_visual, visual),
        (half_visual, visual[::2]),
        (every_visual, visual),
        (half_visual, visual[1::2]),
    ] * 2
    cases = [(words, tokens, k) for (words, tokens), k in zip(parts, layers, strict=False)]
    if len(text):  # from the first token on, so that everything is run again
        cases.append(("half of the text", text[::2], 0))
    properties = []
    for words, tokens, k in cases:
        removed = torch.zeros(captured.prompt.n_tokens, dtype=torch.bool, device=model.device)
        removed[tokens] = True
        _, replayed = next(replay(model, captured, Ablations(visual[:1] * 0 + k, removed[None])))
        plain, masked = captured.log_probs[-1], _masked_forward(model, captured, k, removed)
        error, effect = _log_p_error(replayed[0, -1], masked, plain), _log_p_error(masked, plain, plain)
        remedy = "a replay differs from the model's own masked run; " + BETWEEN
        name = f"{words} removed from layer {k} on"
        properties.append(_property(model, name, error, "nats", remedy, effect))
    return properties


def _masked_forward(model: ProbedModel, captured: Capture, k: int, removed: torch.Tensor) -> torch.Tensor:
    """Return the plain model's log-softmax, (vocabulary,), where no other row sees a removed token from layer k on."""
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
    """Have a model with FlashAttention, which takes no mask, attend by sdpa during a masked run."""
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
    """Test that the streams' rotated queries and keys are those that the attention function receives."""
    if model.attn not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        return []  # eager attention belongs to the architecture's own module and cannot be wrapped: proved under sdpa
    with _recorded_attention(model) as received, torch.no_grad():
        model.model(**prompt.inputs, use_cache=False)
    properties = []
    for stream, arguments in zip(("query", "key"), zip(*received, strict=True), strict=True):
        try:
            states = capture_prompt(model, prompt, (stream,)).visual.states[stream]
        except HorizonError:  # whoever names this stream gets its refusal, with the reason
            continue
        rows = torch.stack([state[0][:, prompt.visual].transpose(0, 1).flatten(1) for state in arguments])
        error = relative_error(states, rows) if rows.shape == states.shape else float("inf")
        remedy = f"leave the stream {stream!r} out: it is not what the attention receives"
        name = f"the stream {stream} is what attention receives"
        properties.append(_property(model, name, error, "relative", remedy))
    return properties


@contextmanager
def _recorded_attention(model: ProbedModel) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Yield a list that collects queries and keys as each decoder layer's attention function receives them."""
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
    """Test that the sample's gold answer, or else a text that the model makes likely, has a token to measure."""
    likely = captured.log_probs[-1].topk(min(LIKELY, model.vocab_size)).indices.tolist()
    texts = [text for token in likely if (text := model.tokenizer.decode([token], skip_special_tokens=True).strip())]
    samples = [sample] if sample and sample.answers else [replace(default_sample(), answers=(text,)) for text in texts]
    readable = any(_has_target(model, candidate) for candidate in samples)
    remedy = f"its tokenizer ({type(model.tokenizer).__name__}) gives no token for the answer: is it the model's own?"
    return Property("an answer has a token", 0.0 if readable else 1.0, 0.5, "relative", remedy)


def _has_target(model: ProbedModel, sample: Sample) -> bool:
    """Return whether the sample's gold answer has a token to measure."""
    try:
        return bool(gold_target(model.tokenizer, sample).ids)
    except SampleError:
        return False


def _log_p_error(a: torch.Tensor, b: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest difference in log p, in nats, over the tokens that `reference` makes most likely."""
    likely = reference.topk(min(LIKELY, len(reference))).indices
    return float((a[likely] - b[likely]).abs().max())


def _property(
    model: ProbedModel, name: str, error: float, unit: str, remedy: str, effect: float | None = None
) -> Property:
    """Return a property with the tolerance of the model's dtype, widened for 8-bit weights and for eager attention."""
    by_dtype = TOLERANCES[unit]
    tolerance = by_dtype[model.dtype]
    if model.quantization == "8bit":  # its products are in float16, over columns that depend on the rest of the batch
        tolerance = max(tolerance, by_dtype[torch.float16])
    tolerance = max(tolerance, EAGER_TOLERANCE) if model.attn == "eager" else tolerance
    return Property(name, error, tolerance, unit, remedy, effect)
