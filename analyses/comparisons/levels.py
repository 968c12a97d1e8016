"""Levels of a comparison: the effect curves of one group of one run, and which of them are held against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations

import numpy as np
import pandas as pd

from analyses.arrays.resampling import cluster_codes
from analyses.runs import GROUP_COLUMNS, HorizonError, Run, RunConfig, check_choice, check_target, split_groups
from analyses.verdicts.group_effects import GroupEffects, RunEffects
from analyses.verdicts.horizon import HorizonQuery

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
        run: the run that it comes from, the `source`-th of the comparison.
        label: its name.
        effects: of its samples; images are numbered over all levels of the comparison. The group names the revision,
            prompt or tokens too where these are compared.
        keys: (sample,) what two levels must share to be paired: the image, or across runs image and question.
    """

    run: Run
    source: int
    label: str
    effects: GroupEffects
    keys: np.ndarray

    @property
    def group(self) -> dict[str, str]:
        """Column -> value of its samples."""
        return self.effects.group

    def only(self, keys: np.ndarray) -> Level:
        """The samples with one of these keys."""
        inside = np.isin(self.keys, keys)
        return replace(self, effects=self.effects.of(inside), keys=self.keys[inside])


def find_levels(runs: Sequence[Run], query: HorizonQuery, *, between: str, within: Sequence[str]) -> list[Level]:
    """All levels of a comparison, run by run, with images numbered over all of them.

    Args:
        runs: what is compared, whole or by groups.
        query: the horizon that is compared.
        between: one of `BETWEEN`.
        within: columns whose values are kept apart.

    Raises:
        HorizonError: unknown words, or a run that lacks what is compared.
    """
    check_choice("comparison", between, tuple(name for name in BETWEEN if name not in within))
    check_comparable(runs, between)
    leading = {check_target(run, query.target) for run in runs}
    if between in ACROSS and len(leading) > 1:
        raise HorizonError(f"these runs lead with the targets {' and '.join(sorted(leading))}: name one that all have")
    columns = [*within, *([] if between in ACROSS else [between])]
    groups = [
        (source, group, members, effects)
        for source, run in enumerate(runs)
        for effects in [query.effects(run)]
        for group, members in _finite_groups(effects, columns)
    ]
    names = [image_names(runs[source]).loc[members] for source, _, members, _ in groups]
    codes = np.split(cluster_codes(chain.from_iterable(names)), np.cumsum([len(part) for part in names])[:-1])
    levels = []
    for (source, columns_of, members, effects), images in zip(groups, codes, strict=False):
        run = runs[source]
        group = _naming(run, between) | columns_of
        keys = pairing_keys(run, across=between in ACROSS).loc[members].to_numpy(str)
        members_effects = replace(effects.of(members, group), images=images)
        levels.append(Level(run, source, _label(run, group, runs), members_effects, keys))
    return levels


def image_names(run: Run) -> pd.Series:
    """What the image of every measured sample is called, by row number: equal images have equal names."""
    return run.ok["image_sha256"].fillna("")


def pairing_keys(run: Run, *, across: bool) -> pd.Series:
    """What a sample must share with one of another level to be paired with it, by row number."""
    images = image_names(run)
    return images + "\n" + bare_questions(run.ok["question"], run.config.prompt) if across else images


def _finite_groups(effects: RunEffects, columns: Sequence[str]) -> list[tuple[dict[str, str], np.ndarray]]:
    """Groups of a run's samples, each with the row numbers of those that have no gaps."""
    finite = effects.curves.rows[effects.whole]
    return [(group, finite[np.isin(finite, rows)]) for group, rows in split_groups(effects.run.samples, columns)]


def _naming(run: Run, between: str) -> dict[str, str]:
    """What the group of a level says of its run: the revision, prompt or tokens where these are compared."""
    return {between: run_label(run.config, between)} if between in ("revision", "prompt", "tokens") else {}


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
    return "; ".join(f"{name} is {' and '.join(texts)}" for name, texts in values.items() if len(texts) > 1)


def check_comparable(runs: Sequence[Run], between: str) -> None:
    """Raise HorizonError unless there is a run, or for a comparison across runs two that can be compared."""
    needed = {
        "model": "at least 2 runs" if len(runs) < 2 else "two runs that take away the same tokens",
        "revision": "two runs of one model and prompt at different revisions",
        "prompt": "two runs of one model and revision with different prompts",
        "tokens": "two runs of one model, revision and prompt that take away different tokens",
    }.get(between, "at least 1 run")
    if not comparable(runs, between):
        names = ", ".join(run.name for run in runs) or "no run"
        also = differences(runs, between) if between in ACROSS else ""
        raise HorizonError(f"a comparison between {between} levels needs {needed}, got {names}{also and f': {also}'}")


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


def _label(run: Run, group: dict[str, str], runs: Sequence[Run]) -> str:
    """Name of a level: its group, after its model if there are several runs, and the run where these are namesakes.

    Removed tokens that are not the visual ones are said in between.
    """
    name, tokens = " / ".join(group.values()), run_label(run.config, "tokens")
    between = [] if run.config.tokens == "visual" or "tokens" in group else [tokens]
    if len(runs) == 1:
        return ": ".join([*between, *filter(None, [name])]) or run.model
    labels = {key: value for key, value in group.items() if key in ACROSS} | {"tokens": tokens}
    namesakes = [
        other
        for other in runs
        if other.model == run.model and all(run_label(other.config, key) == value for key, value in labels.items())
    ]
    model = run.model if len(namesakes) == 1 else f"{run.model} ({run.name})"
    return ": ".join([model, *between, *filter(None, [name])])
