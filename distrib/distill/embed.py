"""What soft labels are made of: embeddings and targets of training users, from a trained model."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor

from distrib.batch import Batch
from distrib.checkpoint.bundle import Bundle
from distrib.data.feeds.collate import gather
from distrib.data.history_arrays import HistoryArrays
from distrib.distill.config import SoftenConfig
from distrib.distill.k_means import Points
from distrib.distill.propagation import normalized
from distrib.errors import DataError
from distrib.models import ModelConfig
from distrib.models.capabilities import user_embedding
from distrib.models.sequential.config import SequenceConfig, targets_of
from distrib.sequences import Sequences, with_targets

_FEWEST_READ = 2  # one to read, one to predict


class Embedded(NamedTuple):
    """Some training users as the model sees them."""

    points: Points

    target_BI: csr_array
    """What each is trained to predict, rows of sum 1: the next item, or all of a history."""

    history_BI: csr_array
    """Training histories, rows of sum 1."""

    rated_BI: csr_array
    """Histories as targets, times their ratings; empty where there is nothing to impute."""

    def chosen(self, row_R: np.ndarray) -> "Embedded":
        """Return some of the users."""
        points = Points(self.points.number_B[row_R], self.points.vector_BZ[row_R])
        return Embedded(points, *(rows_BI[row_R] for rows_BI in self[1:]))

    @classmethod
    def joined(cls, parts: list["Embedded"]) -> "Embedded":
        """Return the users of all parts, in order."""
        numbers, vectors = zip(*(part.points for part in parts), strict=True)
        stacked = (_stacked([part[place] for part in parts]) for place in (1, 2, 3))
        return cls(Points(np.concatenate(numbers), np.concatenate(vectors)), *stacked)


def read_inputs(
    bundle: Bundle, train: HistoryArrays, batch_users: int
) -> Iterator[tuple[Batch | Sequences, Batch, Batch]]:
    """Yield, for batches of users, what the model reads, its target, and the whole history.

    Args:
        bundle: The model.
        train: Training histories of users that `is_long_enough`.
        batch_users: Users at a time.

    Yields:
        Input, targets and histories of each batch.
    """
    for low in range(0, train.num_users, batch_users):
        batch, _ = gather(train, np.arange(low, min(low + batch_users, train.num_users)))
        if isinstance(bundle.config, SequenceConfig):
            inputs, target = with_targets(batch, bundle.config.max_length, every=False)
            yield inputs, target, batch
        else:
            yield batch, batch, batch


def is_rated(config: ModelConfig, levels: Sequence[float]) -> bool:
    """Return whether soft labels of a model have ratings to impute: its histories are rated."""
    return len(levels) > 1 and targets_of(config) == "history"


def is_long_enough(bundle: Bundle, train: HistoryArrays) -> np.ndarray:
    """Return which users have something to read and something to predict."""
    fewest = _FEWEST_READ if isinstance(bundle.config, SequenceConfig) else 1
    return np.asarray(np.diff(train.pointer_P) >= fewest)


@torch.inference_mode()
def embedded(bundle: Bundle, train: HistoryArrays, batch_users: int) -> Embedded:
    """Encode training histories; of a model of sequences, without the item to predict.

    Args:
        bundle: The model.
        train: Training histories of users that `is_long_enough`.
        batch_users: Users at a time.

    Returns:
        The users.

    Raises:
        DataError: The model has no embeddings of users.
    """
    item_count, found = len(bundle.vocabulary), []
    nothing = csr_array((0, item_count))
    for inputs, target, history in read_inputs(bundle, train, batch_users):
        vector_BZ = user_embedding(bundle.model, bundle.model.encode(inputs))
        if vector_BZ is None:
            raise DataError(
                f"{type(bundle.model).__name__} has no embeddings of users to cluster; choose "
                "soften.method = 'teacher', or another model"
            )
        points = Points(history.user_B.numpy(), vector_BZ.float().numpy())
        target_BI, history_BI = (_distribution(batch, item_count) for batch in (target, history))
        rated_BI = csr_array(target_BI.shape)
        if is_rated(bundle.config, bundle.vocabulary.levels):
            cells = (target_BI.data * history.value_N.numpy(), target_BI.indices, target_BI.indptr)
            rated_BI = csr_array(cells, shape=target_BI.shape)
        found.append(Embedded(points, target_BI, history_BI, rated_BI))
    if found:
        return Embedded.joined(found)
    width = user_embedding(bundle.model, bundle.model.encode(Batch.from_lists([[]])))
    columns = 0 if width is None else width.shape[1]
    empty = Points(np.zeros(0, np.int64), np.zeros((0, columns), np.float32))
    return Embedded(empty, nothing, nothing, nothing)


@torch.inference_mode()
def taught(bundle: Bundle, train: HistoryArrays, config: SoftenConfig) -> csr_array:
    """Return the softmax of the model over its best items for each user.

    Args:
        bundle: The model.
        train: Training histories of users that `is_long_enough`.
        config: Settings.

    Returns:
        ``[B, I]``, rows of sum 1: scores of other items are left out of the softmax.
    """
    item_count, found = len(bundle.vocabulary), [csr_array((0, len(bundle.vocabulary)))]
    for inputs, _, _ in read_inputs(bundle, train, config.batch_users):
        score_BI = bundle.model.decode(bundle.model.encode(inputs), slice(None)).float()
        best = score_BI.topk(min(config.max_items, item_count), dim=1)
        share_BK = (best.values / config.temperature).softmax(1)
        found.append(_of_best(best.indices, share_BK, item_count))
    return _stacked(found)


def _of_best(item_BK: Tensor, share_BK: Tensor, item_count: int) -> csr_array:
    pointer = np.arange(len(item_BK) + 1) * item_BK.shape[1]
    cells = (share_BK.double().numpy().ravel(), item_BK.numpy().ravel(), pointer)
    return csr_array(cells, shape=(len(item_BK), item_count))


def _distribution(batch: Batch, item_count: int) -> csr_array:
    ones_N = np.ones(len(batch.item_N))
    size = (batch.num_users, item_count)
    rows = csr_array((ones_N, batch.item_N.numpy(), batch.pointer_P.numpy()), shape=size)
    rows.sum_duplicates()
    return normalized(rows)


def _stacked(parts: list[csr_array]) -> csr_array:
    return csr_array(vstack(parts))
