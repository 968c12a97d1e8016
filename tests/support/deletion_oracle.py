"""What an ablation must give, by torch hooks on the plain model: slow, and simple enough to be trusted at sight.

Nothing here comes from the project. `layer` is the 0-based decoder layer from whose input on the rows are gone.
`removed` is (token,) bool, and in a model with cross-attention (state,) bool over the rows of its visual states.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

Change = Callable[[torch.Tensor, dict[str, Any]], tuple[torch.Tensor, dict[str, Any]]]
After = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def decoder_of(model) -> torch.nn.Module:
    """The module that holds the decoder's layers; Llama 4 hides it one deeper."""
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "layers") else decoder.model


def visual_tokens(model, inputs) -> torch.Tensor:
    """(token,) bool: placeholders of images and videos."""
    ids = [getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")]
    return torch.isin(inputs["input_ids"][0], torch.tensor([token for token in ids if token is not None]))


@contextmanager
def changed_layers(model, changes: dict[int, Change], afters: dict[int, After] | None = None) -> Iterator[None]:
    """Let each layer k of `changes` see what its function makes of (hidden, keyword arguments).

    Each function of `afters` makes the layer's output from (what the layer was given, what it returned).
    """
    given: dict[int, torch.Tensor] = {}

    def before(k: int, change: Change):
        def hook(_layer, args, kwargs):
            given[k] = args[0]
            hidden, kwargs = change(args[0], dict(kwargs))
            return (hidden, *args[1:]), kwargs

        return hook

    def after(k: int, finish: After):
        return lambda _layer, _args, output: finish(given[k], output)

    layers = decoder_of(model).layers
    handles = [layers[k].register_forward_pre_hook(before(k, c), with_kwargs=True) for k, c in changes.items()]
    handles += [layers[k].register_forward_hook(after(k, finish)) for k, finish in (afters or {}).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def last_logits(
    model, inputs, changes: dict[int, Change] | None = None, afters: dict[int, After] | None = None
) -> torch.Tensor:
    """(vocabulary,) logits at the last position of the plain model, with some layers' inputs and outputs changed."""
    cast = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    with changed_layers(model, changes or {}, afters):
        return model(**cast, use_cache=False).logits[0, -1]


def deleted_logits(model, inputs, layer: int, removed: torch.Tensor) -> torch.Tensor:
    """Physical deletion: layers from `layer` on see the kept rows alone; what is kept keeps its position.

    Between layers the sequence has its full length again, so that what the model itself adds there (deepstack) goes
    where it belongs; the rows that are gone hold NaN, which nothing that looked at them would survive.
    """
    kept = (~removed).nonzero()[:, 0]

    def gather(hidden, kwargs):
        mask, positions = kwargs["attention_mask"], kwargs.get("position_ids")
        kwargs["attention_mask"] = None if mask is None else mask[:, :, kept][..., kept]
        kwargs["position_ids"] = None if positions is None else positions[:, kept]
        kwargs["position_embeddings"] = _gather_rotary(kwargs["position_embeddings"], kept)
        return hidden[:, kept], kwargs

    def scatter(given, output):
        full = torch.full_like(given, torch.nan)
        full[:, kept] = output
        return full

    if _cross_attention_layers(model):
        return _deleted_states(model, inputs, layer, removed)
    later = range(layer, len(decoder_of(model).layers))
    return last_logits(model, inputs, dict.fromkeys(later, gather), dict.fromkeys(later, scatter))


def _gather_rotary(tables, kept: torch.Tensor):
    """(..., token, dim) tables, alone or several, at the kept tokens."""
    return tables[..., kept, :] if isinstance(tables, torch.Tensor) else tuple(t[..., kept, :] for t in tables)


def masked_logits(model, inputs, layer: int, removed: torch.Tensor) -> torch.Tensor:
    """The same estimand by another way: all rows stay, and from `layer` on none attends to a removed one but itself.

    The model's own masks (sliding windows, blocks that attend in both directions) stay in force.
    """
    n = len(removed)
    allowed = ~removed | torch.eye(n, dtype=torch.bool)

    def hide(hidden, kwargs):
        seen = visible(kwargs["attention_mask"], n) & allowed
        kwargs["attention_mask"] = additive(seen[None, None], hidden.dtype)
        return hidden, kwargs

    if _cross_attention_layers(model):
        return _masked_states(model, inputs, layer, removed)
    return last_logits(model, inputs, dict.fromkeys(range(layer, len(decoder_of(model).layers)), hide))


def visible(mask: torch.Tensor | None, n: int) -> torch.Tensor:
    """(query, key) bool of a layer's mask argument; None is the causal mask."""
    if mask is None:
        return torch.ones(n, n, dtype=torch.bool).tril()
    return mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] > torch.finfo(mask.dtype).min / 2


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where allowed, the smallest number elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def _cross_attention_layers(model) -> list[int]:
    """Layers that attend to visual states beside the sequence (Mllama)."""
    return list(getattr(model.config.get_text_config(), "cross_attention_layers", None) or [])


def _deleted_states(model, inputs, layer: int, removed: torch.Tensor) -> torch.Tensor:
    """Cross-attention to the kept states alone; without any, such a layer is left out, as in a text-only prompt."""
    kept = (~removed).nonzero()[:, 0]

    def gather(hidden, kwargs):
        kwargs["cross_attention_states"] = kwargs["cross_attention_states"].flatten(0, 1)[None, kept]
        kwargs["cross_attention_mask"] = kwargs["cross_attention_mask"][..., kept]
        return hidden, kwargs

    return _with_cross_layers(model, inputs, layer, gather, skipped=len(kept) == 0)


def _masked_states(model, inputs, layer: int, removed: torch.Tensor) -> torch.Tensor:
    """All states stay, and no row attends to a removed one; a softmax over none is not defined, so then as above."""

    def hide(hidden, kwargs):
        mask = kwargs["cross_attention_mask"].clone()
        mask[..., removed] = torch.finfo(mask.dtype).min
        kwargs["cross_attention_mask"] = mask
        return hidden, kwargs

    return _with_cross_layers(model, inputs, layer, hide, skipped=bool(removed.all()))


def _with_cross_layers(model, inputs, layer: int, change: Change, skipped: bool) -> torch.Tensor:
    later = [k for k in _cross_attention_layers(model) if k >= layer]
    if not skipped:
        return last_logits(model, inputs, dict.fromkeys(later, change))
    same = dict.fromkeys(later, lambda hidden, kwargs: (hidden, kwargs))
    return last_logits(model, inputs, same, dict.fromkeys(later, lambda given, _output: given))


def gated_logits(model, inputs, log_gates: torch.Tensor) -> torch.Tensor:
    """Logits with the softmax numerator of every visual token's key times a gate, for all rows but its own.

    log_gates: (layer, visual token).
    """
    visual = visual_tokens(model, inputs)
    n = len(visual)

    def gate(layer_gates):
        def hide(hidden, kwargs):
            added = torch.zeros(n, n, dtype=hidden.dtype)
            added[:, visual] = layer_gates.to(hidden.dtype)
            added.fill_diagonal_(0.0)
            blocked = ~torch.ones(n, n, dtype=torch.bool).tril() | (added == -torch.inf)
            kwargs["attention_mask"] = added.masked_fill(blocked, torch.finfo(hidden.dtype).min)[None, None]
            return hidden, kwargs

        return hide

    return last_logits(model, inputs, {k: gate(row) for k, row in enumerate(log_gates)})


def replaced_logits(
    model, inputs, layer: int, removed: torch.Tensor, kind: str, among: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows overwritten once, at the input of `layer`: by zeros, or by the mean of the rows `among`, else all visual."""
    among = visual_tokens(model, inputs) if among is None else among

    def overwrite(hidden, kwargs):
        hidden = hidden.clone()
        hidden[:, removed] = 0.0 if kind == "zero" else hidden[:, among].mean(1, keepdim=True)
        return hidden, kwargs

    return last_logits(model, inputs, {layer: overwrite} if layer < len(decoder_of(model).layers) else None)


def ablated_logits(model, inputs, layer: int, removed: torch.Tensor, kind: str = "delete") -> torch.Tensor:
    """(vocabulary,) logits with the rows of `removed` ablated from the input of `layer` on."""
    if kind == "delete":
        return deleted_logits(model, inputs, layer, removed)
    return replaced_logits(model, inputs, layer, removed, kind)


def target_log_p(logits: torch.Tensor, target_ids) -> float:
    """Log-probability, in nats, of any of the ids coming next."""
    return float(logits.log_softmax(-1)[list(target_ids)].logsumexp(-1))


@torch.no_grad()
def recorded_inputs(model, inputs) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """(token, hidden) input and keyword arguments of every layer, then the final norm's input with none."""
    calls: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def record(hidden, kwargs):
        calls.append((hidden[0], kwargs))
        return hidden, kwargs

    decoder = decoder_of(model)
    handle = decoder.norm.register_forward_pre_hook(lambda _m, args: calls.append((args[0][0], {})))
    last_logits(model, inputs, dict.fromkeys(range(len(decoder.layers)), record))
    handle.remove()
    return calls


@torch.no_grad()
def recorded_states(model, inputs) -> dict[str, torch.Tensor]:
    """(layer, token, dim) of the visual tokens for every stream, by hooks and a recording attention function.

    `query` and `key` are what the attention function receives, key heads not repeated. `query_raw` and `key_raw` are
    the same before rotary embedding: after the norm over heads where the family has one, else after the projection.
    """
    model = deepcopy(model)
    streams: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("query", "key", "query_raw", "key_raw", "value", "hidden")
    }
    decoder = decoder_of(model)
    _record_attention(model, streams)
    for layer in decoder.layers:
        attention = layer.self_attn
        layer.register_forward_pre_hook(lambda _m, args: streams["hidden"].append(args[0][0]))
        for name, letter in (("query_raw", "q"), ("key_raw", "k"), ("value", "v")):
            module = getattr(attention, f"{letter}_norm", None) or getattr(attention, f"{letter}_proj")
            module.register_forward_hook(
                lambda _m, _args, output, name=name: streams[name].append(_token_first(output[0], inputs))
            )
    decoder.norm.register_forward_pre_hook(lambda _m, args: streams["hidden"].append(args[0][0]))
    last_logits(model, inputs)
    visual = visual_tokens(model, inputs)
    return {name: torch.stack([state[visual] for state in states]) for name, states in streams.items()}


def _record_attention(model, streams: dict[str, list[torch.Tensor]]) -> None:
    """Send every query and key of the decoder's attention past `streams`."""
    attention = decoder_of(model).layers[0].self_attn
    sdpa = model.config.get_text_config()._attn_implementation == "sdpa"
    own = sdpa_attention_forward if sdpa else sys.modules[type(attention).__module__].eager_attention_forward

    def recording_attention(module, query, key, value, mask, **kwargs):
        streams["query"].append(query[0].transpose(0, 1).flatten(1))
        streams["key"].append(key[0].transpose(0, 1).flatten(1))
        return own(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("recording", recording_attention)
    AttentionMaskInterface.register("recording", sdpa_mask if sdpa else eager_mask)
    model.set_attn_implementation({"text_config": "recording"})


def _token_first(states: torch.Tensor, inputs) -> torch.Tensor:
    """(token, dim), (token, head, dim) or (head, token, dim) -> (token, dim)."""
    if states.ndim == 3 and states.shape[0] != inputs["input_ids"].shape[1]:
        states = states.transpose(0, 1)
    return states.flatten(1)
