"""Training of a demo model, counted in steps: its vision tower alone first, then everything.

Muon moves the hidden matrices, AdamW the rest; on a model this small that learns several times faster than AdamW
alone. Everything runs in bfloat16 but attention.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from batches import LEAD, N_PATCH_COLORS, N_THINGS, NO_LABEL, PREFIX, PackedBatch, packed_batch, patch_batch
from checkpoint import HIDDEN
from torch.nn import functional
from transformers import AttentionInterface, LlavaForConditionalGeneration

BACKGROUND_WEIGHT = 0.2  # most patches show nothing
REPORT_EVERY = 50  # steps


@dataclass(frozen=True)
class TowerStage:
    """The vision tower learns what each patch shows, and so stands in for a pretrained one."""

    steps: int
    pictures: int = 32
    muon_rate: float = 0.02
    adamw_rate: float = 2e-3
    warmup_steps: int = 50


@dataclass(frozen=True)
class Stage:
    """One learning-rate schedule over the whole model: linear warm-up, then half a cosine.

    Attributes:
        steps: steps that are run.
        schedule_steps: steps that the schedule is laid out over; a stage may end before its schedule does.
        pictures: pictures a step.
        muon_rate: peak learning rate of the hidden matrices.
        adamw_rate: peak learning rate of everything else.
        warmup: share of the schedule.
        blind: share of the questions that do not see the image: they teach what a question alone gives away.
        curriculum: longest text up to a share of the schedule; afterwards texts have two to four characters.
    """

    steps: int
    schedule_steps: int
    pictures: int = 16
    muon_rate: float = 0.015
    adamw_rate: float = 1.5e-3
    warmup: float = 0.03
    blind: float = 0.03
    curriculum: tuple[tuple[float, int], ...] = ()

    def rate(self, step: int) -> float:
        """Learning rate at a step as a share of the peak; it ends at 0.02."""
        passed = (step + 1) / self.schedule_steps
        if passed < self.warmup:
            return passed / self.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * (passed - self.warmup) / (1 - self.warmup)))
        return 0.02 + 0.98 * cosine

    def lengths(self, step: int) -> tuple[int, int]:
        """Shortest and longest text at a step."""
        passed = step / self.schedule_steps
        longest = next((longest for until, longest in self.curriculum if passed < until), None)
        return (2, 4) if longest is None else (1, longest)


def train_tower(model: LlavaForConditionalGeneration, stage: TowerStage, generator: np.random.Generator) -> None:
    """Train the vision tower on labeled patches, with two linear heads that are thrown away."""
    tower = model.model.vision_tower
    heads = torch.nn.Linear(HIDDEN, N_THINGS + N_PATCH_COLORS)
    optimizers = _optimizers([*tower.named_parameters(), *heads.named_parameters()], stage.muon_rate, stage.adamw_rate)
    thing_weights, color_weights = torch.ones(N_THINGS), torch.ones(N_PATCH_COLORS)
    thing_weights[0] = color_weights[0] = BACKGROUND_WEIGHT
    progress = _Progress("tower", stage.steps)
    for step in range(stage.steps):
        rate = min(1.0, (step + 1) / stage.warmup_steps) * (1 - 0.9 * step / stage.steps)
        batch = patch_batch(generator, stage.pictures)
        with torch.autocast("cpu", torch.bfloat16):
            states = tower(pixel_values=batch.pixels).last_hidden_state[:, 1:]
            logits = heads(states).float().flatten(0, 1)
        things, colors = batch.things.flatten(), batch.colors.flatten()
        thing_logits, color_logits = logits.split([N_THINGS, N_PATCH_COLORS], dim=-1)
        loss = functional.cross_entropy(thing_logits, things, thing_weights)
        loss = loss + 0.5 * functional.cross_entropy(color_logits, colors, color_weights)
        _descend(loss, optimizers, rate, tower.parameters())
        shown = things > 0
        progress.report(step, loss, thing_logits.argmax(-1)[shown] == things[shown])


def train(model: LlavaForConditionalGeneration, stage: Stage, generator: np.random.Generator, name: str) -> None:
    """Train the whole model on packed questions; the loss is that of the answers' tokens."""
    model.train()
    optimizers = _optimizers(model.named_parameters(), stage.muon_rate, stage.adamw_rate)
    progress = _Progress(name, stage.steps)
    for step in range(stage.steps):
        batch = packed_batch(generator, stage.pictures, stage.lengths(step))
        # -1 marks padding, which looks up the last column
        blind = generator.random((stage.pictures, int(batch.segments.max()) + 2)) < stage.blind
        blind_tokens = torch.from_numpy(blind).gather(1, batch.segments % blind.shape[1])
        answered = batch.labels != NO_LABEL
        with torch.autocast("cpu", torch.bfloat16):
            logits = answer_logits(model, batch, blind_tokens, answered)
        labels = batch.labels[answered]
        loss = functional.cross_entropy(logits, labels)
        _descend(loss, optimizers, stage.rate(step), model.parameters())
        progress.report(step, loss, logits.argmax(-1) == labels)


def answer_logits(
    model: LlavaForConditionalGeneration, batch: PackedBatch, blind: torch.Tensor, answered: torch.Tensor
) -> torch.Tensor:
    """Run a packed batch.

    Args:
        model: the model in training.
        batch: B pictures with T packed tokens each.
        blind: (B, T) bool, tokens that must not see the image.
        answered: (B, T) bool, tokens whose logits are wanted.

    Returns:
        (wanted, vocabulary) float32 logits.
    """
    inner, n_pictures = model.model, len(batch.pixels)
    visual = inner.multi_modal_projector(inner.vision_tower(pixel_values=batch.pixels).last_hidden_state[:, 1:])
    embed = inner.language_model.embed_tokens
    lead = embed(torch.tensor(LEAD)).expand(n_pictures, -1, -1)
    prefix_positions = torch.arange(len(PREFIX)).expand(n_pictures, -1)
    states = inner.language_model(
        inputs_embeds=torch.cat([lead, visual, embed(batch.token_ids)], dim=1),
        attention_mask=packed_mask(batch.segments, blind),
        position_ids=torch.cat([prefix_positions, batch.positions], dim=1),
        use_cache=False,
    ).last_hidden_state[:, len(PREFIX) :]
    return model.lm_head(states[answered]).float()


def packed_mask(segments: torch.Tensor, blind: torch.Tensor) -> torch.Tensor:
    """Who sees whom: causal, each question sees the prefix and itself.

    Args:
        segments: (picture, token) int, -1 for padding.
        blind: (picture, token) bool, tokens that must not see the image.

    Returns:
        (picture, 1, prefix + token, prefix + token) bool, True where the row sees the column.
    """
    prefix, length = len(PREFIX), len(PREFIX) + segments.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril().repeat(len(segments), 1, 1)
    mask[:, prefix:, prefix:] &= segments[:, :, None] == segments[:, None, :]
    mask[:, prefix:, len(LEAD) : prefix] &= ~blind[:, :, None]
    return mask[:, None]


def attend_in_float32(model: LlavaForConditionalGeneration) -> None:
    """Take attention out of the bfloat16 autocast: on CPUs its backward pass is several times slower than float32."""
    AttentionInterface.register("float32_attention", _float32_attention)
    for module in (model.model.language_model, model.model.vision_tower):
        module.config._attn_implementation = "float32_attention"


def _float32_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    with torch.autocast("cpu", enabled=False):
        mixed = functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=attention_mask, scale=scaling
        )
    return mixed.transpose(1, 2).to(query.dtype), None


def _optimizers(
    parameters: Iterable[tuple[str, torch.nn.Parameter]], muon_rate: float, adamw_rate: float
) -> list[torch.optim.Optimizer]:
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in parameters:
        is_hidden = parameter.ndim == 2 and ("layers." in name or "projector" in name)
        (matrices if is_hidden else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=muon_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original")
    adamw = torch.optim.AdamW(others, lr=adamw_rate, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adamw]


def _descend(
    loss: torch.Tensor,
    optimizers: list[torch.optim.Optimizer],
    rate: float,
    clipped: Iterable[torch.nn.Parameter],
) -> None:
    """One step of both optimizers at a share of their peak rates."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(clipped, 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        optimizer.step()


@dataclass
class _Progress:
    """Prints loss and accuracy over the last steps; no picture comes twice, so both are held out."""

    name: str
    steps: int
    started: float = field(default_factory=time.monotonic)
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=REPORT_EVERY))
    accuracies: deque[float] = field(default_factory=lambda: deque(maxlen=REPORT_EVERY))

    def report(self, step: int, loss: torch.Tensor, right: torch.Tensor) -> None:
        self.losses.append(loss.item())
        self.accuracies.append(right.float().mean().item())
        done = step + 1
        if done % REPORT_EVERY and done != self.steps:
            return
        seconds_a_step = (time.monotonic() - self.started) / done
        print(
            f"{self.name}: step {done} of {self.steps}, loss {np.mean(self.losses):.3f}, "
            f"tokens right {np.mean(self.accuracies):.3f}, {seconds_a_step:.2f} s a step, "
            f"{seconds_a_step * (self.steps - done) / 60:.0f} min left in this stage",
            flush=True,
        )
