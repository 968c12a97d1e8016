"""Numbers that others published, as data with their sources, found for a model and a task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analyses.runs import HorizonError


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        quantity: "collapse layer", "horizon" or "entropy range, nats".
        model: as the source names it. task: likewise; None where it spans tasks.
        stream: of the states, None for horizons.
        value: a layer, or the two ends of a range.
        layers: L of that model.
        how: how the source found it.
        source: paper or code.
    """

    quantity: str
    model: str
    task: str | None
    stream: str | None
    value: float | tuple[float, float]
    layers: int
    how: str
    source: str


@dataclass(frozen=True)
class PublishedNumbers:
    """All numbers, and the other names under which their models and tasks go.

    Attributes:
        numbers: in the order of the file.
        models, tasks: name in the source -> other names.
    """

    numbers: tuple[Published, ...]
    models: dict[str, list[str]]
    tasks: dict[str, list[str]]

    def matching(
        self, model: str, tasks: Iterable[str] = (), quantities: Sequence[str] = ("collapse layer", "horizon")
    ) -> list[Published]:
        """Numbers for one model, of those tasks or of all tasks together.

        Args:
            model: hub id, directory or name; case and everything before the last slash do not matter.
            tasks: names of tasks or task types; case does not matter.
            quantities: names of the quantities to return.
        """
        task_names = {name.casefold() for name in tasks}
        return [
            number
            for number in self.numbers
            if number.quantity in quantities
            and model.rstrip("/").rsplit("/", 1)[-1].casefold() in _names(number.model, self.models)
            and (number.task is None or task_names & _names(number.task, self.tasks))
        ]


def load_published(path: str | Path) -> PublishedNumbers:
    """Read `layers.json` of the shipped data.

    Args:
        path: the file.

    Raises:
        HorizonError: it is not there, or not of this form.
    """
    try:
        record = json.loads(Path(path).read_text())
        numbers = tuple(
            Published(
                **{**entry, "value": tuple(entry["value"]) if isinstance(entry["value"], list) else entry["value"]}
            )
            for entry in record["numbers"]
        )
        return PublishedNumbers(numbers, record["models"], record["tasks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HorizonError(f"{path} holds no published numbers: {error!r}") from error


def _names(name: str, others: dict[str, list[str]]) -> set[str]:
    return {other.casefold() for other in (name, *others.get(name, ()))}
