"""The distance of a model to the ground truth of a synthetic log."""

import json
from typing import NamedTuple

import numpy as np
import ray
from scipy.special import rel_entr

from distrib.batch import Batch
from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.config import Record
from distrib.data.dataset import Dataset
from distrib.data.feeds.collate import example, gather
from distrib.data.history_arrays import users_with
from distrib.data.logs.synthetic import SyntheticSource, SyntheticWorld
from distrib.data.schema import Role
from distrib.data.splits.rules import EntrywiseSplit
from distrib.evaluation.baseline import model_and_popularity
from distrib.metrics import total_variation
from distrib.scoring.scorer import Scorer
from distrib.storage import Folder

_TRUTH_USERS, _TRUTH_ITEMS = 512, 4096
_MAP_USERS = 256


class TruthDistance(Record):
    """Total variation between a model and the synthetic ground truth, 0..1, by model.

    ``interactions``: between each user's distributions of interactions over items;
    ``outcomes_per_cell``: between the class distributions of each pair, mean over pairs;
    ``bound``: what that mean cannot exceed, given how much larger than the truth's the model's
    cross-entropy is: the root of half the mean divergence (inequalities of Pinsker and Jensen).
    """

    users: int
    items: int
    model: dict[str, float]
    popularity: dict[str, float]


class InteractionRatingMap(NamedTuple):
    """A model's predictions for some users and items, for a plot."""

    probability_N: np.ndarray
    rating_N: np.ndarray


def interaction_rating_map(run: str, prepared: str) -> InteractionRatingMap | None:
    """Return probabilities and expected ratings of some users, if the model predicts both."""
    found: InteractionRatingMap | None = ray.get(
        _interaction_rating_map.remote(str(Folder(run) / BUNDLE), Dataset.open(prepared))
    )
    return found


@ray.remote
def distance_to_truth(bundle: str, dataset: Dataset) -> TruthDistance:
    """Compare model and popularity with the synthetic ground truth.

    The model sees only the training part of the log, so for an entry-wise split the true
    probabilities are multiplied by its share.
    """
    document = dataset.manifest.recipe
    world = SyntheticWorld(SyntheticSource.model_validate_json(json.dumps(document["source"])))
    is_entrywise = dataset.manifest.made_from.split == EntrywiseSplit.model_fields["name"].default
    share = document["split"]["train_share"] if is_entrywise else 1.0
    entry = dataset.manifest.shards[0]
    table = dataset.table(entry)
    rows = dataset.held_out_of(entry, table, Role.TEST_TARGET)
    rows_wanted = np.arange(min(_TRUTH_USERS, rows.num_users))
    users = users_with(table, Role.TEST_TARGET).to_numpy(zero_copy_only=False)[rows_wanted]
    inputs = example(rows, rows_wanted, Role.TEST_TARGET).source
    scorers = model_and_popularity(bundle)
    step = -(-len(scorers["model"].vocabulary) // _TRUTH_ITEMS)
    items = scorers["model"].vocabulary.ids.to_numpy()[::step]
    true_BIC = world.probability(users, items)
    true_BIC[..., 1:] *= share
    true_BIC[..., 0] = 1.0 - true_BIC[..., 1:].sum(-1)
    objective = load_bundle(Folder(bundle)).config.spec.objective
    is_multinomial = objective is not None and objective.name == "multinomial"
    found = {
        name: _distances(scorer, inputs, step, true_BIC, is_multinomial=is_multinomial)
        for name, scorer in scorers.items()
    }
    return TruthDistance(users=len(users), items=len(items), **found)


def _distances(
    scorer: Scorer, inputs: Batch, step: int, true_BIC: np.ndarray, *, is_multinomial: bool
) -> dict[str, float]:
    """Return the distances of one model; none if its scores are not logits of a softmax."""
    users = scorer.model.encode(inputs)
    output = scorer.model.decode(users, slice(0, None, step)).float()
    share_of = output.softmax(-1).double().numpy()  # of items, or of the classes of each pair
    has_classes = output.dim() == 3
    if not has_classes and not is_multinomial:
        return {}
    met_BI = share_of[..., 1:].sum(-1) if has_classes else share_of
    found = {"interactions": _shape_distance(true_BIC[..., 1:].sum(-1), met_BI)}
    if has_classes:
        found["outcomes_per_cell"] = float(total_variation(true_BIC, share_of).mean())
        divergence_BI = rel_entr(true_BIC, output.double().softmax(-1).numpy()).sum(-1)
        found["bound"] = float((divergence_BI.mean() / 2.0) ** 0.5)
    return found


def _shape_distance(true_BI: np.ndarray, model_BI: np.ndarray) -> float:
    """Return the distance between distributions of interactions over items, mean over users."""
    p, q = (part / part.sum(1, keepdims=True) for part in (true_BI, model_BI))
    return float(total_variation(p, q).mean())


@ray.remote
def _interaction_rating_map(bundle: str, dataset: Dataset) -> InteractionRatingMap | None:
    scorer = Scorer.from_bundle(Folder(bundle))
    entry = dataset.manifest.shards[0]
    rows = dataset.known_users(entry, dataset.table(entry).slice(0, _MAP_USERS))
    batch, _ = gather(rows, np.arange(rows.num_users))
    step = -(-len(scorer.vocabulary) // _TRUTH_ITEMS)
    prediction = scorer.predictions(batch, slice(0, None, step))
    if prediction is None or prediction.probability_BI is None:
        return None
    return InteractionRatingMap(
        prediction.probability_BI.flatten().numpy(), prediction.rating_BI.flatten().numpy()
    )
