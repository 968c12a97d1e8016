"""Two threads beside the one that measures: one works ahead of it, one clears up behind it, both in order.

Order is kept, little is held at any time, errors surface in the thread that measures, and none of the threads
outlives its `with` block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Semaphore, Thread
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Iterates over items in a thread of its own, which is at most `depth` items ahead. A context manager.

    What the iteration raises is raised where its item would have come. Leaving the block ends the thread after the
    item that it is at.
    """

    def __init__(self, items: Iterable[T], *, depth: int) -> None:
        self._items = iter(items)
        self._queue: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        self._room = Semaphore(depth)
        self._stopped = self._ended = False
        self._thread = Thread(target=self._work, name="vlm-horizon ahead", daemon=True)

    def __enter__(self) -> Ahead[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._room.release()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        item, error = self._queue.get()
        self._room.release()
        if error is not None:
            self._ended = True
            raise error
        return item  # type: ignore[return-value]  # an item of any type, None among them, comes without an error

    def _work(self) -> None:
        ended = False
        while not ended:
            self._room.acquire()  # before the item is made: what waits here would be held in memory
            if self._stopped:
                return
            try:
                self._queue.put((next(self._items), None))
            except BaseException as error:  # StopIteration too: it ends the iteration on the other side
                self._queue.put((None, error))
                ended = True


class Behind:
    """Runs calls in a thread of its own, one after another in the order given. A context manager.

    After a call that raises no other runs; the error is raised by the next `submit`, or where the block is left.
    """

    def __init__(self, *, depth: int) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._room = Semaphore(depth)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._work, name="vlm-horizon behind", daemon=True)

    def __enter__(self) -> Behind:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until every call has run."""
        self._calls.put(None)
        self._thread.join()
        if self._error is not error:
            self._raise()

    def submit(self, call: Callable[[], object]) -> None:
        """Run a call after those given before; waits while `depth` calls have not ended."""
        self._room.acquire()
        self._raise()
        self._calls.put(call)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                if self._error is None:
                    call()
            except BaseException as error:
                self._error = error
            del call  # what it holds is not kept until the next one comes
            self._room.release()
