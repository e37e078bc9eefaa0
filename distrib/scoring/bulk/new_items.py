"""Items added after training: encoded from their ratings by training users."""

import numpy as np
import torch

from distrib.checkpoint.bundle import BundleFacts
from distrib.data.dataset import Dataset
from distrib.data.feeds.collate import gather
from distrib.data.history_arrays import merge
from distrib.errors import DataError
from distrib.models.capabilities import EncodesItems
from distrib.scoring.scorer import Scorer
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

_BATCH_ITEMS = 1024


def require_extended(facts: BundleFacts, prepared: Folder) -> None:
    """Refuse prepared data whose user indices may differ from those of training.

    Args:
        facts: Facts of the bundle.
        prepared: Prepared folder with the ratings of the new items.

    Raises:
        DataError: The folder is not prepared, has no item histories, or is not an extension of the
            training data.
    """
    manifest = Dataset.open(prepared).manifest
    if manifest.item_histories is None:
        raise DataError(
            f"{prepared}: has no item histories, which new items are encoded from; set "
            "data.item_histories = true and run prepare again"
        )
    if facts.data not in (manifest.hash, *manifest.extends):
        raise DataError(
            f"{prepared}: is not the data that the model was trained on, nor an extension of it, "
            "so user indices differ; score.new_items needs the prepared folder of training, "
            "extended by data.extend"
        )


def with_new_items(scorer: Scorer, prepared: Folder) -> Scorer:
    """Add the items of an extended prepared folder that a model has not seen.

    Args:
        scorer: Its model is modified in place.
        prepared: See `require_extended`.

    Returns:
        A scorer of old and new items.

    Raises:
        DataError: The folder is not an extension of the training data.
    """
    model, known = scorer.model, scorer.vocabulary
    assert isinstance(model, EncodesItems)  # checked when the run file was read
    dataset = Dataset.open(prepared)
    grown, count = dataset.vocabulary, len(known)
    if not grown.ids[:count].equals(known.ids) or grown.levels != known.levels:
        raise DataError(
            f"{prepared}: its first {count} items are not those of the model, so it is not an "
            "extension of the training data; set score.new_items = false"
        )
    rows = merge([dataset.item_training(part) for part in dataset.manifest.item_histories or ()])
    fresh = np.flatnonzero(rows.number_B >= count)
    place_of = np.full(len(grown) - count, -1)
    place_of[rows.number_B[fresh] - count] = fresh
    for start in range(0, len(place_of), _BATCH_ITEMS):
        wanted = place_of[start : start + _BATCH_ITEMS]
        found, _ = gather(rows, wanted.clip(0))
        is_rated = torch.from_numpy(wanted >= 0)
        model.append_items(found.keep(is_rated[found.row_N]))
    joined = Vocabulary(
        grown.ids,
        known.levels,
        grown.train_count_IL,
        known.num_users,
        known.user_index_size,
        known.facts,
    )
    return Scorer(model, joined, device=scorer.device)
