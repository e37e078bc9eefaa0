"""Models that are trained on histories of items: from the trained network to what scores users."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.data.collate import IntArray, Rows, gather
from distrib.models.base import Model
from distrib.vocabulary import Vocabulary


def trained_model(config: Any, vocabulary: Vocabulary) -> Model:
    """Build what training updates: the model, or, on histories of items, its network.

    Args:
        config: Of the model, a member of `ModelConfig`.
        vocabulary: Items, and how many users.

    Returns:
        The untrained model.
    """
    if config.traits.rows == "items":
        network: Model = config.network(vocabulary.users)
        return network
    model: Model = config.build(vocabulary.catalogue)
    return model


@torch.inference_mode()
def codes_of(
    network: Model, parts: Iterator[tuple[Rows, IntArray]], batch_rows: int
) -> tuple[Tensor, Tensor]:
    """Encode the training histories of some items.

    Args:
        network: Trained.
        parts: Histories, and the rows among them that are wanted.
        batch_rows: How many at a time.

    Returns:
        Positions of the items, int64 ``[B]``, and their codes ``[B, Z]``.
    """
    found = [_encoded(network, Batch.from_lists([]))]
    for rows, mine in parts:
        for start in range(0, len(mine), batch_rows):
            batch, _ = gather(rows, mine[start : start + batch_rows])
            found.append(_encoded(network, batch))
    items, codes = zip(*found, strict=True)
    return torch.cat(items), torch.cat(codes)


def joined_codes(network: Model, parts: Sequence[tuple[Tensor, Tensor]], item_count: int) -> Tensor:
    """Return the codes of all items, those without a training history included, ``[I, Z]``."""
    with torch.inference_mode():
        _, of_nothing = _encoded(network, Batch.from_lists([[]]))
    code_IZ = of_nothing.repeat(item_count, 1)
    for item_B, code_BZ in parts:
        code_IZ[item_B] = code_BZ
    return code_IZ


def _encoded(network: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.user_B, network.encode(batch)[0].float()
