"""Refuses histories whose ids are not those that the model was trained on."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distrib.data.schema import Status
from distrib.errors import DataError
from distrib.scoring.commit import ScoreCounts
from distrib.storage import Folder

_SOME_ROWS = 1000


def known_counts(
    counts: ScoreCounts, ids_of: Callable[[], tuple[pa.Array, pa.Array]], limit: float
) -> ScoreCounts:
    """Refuse histories of items that the model hardly knows, before their lists are published.

    Without this, every user gets the list of someone without a history.

    Args:
        counts: Of all parts.
        ids_of: Returns some ids of the histories, and of the model.
        limit: Largest share of interactions with unknown items.

    Returns:
        The counts.

    Raises:
        DataError: There are more; names an id of each side.
    """
    interactions = counts.interactions or {}
    unseen = interactions.get(Status.ITEM_UNSEEN_IN_TRAINING.reason, 0)
    total = sum(interactions.values())
    if unseen <= limit * total:
        return counts
    theirs, ours = ids_of()
    raise DataError(
        f"{unseen} of {total} interactions are with items that the model does not know, more than "
        f"score.max_unseen_share = {limit}: the histories have ids such as {theirs[0].as_py()!r}, "
        f"the model {ours[0].as_py()!r}; write the ids as the training log has them, or raise the "
        "share"
    )


def first_items(histories: Folder, name: str) -> pa.Array:
    """Return the item ids of the first users of a file; there is at least one."""
    with histories.open(name) as stream:
        first = next(pq.ParquetFile(stream).iter_batches(_SOME_ROWS, columns=["items"]))
    return pc.drop_null(pc.list_flatten(first["items"]))
