"""Work ahead and behind keeps order, holds little, passes errors on, and leaves no thread."""

import gc
import threading
import weakref
from itertools import count

import pytest

from probes.sweeps.pipeline import Ahead, Behind

WAIT = 60.0  # seconds after which a thread that should have moved is taken to hang


@pytest.fixture(autouse=True)
def no_thread_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


class Thing:
    """Something whose life can be watched."""


# --- ahead -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_items_come_in_order_from_another_thread(depth):
    items = ((n, threading.get_ident()) for n in range(20))
    with Ahead(items, depth=depth) as ahead:
        found = list(ahead)
        assert list(ahead) == []
    assert [n for n, _ in found] == list(range(20))
    assert {thread for _, thread in found}.isdisjoint({threading.get_ident()})


def test_none_is_an_item_like_others():
    with Ahead([None, 0, None], depth=1) as ahead:
        assert list(ahead) == [None, 0, None]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_at_most_so_many_items_are_made_before_they_are_taken(depth):
    made, asked = [], threading.Semaphore(0)

    def items():
        for n in count():
            made.append(n)
            asked.release()
            yield n

    with Ahead(items(), depth=depth) as ahead:
        for taken in range(4):
            for _ in range(depth if taken == 0 else 1):
                assert asked.acquire(timeout=WAIT)
            assert not asked.acquire(timeout=0.02)
            assert made == list(range(taken + depth))
            assert next(ahead) == taken


def test_an_error_comes_where_its_item_would_have_come():
    def items():
        yield from (1, 2)
        raise ValueError("the third")

    with Ahead(items(), depth=5) as ahead:
        assert [next(ahead), next(ahead)] == [1, 2]
        with pytest.raises(ValueError, match="the third"):
            next(ahead)
        assert list(ahead) == []


def test_leaving_early_ends_the_thread_and_makes_no_more():
    made = []

    def take_one(ahead):
        next(ahead)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Ahead((made.append(n) or n for n in count()), depth=2) as ahead:
        take_one(ahead)
    assert 1 <= len(made) <= 3


def test_an_item_that_was_taken_is_not_held():
    with Ahead((Thing() for _ in range(3)), depth=1) as ahead:
        watched = weakref.ref(next(ahead))
        next(ahead)  # the thread is past the first by now
        gc.collect()
        assert watched() is None


# --- behind ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_calls_run_in_order_in_one_other_thread_and_all_before_the_block_is_left(depth):
    ran, threads = [], set()

    def call(n):
        ran.append(n)
        threads.add(threading.get_ident())

    with Behind(depth=depth) as behind:
        for n in range(20):
            behind.submit(lambda n=n: call(n))
    assert ran == list(range(20))
    assert len(threads) == 1
    assert threads.isdisjoint({threading.get_ident()})


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_at_most_so_many_calls_wait_or_run(depth):
    gate, submitted, more = threading.Event(), [], threading.Semaphore(0)
    with Behind(depth=depth) as behind:

        def submit_all():
            for n in range(depth + 1):
                behind.submit(lambda: gate.wait(WAIT))
                submitted.append(n)
                more.release()

        submitter = threading.Thread(target=submit_all)
        submitter.start()
        for _ in range(depth):
            assert more.acquire(timeout=WAIT)
        assert not more.acquire(timeout=0.02)
        assert submitted == list(range(depth))
        gate.set()
        submitter.join(WAIT)
    assert submitted == list(range(depth + 1))


def test_an_error_is_raised_by_the_next_submit_and_nothing_runs_after_it():
    ran = []

    def fail():
        raise OSError("disk full")

    def submit_on(behind):
        behind.submit(lambda: ran.append(1))
        behind.submit(fail)
        for _ in range(2):
            behind.submit(lambda: ran.append(2))

    with pytest.raises(OSError, match="disk full"), Behind(depth=1) as behind:
        submit_on(behind)
    assert ran == [1]


def test_an_error_of_the_last_call_is_raised_where_the_block_is_left():
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Behind(depth=3) as behind:
        behind.submit(fail)


def test_calls_already_given_run_when_the_block_is_interrupted():
    ran, gate = [], threading.Event()

    def submit_two(behind):
        behind.submit(lambda: gate.wait(WAIT))
        behind.submit(lambda: ran.append(2))
        gate.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Behind(depth=3) as behind:
        submit_two(behind)
    assert ran == [2]


def test_what_a_call_holds_goes_with_it():
    thing = Thing()
    watched = weakref.ref(thing)
    ended = threading.Event()
    with Behind(depth=1) as behind:
        behind.submit(lambda thing=thing: None)
        del thing
        behind.submit(ended.set)
        assert ended.wait(WAIT)
        gc.collect()
        assert watched() is None
