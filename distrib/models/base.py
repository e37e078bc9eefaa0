"""The interface that every model implements; optional capabilities are in `capabilities`."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from distrib.batch import Batch, entries_by_chunk, item_chunks
from distrib.models.outputs import Output, OutputKind, ScoreOutput
from distrib.rng import CounterRng

if TYPE_CHECKING:
    from distrib.objectives import ObjectiveConfig

UserState = tuple[Tensor, ...]
"""The encoded users of a batch: tensors with B rows each (in practice a named tuple)."""

ItemRows = tuple[Tensor, ...]
"""The parameters of some items: tensors with one row per item."""

_CHUNK_ITEMS = 4096


class ModelSpec(NamedTuple):
    """Properties of a model that the pipeline needs before the model is built."""

    output: OutputKind

    objective: "ObjectiveConfig | None"
    """Default objective; None for a closed-form model."""

    scheme: str = "user_rows"
    """Name of the training scheme, one of `distrib.training.schemes.SCHEMES`."""

    has_user_rows: bool = False
    """Whether known users have parameters of their own; others are folded in."""

    starts_from: tuple[str, ...] = ()
    """Names of models that it can take over before training; see `StartsFromModels`."""

    encodes_items: bool = False
    """Whether the model can `EncodesItems`."""

    is_tied: bool = False
    """Whether encoder and decoder read the same table; see `TiedLinear`."""

    reads_repeats: bool = False
    """Whether a history may hold an item more than once; others read which items a user has met."""

    divergence_advice: str = ""
    """What to change when training diverges, if a setting of the model makes that likely; training
    then stops as soon as the loss explodes, even while it is finite."""


class Model(nn.Module, ABC):
    """A recommender that encodes histories and decodes chunks of items.

    Everything that depends on an item lies in tables with one row per item; `decode_rows` gets the
    rows to decode. So the same model serves the full softmax, the chunked loss, top-K over any
    range, sampled candidates, and a last layer that is sharded over ranks. A model does not depend
    on Ray, engines, optimizers, files or original ids.
    """

    output: Output = ScoreOutput()
    """What `decode_rows` returns."""

    @abstractmethod
    def encode(self, inputs: Any, rng: CounterRng | None = None) -> UserState:
        """Encode the users of a batch.

        Args:
            inputs: A `Batch` of histories; in training, what the model's scheme feeds.
            rng: Source of dropout and sampling in training; None for inference, which is then a
                pure function of the history.

        Returns:
            The state of the users, one row each.
        """

    @abstractmethod
    def item_tables(self) -> ItemRows:
        """Return the full tables, with one row per item, that `decode_rows` reads."""

    @abstractmethod
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        """Decode some items for all users.

        Args:
            users: From `encode`.
            rows: Rows of `item_tables` for the items to decode.

        Returns:
            ``[B, I]`` or ``[B, I, C]`` (see `OutputKind`), in the precision of the parameters;
            freshly allocated, since the scorer overwrites it.
        """

    def decode(self, users: UserState, items: slice | Tensor) -> Tensor:
        """Decode a range of items, or those at the given positions."""
        return self.decode_rows(users, tuple(table[items] for table in self.item_tables()))

    def score_pairs(self, users: UserState, pairs: Batch) -> Tensor:
        """Decode some user-item pairs only; equal to selecting them from `decode`.

        Args:
            users: From `encode`.
            pairs: The same users; ``item_N`` lists the items of each.

        Returns:
            ``[N]`` or ``[N, C]``.
        """
        item_J, place_N = torch.unique(pairs.item_N, return_inverse=True)
        chunks = item_chunks(len(item_J), _CHUNK_ITEMS) or [(0, 0)]
        found, places = [], []
        for (low, high), part in zip(
            chunks, entries_by_chunk(pairs._replace(item_N=place_N), chunks), strict=True
        ):
            output = self.decode(users, item_J[low:high])
            found.append(output[part.row_M, part.column_M])
            places.append(part.place_M)
        return torch.cat(found)[torch.argsort(torch.cat(places))]
