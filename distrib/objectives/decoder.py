"""What an objective may use of a model."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from distrib.batch import Batch

Tensors = tuple[Tensor, ...]


class Decoder(Protocol):
    """The last layer of a model; see `distrib.models.base.Model`."""

    def item_tables(self) -> Tensors:
        """Return the tables with one row per item."""

    def decode_rows(self, users: Tensors, rows: Tensors) -> Tensor:
        """Decode some items for all users, ``[B, I]`` or ``[B, I, C]``."""

    def score_pairs(self, users: Tensors, pairs: Batch) -> Tensor:
        """Decode some user-item pairs, ``[N]`` or ``[N, C]``."""


class InteractionHead(NamedTuple):
    """The part of a rating-class model that decodes interactions alone."""

    tables: Tensors
    """Those of `Decoder.item_tables` that it reads."""

    decode_rows: Callable[[Tensors, Tensors], Tensor]
    """Returns the log-odds of an interaction, ``[B, I]``."""

    rating_logits: Callable[[Tensors, Batch], Tensor]
    """Returns the logits of the levels of some pairs, ``[N, L]``."""


@runtime_checkable
class HasInteractionHead(Protocol):
    """A model that may decode interactions and rating levels separately."""

    def interaction_head(self) -> InteractionHead | None:
        """Return the head; None if the model is set to decode both at once."""


@runtime_checkable
class TiedLinear(Protocol):
    """A linear autoencoder with tied weights: latents are x A, scores x A A^T."""

    def item_gram(self) -> Tensor:
        """Return A^T A, float32 ``[Z, Z]``."""


@runtime_checkable
class Uncertain(Protocol):
    """A model whose scores have a variance over the posteriors."""

    def pair_variance(self, users: Tensors, pairs: Batch) -> Tensor | None:
        """Return the variance of `Decoder.score_pairs`, ``[N]``; None for samples."""


def interaction_head(model: object) -> InteractionHead | None:
    """Return the interaction head of a model that has one."""
    return model.interaction_head() if isinstance(model, HasInteractionHead) else None
