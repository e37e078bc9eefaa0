"""Latent vectors of all users or items after an epoch, each row encoded on one rank."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.data.feeds.collate import gather
from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.training.schemes.base import ExportContext, State
from distrib.vocabulary import Catalog, Vocabulary

Tables = tuple[Tensor, ...]
"""Tensors with one row for each of some users or items."""

Encode = Callable[[Batch], Tables]


@runtime_checkable
class TrainsNetwork(Protocol):
    """Configuration of a model whose training updates another network than the one that scores."""

    def network(self, items: Catalog, users: Catalog) -> Model:
        """Build the untrained network.

        Args:
            items: The items; columns of the histories of users.
            users: The users; columns of the histories of items.

        Returns:
            The network.
        """

    def scoring(self, network: State, items: Tables | None = None) -> State:
        """Return the state of the model that scores.

        Args:
            network: State of the network.
            items: Latent vectors of all items; None for those that ``network`` holds.

        Returns:
            The state.
        """


def network_of(config: ModelConfig, vocabulary: Vocabulary) -> Model:
    """Build the network that a configuration trains."""
    assert isinstance(config, TrainsNetwork)
    return config.network(vocabulary.catalog, vocabulary.users)


class RowEncoder:
    """Encodes all rows of one side.

    Args:
        context: Of this rank; every rank makes an encoder and calls `encode`.
    """

    def __init__(self, context: ExportContext) -> None:
        self._batch_rows = context.run.evaluate.batch_users
        self._device, self._gather = context.device, context.gather

    @torch.no_grad()
    def encode(
        self, encode: Encode, parts: Iterator[Any], count: int, *, is_sparse: bool = False
    ) -> Tables:
        """Encode all rows.

        Args:
            encode: Returns one or more latent vectors for each row of a batch.
            parts: Training histories, and the rows among them that are this rank's.
            count: Rows of the result.
            is_sparse: Whether rows without a history become NaN; otherwise they get the latent
                vectors of an empty history.

        Returns:
            Latent vectors in the order of row numbers, equal on all ranks.
        """

        def encoded(batch: Batch) -> Tables:
            return tuple(part.cpu() for part in encode(batch.to(self._device)))

        mine = latents_of(encoded, parts, self._batch_rows)
        absent = encoded(Batch.from_lists([[]]))
        if is_sparse:
            absent = tuple(torch.full_like(part, torch.nan) for part in absent)
        return joined_latents(self._gather(mine), count, absent)


@torch.no_grad()
def latents_of(
    encode: Encode, parts: Iterator[tuple[HistoryArrays, IntArray]], batch_rows: int
) -> tuple[Tensor, Tables]:
    """Encode the training histories of some rows.

    Args:
        encode: Returns one or more latent vectors for each row of a batch.
        parts: Histories, and the rows among them to encode.
        batch_rows: Rows per batch.

    Returns:
        Row numbers, int64 ``[B]``, and the latent vectors, float32.
    """
    no_user = Batch.from_lists([])
    found = [(no_user.user_B, encode(no_user))]
    for rows, mine in parts:
        for start in range(0, len(mine), batch_rows):
            batch, _ = gather(rows, mine[start : start + batch_rows])
            found.append((batch.user_B, encode(batch)))
    numbers, latents = zip(*found, strict=True)
    joined = tuple(torch.cat(parts).float() for parts in zip(*latents, strict=True))
    return torch.cat(numbers), joined


def joined_latents(parts: Sequence[tuple[Tensor, Tables]], count: int, absent: Tables) -> Tables:
    """Put the latent vectors of all rows in the order of row numbers.

    Args:
        parts: From `latents_of`, of all ranks.
        count: Rows of the result.
        absent: One row of each table, for row numbers that are in no part.

    Returns:
        Latent vectors of ``count`` rows.
    """
    tables = tuple(latent.float().repeat(count, *[1] * (latent.dim() - 1)) for latent in absent)
    for number_B, latents in parts:
        for table, latent in zip(tables, latents, strict=True):
            table[number_B] = latent
    return tables
