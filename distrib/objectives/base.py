"""What an objective is: called with a model and its users, it returns a loss for each user."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distrib.batch import Batch, ChunkEntries
from distrib.objectives.decoder import Decoder, Tensors
from distrib.rng import CounterRng

Carry = tuple[Tensor, ...]
"""What an objective remembers from chunk to chunk: tensors whose last dimension is B."""


class Candidates(NamedTuple):
    """The items that a loss reads, where these are not all."""

    item_J: Tensor
    """int64, ascending; the observed items of the batch are among them."""

    log_weight_J: Tensor | None = None
    """float32; how many items each stands for, as a logarithm. None: the loss needs none."""


class ItemShard(Protocol):
    """The other ranks, where each rank holds a range of items and decodes it for all users."""

    @property
    def target(self) -> Batch:
        """The users with the items of all ranks."""

    def gather(self, carry: Carry) -> list[Carry]:
        """Return what each rank accumulated over its own items."""

    def own(self, candidates: Candidates | None) -> Candidates | None:
        """Return the candidates of this rank, as positions in its own range."""


class Chunks(NamedTuple):
    """How the last layer is cut."""

    chunk_items: int
    """Items decoded at a time."""

    keep_bytes: int = 0
    """Size of all decoded chunks up to which they are kept rather than computed again."""


class LossContext(NamedTuple):
    """What the engine knows and a loss may need."""

    rng: CounterRng
    """The epoch's randomness; ranks of one step draw the same."""

    step: int
    """Updates made so far."""

    chunks: Chunks

    trains_items: bool = True
    """Whether the gradient of `Decoder.item_tables` is wanted, which costs as much as the loss."""

    shard: ItemShard | None = None

    def complete(self, terms_TB: Tensor) -> Tensor:
        """Add up terms over the items of all ranks; the gradient is that of the own items."""
        if self.shard is None:
            return terms_TB
        everyone = torch.stack([found for (found,) in self.shard.gather((terms_TB.detach(),))])
        return terms_TB + (everyone.sum(0) - terms_TB.detach())


class KlSchedule(NamedTuple):
    """The weight of a model's KL divergence over the updates."""

    cap: float = 1.0
    """Weight that it ends at."""

    anneal_steps: int = 0
    """Updates over which it would grow from 0 to 1; it stops at the cap."""

    def weight(self, step: int) -> float:
        """Return the weight after ``step`` updates."""
        return min(self.cap, step / self.anneal_steps) if self.anneal_steps else self.cap


class Objective(Protocol):
    """A loss. It decides by itself whether it decodes chunks of items, pairs, or nothing at all."""

    terms: tuple[str, ...]
    """Names of the T terms."""

    kl: KlSchedule
    decodes_pairs: bool
    """Whether observed pairs are decoded one by one, and nothing else."""

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss of each user.

        Args:
            model: Whose parameters are trained.
            users: From the model's ``encode``.
            target: What should be decoded; with a shard, the items of this rank only.
            context: What the engine knows.

        Returns:
            float32 ``[T, B]``; with a shard, each user's loss over the items of all ranks.
        """


def sum_by_row(value_M: Tensor, entries: ChunkEntries, num_users: int) -> Tensor:
    """Add up values of entries for each user, ``[B]``."""
    return value_M.new_zeros(num_users).index_add(0, entries.row_M, value_M)


def added_up(carries: Sequence[Carry]) -> Carry:
    """Join carries that are one sum each."""
    return (torch.stack([carry[0] for carry in carries]).sum(0),)


def add_to_entries(output_BJ: Tensor, entries: ChunkEntries, value_M: Tensor) -> None:
    """Add a value to each observed entry, in place."""
    place_M = entries.row_M * output_BJ.shape[1] + entries.column_M
    output_BJ.view(-1).index_add_(0, place_M, value_M.to(output_BJ.dtype))
