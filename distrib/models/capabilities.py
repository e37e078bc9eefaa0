"""Optional capabilities of models, one protocol each.

Test with `isinstance`, or call one of the functions below, which accept every model. What an
objective needs of a model is in `distrib.objectives.decoder`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from distrib.batch import Batch
from distrib.models.base import Model, UserState
from distrib.objectives.decoder import (
    HasInteractionHead,
    InteractionHead,
    TiedLinear,
    Uncertain,
    interaction_head,
)

__all__ = [
    "EncodesItems",
    "HasEmbeddings",
    "HasInteractionHead",
    "InteractionHead",
    "ItemVectors",
    "ReadsLatest",
    "StartsFromModels",
    "TiedLinear",
    "TracksEpochs",
    "TrainsInPhases",
    "Uncertain",
    "Variational",
    "begin_epoch",
    "end_epoch",
    "interaction_head",
    "item_vectors",
    "pair_variance",
    "phases_of",
    "user_embedding",
]

_ALL = "all"


class ItemVectors(NamedTuple):
    """Items for a search by inner product: a score is u . v plus the item's offset."""

    vector_IZ: Tensor
    offset_I: Tensor | None = None


@runtime_checkable
class HasEmbeddings(Protocol):
    """A model that ranks by inner products."""

    def user_embedding(self, users: UserState) -> Tensor:
        """Return the vector of each user, ``[B, Z]``."""

    def item_vectors(self) -> ItemVectors | None:
        """Return vectors whose products with `user_embedding` rank items as the scores do."""


@runtime_checkable
class ReadsLatest(Protocol):
    """A model of sequences, which reads the end of a history."""

    @property
    def max_length(self) -> int:
        """Interactions that it reads at most, the last ones."""


@runtime_checkable
class Variational(Protocol):
    """A model whose encoder gives a distribution."""

    def kl(self, users: UserState) -> Tensor | None:
        """Return the KL divergence of each row's posterior from the prior, nats."""


@runtime_checkable
class TrainsInPhases(Protocol):
    """A model whose parts are trained in turns."""

    phase: str
    """Name of the part that the current epoch trains."""

    def phases(self) -> dict[str, tuple[nn.Parameter, ...]]:
        """Return the parameters by phase; together the phases cover all of them."""

    def begin_epoch(self, epoch: int) -> str:
        """Return the phase of an epoch, counted from 0.

        Called again when training resumes within an epoch.
        """


@runtime_checkable
class TracksEpochs(Protocol):
    """A model with work to do at the end of an epoch."""

    def end_epoch(self, epoch: int) -> None:
        """Finish an epoch; called once per epoch, before anything is saved."""


@runtime_checkable
class StartsFromModels(Protocol):
    """A model that can take over the parameters of models of other kinds, trained on the same data.

    Its `ModelSpec` names the kinds.
    """

    def start_from(self, models: Sequence[Model]) -> None:
        """Copy parameters.

        Args:
            models: One of each kind, in the order of `ModelSpec.starts_from`.
        """


@runtime_checkable
class EncodesItems(Protocol):
    """A model that can also encode items, from their ratings alone."""

    def append_items(self, histories: Batch) -> None:
        """Add items to score.

        Args:
            histories: One row per item, possibly empty, in the order of positions; ``item_N`` holds
                user numbers, of which those that training did not see are ignored.
        """


def phases_of(model: Model) -> dict[str, tuple[nn.Parameter, ...]]:
    """Return the parameters by phase; a single phase for a model that trains all at once."""
    if isinstance(model, TrainsInPhases):
        return model.phases()
    return {_ALL: tuple(model.parameters())}


def begin_epoch(model: Model, epoch: int) -> str:
    """Prepare a model for an epoch; return the phase that it trains."""
    return model.begin_epoch(epoch) if isinstance(model, TrainsInPhases) else _ALL


def end_epoch(model: Model, epoch: int) -> None:
    """Finish an epoch of a model that `TracksEpochs`."""
    if isinstance(model, TracksEpochs):
        model.end_epoch(epoch)


def user_embedding(model: Model, users: UserState) -> Tensor | None:
    """Return the vector of each user, ``[B, Z]``; None for a model without."""
    return model.user_embedding(users) if isinstance(model, HasEmbeddings) else None


def pair_variance(model: Model, users: UserState, pairs: Batch) -> Tensor | None:
    """Return the variance of the scores of some pairs, ``[N]``; None for a model without."""
    return model.pair_variance(users, pairs) if isinstance(model, Uncertain) else None


def item_vectors(model: Model) -> ItemVectors | None:
    """Return the vectors of the items; None for a model without."""
    return model.item_vectors() if isinstance(model, HasEmbeddings) else None
