"""The readout of a model, found when it is loaded: what its forward pass does to the values of its output embedding."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import nn

from analyses.runs import HorizonError
from probes.data.samples import first_line
from probes.models.probed import Readout, embedding_device

# The largest difference that rounding explains between two ways to the same states or logits, over the largest value.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
SHORT_TEXT = 4  # tokens of the forward pass


def find_readout(name: str, model: nn.Module, norm: nn.Module, head: nn.Module, visual: tuple[int, ...]) -> Readout:
    """Return how a model scales and caps its logits, from one forward pass over a short text without pictures.

    The configuration names the possible forms, but not whether the model's class follows them, so its own logits
    decide: the form that comes nearest is taken, if rounding explains the remaining difference.

    Args:
        name: the model's name, for the message.
        model: the transformers model.
        norm: the model's final norm.
        head: the model's output embedding.
        visual: ids that stand for visual tokens; the text has none of them.

    Returns:
        The factor and the cap that turn the values of the output embedding into the model's logits.

    Raises:
        HorizonError: the forward pass fails, or no known form explains its logits.
    """
    states, logits = _short_forward(name, model, norm, visual)
    with torch.no_grad():
        values = head(norm(states))
    errors = {form: relative_error(form(values), logits) for form in known_forms(model)}
    nearest = min(errors, key=errors.__getitem__)
    if not errors[nearest] <= TOLERANCE.get(values.dtype, TOLERANCE[torch.bfloat16]):
        raise HorizonError(
            f"the logits of {name!r} are not what its output embedding gives, nor that scaled or softly capped as its "
            f"configuration says (they differ by {errors[nearest]:.2g} of the largest): it cannot be read after a "
            "replay; describe what its forward pass does to them in probes/loading/readouts.py"
        )
    return nearest


def known_forms(model: nn.Module) -> list[Readout]:
    """Return the forms that a model's configuration names, and their combinations; the plain one is first."""
    config: Any = model.config
    scales: list[float] = [1.0]
    caps: list[float | None] = [None]
    for part in (config, config.get_text_config(decoder=True)):
        scale, divisor = getattr(part, "logit_scale", None), getattr(part, "logits_scaling", None)
        scales += [float(scale)] if isinstance(scale, int | float) and scale else []
        scales += [1.0 / float(divisor)] if divisor else []
        cap = getattr(part, "final_logit_softcapping", None)
        caps += [float(cap)] if cap else []
    return [Readout(scale, cap) for scale, cap in product(dict.fromkeys(scales), dict.fromkeys(caps))]


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value of `theirs`."""
    scale = float(theirs.double().abs().max())
    return float((ours.double() - theirs.double()).abs().max()) / (scale or 1.0)


@torch.no_grad()
def _short_forward(
    name: str, model: nn.Module, norm: nn.Module, visual: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the input of the final norm, (token, hidden), and the logits, (token, vocabulary), of a short text."""
    received: list[torch.Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _norm, args: received.append(args[0]))
    ids = [token for token in range(SHORT_TEXT + len(visual)) if token not in visual][:SHORT_TEXT]
    text = torch.tensor([ids], device=embedding_device(model))
    try:
        logits = model(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False).logits
    except Exception as error:  # a model of an unknown family may raise anything
        raise HorizonError(
            f"the forward pass of {name!r} fails on a text of {SHORT_TEXT} tokens ({type(error).__name__}: "
            f"{first_line(error)}): what it does to its logits cannot be found"
        ) from error
    finally:
        handle.remove()
    if not received:
        raise HorizonError(f"the forward pass of {name!r} does not run the final norm of its decoder")
    return received[-1][0], logits[0]
