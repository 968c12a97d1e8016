"""Levels of a comparison: the effect curves of one group of one run, and which of them are held against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from analyses.arrays.resampling import cluster_codes
from analyses.curves.effects import NOISE_MEASURES, noise_floor, with_caution
from analyses.runs import GROUP_COLUMNS, HorizonError, Run, RunConfig, check_choice, check_target, split_groups
from analyses.verdicts.criteria import CRITERIA, criteria_of, method_warning
from analyses.verdicts.horizon import Horizon, HorizonDetector

ACROSS = ("model", "revision", "prompt", "tokens")  # what sets whole runs apart
BETWEEN = (*GROUP_COLUMNS, *ACROSS)
# What must agree for a comparison to be of one thing: models may differ in precision and have layers of their own.
MEASURED_ALIKE = {"model": ("kind", "only_correct")} | dict.fromkeys(
    ("revision", "prompt", "tokens"), ("kind", "only_correct", "layers", "dtype", "quantization")
)
PROMPT_WIDTH = 40  # characters of a prompt template in a label


@dataclass(frozen=True)
class Level:
    """One side of comparisons: the finite curves of one group of one run.

    Attributes:
        run: it comes from, the `source`-th of the comparison.
        group: column -> value of its samples; with "revision", "prompt" or "tokens" where these are compared.
        criterion: a key of `CRITERIA`. measure: of the removal effect. target: name of the target.
        values: (sample, layer) effects, L last. layers: (layer,) int. skipped: (skipped,) int, as in `EffectCurves`.
        removal: (sample,) removal effect at layer 0.
        floor: noise floor of the run, in the unit of the measure.
        effect_floor: noise floor of `values` where the criterion has a measure of its own, if there is one.
        hashes: (sample,) names of the images.
        keys: (sample,) what two levels must share to be paired: the image, or across runs image and question.
        images: (sample,) cluster codes over all levels of the comparison.
        label: its name.
    """

    run: Run
    source: int
    group: dict[str, str]
    criterion: str
    measure: str
    target: str
    values: np.ndarray
    layers: np.ndarray
    skipped: np.ndarray
    removal: np.ndarray
    floor: float
    effect_floor: float | None
    hashes: np.ndarray
    keys: np.ndarray
    images: np.ndarray
    label: str = ""

    def only(self, keys: np.ndarray) -> Level:
        """The samples with one of these keys."""
        inside = np.isin(self.keys, keys)
        cut = {name: getattr(self, name)[inside] for name in ("values", "removal", "hashes", "keys", "images")}
        return replace(self, **cut)

    def detect(self, detector: HorizonDetector, counts: np.ndarray | None) -> Horizon:
        """The horizon of these samples."""
        found = detector(
            self.values,
            self.images,
            layers=self.layers,
            skipped=self.skipped,
            criterion=self.criterion,
            measure=self.measure,
            noise_floor=self.floor,
            effect_floor=self.effect_floor,
            removal=self.removal,
            counts=counts,
            tokens=self.run.config.tokens,
        )
        named = "; ".join(filter(None, (method_warning(self.run, self.criterion), found.warning)))
        warning = with_caution(named, self.run)
        return replace(found, model=self.run.model, group=self.group, target=self.target, warning=warning)


def find_levels(
    runs: Sequence[Run], *, between: str, within: Sequence[str], criterion: str, measure: str, target: str | None
) -> list[Level]:
    """All levels of a comparison, run by run, with images numbered over all of them.

    Raises:
        HorizonError: unknown words, or a run that lacks what is compared.
    """
    check_choice("comparison", between, tuple(name for name in BETWEEN if name not in within))
    check_comparable(runs, between)
    leading = {check_target(run, target) for run in runs}
    if between in ACROSS and len(leading) > 1:
        raise HorizonError(f"these runs lead with the targets {' and '.join(sorted(leading))}: name one that all have")
    columns = [*within, *([] if between in ACROSS else [between])]
    levels = []
    for source, run in enumerate(runs):
        own = {between: run_label(run.config, between)} if between in ("revision", "prompt", "tokens") else {}
        for level in _levels_of(run, source, columns, criterion, measure, target, across=between in ACROSS):
            group = {**own, **level.group}
            levels.append(replace(level, group=group, label=_label(run, group, runs)))
    if not levels:
        return []
    codes = cluster_codes(name for level in levels for name in level.hashes)
    ends = np.cumsum([len(level.hashes) for level in levels])
    return [replace(level, images=images) for level, images in zip(levels, np.split(codes, ends[:-1]), strict=True)]


def pair_levels(levels: Sequence[Level], between: str, within: Sequence[str]) -> list[tuple[int, int]]:
    """Positions of the pairs of levels that differ in `between` and agree in `within`."""

    def comparable(a: Level, b: Level) -> bool:
        if between not in ACROSS:
            return a.source == b.source
        return a.source != b.source and differ(a.run.config, b.run.config, between)

    return [
        (i, j)
        for i, j in combinations(range(len(levels)), 2)
        if comparable(levels[i], levels[j]) and all(levels[i].group[c] == levels[j].group[c] for c in within)
    ]


def differences(runs: Sequence[Run], between: str) -> str:
    """In what else runs differ than in what is compared, in words."""
    names = (*(("tokens",) if between == "model" else ACROSS), *MEASURED_ALIKE[between])
    values = {name: {str(getattr(run.config, name)): None for run in runs} for name in names if name != between}
    return "; ".join(f"{name} is {' and '.join(found)}" for name, found in values.items() if len(found) > 1)


def check_comparable(runs: Sequence[Run], between: str) -> None:
    """Raise HorizonError unless there is a run, or for a comparison across runs two that can be compared."""
    needed = {
        "model": "at least 2 runs" if len(runs) < 2 else "two runs that take away the same tokens",
        "revision": "two runs of one model and prompt at different revisions",
        "prompt": "two runs of one model and revision with different prompts",
        "tokens": "two runs of one model, revision and prompt that take away different tokens",
    }.get(between, "at least 1 run")
    if not comparable(runs, between):
        given = ", ".join(run.name for run in runs) or "no run"
        also = differences(runs, between) if between in ACROSS else ""
        raise HorizonError(f"a comparison between {between} levels needs {needed}, got {given}{also and f': {also}'}")


def comparable(runs: Sequence[Run], between: str) -> bool:
    """Whether there is a run, or for a comparison across runs two that can be compared."""
    if between not in ACROSS:
        return bool(runs)
    return any(differ(a.config, b.config, between) for a, b in combinations(runs, 2))


def differ(a: RunConfig, b: RunConfig, between: str) -> bool:
    """Whether two runs can be compared between "model", "revision", "prompt" or "tokens".

    Any two runs that take away the same tokens in the same way stand for two models (say, one model in two precisions).
    Revisions are of one model, prompt and choice of tokens, measured alike, and so on: else two things would differ at
    once.
    """
    others = [name for name in MEASURED_ALIKE[between] if getattr(a, name) != getattr(b, name)]
    differing = {name for name in ACROSS if getattr(a, name) != getattr(b, name)}
    return not others and ("tokens" not in differing if between == "model" else differing == {between})


def run_label(config: RunConfig, between: str) -> str:
    """The revision, prompt or removed tokens of a run for people, a long prompt by its beginning."""
    if between == "tokens":
        return f"{config.tokens} tokens"
    if between == "revision":
        return config.revision or "no revision"
    text = " ".join((config.prompt or "no prompt template").split())
    return text if len(text) <= PROMPT_WIDTH else f"{text[: PROMPT_WIDTH - 3]}..."


def bare_questions(questions: pd.Series, prompt: str | None) -> pd.Series:
    """Questions as they were before the prompt template was put around them.

    >>> bare_questions(pd.Series(["Look: what color? Answer:"]), "Look: {question} Answer:").to_list()
    ['what color?']
    """
    if not prompt:
        return questions
    start, times = prompt.index("{question}"), prompt.count("{question}")
    around = len(prompt.replace("{question}", ""))
    return questions.map(lambda text: text[start : start + (len(text) - around) // times])


def _levels_of(
    run: Run, source: int, columns: Sequence[str], criterion: str, measure: str, target: str | None, *, across: bool
) -> list[Level]:
    """One level a group of samples, without a label; images are numbered within the run."""
    criteria_of(run, criterion)
    check_choice(f"measure of the criterion {criterion!r}", measure, CRITERIA[criterion].measures)
    target = check_target(run, target)
    curves, removal = CRITERIA[criterion].effects(run, measure, target)
    effect_floor = noise_floor(run, curves.measure) if curves.measure in NOISE_MEASURES else None
    finite = curves.finite & np.isfinite(removal.values[:, 0])
    hashes = curves.groups["image_sha256"].fillna("")
    keys = hashes + "\n" + bare_questions(curves.groups["question"], run.config.prompt) if across else hashes
    found = []
    for group, rows in split_groups(run.samples, columns):
        inside = finite & np.isin(curves.rows, rows)
        own = curves.of(curves.rows[inside])
        level = Level(
            run=run,
            source=source,
            group=group,
            criterion=criterion,
            measure=measure,
            target=target,
            values=own.values,
            layers=own.layers,
            skipped=own.skipped,
            removal=removal.values[inside, 0],
            floor=noise_floor(run, measure),
            effect_floor=effect_floor,
            hashes=hashes.to_numpy(str)[inside],
            keys=keys.to_numpy(str)[inside],
            images=curves.images[inside],
        )
        found.append(level)
    return found


def _label(run: Run, group: dict[str, str], runs: Sequence[Run]) -> str:
    """Name of a level: its group, after its model if there are several runs, and the run where these are namesakes.

    Removed tokens that are not the visual ones are said in between.
    """
    name, tokens = " / ".join(group.values()), run_label(run.config, "tokens")
    said = [] if run.config.tokens == "visual" or "tokens" in group else [tokens]
    if len(runs) == 1:
        return ": ".join([*said, *filter(None, [name])]) or run.model
    own = {key: value for key, value in group.items() if key in ACROSS} | {"tokens": tokens}
    namesakes = [
        other
        for other in runs
        if other.model == run.model and all(run_label(other.config, key) == value for key, value in own.items())
    ]
    model = run.model if len(namesakes) == 1 else f"{run.model} ({run.name})"
    return ": ".join([model, *said, *filter(None, [name])])
