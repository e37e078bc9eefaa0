"""Record what the pipeline writes: ``python -m tests.golden.record FILE``.

Everything is fp32 on one worker, so the same machine gives the same bytes. Weights, histories and
lists are kept as digests; metrics, whose sums are added up in any order, as numbers. Manifests
repeat settings, and every new setting changes them, so they are left out.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import ray
import torch
from starlette.testclient import TestClient

from distrib.config import load
from distrib.data.config import DataConfig
from distrib.data.logs.config import SyntheticLog
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import EntrywiseSplit
from distrib.evaluation.job import evaluate
from distrib.models import (
    AutoRecConfig,
    BiasedMfConfig,
    Conv4RecConfig,
    EaseConfig,
    ElsaConfig,
    ItemKnnConfig,
    MultDaeConfig,
    MultVaeConfig,
    PopularityConfig,
    RecVaeConfig,
    VaeBmfConfig,
)
from distrib.run_file import RunFile
from distrib.scoring.bulk.job import score
from distrib.training.workers.launch import launch
from tests.serve.conftest import served

ROOT = Path(__file__).parents[2]
SMALL = {"latent_width": 8}
MODELS = {
    "conv4rec": Conv4RecConfig(rating_width=4, **SMALL),
    "conv4rec_mlp": Conv4RecConfig(decoder="mlp", **SMALL),
    "mult_vae": MultVaeConfig(hidden_width=16, **SMALL),
    "vae_cf": MultVaeConfig(hidden_width=16, input="ratings", **SMALL),
    "mult_dae": MultDaeConfig(**SMALL),
    "rec_vae": RecVaeConfig(hidden_width=16, encoder_epochs=1, **SMALL),
    "elsa": ElsaConfig(**SMALL),
    "u_autorec": AutoRecConfig(side="users", hidden_width=8),
    "i_autorec": AutoRecConfig(side="items", hidden_width=8),
    "biased_mf": BiasedMfConfig(**SMALL),
    "vae_bmf": VaeBmfConfig(branch_width=8, hidden_width=8, **SMALL),
    "ease": EaseConfig(penalty=10.0),
    "ease_neighbors": EaseConfig(penalty=10.0, num_neighbors=20),
    "item_knn": ItemKnnConfig(num_neighbors=20),
    "popularity": PopularityConfig(),
}


def digests(folder):
    """SHA-256 of every file below a folder that has data or weights, by its path in it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.suffix != ".json"
    }


def run_of(folder, data, model, **train):
    """A run file of a small model on small data."""
    settings = {"num_epochs": 2, "batch_users": 64, "num_workers": 1}
    engine = {"precision": "fp32", "zero_stage": 0, "block_items": 40}
    return RunFile.model_validate_json(
        json.dumps(
            {
                "run": str(folder),
                "data": json.loads(data.model_dump_json()),
                "model": json.loads(model.model_dump_json()),
                "engine": engine,
                "train": settings | train,
                "score": {"k": 10},
            }
        )
    )


def losses_of(run):
    """Losses with all digits, and validation metrics, of each epoch."""
    history = json.loads((Path(run) / "history.json").read_text())
    return [{"losses": entry["losses"], "valid": rounded(entry["valid"])} for entry in history]


def rounded(value):
    """Floats to 8 digits: sums over shards are added up in the order in which tasks end."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def of_demo(folder):
    """The demo in fp32 on one worker: data, losses, bundle, evaluation, lists."""
    overrides = [
        f'run="{folder}/run"',
        f'data.prepared="{folder}/data"',
        "data.source.num_users=1500",
        "data.source.num_items=120",
        "data.source.num_interactions=40000",
        'engine.precision="fp32"',
        "engine.zero_stage=0",
        "train.num_workers=1",
        "train.num_epochs=3",
    ]
    file = load(RunFile, str(ROOT / "configs/demo.toml"), overrides=overrides, environment={})
    prepare(file.data)
    launch(file.training())
    evaluate(file.run, file.data.prepared, file.evaluate)
    score(file.run, file.data.prepared, file.score)
    lists = digests(folder / "run" / "recommendations")
    return {
        "data": digests(folder / "data"),
        "losses": losses_of(folder / "run"),
        "bundle": digests(folder / "run" / "bundle"),
        "evaluation": rounded(json.loads((folder / "run" / "evaluation.json").read_text())),
        "lists": sorted(digest for name, digest in lists.items() if name != "_SUCCESS"),
        "answers": answers(folder / "run"),
    }


def answers(run):
    """What a server says of two users."""
    body = {"history": {"items": [3, 5, 8], "ratings": [4.0, 2.0, 5.0]}, "options": {"k": 5}}
    found = []
    with TestClient(served({"m": str(run)}).app) as client:
        for path, more in (
            ("recommendations", {}),
            ("explanations", {"max_reasons": 2}),
        ):
            answer = client.post(f"/v1/models/m/{path}", json=body | more)
            found.append([answer.status_code, rounded(answer.json())])
    return found


def of_models(folder):
    """Losses and bundle of every model, after two epochs on a small log."""
    data = DataConfig(
        prepared=str(folder / "data"),
        source=SyntheticLog(num_users=300, num_items=50, num_interactions=6000),
        split=EntrywiseSplit(),
        num_shards=2,
        item_histories=True,
    )
    prepare(data)
    found = {"data": digests(folder / "data")}
    for name, model in MODELS.items():
        run = folder / name
        launch(run_of(run, data, model).training())
        found[name] = {"losses": losses_of(run), "bundle": digests(run / "bundle")}
    return found


def machine():
    """What floating-point results depend on, apart from the code."""
    name = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return (
        f"{name.partition(': ')[2]}, {torch.backends.cpu.get_cpu_capability()}, {torch.__version__}"
    )


def recorded(folder):
    """Everything, on a cluster of one machine; paths are relative, so that no digest has them."""
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    torch.set_num_threads(1)
    os.chdir(folder)
    for name in ("demo", "models"):
        Path(name).mkdir()
    if not ray.is_initialized():
        ray.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR")
    return {"demo": of_demo(Path("demo")), "models": of_models(Path("models"))}


if __name__ == "__main__":
    target = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as place:
        found = {"machine": machine(), **recorded(place)}
    target.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
