"""Models trained on histories of items: codes of all rows, and from them what scores users."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.data.collate import IntArray, Rows, gather
from distrib.models.base import Model
from distrib.vocabulary import Vocabulary

Codes = tuple[Tensor, ...]
"""Tensors with one row for each of some users or items."""

Encode = Callable[[Batch], Codes]


def trained_model(config: Any, vocabulary: Vocabulary) -> Model:
    """Build what training updates: the model, or, where items are rows too, its network.

    Args:
        config: Of the model, a member of `ModelConfig`.
        vocabulary: Items, and how many users.

    Returns:
        The untrained model.
    """
    if config.traits.rows == "users":
        model: Model = config.build(vocabulary.catalogue)
        return model
    network: Model = config.network(vocabulary.catalogue, vocabulary.users)
    return network


@torch.inference_mode()
def codes_of(
    encode: Encode, parts: Iterator[tuple[Rows, IntArray]], batch_rows: int
) -> tuple[Tensor, Codes]:
    """Encode the training histories of some rows.

    Args:
        encode: Gives a row of each code for each row.
        parts: Histories, and the rows among them that are wanted.
        batch_rows: How many at a time.

    Returns:
        Numbers of the rows, int64 ``[B]``, and their codes, float32.
    """
    nobody = Batch.from_lists([])
    found = [(nobody.user_B, encode(nobody))]
    for rows, mine in parts:
        for start in range(0, len(mine), batch_rows):
            batch, _ = gather(rows, mine[start : start + batch_rows])
            found.append((batch.user_B, encode(batch)))
    numbers, codes = zip(*found, strict=True)
    joined = tuple(torch.cat(parts).float() for parts in zip(*codes, strict=True))
    return torch.cat(numbers), joined


def joined_codes(parts: Sequence[tuple[Tensor, Codes]], count: int, absent: Codes) -> Codes:
    """Put the codes of all rows in the order of their numbers.

    Args:
        parts: From `codes_of`, of all ranks.
        count: Rows of the result.
        absent: One row of each code, for numbers that are in no part.

    Returns:
        Codes of ``count`` rows.
    """
    tables = tuple(code.float().repeat(count, *[1] * (code.dim() - 1)) for code in absent)
    for number_B, codes in parts:
        for table, code in zip(tables, codes, strict=True):
            table[number_B] = code
    return tables
