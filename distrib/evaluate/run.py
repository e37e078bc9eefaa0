"""Evaluation on the cluster: every test user of a prepared folder, the model beside popularity."""

import json
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data

from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.checkpoint.manifest import MANIFEST
from distrib.data.collate import Rows, asked_rows, example, gather, rows_of, trained_numbers
from distrib.data.prepared import load_manifest, read_part, user_number
from distrib.data.schema import Role
from distrib.data.sources import SyntheticLog
from distrib.data.splits import CHRONOLOGICAL, EntrywiseSplit, NoSplit, Split
from distrib.data.synthetic import SyntheticSource, SyntheticWorld
from distrib.errors import ConfigError, DataError
from distrib.evaluate.protocol import EvaluateConfig, measure
from distrib.events import emit
from distrib.metrics import Sums, total_variation
from distrib.models.popularity import Popularity
from distrib.score.bulk import actor_pool
from distrib.score.scorer import Scorer
from distrib.storage import Folder

RESULT = "evaluation.json"
_TRUTH_USERS, _TRUTH_ITEMS = 512, 4096
_PORTRAIT_USERS = 256


class Portrait(NamedTuple):
    """What the model thinks of some users and all items, for a picture."""

    probability_N: np.ndarray
    rating_N: np.ndarray


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
    shards = _pieces(manifest)
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
        result["distance_to_truth"] = ray.get(_truth.remote(bundle, prepared, manifest))
    Folder(run).write_json(RESULT, result)
    emit("evaluated", users=result["users"])
    return result


def portrait(run: str, prepared: str) -> Portrait | None:
    """Return probabilities and expected ratings for some users and all items, if told."""
    shard = _pieces(load_manifest(Folder(prepared)))[0]
    found: Portrait | None = ray.get(_portrait.remote(str(Folder(run) / BUNDLE), prepared, shard))
    return found


class _ShardMeasurer:
    """Holds the models; measures the users of one shard at a time."""

    def __init__(
        self, bundle: str, prepared: str, config: EvaluateConfig, *, is_chronological: bool
    ) -> None:
        self.is_chronological = is_chronological
        self.prepared = Folder(prepared)
        self.config = config
        device = "cuda" if config.gpus_per_actor else "cpu"
        self.scorers = dict(zip(("model", "popularity"), _scorers(bundle, device), strict=True))

    def __call__(self, shard: pa.Table) -> pa.Table:
        rows, _ = _test_rows(self.prepared, shard.to_pylist()[0])
        sums = dict.fromkeys(self.scorers, Sums({}))
        size = self.config.batch_users
        for start in range(0, rows.num_users, size):
            wanted = np.arange(start, min(start + size, rows.num_users))
            asked = example(rows, wanted, Role.TEST_TARGET, is_chronological=self.is_chronological)
            for name, scorer in self.scorers.items():
                sums[name] = sums[name].merged(measure(scorer, asked, self.config))
        entry = {"num_users": rows.num_users, **{name: s.totals for name, s in sums.items()}}
        return pa.table({"measured": [json.dumps(entry)]})


def _scorers(bundle: str, device: str = "cpu") -> tuple[Scorer, Scorer]:
    scorer = Scorer.from_bundle(Folder(bundle), device=device)
    popularity = Popularity(scorer.vocabulary.catalogue)
    return scorer, Scorer(popularity, scorer.vocabulary, device=device)


def _pieces(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the shards, with what gives the numbers of their users."""
    num_shards = manifest["recipe"]["num_shards"]
    return [
        {**{key: shard[key] for key in ("name", "sha256", "shard")}, "num_shards": num_shards}
        for shard in manifest["shards"]
    ]


def _test_rows(prepared: Folder, shard: dict[str, Any]) -> tuple[Rows, pa.Table]:
    table = read_part(prepared, shard)
    rows = rows_of(table, *user_number(shard["shard"], shard["num_shards"]))
    known = trained_numbers(rows, table["subset"].to_numpy())
    return asked_rows(known, Role.TEST_TARGET), table


@ray.remote
def _truth(bundle: str, prepared: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Hold model and popularity against the process that drew the log.

    The model learns what is in the training part of the log, so for an entry-wise split the true
    probabilities are thinned to its share.
    """
    recipe = manifest["recipe"]
    world = SyntheticWorld(SyntheticSource.model_validate_json(json.dumps(recipe["source"])))
    split = recipe["split"]
    share = (
        split["train_share"]
        if split["name"] == EntrywiseSplit.model_fields["name"].default
        else 1.0
    )
    shard = _pieces(manifest)[0]
    rows, table = _test_rows(Folder(prepared), shard)
    rows_wanted = np.arange(min(_TRUTH_USERS, rows.num_users))
    places = asked_rows(rows_of(table), Role.TEST_TARGET).number_B[rows_wanted]
    users = table["user"].to_numpy()[places]
    asked = example(rows, rows_wanted, Role.TEST_TARGET)
    scorers = dict(zip(("model", "popularity"), _scorers(bundle), strict=True))
    step = -(-len(scorers["model"].vocabulary) // _TRUTH_ITEMS)
    items = scorers["model"].vocabulary.ids.to_numpy()[::step]
    true_BIC = world.probability(users, items)
    true_BIC[..., 1:] *= share
    true_BIC[..., 0] = 1.0 - true_BIC[..., 1:].sum(-1)
    result: dict[str, Any] = {"users": len(users), "items": len(items)}
    objective = load_bundle(Folder(bundle)).config.traits.objective
    is_multinomial = objective is not None and objective.name == "multinomial"
    for name, scorer in scorers.items():
        state = scorer.model.encode(asked.source)
        output = scorer.model.decode(state, slice(0, None, step)).float()
        share_of = output.softmax(-1).double().numpy()  # of items, or of outcomes in each cell
        tells_outcomes = output.dim() == 3
        if not tells_outcomes and not is_multinomial:
            result[name] = {}  # scores that are no logarithms of shares
            continue
        met_BI = share_of[..., 1:].sum(-1) if tells_outcomes else share_of
        result[name] = {"interactions": _shape_distance(true_BIC[..., 1:].sum(-1), met_BI)}
        if tells_outcomes:
            cells = total_variation(true_BIC, share_of)
            result[name]["outcomes_per_cell"] = float(cells.mean())
    return result


def _shape_distance(true_BI: np.ndarray, model_BI: np.ndarray) -> float:
    """Mean over users of the distance between what they meet, as distributions over items."""
    p, q = (part / part.sum(1, keepdims=True) for part in (true_BI, model_BI))
    return float(total_variation(p, q).mean())


@ray.remote
def _portrait(bundle: str, prepared: str, shard: dict[str, Any]) -> Portrait | None:
    scorer = Scorer.from_bundle(Folder(bundle))
    table = read_part(Folder(prepared), shard)
    table = table.slice(0, _PORTRAIT_USERS)
    rows = rows_of(table, *user_number(shard["shard"], shard["num_shards"]))
    rows = trained_numbers(rows, table["subset"].to_numpy())
    batch, _ = gather(rows, np.arange(rows.num_users))
    step = -(-len(scorer.vocabulary) // _TRUTH_ITEMS)
    opinion = scorer.model.opinion(
        scorer.model.decode(scorer.model.encode(batch), slice(0, None, step)).float()
    )
    if opinion is None or opinion.probability_BI is None:
        return None
    return Portrait(opinion.probability_BI.flatten().numpy(), opinion.rating_BI.flatten().numpy())
