"""Copies of a LLaVA whose information horizon, or whose entropy collapse, is known because it was built in.

A plant lives inside a module of the decoder, in a subclass with the same children, and it recognizes visual rows by the
position that their rotary embedding encodes. So it holds in a plain forward, under a trace, and where layers are called
one by one on some of the rows, with the caller's own masks, on top of cached rows from the start of the sequence and of
rows whose keys a call that was broken off has just computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer


def rotary_positions(position_embeddings, rotary) -> torch.Tensor:
    """(row, token) positions that (cos, sin) stand for, read off the slowest pair, which never comes full circle."""
    cos, sin = (table[..., -1].double() for table in position_embeddings)
    return (torch.atan2(sin, cos) / rotary.inv_freq[-1].double()).round().long()


class CutAttention(LlamaAttention):
    """Attention in which no token outside `visual` (positions) attends to one inside."""

    _before: torch.Tensor | None = None

    def plant(self, rotary, visual: Sequence[int]) -> None:
        self._rotary = (rotary,)  # in a tuple: no child module, the names stay as they were
        self._visual = torch.tensor(visual)

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        positions = rotary_positions(position_embeddings, self._rotary[0])
        before, self._before = self._before, positions  # stays where the caller breaks this call off
        columns = positions if before is None else torch.cat([before, positions], dim=1)
        n = columns.shape[-1]
        if attention_mask is None:  # causal
            attention_mask = torch.ones(1, 1, n, n, dtype=torch.bool, device=columns.device).tril()
        # under a causal mask what is cached, and stands before the newest n columns, is the sequence from its start
        cached = torch.arange(attention_mask.shape[-1] - n, device=columns.device).expand(len(columns), -1)
        queries, keys = (torch.isin(at, self._visual) for at in (positions, torch.cat([cached, columns], dim=1)))
        cut = (~queries)[:, None, :, None] & keys[:, None, None, :]
        blocked = False if attention_mask.dtype == torch.bool else torch.finfo(attention_mask.dtype).min
        attention_mask = torch.where(cut, blocked, attention_mask)
        output = super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        self._before = None
        return output


class CollapsingLayer(LlamaDecoderLayer):
    """Decoder layer whose output is projected onto a few directions at the positions `visual`."""

    def plant(self, rotary, visual: range, directions: torch.Tensor) -> None:
        """directions: (direction, hidden), orthonormal."""
        self._rotary, self._visual, self._directions = (rotary,), visual, directions

    def forward(self, hidden_states, position_embeddings=None, **kwargs):
        output = super().forward(hidden_states, position_embeddings=position_embeddings, **kwargs)
        positions = rotary_positions(position_embeddings, self._rotary[0])
        visual = (positions >= self._visual.start) & (positions < self._visual.stop)
        directions = self._directions.to(output)
        return torch.where(visual[..., None], output @ directions.T @ directions, output)


def cut_from(model: LlavaForConditionalGeneration, layer: int, visual: Sequence[int]) -> LlavaForConditionalGeneration:
    """A copy in which, from decoder layer `layer` on, the text no longer attends to the visual positions.

    With some of them only, nor do the other visual rows: what remains to be seen are those others.
    """
    model = deepcopy(model)
    decoder = model.get_decoder()
    for k in range(layer, len(decoder.layers)):
        attention = CutAttention(decoder.config, k).to(model.dtype)
        attention.load_state_dict(decoder.layers[k].self_attn.state_dict())
        attention.plant(decoder.rotary_emb, visual)
        decoder.layers[k].self_attn = attention
    return model.eval()


def collapsed_at(
    model: LlavaForConditionalGeneration, layer: int, visual: range, directions: torch.Tensor
) -> LlavaForConditionalGeneration:
    """A copy whose visual rows at the input of decoder layer `layer` (1 or more) lie in a fixed plane.

    directions: (direction, hidden), orthonormal.
    """
    model = deepcopy(model)
    decoder = model.get_decoder()
    collapsing = CollapsingLayer(decoder.config, layer - 1).to(model.dtype)
    collapsing.load_state_dict(decoder.layers[layer - 1].state_dict())
    collapsing.plant(decoder.rotary_emb, visual, directions)
    decoder.layers[layer - 1] = collapsing
    return model.eval()


def plane_of(rows: torch.Tensor) -> torch.Tensor:
    """(2, hidden) orthonormal directions that span the mean of (token, hidden) rows and where they vary most.

    Projected on that plane, rows stay what the later layers are used to. After a projection on arbitrary directions
    these amplify what is left of them, and the entropy rises by more than it fell.
    """
    mean = rows.mean(dim=0, keepdim=True)
    steepest = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:1]
    return torch.linalg.qr(torch.cat([mean, steepest]).T).Q.T


@torch.no_grad()
def unrotated_from(model: LlavaForConditionalGeneration, layer: int) -> LlavaForConditionalGeneration:
    """A copy whose queries and keys, from decoder layer `layer` on, live in the slowest rotary pair of each head.

    That pair turns by 2e-4 radians a token, so that position no longer spreads what the states do not.
    """
    model = deepcopy(model)
    for decoder_layer in model.get_decoder().layers[layer:]:
        attention = decoder_layer.self_attn
        for projection in (attention.q_proj, attention.k_proj):
            heads = projection.weight.view(-1, attention.head_dim, projection.in_features)
            kept = torch.zeros(attention.head_dim, dtype=torch.bool)
            kept[[attention.head_dim // 2 - 1, attention.head_dim - 1]] = True
            heads[:, ~kept] = 0.0
    return model
