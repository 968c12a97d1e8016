"""The bootstrap: 2,000 resamples of 1,000 samples by 33 layers, mean curves and simultaneous band, under 2 s."""

from __future__ import annotations

from functools import partial

import numpy as np
from timing import heading, interleave, verdict

from analyses.arrays.resampling import draw_counts, percentile_interval, resampled_means, simultaneous_band

RESAMPLES, SAMPLES, LAYERS = 2000, 1000, 33
IMAGES = {"an image a sample": SAMPLES, "two samples an image": SAMPLES // 2}


def bootstrap(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """All that a horizon draws: counts, resampled mean curves, their interval, the band of the whole curve."""
    counts = draw_counts(int(clusters.max()) + 1, RESAMPLES)
    percentile_interval(resampled_means(values, clusters, counts))
    return simultaneous_band(values, clusters, counts)


def main() -> None:
    """Measure and print."""
    heading(f"{RESAMPLES} resamples x {SAMPLES} samples x {LAYERS} layers")
    rng = np.random.default_rng(0)
    values = np.linspace(1, 0, LAYERS) * rng.beta(2, 2, (SAMPLES, 1)) + rng.normal(0, 0.02, (SAMPLES, LAYERS))
    functions = {name: partial(bootstrap, values, np.arange(SAMPLES) % images) for name, images in IMAGES.items()}
    timings, _ = interleave(functions, rounds=7)
    for name, timing in timings.items():
        print(
            f"{name:<20} processor {timing.cpu:.2f} s, clock {timing.wall:.2f} s, "
            f"{verdict(timing.cpu, 2.0, at_least=False)}"
        )


if __name__ == "__main__":
    main()
