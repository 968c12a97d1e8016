"""Progress of a run on standard error: samples done, rate, time left, skipped, failed."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0  # between two lines where standard error is a file or a pipe


class RunProgress:
    """Counts samples and shows it: a bar in a terminal, a line now and then elsewhere. A context manager."""

    def __init__(self, total: int | None, *, enabled: bool = True, label: str = "samples") -> None:
        self.done = self.skipped = self.failed = self.excluded = self.elsewhere = 0
        self._total, self._label, self._enabled = total, label, enabled
        self._console = console = Console(stderr=True)
        self._plain = enabled and not console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not enabled or self._plain,
        )
        self._task = self._bar.add_task(label, total=total, rate="", note="")
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> RunProgress:
        self._started = self._printed = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._plain:
            print(self._line(), file=sys.stderr)

    def advance(self, *, failed: bool, excluded: bool = False) -> None:
        """Count one sample as measured, as failed, or as excluded on purpose."""
        self.done += 1
        self.failed += failed
        self.excluded += excluded
        self._show()

    def skip(self) -> None:
        """Count one sample that was on disk already."""
        self.skipped += 1
        self._show()

    def pass_over(self) -> None:
        """Count one sample that belongs to another shard."""
        self.elsewhere += 1
        self._show()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)  # one line, however long

    def _show(self) -> None:
        self._bar.update(self._task, advance=1, rate=self._rate(), note=self._note())
        if self._plain and time.monotonic() - self._printed > PLAIN_SECONDS:
            self._printed = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _rate(self) -> str:
        elapsed = time.monotonic() - self._started
        return f"{self.done / elapsed:.1f}/s" if self.done and elapsed > 0 else ""

    def _note(self) -> str:
        counts = (("skipped", self.skipped), ("excluded", self.excluded), ("failed", self.failed))
        return ", ".join(f"{count} {name}" for name, count in counts if count)

    def _line(self) -> str:
        """What the bar would show, as one line."""
        passed = self.done + self.skipped + self.elsewhere
        elapsed = time.monotonic() - self._started
        parts = [f"{passed}/{self._total or '?'}", self._rate(), f"{elapsed:.0f} s", self._note()]
        if self._total and self.done and passed < self._total:
            parts.insert(3, f"about {elapsed / self.done * (self._total - passed):.0f} s left")
        return f"{self._label}: {', '.join(part for part in parts if part)}"
