"""Curves and token grids drawn from known truth: removal effects with known horizons, entropies with known collapses.

A design draws samples image by image. Its truth is the mean curve of its population, taken from a sample so large
that its own error (a thousandth of an interval's width or less) does not matter, and everything that the definitions
derive from a mean curve is derived from that one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from analyses.arrays.depths import half_depths, settled_layer

POPULATION = 400_000  # samples behind a design's truth
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Design:
    """A population of removal effects.

    Attributes:
        name: what is special about it, and L.
        n_layers: L.
        draw: (generator, images) -> (sample, L + 1) effects with R_L = 0, and (sample,) codes of their images.
        bounded: no effect is larger than 1.
        clear: every sample loses its effect at the same layer, so that the horizon is clear.
    """

    name: str
    n_layers: int
    draw: Draw
    bounded: bool = True
    clear: bool = False

    @property
    def layers(self) -> np.ndarray:
        """(L + 1,) 0..L."""
        return np.arange(self.n_layers + 1)

    @property
    def mean(self) -> np.ndarray:
        """(L + 1,) mean effect in the population."""
        return _population_mean(self)

    @property
    def half_depth(self) -> float:
        """Half depth of the population, in layers."""
        return float(half_depths(self.mean, self.layers))

    @property
    def horizon(self) -> int:
        """Horizon of the population by the criterion `removal`, with a noise floor of 0."""
        return int(settled_layer(self.mean, max(0.05 * self.mean[0], 0.01), self.layers))


@cache
def _population_mean(design: Design) -> np.ndarray:
    rng = np.random.default_rng(2602_17196)
    total, count = np.zeros(design.n_layers + 1), 0
    while count < POPULATION:
        values, _ = design.draw(rng, 20_000)
        total, count = total + values.sum(axis=0), count + len(values)
    return total / count


def logistic_fade(n_layers: int, middle: np.ndarray, width: float) -> np.ndarray:
    """(sample, L + 1) logistic fades from 1 at layer 0 to 0 at L, each with its own middle."""
    fade = 1 / (1 + np.exp(np.clip((np.arange(n_layers + 1) - middle[:, None]) / width, -50, 50)))
    return (fade - fade[:, -1:]) / (fade[:, :1] - fade[:, -1:])


def _middles(rng: np.random.Generator, images: np.ndarray, n_layers: int, at: float) -> np.ndarray:
    """(sample,) middles around `at` of the depth: an image effect and a question effect of equal size."""
    spread = 0.06 * n_layers
    middle = at * n_layers + rng.normal(0, spread, images.max() + 1)[images] + rng.normal(0, spread, len(images))
    return np.clip(middle, 0.5, n_layers - 0.5)


def fade(n_layers: int, *, questions: int = 1, at: float = 0.45) -> Design:
    """Logistic fades whose middles vary by image and by question; effects at layer 0 vary with a left tail."""

    def draw(rng: np.random.Generator, n_images: int) -> tuple[np.ndarray, np.ndarray]:
        images = np.repeat(np.arange(n_images), questions)
        size = rng.beta(4, 1.2, n_images)[images] * rng.beta(8, 2, len(images))
        return size[:, None] * logistic_fade(n_layers, _middles(rng, images, n_layers, at), 0.03 * n_layers), images

    asked = f", {questions} questions an image" if questions > 1 else ""
    return Design(f"logistic fade{asked}, L {n_layers}", n_layers, draw)


def uneven_questions(n_layers: int) -> Design:
    """Fades with one to five questions an image, so that the size of a resample varies too."""

    def draw(rng: np.random.Generator, n_images: int) -> tuple[np.ndarray, np.ndarray]:
        images = np.repeat(np.arange(n_images), rng.integers(1, 6, n_images))
        size = rng.beta(4, 1.2, n_images)[images]
        return size[:, None] * logistic_fade(n_layers, _middles(rng, images, n_layers, 0.45), 0.03 * n_layers), images

    return Design(f"1 to 5 questions an image, L {n_layers}", n_layers, draw)


def deep_is_large(n_layers: int) -> Design:
    """Fades in which samples that need their tokens longer also have the larger effects: a skewed half depth."""

    def draw(rng: np.random.Generator, n_images: int) -> tuple[np.ndarray, np.ndarray]:
        images = np.arange(n_images)
        middle = _middles(rng, images, n_layers, 0.45)
        size = rng.beta(4, 1.2, n_images) / (1 + np.exp(-(middle - 0.45 * n_layers) / (0.05 * n_layers)))
        return size[:, None] * logistic_fade(n_layers, middle, 0.03 * n_layers), images

    return Design(f"deeper is larger, L {n_layers}", n_layers, draw)


def step(n_layers: int, *, at: float = 0.4) -> Design:
    """All samples lose their effect at one layer; noise of every layer remains."""

    def draw(rng: np.random.Generator, n_images: int) -> tuple[np.ndarray, np.ndarray]:
        values = rng.beta(3, 1.5, (n_images, 1)) * (np.arange(n_layers + 1) < round(at * n_layers))
        values = values + rng.normal(0, 0.02, values.shape)
        values[:, -1] = 0
        return values, np.arange(n_images)

    return Design(f"step, L {n_layers}", n_layers, draw, clear=True)


def scattered_steps(n_layers: int) -> Design:
    """Every sample loses its whole effect at a layer of its own: the mean falls smoothly, the samples do not."""

    def draw(rng: np.random.Generator, n_images: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.clip(np.round(rng.normal(0.4, 0.1, n_images) * n_layers), 1, n_layers)
        return rng.beta(4, 1.2, (n_images, 1)) * (np.arange(n_layers + 1) < at[:, None]), np.arange(n_images)

    return Design(f"steps at each sample's layer, L {n_layers}", n_layers, draw)


def correlated_noise(n_layers: int) -> Design:
    """Fades under noise that runs through the layers (autocorrelation 0.9), as that of neighboring replays does."""

    def draw(rng: np.random.Generator, n_images: int) -> tuple[np.ndarray, np.ndarray]:
        values, images = fade(n_layers).draw(rng, n_images)
        noise = rng.uniform(-0.1, 0.1, values.shape)
        for layer in range(1, n_layers + 1):
            noise[:, layer] = 0.9 * noise[:, layer - 1] + np.sqrt(1 - 0.9**2) * noise[:, layer]
        values = values + noise
        values[:, -1] = 0
        return values, images

    return Design(f"correlated layers, L {n_layers}", n_layers, draw)


def rare(n_layers: int, share: float = 0.3) -> Design:
    """Only a share of the images has an effect at all."""

    def draw(rng: np.random.Generator, n_images: int) -> tuple[np.ndarray, np.ndarray]:
        values, images = fade(n_layers).draw(rng, n_images)
        return values * (rng.random((n_images, 1)) < share), images

    return Design(f"effect in {share:.0%} of images, L {n_layers}", n_layers, draw)


def returning(n_layers: int) -> Design:
    """Non-monotone: the effect comes back, to a quarter or so, after three quarters of the depth."""

    def draw(rng: np.random.Generator, n_images: int) -> tuple[np.ndarray, np.ndarray]:
        values, images = fade(n_layers).draw(rng, n_images)
        depth = np.arange(n_layers + 1) / n_layers
        bump = np.exp(-0.5 * ((depth - 0.75) / 0.05) ** 2) * (depth < 1)
        return np.minimum(values + rng.beta(2, 8, (n_images, 1)) * bump, 1), images

    return Design(f"non-monotone, L {n_layers}", n_layers, draw)


def heavy_tails(n_layers: int, sigma: float = 1.5) -> Design:
    """Fades whose effects are log-normal, as effects on log p can be: a few images make most of the mean."""

    def draw(rng: np.random.Generator, n_images: int) -> tuple[np.ndarray, np.ndarray]:
        values, images = fade(n_layers).draw(rng, n_images)
        return values * np.exp(rng.normal(0, sigma, (n_images, 1))), images

    return Design(f"log-normal effects (sigma {sigma:g}), L {n_layers}", n_layers, draw, bounded=False)


def no_effect(n_layers: int) -> Design:
    """Noise around 0 at every layer but L."""

    def draw(rng: np.random.Generator, n_images: int) -> tuple[np.ndarray, np.ndarray]:
        values = rng.normal(0, 0.02, (n_images, n_layers + 1))
        values[:, -1] = 0
        return values, np.arange(n_images)

    return Design(f"no effect, L {n_layers}", n_layers, draw)


def token_grids(rng: np.random.Generator, n_images: int, n_layers: int, at: int, n_windows: int = 9) -> np.ndarray:
    """Token information I_k of each window: of either sign, most of it in few windows, gone from layer `at` on.

    Returns:
        (sample, layer, window) in p, layers 0..L-1; noise of 1e-4 remains everywhere.
    """
    shares = rng.dirichlet(np.full(n_windows, 0.5), n_images) * rng.choice([-1, 1, 1], (n_images, n_windows))
    fall = np.linspace(1, 0.4, n_layers) * (np.arange(n_layers) < at)
    size = rng.beta(4, 2, n_images)
    information = size[:, None, None] * fall[:, None] * shares[:, None, :]
    return information + rng.normal(0, 1e-4, information.shape)


def collapse_entropies(
    rng: np.random.Generator, n_images: int, n_layers: int, at: int, *, drop: float = 1.0, roughness: float = 0.05
) -> np.ndarray:
    """Entropies in nats that fall by `drop` into layer `at`, between steps of the size `roughness` at the others.

    Returns:
        (sample, layer), with an offset of each image and noise of each layer.
    """
    curve = 3.5 + rng.normal(0, roughness, n_layers).cumsum() - drop * (np.arange(n_layers) >= at)
    return curve + rng.normal(0, 0.3, (n_images, 1)) + rng.normal(0, 0.1, (n_images, n_layers))


def exchangeable_entropies(
    rng: np.random.Generator, n_images: int, n_layers: int, *, kind: str = "shared steps", noise: float = 1e-3
) -> np.ndarray:
    """Entropies without a collapse.

    Args:
        rng: generator.
        n_images: curves to draw.
        n_layers: L.
        kind: "shared steps" (one random walk that all images share: resamples cannot object), "own steps" (a walk
            of each image's own), "flat" (noise around one level), "drift" (a random walk that falls).
        noise: of each image and layer around a shared curve, nats.

    Returns:
        (sample, layer) nats.
    """
    own = kind == "own steps"
    if kind == "flat":
        curves = rng.normal(0, 1, (1, n_layers))
    else:
        steps = rng.normal(-0.5 if kind == "drift" else 0, 1, (n_images if own else 1, n_layers))
        curves = steps.cumsum(axis=1)
    return 50 + curves + rng.normal(0, noise, (n_images, n_layers))


def bounded_designs() -> list[Design]:
    """Every kind at one depth or more, so that L 8, 24 and 32 all occur."""
    return [
        *(step(n_layers) for n_layers in (8, 24, 32)),
        *(fade(n_layers) for n_layers in (8, 24, 32)),
        *(scattered_steps(n_layers) for n_layers in (8, 24, 32)),
        fade(32, questions=3),
        uneven_questions(24),
        deep_is_large(24),
        correlated_noise(32),
        rare(24),
        returning(24),
    ]


@dataclass(frozen=True)
class Contrast:
    """Two groups of samples whose half depths are compared.

    Attributes:
        name: what is special about it.
        n_layers: L.
        gap: how much deeper the first group lies, in layers.
        draw: generator -> values and image codes of the first group, values and image codes of the second.
    """

    name: str
    n_layers: int
    gap: float
    draw: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


def contrast(
    n_layers: int,
    *,
    n_images: tuple[int, int] = (50, 50),
    shared: int = 0,
    gap: float = 0.0,
    questions: tuple[int, int] = (1, 1),
    spread: tuple[float, float] = (1.0, 1.0),
    size: tuple[float, float] = (1.0, 1.0),
    interaction: float = 0.0,
) -> Contrast:
    """Two groups of fades; images and questions set the middles apart by 0.06 of the depth each.

    Args:
        n_layers: L.
        n_images: of each group.
        shared: images asked in both groups; what such an image is like shifts both.
        gap: layers by which the first group lies deeper.
        questions: on each image of a group.
        spread: of the image effects of a group, times the usual. If unequal the groups share their half depth, but
            their curves are not exchangeable.
        size: of the effects at layer 0.
        interaction: of image and group, times the usual image effect: questions of one group on one image agree.
    """
    unit = 0.06 * n_layers

    def group(
        rng: np.random.Generator, which: int, names: np.ndarray, effects: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        own = spread[which] * effects[names] + interaction * rng.normal(0, unit, len(names))
        images = np.repeat(np.arange(len(names)), questions[which])
        shift = gap if which == 0 else 0.0
        middle = 0.45 * n_layers + shift + own[images] + rng.normal(0, unit, len(images))
        values = size[which] * rng.beta(4, 1.2, (len(images), 1)) * logistic_fade(n_layers, middle, 0.03 * n_layers)
        return values, names[images]

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        effects = rng.normal(0, unit, sum(n_images) - shared)
        first = group(rng, 0, np.arange(n_images[0]), effects)
        second = group(rng, 1, np.arange(n_images[1]) + n_images[0] - shared, effects)
        return *first, *second

    a, b = n_images
    how = "paired" if shared == a == b else f"{shared} shared" if shared else "unpaired"
    return Contrast(f"{how}, {a} and {b} images, gap {gap:g}, L {n_layers}", n_layers, gap, draw)


def null_contrasts() -> list[Contrast]:
    """Groups with exchangeable R_k / R_0 curves, and last some that only share their half depth."""

    def named(what: str, found: Contrast) -> Contrast:
        return replace(found, name=f"{found.name}, {what}")

    return [
        *(contrast(n_layers) for n_layers in (8, 24, 32)),
        *(contrast(n_layers, shared=50) for n_layers in (8, 24, 32)),
        contrast(24, shared=20),
        contrast(24, n_images=(10, 10)),
        contrast(24, n_images=(10, 10), shared=10),
        named("effects 0.3 against 1", contrast(24, size=(0.3, 1.0))),
        named("effects 0.3 against 1", contrast(24, size=(0.3, 1.0), shared=50)),
        named("2 questions, image x group", contrast(24, shared=50, questions=(2, 2), interaction=1.0)),
        named("3 questions against 1", contrast(24, questions=(3, 1))),
        named("3 questions against 1", contrast(24, shared=50, questions=(3, 1), interaction=1.0)),
        named("spread 2 against 0.5", contrast(24, n_images=(30, 120), spread=(2.0, 0.5))),
        named("spread 2 against 0.5", contrast(24, n_images=(120, 30), spread=(2.0, 0.5))),
    ]


def gap_contrasts() -> list[Contrast]:
    """Gaps of one and of two layers, unpaired and paired."""
    return [
        contrast(n_layers, gap=gap, shared=shared) for n_layers in (8, 24, 32) for gap in (1, 2) for shared in (0, 50)
    ]


def covariate_and_depths(
    rng: np.random.Generator, n_images: int, *, strength: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A covariate, half depths that follow it, and image codes: one to three questions an image, few distinct values.

    Both have an image effect of their own; `strength` is the slope of depth on the covariate.
    """
    images = np.repeat(np.arange(n_images), rng.integers(1, 4, n_images))
    covariate = np.round(rng.normal(0, 2, n_images)[images] + rng.normal(0, 1, len(images)))
    depths = rng.normal(0, 1, n_images)[images] + rng.normal(0, 1, len(images)) + strength * covariate
    return covariate, depths, images
