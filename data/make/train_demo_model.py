"""Train a demo model from nothing and save it as a checkpoint directory.

    python data/make/train_demo_model.py tiny-8 --out DIR

takes about 40 minutes on two CPU cores (tiny-12: about 70), needs torch >= 2.9, and prints its progress. Threads that
are not pinned can make a step ten times slower on some machines; if steps take longer than half a second, try

    OMP_PROC_BIND=close OMP_PLACES="{0},{1}" python data/make/train_demo_model.py ...

The seed fixes the data and the initial weights. Bits of the result still depend on the machine.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from checkpoint import build_model, save_checkpoint
from training import Stage, TowerStage, attend_in_float32, train, train_tower


@dataclass(frozen=True)
class Preset:
    """Everything that makes one demo model."""

    layers: int
    seed: int
    tower: TowerStage
    stages: tuple[Stage, ...]

    def shortened(self, steps: int) -> Preset:
        """The same preset with at most so many steps a stage; each schedule shrinks with its stage."""
        tower = replace(self.tower, steps=min(self.tower.steps, steps))
        stages = []
        for stage in self.stages:
            shortened_steps = min(stage.steps, steps)
            schedule_steps = max(1, round(stage.schedule_steps * shortened_steps / stage.steps))
            stages.append(replace(stage, steps=shortened_steps, schedule_steps=schedule_steps))
        return replace(self, tower=tower, stages=tuple(stages))


# The shipped weights came from a clock-scheduled sketch of this script; steps are minutes of its recipe at the speed
# of that machine (see data/README.md).
PRESETS = {
    "tiny-8": Preset(
        layers=8,
        seed=0,
        tower=TowerStage(steps=2400),
        stages=(
            Stage(
                steps=900,
                schedule_steps=2500,
                pictures=32,
                muon_rate=0.02,
                adamw_rate=2e-3,
                blind=0.05,
                curriculum=((0.12, 2), (0.25, 3)),
            ),
            Stage(steps=4300, schedule_steps=4800, warmup=0.02, curriculum=((0.15, 3),)),
            Stage(steps=2200, schedule_steps=2200, muon_rate=0.012, adamw_rate=1.2e-3),
        ),
    ),
    "tiny-12": Preset(
        layers=12,
        seed=3,
        tower=TowerStage(steps=2400),
        stages=(Stage(steps=11000, schedule_steps=11000, blind=0.04, curriculum=((0.12, 2), (0.25, 3))),),
    ),
}


def main() -> None:
    """Parse the command line, train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS, help="which model to train")
    parser.add_argument("--out", type=Path, required=True, help="directory that the checkpoint is saved in")
    parser.add_argument("--steps", type=int, help="run at most so many steps a stage, to try the script out")
    parser.add_argument("--seed", type=int, help="seed of data and initial weights (default: that of the preset)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--compile", action="store_true", help="compile tower and decoder (needs a C++ compiler)")
    arguments = parser.parse_args()

    preset = PRESETS[arguments.preset]
    if arguments.seed is not None:
        preset = replace(preset, seed=arguments.seed)
    if arguments.steps is not None:
        preset = preset.shortened(arguments.steps)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(preset.seed)
    generator = np.random.default_rng(preset.seed)

    model = build_model(preset.layers)
    attend_in_float32(model)
    if arguments.compile:
        model.model.vision_tower.compile(dynamic=False)
        model.model.language_model.compile(dynamic=False)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{arguments.preset}: {preset.layers} decoder layers, {n_parameters / 1e6:.2f} M parameters", flush=True)
    train_tower(model, preset.tower, generator)
    for number, stage in enumerate(preset.stages, start=1):
        train(model, stage, generator, name=f"stage {number} of {len(preset.stages)}")
    save_checkpoint(model, arguments.out)
    print(f"saved in {arguments.out}")


if __name__ == "__main__":
    main()
