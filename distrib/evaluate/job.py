"""Evaluation on the cluster: every test user of a prepared folder, the model beside popularity."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.checkpoint.manifest import MANIFEST
from distrib.cluster.actors import actor_pool
from distrib.data.dataset import load_manifest
from distrib.data.feeds.collate import example
from distrib.data.logs.config import SyntheticLog
from distrib.data.schema import Role
from distrib.data.splits.rules import CHRONOLOGICAL, NoSplit, Split
from distrib.errors import ConfigError, DataError
from distrib.evaluate.protocol import EvaluateConfig, measure
from distrib.evaluate.shards import model_and_popularity, shard_pieces, test_rows
from distrib.evaluate.truth import distance_to_truth
from distrib.events import emit
from distrib.metrics import Sums
from distrib.storage import Folder

RESULT = "evaluation.json"


def preflight(run: str, prepared: str) -> dict[str, Any]:
    """Check that there is a model and a matching test set.

    Args:
        run: Run folder.
        prepared: Prepared data.

    Returns:
        The manifest of the prepared data.

    Raises:
        DataError: The data are not prepared, or hold no test target.
        ConfigError: The model was trained on other data.
    """
    manifest = load_manifest(Folder(prepared))
    if not manifest["counts"]["interactions_by_role"].get("test_target"):
        raise DataError(
            f"{prepared}: holds no test targets; choose another data.split than "
            f"{manifest['recipe']['split']['name']!r}"
        )
    bundle = Folder(run) / BUNDLE
    if bundle.exists(MANIFEST):
        trained_on = bundle.read_json(MANIFEST).get("data")
        if trained_on != manifest["hash"]:
            raise ConfigError(
                f"{run} was trained on data {trained_on}, but {prepared} holds "
                f"{manifest['hash']}; name the data that it was trained on, or, where it was "
                "extended since, train anew with train.warm_start"
            )
    return manifest


def check_split(split: Split) -> None:
    """Refuse a split that asks for nothing.

    Args:
        split: The rule of the run file.

    Raises:
        ConfigError: There would be nothing to measure.
    """
    if isinstance(split, NoSplit):
        raise ConfigError(
            f"data.split = {split.name!r} holds out nothing to evaluate; choose another split, or "
            "run jobs/prepare.py, train.py and score.py one by one"
        )


def evaluate(run: str, prepared: str, config: EvaluateConfig) -> dict[str, Any]:
    """Measure a run's best model on the test targets, and popularity beside it.

    Args:
        run: Run folder with a bundle.
        prepared: The data it was trained on.
        config: Which metrics.

    Returns:
        By model (``model``, ``popularity``) and metric: mean, standard error and count; the
        accounting of users; for a synthetic log the distance to the truth. Also written to the run
        folder as ``evaluation.json``.
    """
    manifest = preflight(run, prepared)
    bundle = str(Folder(run) / BUNDLE)
    load_bundle(Folder(bundle))  # fail here, clearly, rather than in an actor
    shards = shard_pieces(manifest)
    measured = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
        _ShardMeasurer,
        fn_constructor_kwargs={
            "bundle": bundle,
            "prepared": prepared,
            "config": config,
            "is_chronological": manifest["recipe"]["split"]["name"] in CHRONOLOGICAL,
        },
        batch_size=1,
        batch_format="pyarrow",
        num_gpus=config.gpus_per_actor,
        compute=actor_pool(config.gpus_per_actor, len(shards)),
    )
    totals = {"model": Sums({}), "popularity": Sums({})}
    num_users = 0
    for block in measured.iter_batches(batch_size=None, batch_format="pyarrow"):
        for text in block["measured"].to_pylist():
            entry = json.loads(text)
            num_users += entry.pop("num_users")
            for name, sums in entry.items():
                totals[name] = totals[name].merged(Sums({k: tuple(v) for k, v in sums.items()}))
    everyone = manifest["counts"]["users"]
    result: dict[str, Any] = {
        "data": manifest["hash"],
        "users": {
            "all": everyone,
            "measured": num_users,
            "without test targets": everyone - num_users,
        },
        "metrics": {
            name: {metric: summary._asdict() for metric, summary in sums.summaries().items()}
            for name, sums in totals.items()
        },
    }
    if manifest["recipe"]["source"]["format"] == SyntheticLog.model_fields["format"].default:
        result["distance_to_truth"] = ray.get(distance_to_truth.remote(bundle, prepared, manifest))
    Folder(run).write_json(RESULT, result)
    emit("evaluated", users=result["users"])
    return result


class _ShardMeasurer:
    """Holds the models; measures the users of one shard at a time."""

    def __init__(
        self, bundle: str, prepared: str, config: EvaluateConfig, *, is_chronological: bool
    ) -> None:
        self.is_chronological = is_chronological
        self.prepared = Folder(prepared)
        self.config = config
        device = "cuda" if config.gpus_per_actor else "cpu"
        self.scorers = dict(
            zip(("model", "popularity"), model_and_popularity(bundle, device), strict=True)
        )

    def __call__(self, shard: pa.Table) -> pa.Table:
        rows, _ = test_rows(self.prepared, shard.to_pylist()[0])
        sums = dict.fromkeys(self.scorers, Sums({}))
        size = self.config.batch_users
        for start in range(0, rows.num_users, size):
            wanted = np.arange(start, min(start + size, rows.num_users))
            asked = example(rows, wanted, Role.TEST_TARGET, is_chronological=self.is_chronological)
            for name, scorer in self.scorers.items():
                sums[name] = sums[name].merged(measure(scorer, asked, self.config))
        entry = {"num_users": rows.num_users, **{name: s.totals for name, s in sums.items()}}
        return pa.table({"measured": [json.dumps(entry)]})
