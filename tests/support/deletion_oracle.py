"""What an ablation must give, by torch hooks on the plain model: slow, and simple enough to be trusted at sight.

Nothing here comes from the project. `layer` is the 0-based decoder layer from whose input on the rows are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Change = Callable[[torch.Tensor, dict[str, Any]], tuple[torch.Tensor, dict[str, Any]]]


def visual_tokens(model, inputs) -> torch.Tensor:
    """(token,) bool."""
    return inputs["input_ids"][0] == model.config.image_token_id


@contextmanager
def changed_layers(model, changes: dict[int, Change]) -> Iterator[None]:
    """Let each layer k of `changes` see what its function makes of (hidden, keyword arguments)."""

    def before(change: Change):
        def hook(_layer, args, kwargs):
            hidden, kwargs = change(args[0], dict(kwargs))
            return (hidden,), kwargs

        return hook

    layers = model.get_decoder().layers
    handles = [layers[k].register_forward_pre_hook(before(c), with_kwargs=True) for k, c in changes.items()]
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def last_logits(model, inputs, changes: dict[int, Change] | None = None) -> torch.Tensor:
    """(vocabulary,) logits at the last position of the plain model, with some layers' inputs changed."""
    pixels = inputs["pixel_values"].to(model.dtype)
    with changed_layers(model, changes or {}):
        return model(**{**inputs, "pixel_values": pixels}, use_cache=False).logits[0, -1]


def deleted_logits(model, inputs, layer: int, removed: torch.Tensor) -> torch.Tensor:
    """Physical deletion: gather the kept rows at the input of `layer`; what is kept keeps its position.

    removed: (token,) bool.
    """
    kept = (~removed).nonzero()[:, 0]

    def gather_arguments(hidden, kwargs):
        mask = kwargs["attention_mask"]
        kwargs["attention_mask"] = None if mask is None else mask[:, :, kept][..., kept]
        kwargs["position_ids"] = kwargs["position_ids"][:, kept]
        kwargs["position_embeddings"] = tuple(table[:, kept] for table in kwargs["position_embeddings"])
        return hidden, kwargs

    def gather_all(hidden, kwargs):
        return gather_arguments(hidden[:, kept], kwargs)

    changes: dict[int, Change] = dict.fromkeys(range(layer, len(model.get_decoder().layers)), gather_arguments)
    if layer in changes:
        changes[layer] = gather_all
    return last_logits(model, inputs, changes)


def masked_logits(model, inputs, layer: int, removed: torch.Tensor) -> torch.Tensor:
    """The same estimand by another way: all rows stay, and from `layer` on none attends to a removed one but itself."""
    n = len(removed)
    seen = torch.ones(n, n, dtype=torch.bool).tril() & (~removed | torch.eye(n, dtype=torch.bool))

    def hide(hidden, kwargs):
        kwargs["attention_mask"] = torch.zeros(1, 1, n, n, dtype=hidden.dtype).masked_fill(
            ~seen, torch.finfo(hidden.dtype).min
        )
        return hidden, kwargs

    return last_logits(model, inputs, dict.fromkeys(range(layer, len(model.get_decoder().layers)), hide))


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


def replaced_logits(model, inputs, layer: int, removed: torch.Tensor, kind: str) -> torch.Tensor:
    """Rows overwritten once, at the input of `layer`: by zeros, or by the mean of all visual rows there."""
    visual = visual_tokens(model, inputs)

    def overwrite(hidden, kwargs):
        hidden = hidden.clone()
        hidden[:, removed] = 0.0 if kind == "zero" else hidden[:, visual].mean(1, keepdim=True)
        return hidden, kwargs

    return last_logits(model, inputs, {layer: overwrite} if layer < len(model.get_decoder().layers) else None)


def ablated_logits(model, inputs, layer: int, removed: torch.Tensor, kind: str = "delete") -> torch.Tensor:
    """(vocabulary,) logits with the rows of `removed` (token,) bool ablated from the input of `layer` on."""
    if kind == "delete":
        return deleted_logits(model, inputs, layer, removed)
    return replaced_logits(model, inputs, layer, removed, kind)


def target_log_p(logits: torch.Tensor, target_ids) -> float:
    """Log-probability, in nats, of any of the ids coming next."""
    return float(logits.log_softmax(-1)[list(target_ids)].logsumexp(-1))


@torch.no_grad()
def recorded_states(model, inputs) -> dict[str, torch.Tensor]:
    """(layer, token, dim) of the visual tokens for every stream, by hooks and a recording attention function."""
    model = deepcopy(model)
    streams: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("query", "key", "query_raw", "key_raw", "value", "hidden")
    }

    def recording_attention(module, query, key, value, mask, **kwargs):
        streams["query"].append(query[0].transpose(0, 1).flatten(1))
        streams["key"].append(key[0].transpose(0, 1).flatten(1))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("recording", recording_attention)
    AttentionMaskInterface.register("recording", sdpa_mask)
    model.set_attn_implementation({"text_config": "recording"})
    decoder = model.get_decoder()
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _m, args: streams["hidden"].append(args[0][0]))
        for name, projection in (("query_raw", "q_proj"), ("key_raw", "k_proj"), ("value", "v_proj")):
            getattr(layer.self_attn, projection).register_forward_hook(
                lambda _m, _args, output, name=name: streams[name].append(output[0])
            )
    decoder.norm.register_forward_pre_hook(lambda _m, args: streams["hidden"].append(args[0][0]))
    last_logits(model, inputs)
    visual = visual_tokens(model, inputs)
    return {name: torch.stack([state[visual] for state in states]) for name, states in streams.items()}
