"""Commit what the jobs of a run leave, many of them at a time, and count it."""

from __future__ import annotations

import time

from probes.directory.writer import FLUSH_SAMPLES, FLUSH_SECONDS, Record, RunWriter
from probes.plans.progress import RunProgress
from probes.sweeps.stages import Outcome


class Commits:
    """Hands outcomes to a run's writer, which commits them in parts, and shows them on a bar.

    Attributes:
        n_outcomes: the number of outcomes so far.
    """

    def __init__(self, writer: RunWriter, bar: RunProgress) -> None:
        self.n_outcomes = 0
        self._writer, self._bar = writer, bar
        self._flushed = time.monotonic()

    def keep(self, outcome: Outcome) -> None:
        """Hand the record of a sample to the writer, then the answer to its question, whose sample is then there."""
        record, answer = outcome
        status = "ok" if record is None else self._add(record)
        if answer is not None and status == "ok":
            self._writer.add_generation(answer)
        self._bar.advance(failed=status == "failed", excluded=status == "excluded")
        self.n_outcomes += 1
        if len(self._writer) >= FLUSH_SAMPLES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def _add(self, record: Record) -> str:
        """Hand a record to the writer, unless it failed where an earlier measurement did not; return its status."""
        sample = record.sample
        committed = self._writer.committed.get(sample["row"])
        if sample["status"] == "failed" and committed is not None and committed["status"] == "ok":
            self._bar.say(f"{sample['id']}: {sample['error']} (its earlier measurement is kept)")
        else:
            self._writer.add(record)
        return sample["status"]
