"""The distance of a model to the process that drew a synthetic log."""

import json
from typing import Any, NamedTuple

import numpy as np
import ray.data

from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.data.dataset import load_manifest, read_part, user_number
from distrib.data.feeds.collate import asked_rows, example, gather, rows_of, trained_numbers
from distrib.data.logs.synthetic import SyntheticSource, SyntheticWorld
from distrib.data.schema import Role
from distrib.data.splits.rules import EntrywiseSplit
from distrib.evaluate.shards import model_and_popularity, shard_pieces, test_rows
from distrib.metrics import total_variation
from distrib.score.scorer import Scorer
from distrib.storage import Folder

_TRUTH_USERS, _TRUTH_ITEMS = 512, 4096

_PORTRAIT_USERS = 256


class Portrait(NamedTuple):
    """What the model thinks of some users and all items, for a picture."""

    probability_N: np.ndarray
    rating_N: np.ndarray


def portrait(run: str, prepared: str) -> Portrait | None:
    """Return probabilities and expected ratings for some users and all items, if told."""
    shard = shard_pieces(load_manifest(Folder(prepared)))[0]
    found: Portrait | None = ray.get(_portrait.remote(str(Folder(run) / BUNDLE), prepared, shard))
    return found


@ray.remote
def distance_to_truth(bundle: str, prepared: str, manifest: dict[str, Any]) -> dict[str, Any]:
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
    shard = shard_pieces(manifest)[0]
    rows, table = test_rows(Folder(prepared), shard)
    rows_wanted = np.arange(min(_TRUTH_USERS, rows.num_users))
    places = asked_rows(rows_of(table), Role.TEST_TARGET).number_B[rows_wanted]
    users = table["user"].to_numpy()[places]
    asked = example(rows, rows_wanted, Role.TEST_TARGET)
    scorers = dict(zip(("model", "popularity"), model_and_popularity(bundle), strict=True))
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
