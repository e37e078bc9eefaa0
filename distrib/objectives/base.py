"""The interface of objectives: called with a model and encoded users, they return user losses."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distrib.batch import Batch, ChunkEntries
from distrib.objectives.decoder import Decoder, Tensors
from distrib.rng import CounterRng

NO_LIMITS: Mapping[str, float] = {}
"""See `Objective.limits`."""

Carry = tuple[Tensor, ...]
"""What an objective accumulates over chunks: tensors whose last dimension is B."""


class Candidates(NamedTuple):
    """The items that a loss decodes, if not all."""

    item_J: Tensor
    """int64, ascending; the observed items of the batch are among them."""

    log_weight_J: Tensor | None = None
    """float32; log of the number of items that each represents. None: unweighted."""


class ItemShard(Protocol):
    """Access to the other ranks, if each rank decodes a range of items for all users."""

    @property
    def target(self) -> Batch:
        """The targets of all users, over the items of all ranks."""

    def gather(self, carry: Carry) -> list[Carry]:
        """Return what each rank accumulated over its own items."""

    def own(self, candidates: Candidates | None) -> Candidates | None:
        """Return the candidates of this rank, as positions in its own range."""


class Chunks(NamedTuple):
    """How the last layer is split into chunks of items."""

    chunk_items: int
    """Items decoded at a time."""

    keep_bytes: int = 0
    """Size of all decoded chunks up to which they are kept rather than recomputed."""


class Recorder:
    """What an objective computes on the way, for curves: means over entries, by name."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        """float64 ``[2]`` by name: the sum, and the number of entries."""

    def add(self, name: str, value_N: Tensor) -> None:
        """Add entries to a mean."""
        value_N = value_N.detach().double()
        number = value_N.new_tensor(float(value_N.numel()))
        sums = torch.stack([value_N.sum(), number])
        self.sums[name] = self.sums[name] + sums if name in self.sums else sums

    def add_shares(self, names: Sequence[str], count_K: Tensor) -> None:
        """Add the counts of K kinds of entries to their shares."""
        pairs = torch.stack([count_K, count_K.sum().expand_as(count_K)], dim=1)
        for name, sums in zip(names, pairs, strict=True):
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums


def _alone(values: Tensor) -> Tensor:
    return values


class LossContext(NamedTuple):
    """What a loss may need from the engine."""

    rng: CounterRng
    """The epoch's randomness; ranks of one step draw the same."""

    step: int
    """Updates made so far."""

    chunks: Chunks

    trains_items: bool = True
    """Whether the gradient of `Decoder.item_tables` is needed, which costs as much as the loss."""

    shard: ItemShard | None = None

    gather: Callable[[Tensor], Tensor] = _alone
    """Joins a tensor with those of the ranks that hold other rows of the batch, along the first
    dimension, in the order of ranks; without gradient. Every rank must call."""

    recorder: Recorder | None = None
    """Receives what is shown as curves."""

    repeats_backward: bool = False
    """Whether the loss is differentiated more than once, so that kept chunks stay."""

    def record(self, name: str, value_N: Tensor) -> None:
        """Record entries whose mean over an epoch is shown."""
        if self.recorder is not None:
            self.recorder.add(name, value_N)

    def complete(self, terms_TB: Tensor) -> Tensor:
        """Sum terms over the items of all ranks; the gradient covers this rank's items only."""
        if self.shard is None:
            return terms_TB
        everyone = torch.stack([found for (found,) in self.shard.gather((terms_TB.detach(),))])
        return terms_TB + (everyone.sum(0) - terms_TB.detach())


class KlSchedule(NamedTuple):
    """The weight of a model's KL divergence by update."""

    cap: float = 1.0
    """Final weight."""

    anneal_steps: int = 0
    """Updates over which the weight would grow from 0 to 1; it stops at the cap."""

    def weight(self, step: int) -> float:
        """Return the weight after ``step`` updates."""
        return min(self.cap, step / self.anneal_steps) if self.anneal_steps else self.cap


class Defaults:
    """What most objectives have in common; see `Objective`."""

    kl: KlSchedule = KlSchedule()
    decodes_pairs: bool = False
    is_by_row: bool = False
    limits: Mapping[str, float] = NO_LIMITS


class ObjectiveSpec(NamedTuple):
    """Properties of an objective that are needed before it is built."""

    accepts: str | tuple[str, ...]
    """Output of the models that it trains, an `OutputKind` or several."""

    needs_tied: bool = False
    """Whether it trains models with tied weights only; see `TiedLinear`."""

    decodes_inputs: bool = False
    """Whether the target has to be what the model has read."""

    needs_whole_catalog: bool = False
    """Whether a rank must hold all items, so that the last layer cannot be split over ranks."""

    needs_feedback: bool = False
    """Whether it learns from likes and dislikes, so that the log needs both."""

    scheme: str | None = None
    """Name of the training scheme that it brings; None for that of the model."""

    model_scheme: str | None = None
    """Name of the only scheme of models that it trains; None for any."""


class Objective(Protocol):
    """A loss. It chooses whether to decode chunks of items, pairs, or nothing at all."""

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the T terms."""

    @property
    def kl(self) -> KlSchedule:
        """Weight of the model's KL term, where it has one."""

    @property
    def decodes_pairs(self) -> bool:
        """Whether only the observed pairs are decoded."""

    @property
    def is_by_row(self) -> bool:
        """Whether a user's loss depends on the user and the model alone.

        Not on other rows of the batch, the number of updates, or what the host reads.
        """

    @property
    def limits(self) -> Mapping[str, float]:
        """Largest means, by name of what is recorded; training stops beyond them."""

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss of each user.

        Args:
            model: The model to train.
            users: From the model's ``encode``.
            target: What to decode; with a shard, the items of this rank only.
            context: From the engine.

        Returns:
            float32 ``[T, B]``; with a shard, each user's loss over the items of all ranks.
        """


def sum_by_row(value_M: Tensor, entries: ChunkEntries, num_users: int) -> Tensor:
    """Sum values of entries by user, ``[B]``."""
    return value_M.new_zeros(num_users).index_add(0, entries.row_M, value_M)


def added_up(carries: Sequence[Carry]) -> Carry:
    """Merge carries that consist of one sum each."""
    return (torch.stack([carry[0] for carry in carries]).sum(0),)


def add_to_entries(output_BJ: Tensor, entries: ChunkEntries, value_M: Tensor) -> None:
    """Add a value to each observed entry, in place."""
    place_M = entries.row_M * output_BJ.shape[1] + entries.column_M
    output_BJ.view(-1).index_add_(0, place_M, value_M.to(output_BJ.dtype))
