"""What is asked of a model; no behaviour of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from distrib.batch import Batch, cells_by_block, item_blocks
from distrib.rng import Noise

if TYPE_CHECKING:
    from distrib.objectives import ObjectiveConfig

State = tuple[Tensor, ...]
"""What describes the B users of a batch: tensors with B rows each (in practice a named tuple)."""

Rows = tuple[Tensor, ...]
"""What describes some items: tensors with one row for each."""

OutputKind = Literal["scores", "ratings", "outcomes"]
"""``scores``: one number per item, ``[B, I]``; ``ratings``: the same, in units of the rating
levels; ``outcomes``: logits of outcomes, ``[B, I, C]``."""


_BLOCK_ITEMS = 4096


class Traits(NamedTuple):
    """What the pipeline must know of a model before it is built."""

    gives: OutputKind

    objective: "ObjectiveConfig | None"
    """What is minimised unless the run file says otherwise; None for a model that is computed."""

    learns: Literal["steps", "counts", "gram"] = "steps"
    """``steps``: by updates of an engine; else from the counts of the vocabulary, or from the Gram
    matrix of the interactions as well, at once."""

    rows: Literal["users", "items", "both"] = "users"
    """Whose histories training reads; ``both``: in blocks of users and items that meet."""

    has_user_rows: bool = False
    """Whether known users have parameters of their own; others are folded in."""

    encodes_items: bool = False
    """Whether the model is an `ItemEncoder`."""

    remedy: str = ""
    """What to change when training diverges, where a setting of the model invites it."""


class Opinion(NamedTuple):
    """What a model thinks of pairs of user and item."""

    rating_BI: Tensor
    """Expected rating if the user interacts, in units of the levels; may lie outside the scale."""

    probability_BI: Tensor | None = None
    """Probability that the user interacts with the item, 0..1."""

    level_BIL: Tensor | None = None
    """Distribution of the rating if so; sums to 1 over L."""


class Model(nn.Module, ABC):
    """A recommender that encodes histories and decodes blocks of items.

    Everything that depends on an item lies in tables with one row per item; `decode_rows` gets the
    rows it is to decode. So the same model serves the full softmax, the blocked loss, top-K over
    any range, sampled candidates, and a last layer that is spread over ranks. A model knows no Ray,
    no engine, no optimizer, no files and no ids.
    """

    part = "all"
    """Name of the part that the present epoch trains; see `parts`."""

    @abstractmethod
    def encode(self, batch: Any, noise: Noise | None = None) -> State:
        """Describe the users of a batch.

        Args:
            batch: A `Batch` of histories, read only from what is in them; a `Block` in training
                where rows are ``both``.
            noise: Source of dropout and sampling in training; None for inference, which is then
                a pure function of the history.

        Returns:
            What describes the users, one row each.
        """

    def input_tables(self) -> Rows:
        """Return the tables with one row per item that only `encode` reads, whole."""
        return ()

    @abstractmethod
    def item_tables(self) -> Rows:
        """Return the tables with one row per item that `decode_rows` reads, whole."""

    @abstractmethod
    def decode_rows(self, state: State, rows: Rows) -> Tensor:
        """Decode some items for all users of the state.

        Args:
            state: Users.
            rows: Rows of `item_tables` for the items wanted.

        Returns:
            ``[B, I]`` or ``[B, I, C]`` (see `OutputKind`), in the parameters' precision; memory of
            its own, which the scorer writes over.
        """

    def ranking_score(self, output: Tensor) -> Tensor:
        """Turn output in float32 into scores to rank by, ``[B, I]``; higher is better."""
        return output

    def shared_parameters(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that `decode_rows` uses besides the rows."""
        return ()

    def decayed_parameters(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that weight decay is meant for."""
        return ()

    def parts(self) -> dict[str, tuple[nn.Parameter, ...]]:
        """Return the parameters by parts that are trained in turns; together they are all."""
        return {"all": tuple(self.parameters())}

    def begin_epoch(self, epoch: int) -> str:
        """Get ready for the epoch that follows ``epoch`` others; return the part that it trains.

        Called again where training goes on within an epoch.
        """
        del epoch
        return self.part

    def trains_items(self) -> bool:
        """Tell whether this epoch's updates fall on `item_tables`, whose gradient is costly."""
        return True

    def end_epoch(self, epoch: int) -> None:
        """Take note that the epoch is trained; called once for each, before anything is saved."""

    def folded_parameters(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that `end_epoch` leaves at 0; what they held lies in buffers."""
        return ()

    def divergence(self, state: State) -> Tensor | None:
        """Return the divergence of posteriors from the prior, nats, one of each row, if any."""
        del state
        return None

    def opinion(self, output: Tensor) -> Opinion | None:
        """Read output in float32 as ratings, and as probabilities, where the model tells them."""
        del output
        return None

    def odds(self) -> "Odds | None":
        """Return what decodes interactions alone, where levels are a part by themselves."""
        return None

    def decode_levels(self, state: State, cells: Batch) -> Tensor:
        """Decode the levels of the stored cells, ``[N, L]``, of a model that has `odds`."""
        del state, cells
        raise TypeError(f"{type(self).__name__} has no levels by themselves")

    def tied_gram(self) -> Tensor:
        """Return A^T A, float32 ``[Z, Z]``, where codes are x A and scores x A A^T."""
        raise TypeError(f"{type(self).__name__} is no linear autoencoder with tied weights")

    def decode_cells(self, state: State, cells: Batch) -> Tensor:
        """Decode the stored cells only, ``[N]``; equal to picking them from `decode`.

        Args:
            state: Users.
            cells: The same users; ``item_N`` says which items of each.

        Returns:
            ``[N]`` or ``[N, C]``.
        """
        item_J, place_N = torch.unique(cells.item_N, return_inverse=True)
        blocks = item_blocks(len(item_J), _BLOCK_ITEMS) or [(0, 0)]
        found, places = [], []
        for (low, high), part in zip(
            blocks, cells_by_block(cells._replace(item_N=place_N), blocks), strict=True
        ):
            output = self.decode(state, item_J[low:high])
            found.append(output[part.row_M, part.column_M])
            places.append(part.place_M)
        return torch.cat(found)[torch.argsort(torch.cat(places))]

    def variance_cells(self, state: State, cells: Batch) -> Tensor | None:
        """Return the variance of `decode_cells` over the posteriors, ``[N]``, where it is told."""
        del state, cells
        return None

    def embedding(self, state: State) -> Tensor | None:
        """Return the vector that describes each user, ``[B, Z]``, where there is one."""
        del state
        return None

    def item_vectors(self) -> "ItemVectors | None":
        """Return vectors whose products with `embedding` rank items as the scores do, if any."""
        return None

    def decode(self, state: State, items: slice | Tensor) -> Tensor:
        """Decode a range of items, or those at the given positions."""
        return self.decode_rows(state, tuple(table[items] for table in self.item_tables()))


class ItemVectors(NamedTuple):
    """Items as a search by inner product wants them: a score is u . v plus the item's offset."""

    vector_IZ: Tensor
    offset_I: Tensor | None = None


@runtime_checkable
class ItemEncoder(Protocol):
    """A model that describes items, too, from their ratings alone."""

    def append_items(self, batch: Batch) -> None:
        """Let the model score more items.

        Args:
            batch: Their histories, maybe empty, in the order of positions; ``item_N`` are numbers
                of users, those that training did not see are passed over.
        """


class Odds(NamedTuple):
    """The part of a model with outcomes that tells the log-odds of interactions, ``[B, I]``."""

    tables: Rows
    """Those of `Model.item_tables` that it reads."""

    decode_rows: Callable[[State, Rows], Tensor]

    def item_tables(self) -> Rows:
        """Return the tables."""
        return self.tables

    def shared_parameters(self) -> tuple[nn.Parameter, ...]:
        """Return nothing."""
        return ()

    def trains_items(self) -> bool:
        """Return True."""
        return True


def parameter(*shape: int) -> nn.Parameter:
    """Make a parameter whose values are still to be set."""
    return nn.Parameter(torch.empty(*shape))
