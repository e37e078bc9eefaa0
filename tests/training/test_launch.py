"""Training through Ray Train and DeepSpeed: any number of workers, stopped, killed, refused."""

import json
import os
import shutil
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import psutil
import pytest
import torch

from distrib.checkpoint.bundle import load_bundle
from distrib.data.config import DataConfig
from distrib.data.logs.config import CsvSource, SyntheticLog
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import NoSplit
from distrib.errors import CheckpointError, ConfigError, DataError, DivergedError, StoppedError
from distrib.evaluation.config import EvaluateConfig
from distrib.models import Conv4RecConfig, MultVaeConfig, VaeBmfConfig
from distrib.objectives import MultinomialConfig, RatingClassesConfig
from distrib.storage import Folder
from distrib.training.config import CheckpointConfig, TrainConfig, TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.optimizer import OptimizerConfig
from distrib.training.preflight.checks import preflight
from distrib.training.preflight.doctor import examine
from distrib.training.run_folder import HISTORY
from distrib.training.workers.launch import launch

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def prepared(cluster, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    source = SyntheticLog(num_users=1500, num_items=60, num_interactions=20_000)
    prepare(DataConfig(prepared=folder, source=source, num_shards=3))
    return folder


VAE_BMF = VaeBmfConfig(latent_width=4, branch_width=8, hidden_width=8)


def config_of(run, prepared, model="conv4rec", precision="fp32", **train):
    models = {
        "conv4rec": (Conv4RecConfig(latent_width=8, rating_width=4), RatingClassesConfig()),
        "mult_vae": (MultVaeConfig(hidden_width=32, latent_width=8), MultinomialConfig()),
        "vae_bmf": (VAE_BMF, VAE_BMF.spec.objective),
    }
    checkpoint = CheckpointConfig(**train.pop("checkpoint", {}))
    settings = {"precision": precision, "zero_stage": 1, "block_items": 25}
    engine = EngineConfig(**(settings | train.pop("engine", {})))
    chosen, objective = models[model]
    return TrainingRun(
        run=str(run),
        prepared=prepared,
        seed=0,
        model=chosen,
        objective=objective,
        optimizer=OptimizerConfig(learning_rate=0.003),
        engine=engine,
        train=TrainConfig(
            **{"num_epochs": 3, "batch_users": 100, "num_workers": 2, "check_steps": 4} | train,
            checkpoint=checkpoint,
        ),
        evaluate=EvaluateConfig(),
    )


def losses(run):
    history = Folder(str(run)).read_json(HISTORY)
    return [[entry["losses"][name] for name in sorted(entry["losses"])] for entry in history]


def checkpoints(run):
    return sorted((run / "checkpoints").glob("step-*"))


def only_checkpoint(run, step):
    """Remove all checkpoints but one, as if training had been cut off there."""
    for path in checkpoints(run):
        if not path.name.startswith(f"step-{step:010d}-"):
            shutil.rmtree(path)
    (found,) = checkpoints(run)
    return found


@pytest.fixture(scope="module")
def whole_run(prepared, tmp_path_factory):
    """Three epochs on two workers, undisturbed."""
    run = tmp_path_factory.mktemp("run")
    return run, launch(config_of(run, prepared))


def test_training_learns_and_publishes_its_best_epoch(whole_run):
    run, result = whole_run
    history = Folder(str(run)).read_json(HISTORY)
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert history[-1]["losses"]["interaction"] < history[0]["losses"]["interaction"]
    for entry in history:
        shares = [entry[f"{part}_share"] for part in ("data", "compute", "checkpoint")]
        assert 0.0 < entry["communication_share"] < 1.0
        assert sum(shares) + entry["communication_share"] == pytest.approx(1.0)
    best = max(history, key=lambda entry: entry["selection"])
    bundle = load_bundle(Folder(str(run)) / "bundle")
    assert result.best_epoch == bundle.facts.epoch == best["epoch"]
    assert bundle.facts.valid == best["valid"]


def test_epochs_without_validation_train_alike(prepared, tmp_path):
    settings = {"num_workers": 1, "num_epochs": 5}
    for every in (1, 2):
        launch(config_of(tmp_path / str(every), prepared, validate_every_epochs=every, **settings))
    every_epoch, second = (Folder(str(tmp_path / name)).read_json(HISTORY) for name in ("1", "2"))
    assert [entry["epoch"] for entry in second] == [2, 4, 5]
    for entry in second:
        assert entry["valid"] == every_epoch[entry["epoch"] - 1]["valid"]
    first, both = losses(tmp_path / "1"), losses(tmp_path / "2")
    np.testing.assert_allclose(both[0], np.mean(first[:2], axis=0), rtol=1e-5)
    assert both[2] == first[4]


def test_epochs_without_validation_still_feed_the_latent_vectors_of_the_other_side(
    cluster, tmp_path
):
    source = SyntheticLog(num_users=200, num_items=40, num_interactions=4000)
    data = str(tmp_path / "data")
    prepare(DataConfig(prepared=data, source=source, num_shards=1, item_histories=True))
    settings = {"num_workers": 1, "num_epochs": 4, "model": "vae_bmf"}
    for every in (1, 2):
        launch(config_of(tmp_path / str(every), data, validate_every_epochs=every, **settings))
    first, both = losses(tmp_path / "1"), losses(tmp_path / "2")
    for place in (0, 1):
        mean = np.mean(first[2 * place : 2 * place + 2], axis=0)
        np.testing.assert_allclose(both[place], mean, rtol=1e-5)


def test_other_numbers_of_workers_give_the_same_losses_also_from_within_an_epoch(
    prepared, whole_run, tmp_path
):
    often = {"checkpoint": {"every_steps": 4, "keep": 99}}
    launch(config_of(tmp_path, prepared, num_workers=1, num_epochs=2, **often))
    # float32; sums over users are ordered differently.
    np.testing.assert_allclose(losses(tmp_path), losses(whole_run[0])[:2], rtol=1e-5)
    only_checkpoint(tmp_path, 20)  # within the second epoch; all stages are in test_engine.py
    stage_3 = {"engine": {"zero_stage": 3}}
    launch(config_of(tmp_path, prepared, num_workers=3, **often, **stage_3))
    # ... and 45 updates of Adam let that grow.
    np.testing.assert_allclose(losses(tmp_path), losses(whole_run[0]), rtol=1e-4)


def test_a_stopped_run_goes_on_and_a_damaged_checkpoint_gives_way_to_the_one_before(
    prepared, whole_run, tmp_path
):
    launch(config_of(tmp_path, prepared, num_epochs=2))
    part = checkpoints(tmp_path)[-1] / "state-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    launch(config_of(tmp_path, prepared, num_epochs=3))
    assert losses(tmp_path) == losses(whole_run[0])


def test_a_streaming_run_goes_on_within_an_epoch_bit_for_bit(prepared, tmp_path):
    often = {"feed": "streaming", "window_users": 700, "checkpoint": {"every_steps": 4, "keep": 99}}
    launch(config_of(tmp_path, prepared, "mult_vae", num_epochs=2, **often))
    whole = losses(tmp_path)
    begun = only_checkpoint(tmp_path, 20)  # 15 steps an epoch: within the second
    saved = {path.name: path.read_bytes() for path in begun.iterdir()}
    launch(config_of(tmp_path, prepared, "mult_vae", num_epochs=2, **often))
    assert losses(tmp_path) == whole
    assert {path.name: path.read_bytes() for path in begun.iterdir()} == saved


SLOW = {"batch_users": 4, "num_epochs": 2}  # epochs of seconds, so that faults fall inside


@pytest.fixture(scope="module")
def slow_run(prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("slow")
    launch(config_of(run, prepared, **SLOW))
    return run


def stop_after(step, run, sent):
    """Wait for a checkpoint, then ask this process to stop, as a cluster would."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not sent:
        if any(path.name >= f"step-{step:010d}" for path in checkpoints(run)):
            os.kill(os.getpid(), signal.SIGTERM)
            sent.append(step)
        time.sleep(0.02)


def test_a_signal_keeps_the_place_and_leaves(prepared, slow_run, tmp_path):
    slow = SLOW | {"checkpoint": {"every_steps": 20}}
    sent = []
    watcher = threading.Thread(target=stop_after, args=(420, tmp_path / "stopped", sent))
    watcher.start()
    with pytest.raises(StoppedError, match=r"stopped by SIGTERM after epoch 1; a checkpoint is"):
        launch(config_of(tmp_path / "stopped", prepared, **slow))
    watcher.join()
    assert load_bundle(Folder(str(tmp_path / "stopped")) / "bundle").facts.epoch == 1
    assert checkpoints(tmp_path / "stopped")[-1].name > "step-0000000420"
    launch(config_of(tmp_path / "stopped", prepared, **slow))
    assert losses(tmp_path / "stopped") == losses(slow_run)


def test_a_store_that_fails_for_good_stops_the_run_clean(prepared, tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match=r"could not be written: .*same command continues"):
        launch(config_of(tmp_path, prepared, checkpoint={"retry_s": 0.0}))


def test_training_ends_early_old_checkpoints_go_and_the_best_stays(prepared, tmp_path):
    still = OptimizerConfig(learning_rate=1e-12)
    settings = {"num_epochs": 9, "patience": 2, "checkpoint": {"keep": 1, "every_steps": 6}}
    config = config_of(tmp_path, prepared, **settings)
    launch(config.model_copy(update={"optimizer": still}))
    history = Folder(str(tmp_path)).read_json(HISTORY)
    best = max(history, key=lambda entry: (entry["selection"], -entry["epoch"]))["epoch"]
    assert len(history) == best + 2 < 9
    assert [path.name[:15] for path in checkpoints(tmp_path)] == [f"step-{15 * len(history):010d}"]
    assert load_bundle(Folder(str(tmp_path)) / "bundle").facts.epoch == best


class Tracking(BaseHTTPRequestHandler):
    """As much of MLflow's REST interface as a run uses."""

    metrics: ClassVar[list[dict]] = []

    def answer(self, latent, content):
        self.send_response(latent)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def do_GET(self):
        self.answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("log-metric"):
            self.metrics.append(asked)
        info = {"run_id": "abc", "run_uuid": "abc", "experiment_id": "7", "status": "RUNNING"}
        self.answer(200, {"experiment_id": "7", "run": {"info": info, "data": {}}})

    def log_message(self, *_):
        pass


@pytest.fixture
def tracking():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Tracking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_one_user_in_all_trains_on_two_workers_and_is_shown(
    cluster, tracking, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # workers stand elsewhere
    log = tmp_path / "log.csv"
    log.write_text("user,item\n" + "".join(f"anna,{item}\n" for item in "abcde"))
    source = CsvSource(path=str(log), columns={"user": "user", "item": "item"})
    data = str(tmp_path / "data")
    prepare(DataConfig(prepared=data, source=source, split=NoSplit()))
    reported = {"tensorboard": True, "mlflow": tracking, "num_epochs": 2}
    result = launch(config_of("run", data, "mult_vae", **reported))
    assert result.epochs == 2
    assert np.isfinite(losses(tmp_path / "run")).all()
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    named = {(metric["key"], metric["step"]) for metric in Tracking.metrics}
    assert {("epoch_reconstruction", 1), ("epoch_reconstruction", 2)} <= named


def test_doctor_looks_at_every_node_and_estimates(prepared, tmp_path):
    found = examine(config_of(tmp_path, prepared, "mult_vae", engine={"parallel": "items"}))
    assert len(found.nodes) == 1
    assert found.nodes[0].torch == torch.__version__
    assert found.estimate["steps an epoch"] == 15
    assert not any(tmp_path.iterdir())


def test_doctor_refuses_a_run_folder_that_cannot_be_written(prepared, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"(?s)1 fault.*cannot write into the run folder"):
        examine(config_of(tmp_path / "file" / "run", prepared))


def train_workers():
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]


def kill_one_worker_after(epoch, run, killed):
    """Wait for the checkpoint of an epoch, then kill a worker in the middle of the next."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        done = [path for path in checkpoints(run) if path.name >= f"step-{375 * epoch:010d}"]
        if done:
            time.sleep(0.5)  # into the next epoch
            workers = train_workers()
            if workers:
                os.kill(workers[-1].pid, signal.SIGKILL)
                killed.append(epoch)
            return
        time.sleep(0.05)


def test_a_killed_worker_costs_nothing_but_time(prepared, slow_run, tmp_path):
    killed = []
    chaos = threading.Thread(target=kill_one_worker_after, args=(1, tmp_path / "killed", killed))
    chaos.start()
    result = launch(config_of(tmp_path / "killed", prepared, **SLOW))
    chaos.join()
    assert killed == [1]
    assert result.epochs == 2
    assert losses(tmp_path / "killed") == losses(slow_run)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_place(prepared, tmp_path):
    config = config_of(tmp_path, prepared, "mult_vae")
    wild = OptimizerConfig(name="sgd", learning_rate=1e30)
    with pytest.raises(
        DivergedError, match=r"epoch 1, step [1-4]: .* is (nan|inf), .*last good epoch: none"
    ):
        launch(config.model_copy(update={"optimizer": wild}))


def test_a_run_folder_of_another_configuration_is_refused(prepared, whole_run):
    run, _ = whole_run
    config = config_of(run, prepared)
    other = config.model_copy(update={"optimizer": OptimizerConfig(learning_rate=0.5)})
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.003 there, 0\.5 now"):
        preflight(other)
    with pytest.raises(ConfigError, match=r"train\.batch_users: 100 there, 50 now"):
        preflight(config_of(run, prepared, batch_users=50))
    with pytest.raises(ConfigError, match=r"train\.feed: 'resident' there, 'streaming' now"):
        preflight(config_of(run, prepared, feed="streaming"))
    preflight(config_of(run, prepared, num_epochs=9, num_workers=1, engine={"zero_stage": 3}))


def test_pairs_that_make_no_sense_are_refused(prepared, tmp_path):
    config = config_of(tmp_path, prepared)
    with pytest.raises(ConfigError, match="valid objectives for"):
        preflight(config.model_copy(update={"objective": MultinomialConfig()}))
    with pytest.raises(ConfigError, match=r"select_by names \['rmse'\]"):
        preflight(config_of(tmp_path, prepared, "mult_vae", select_by=("rmse",)))
    with pytest.raises(ConfigError, match=r"'fp16' with train\.use_gpu = false"):
        preflight(config_of(tmp_path, prepared, precision="fp16"))
    with pytest.raises(ConfigError, match=r"'rows' with train\.use_gpu = true"):
        preflight(config_of(tmp_path, prepared, engine={"parallel": "rows"}, use_gpu=True))
    assert not (tmp_path / "run.json").exists()


def test_data_that_are_not_prepared_are_refused(tmp_path):
    with pytest.raises(DataError, match="nothing complete is prepared there"):
        preflight(config_of(tmp_path / "run", str(tmp_path / "nothing")))


def test_more_workers_than_the_cluster_can_hold_are_refused(prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"num_workers = 99 needs 99 CPU, there are 4"):
        launch(config_of(tmp_path, prepared, num_workers=99))
