"""Engines run what they know nothing of; whichever runs a run's jobs, the directory is the same and loses nothing."""

import json
import threading
import weakref
from dataclasses import replace
from itertools import islice

import numpy as np
import pandas as pd
import pytest
from demo_data import demo_model, demo_samples
from other_engines import Batches, Breaking, Forgetful, InProcesses, Squares, TwoWorkers, WorkerError

import vlm_horizon as vh
from probes.models.probed import ProbedModel
from probes.sweeps.engines import InThreads, InTurn

OURS = (InTurn(), InThreads(), InThreads(ahead=1, behind=3))
OTHERS = (Batches(), TwoWorkers())
ENGINES = pytest.mark.parametrize("engine", [*OURS, *OTHERS], ids=lambda engine: type(engine).__name__)
OUR_ENGINES = pytest.mark.parametrize("engine", OURS, ids=str)
STAGES = ("prepare", "compute", "finish")


@pytest.fixture(autouse=True)
def no_thread_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) - before == set()


@pytest.fixture(scope="module")
def processes():
    engine = InProcesses(workers=1)
    yield engine
    engine.close()


def squares(*numbers):
    return [{number: number**2} for number in numbers]


class Noting(Squares):
    """Squares that note what began and ended, in which thread, and fail where they are told to."""

    def __init__(self, failing=("", 0)):
        self.events, self.failing = [], failing

    def _noted(self, stage, number, result):
        self.events.append((stage, number, threading.get_ident()))
        if (stage, number) == self.failing:
            raise ValueError(f"{stage} of {number}")
        return result

    def prepare(self, number):
        return self._noted("prepare", number, super().prepare(number))

    def compute(self, prepared):
        return self._noted("compute", prepared[0], super().compute(prepared))

    def finish(self, computed):
        return self._noted("finish", computed[0], super().finish(computed))


# --- any jobs --------------------------------------------------------------------------------------------------------


@ENGINES
def test_every_job_goes_through_its_stages_once_and_is_kept_once(engine):
    stages, kept = Noting(), []
    engine.run(iter(range(11)), stages, kept.append)
    assert sorted(kept, key=min) == squares(*range(11))
    for stage in STAGES:
        assert sorted(number for name, number, _ in stages.events if name == stage) == list(range(11))
    engine.run([], stages, kept.append)
    assert len(kept) == 11


@OUR_ENGINES
def test_our_engines_keep_the_order_and_compute_in_the_calling_thread(engine):
    stages, kept = Noting(), []
    engine.run(range(11), stages, kept.append)
    assert kept == squares(*range(11))
    threads = {stage: {thread for name, _, thread in stages.events if name == stage} for stage in STAGES}
    assert threads["compute"] == {threading.get_ident()}
    assert len(set.union(*threads.values())) == (1 if engine == InTurn() else 3)


def test_an_engine_of_processes_takes_the_same_stages(processes):
    kept = []
    processes.run(range(5), Squares(), kept.append)
    assert kept == squares(*range(5))


@ENGINES
def test_jobs_are_drawn_only_as_they_are_worked_on(engine):
    """However many jobs there are, few are drawn and not kept yet: two threads' worth, or a batch."""
    drawn, kept, most = [], [], []

    def jobs():
        for number in range(40):
            drawn.append(number)
            most.append(len(drawn) - len(kept))
            yield number

    engine.run(jobs(), Squares(), kept.append)
    assert len(kept) == 40
    assert max(most) <= 6


@OUR_ENGINES
@pytest.mark.parametrize("stage", STAGES)
def test_an_error_in_a_stage_is_raised_and_what_was_computed_before_is_kept(engine, stage):
    kept = []
    with pytest.raises(ValueError, match=f"{stage} of 4"):
        engine.run(range(11), Noting(failing=(stage, 4)), kept.append)
    assert kept == squares(0, 1, 2, 3)


@OUR_ENGINES
def test_an_error_of_the_jobs_or_of_keeping_is_raised(engine):
    def jobs():
        yield from (1, 2)
        raise ConnectionError("the source is gone")

    kept = []
    with pytest.raises(ConnectionError, match="the source is gone"):
        engine.run(jobs(), Squares(), kept.append)
    assert kept == squares(1, 2)

    def refuse(result):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        engine.run(range(11), Squares(), refuse)


@OUR_ENGINES
def test_what_was_computed_is_let_go_when_it_is_kept(engine):
    """The states of a sample are large: none may wait for the next sample to be measured."""
    alive = []

    class States:
        """What a computation leaves."""

    class Large(Squares):
        def compute(self, prepared):
            alive.append(sum(ref() is not None for ref in references))
            states = States()
            references.append(weakref.ref(states))
            return states

        def finish(self, computed):
            return None

    references = []
    engine.run(range(8), Large(), lambda result: None)
    assert max(alive) <= (0 if engine == InTurn() else engine.behind)
    assert not [ref for ref in references if ref() is not None]


# --- the jobs of a run -----------------------------------------------------------------------------------------------

OPTIONS = {"streams": ("query",), "window": 4, "token_samples": 2, "spectra": 1, "progress": False}
ADAPTIVE = {"probes": ("removal", "information"), "window": 4, "progress": False}


@pytest.fixture(scope="module")
def model():
    return demo_model()


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Three samples of each task, and one that cannot be measured."""
    nowhere = tmp_path_factory.mktemp("none") / "nowhere.png"
    bad = replace(demo_samples(1, "ocr")[0], id="bad", image=nowhere)
    return [*demo_samples(3, "ocr"), bad, *demo_samples(3, "vqa")]


@pytest.fixture(scope="module")
def in_turn(model, samples, tmp_path_factory):
    return vh.run(model, samples, tmp_path_factory.mktemp("runs") / "run", generate=3, engine=InTurn(), **OPTIONS)


@pytest.fixture(scope="module")
def adaptive(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "adaptive"
    return vh.run_adaptive(model, demo_samples(2), out, engine=InTurn(), **ADAPTIVE)


def assert_same(run, other):
    """The two directories say the same, to the last bit, but for the seconds that it took."""
    ours, theirs = (json.loads((each.path / "run.json").read_text()) for each in (run, other))
    assert ours == theirs
    curves = [each.curves.sort_values("row", kind="stable", ignore_index=True) for each in (run, other)]
    pd.testing.assert_frame_equal(*curves, check_exact=True)
    tables = [each.samples.drop(columns=["seconds", "part"], errors="ignore") for each in (run, other)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    pd.testing.assert_frame_equal(run.generations, other.generations, check_exact=True)
    assert run.token_rows() == other.token_rows()
    for row in run.token_rows():
        for name in ("log_p", "layers", "removed"):
            np.testing.assert_array_equal(getattr(run.tokens(row), name), getattr(other.tokens(row), name))
    if "entropy" in run.config.probes:
        spectra = run.spectra("query"), other.spectra("query")
        assert sorted(spectra[0]) == sorted(spectra[1])
        for row, values in spectra[0].items():
            np.testing.assert_array_equal(values, spectra[1][row])


@pytest.mark.parametrize(
    ("engine", "what"), [("threads", "'threads'"), ("", "''"), (InThreads, "the class InThreads"), (4, "4")]
)
def test_what_is_no_engine_is_refused_in_a_sentence(model, samples, tmp_path, engine, what):
    with pytest.raises(vh.HorizonError, match=rf"^engine is {what}; give an object with the method run\(jobs, stages"):
        vh.run(model, samples, tmp_path / "run", engine=engine, **OPTIONS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("engine", [InThreads(), *OTHERS], ids=lambda engine: type(engine).__name__)
def test_whichever_engine_measures_the_directory_is_the_same(model, samples, in_turn, tmp_path, engine):
    run = vh.run(model, samples, tmp_path / "run", generate=3, engine=engine, **OPTIONS)
    assert run.failed["id"].tolist() == ["bad"]
    assert_same(run, in_turn)


def test_answers_alone_go_through_the_same_engine(model, samples, in_turn, tmp_path):
    vh.run(model, samples, tmp_path / "run", **OPTIONS)
    engine = Batches(size=2)
    run = vh.run(model, samples, tmp_path / "run", generate=3, engine=engine, **OPTIONS)
    assert engine.calls == 1
    assert len(run.generations) == 6
    assert_same(run, in_turn)


def test_a_worker_process_that_loads_the_model_again_gives_the_same_run(
    model, samples, in_turn, tmp_path, processes, monkeypatch
):
    """Nothing but the way to pickle a model is missing for workers elsewhere."""
    monkeypatch.setattr(ProbedModel, "__reduce_ex__", lambda probed, _: (vh.load_model, (probed.name,)))
    run = vh.run(model, samples, tmp_path / "run", generate=3, engine=processes, **OPTIONS)
    assert_same(run, in_turn)


def test_an_engine_that_breaks_down_loses_nothing_that_was_finished(model, samples, in_turn, tmp_path):
    with pytest.raises(WorkerError, match="after 3 results"):
        vh.run(model, samples, tmp_path / "run", generate=3, engine=Breaking(after=3), **OPTIONS)
    there = vh.load_run(tmp_path / "run")
    assert there.samples.index.tolist() == [0, 1, 2]
    assert there.generations.index.tolist() == [0, 1, 2]
    assert_same(vh.run(model, samples, tmp_path / "run", generate=3, engine=TwoWorkers(), **OPTIONS), in_turn)


def test_an_engine_that_loses_jobs_is_told_apart_from_one_that_is_through(model, samples, in_turn, tmp_path):
    with pytest.raises(vh.HorizonError, match="the engine Forgetful gave 4 outcomes of 7 jobs"):
        vh.run(model, samples, tmp_path / "run", generate=3, engine=Forgetful(), **OPTIONS)
    assert vh.load_run(tmp_path / "run").samples.index.tolist() == [0, 2, 4, 6]
    assert_same(vh.run(model, samples, tmp_path / "run", generate=3, engine=Batches(), **OPTIONS), in_turn)


class Lazy:
    """Draws fewer jobs than there are, and says nothing."""

    def __init__(self, most: int) -> None:
        self.most = most

    def run(self, jobs, stages, keep) -> None:
        for job in islice(jobs, self.most):
            keep(stages.finish(stages.compute(stages.prepare(job))))


class Twice:
    """Keeps every result two times."""

    def run(self, jobs, stages, keep) -> None:
        for job in jobs:
            result = stages.finish(stages.compute(stages.prepare(job)))
            keep(result)
            keep(result)


@pytest.mark.parametrize("most", [0, 1])
def test_an_engine_that_draws_too_few_jobs_is_not_taken_to_be_through(model, samples, in_turn, tmp_path, most):
    with pytest.raises(vh.HorizonError, match=f"Lazy gave {most} outcomes of {most} jobs and drew no more: what"):
        vh.run(model, samples, tmp_path / "run", generate=3, engine=Lazy(most), **OPTIONS)
    assert len(vh.load_run(tmp_path / "run").samples) == most
    assert_same(vh.run(model, samples, tmp_path / "run", generate=3, **OPTIONS), in_turn)


def test_an_engine_that_keeps_a_result_twice_is_refused_as_such(model, samples, tmp_path):
    with pytest.raises(vh.HorizonError, match="Twice gave 4 outcomes of 2 jobs: some were kept more than once"):
        vh.run(model, samples[:2], tmp_path / "run", engine=Twice(), **OPTIONS)


@pytest.mark.parametrize("engine", OTHERS, ids=lambda engine: type(engine).__name__)
def test_chosen_layers_are_the_same_on_another_engine(model, adaptive, tmp_path, engine):
    run = vh.run_adaptive(model, demo_samples(2), tmp_path / "run", engine=engine, **ADAPTIVE)
    assert run.config.chosen_layers
    assert_same(run, adaptive)


def test_every_sweep_of_chosen_layers_runs_on_the_engine_given(model, tmp_path):
    engine = Batches()
    vh.run_adaptive(model, demo_samples(1, "vqa"), tmp_path / "run", budget=2, engine=engine, **ADAPTIVE)
    assert engine.calls > 1


def test_shards_on_different_engines_add_up_to_the_run(model, adaptive, tmp_path):

    def layers(run):
        return {row: list(run.token_layers(row)) for row in run.token_rows()}

    for turn in range(12):
        how = {"shard": (turn % 2, 2), "engine": OTHERS[turn % 2], **ADAPTIVE}
        run = vh.run_adaptive(model, demo_samples(2), tmp_path / "run", **how)
        if layers(run) == layers(adaptive):
            break
    assert_same(run, adaptive)


def test_a_breakdown_between_sweeps_of_chosen_layers_is_made_up_for(model, adaptive, tmp_path):
    for after in (3, 2):
        with pytest.raises(WorkerError):
            vh.run_adaptive(model, demo_samples(2), tmp_path / "run", engine=Breaking(after), **ADAPTIVE)
    assert_same(vh.run_adaptive(model, demo_samples(2), tmp_path / "run", **ADAPTIVE), adaptive)
