"""Models trained on histories of items: codes of all rows, and from them what scores users."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.checkpoint.bundle import restored
from distrib.data.feeds.collate import IntArray, Rows, gather
from distrib.models.autoencoders.vae_bmf_encoder import Posterior
from distrib.models.base import Model
from distrib.rng import Noise
from distrib.train.config import TrainConfig
from distrib.vocabulary import Vocabulary

Tables = tuple[Tensor, ...]
"""Tensors with one row for each of some users or items."""

Encode = Callable[[Batch], Tables]


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


class RowCodes:
    """Encodes everyone at the end of an epoch, each row on one rank."""

    def __init__(
        self,
        config: TrainConfig,
        vocabulary: Vocabulary,
        feed: Any,
        device: torch.device,
        gathered: Callable[[Any], list[Any]],
    ) -> None:
        self._config: Any = config.model
        self._batch_rows = config.evaluate.batch_users
        self._vocabulary, self._feed, self._device = vocabulary, feed, device
        self._gathered = gathered

    def scoring(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of a model that scores, from a network of items' histories.

        Args:
            weights: Of the network.

        Returns:
            The state, equal on all ranks.
        """
        network = trained_model(self._config, self._vocabulary)
        network.load_state_dict(weights)
        network.to(self._device)
        parts, count = self._feed.training_parts(), len(self._vocabulary)
        (code_IZ,) = self._codes(network.encode, parts, count)
        found: dict[str, Tensor] = self._config.scoring(weights, code_IZ)
        return found

    def cross_fed(
        self, weights: dict[str, Tensor], trained: Any, noise: Noise
    ) -> dict[str, Tensor]:
        """Give encoders of both sides fresh codes of the other to read.

        Args:
            weights: Of the model that is trained.
            trained: That model.
            noise: Of the epoch that ended.

        Returns:
            The state of a model that scores, which has read the codes of that epoch.
        """
        model: Any = restored(self._config, self._vocabulary, self._config.scoring(weights))
        model.to(self._device)
        counts = self._vocabulary.user_numbers, len(self._vocabulary)
        feed = self._feed
        users = self._codes(model.encode_users, feed.training_parts(), counts[0], is_sparse=True)
        rated = self._codes(model.encode_items, feed.item_parts(), counts[1], is_sparse=True)
        trained.feed_codes(Posterior(*users), Posterior(*rated), noise)
        unrated = model.encode_items(Batch.from_lists([[]]).to(self._device))
        items = Posterior(
            *(
                torch.where(part.isnan(), absent.cpu(), part)
                for part, absent in zip(rated, unrated, strict=True)
            )
        )
        found: dict[str, Tensor] = self._config.scoring(weights, items)
        return found

    def _codes(
        self, encode: Encode, parts: Iterator[Any], count: int, *, is_sparse: bool = False
    ) -> Tables:
        """Encode all rows; numbers without a history are nobody's and NaN if codes are sparse."""

        def encoded(batch: Batch) -> Tables:
            return tuple(part.cpu() for part in encode(batch.to(self._device)))

        mine = codes_of(encoded, parts, self._batch_rows)
        absent = encoded(Batch.from_lists([[]]))
        if is_sparse:
            absent = tuple(torch.full_like(part, torch.nan) for part in absent)
        return joined_codes(self._gathered(mine), count, absent)


@torch.inference_mode()
def codes_of(
    encode: Encode, parts: Iterator[tuple[Rows, IntArray]], batch_rows: int
) -> tuple[Tensor, Tables]:
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


def joined_codes(parts: Sequence[tuple[Tensor, Tables]], count: int, absent: Tables) -> Tables:
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
