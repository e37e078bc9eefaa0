"""Checkpoints of a run whose storage is slower than its epochs."""

import threading

import pytest
import torch

from distrib.checkpoint.bundle import BundleFacts
from distrib.checkpoint.store import CheckpointStore
from distrib.fence import take_over
from distrib.storage import Folder
from distrib.training.best_bundle import BEST
from distrib.training.engines.local import LocalEngine
from distrib.training.loop import TrainState
from distrib.training.optimizer import OptimizerConfig
from distrib.training.records import EpochRecord
from distrib.training.workers.checkpoints import Attempt, RunCheckpoints, Trained
from distrib.training.workers.loss_reducer import LossReducer
from distrib.training.workers.place import Place
from tests.in_process import run_of, step_of, vocabulary_of
from tests.training.engine_ranks import CASES


@pytest.fixture
def checkpoints(small, tmp_path, process_group):
    run = run_of(*CASES["mult_vae"]).model_copy(update={"run": str(tmp_path / "run")})
    engine = LocalEngine(step_of(run, small), OptimizerConfig())
    reducer = LossReducer(torch.device("cpu"), max_skipped_updates=0)
    trained = Trained(engine, TrainState(0), reducer, [], vocabulary_of(small))
    place = Place(0, 1, 0, 0, torch.device("cpu"), str, str, print, None, lambda: None)
    token = take_over(Folder(run.run))
    return RunCheckpoints(run, place, Attempt("one", token, BundleFacts(data="d")), trained)


@pytest.fixture
def slow_store(monkeypatch):
    """A store that writes when it is let."""
    gate, write = threading.Event(), CheckpointStore.write

    def wait(self, *given, **named):
        assert gate.wait(60)
        write(self, *given, **named)

    monkeypatch.setattr(CheckpointStore, "write", wait)
    yield gate
    gate.set()


def end_epoch(checkpoints, epoch, **how):
    trained = checkpoints.trained
    trained.state.epoch = trained.state.step = epoch
    record = EpochRecord(
        epoch=epoch, step=epoch, losses={}, valid={}, selection=epoch, data_share=0.0
    )
    trained.history.append(record)
    checkpoints.save(trained.engine.weights(), **how)


def best_bundles(checkpoints):
    return (checkpoints.folder / BEST).folders()


def steps(checkpoints):
    return sorted(int(name.split("-")[1]) for name in checkpoints.store.complete())


def test_a_slow_store_holds_up_no_epoch_and_loses_no_best_one(checkpoints, slow_store):
    end_epoch(checkpoints, 1, is_optional=True)
    end_epoch(checkpoints, 2, is_optional=True)  # the first is still being written
    slow_store.set()
    assert checkpoints.wait() == ""
    assert steps(checkpoints) == [1]
    assert best_bundles(checkpoints) == ["epoch-000001", "epoch-000002"]


def test_a_store_that_fails_in_the_end_is_a_fault_and_not_an_exception(
    checkpoints, slow_store, monkeypatch
):
    end_epoch(checkpoints, 1, is_optional=True)
    end_epoch(checkpoints, 2, is_optional=True)
    slow_store.set()
    checkpoints.writer.wait()

    def fails(*_):
        raise OSError(28, "the disk is full")

    monkeypatch.setattr("distrib.training.workers.checkpoints.write_best", fails)
    assert "the best epoch could not be written: " in checkpoints.wait()


def test_what_was_put_off_is_written_with_the_next_checkpoint(checkpoints, slow_store):
    end_epoch(checkpoints, 1, is_optional=True)
    end_epoch(checkpoints, 2, is_optional=True)
    slow_store.set()
    checkpoints.writer.wait()
    checkpoints.trained.state.step = 3
    checkpoints.save()
    assert checkpoints.wait() == ""
    assert steps(checkpoints) == [1, 3]
    assert "epoch-000002" in best_bundles(checkpoints)
