"""What is asked of a model; no behaviour of its own."""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from distrib.batch import Batch
from distrib.noise import Noise

State = tuple[Tensor, ...]
"""What describes the B users of a batch: tensors with B rows each (in practice a named tuple)."""

Rows = tuple[Tensor, ...]
"""What describes some items: tensors with one row for each."""

OutputKind = Literal["scores", "outcomes"]
"""``scores``: one number per item, ``[B, I]``; ``outcomes``: logits of outcomes, ``[B, I, C]``."""


class Opinion(NamedTuple):
    """What a model with outcomes thinks of pairs of user and item."""

    probability_BI: Tensor
    """Probability that the user interacts with the item, 0..1."""

    rating_BI: Tensor
    """Expected rating if so, in units of the levels."""

    level_BIL: Tensor
    """Distribution of the rating if so; sums to 1 over L."""


class Model(nn.Module, ABC):
    """A recommender that encodes histories and decodes blocks of items.

    Everything that depends on an item lies in tables with one row per item; `decode_rows` gets the
    rows it is to decode. So the same model serves the full softmax, the blocked loss, top-K over
    any range, sampled candidates, and a last layer that is spread over ranks. A model knows no Ray,
    no engine, no optimizer, no files and no ids.
    """

    @abstractmethod
    def encode(self, batch: Batch, noise: Noise | None = None) -> State:
        """Describe the users of a batch.

        Args:
            batch: Histories, read only from what is in them.
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
            ``[B, I]`` or ``[B, I, C]`` (see `OutputKind`), in the parameters' precision.
        """

    @abstractmethod
    def ranking_score(self, output: Tensor) -> Tensor:
        """Turn output in float32 into scores to rank by, ``[B, I]``; higher is better."""

    def shared_parameters(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that `decode_rows` uses besides the rows."""
        return ()

    def decayed_parameters(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that weight decay is meant for."""
        return ()

    def divergence(self, state: State) -> Tensor | None:
        """Return the divergence of the users' posteriors from the prior, nats, ``[B]``, if any."""
        del state
        return None

    def opinion(self, output: Tensor) -> Opinion | None:
        """Read output in float32 as probability and rating, where the model can tell them."""
        del output
        return None

    def decode(self, state: State, items: slice | Tensor) -> Tensor:
        """Decode a range of items, or those at the given positions."""
        return self.decode_rows(state, tuple(table[items] for table in self.item_tables()))


def parameter(*shape: int) -> nn.Parameter:
    """Make a parameter whose values are still to be set."""
    return nn.Parameter(torch.empty(*shape))
