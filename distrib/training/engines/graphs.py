"""Updates of a few fixed shapes, which a GPU runs as one CUDA graph each.

An update of an autoencoder is some 300 kernels, and a host needs 2 to 5 ms to launch them one by
one: more than a GPU needs to compute up to a few thousand users. A graph launches all of them at
once, but fixes every shape, address and number. So the interactions of a batch are filled up to one
of a few sizes by a user who does not count, and what changes from update to update is a tensor.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.data.feeds.base import RankBatch
from distrib.events import emit
from distrib.models.capabilities import TrainsInPhases
from distrib.parameters import roles_of
from distrib.rng import CounterRng, signed
from distrib.training.engines.base import Update
from distrib.training.optimizer import CAPTURABLE
from distrib.training.step import TrainStep

_NOBODY = -1
_LEAST_BITS = 6
_STEPS_BITS = 4
_WARM_UPS = 2
_MOST_GRAPHS = 16

Compute = Callable[[], Tensor]


class Runner(Protocol):
    """Makes updates of one shape, all of them the same computation on the same tensors."""

    def __call__(self, shape: Hashable, compute: Compute) -> Tensor:
        """Compute, and return a result that the next call may overwrite."""

    def forget(self) -> None:
        """Drop what was recorded, as tensors have been replaced."""


class Eager:
    """Computes; for devices without graphs."""

    def __call__(self, shape: Hashable, compute: Compute) -> Tensor:
        """Compute; see `Runner`."""
        del shape
        return compute()

    def forget(self) -> None:
        """Do nothing."""


class Graphs:
    """Runs updates as CUDA graphs; the first ones of a shape as they are, as PyTorch wants it."""

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, Compute] = {}
        self.fault = ""
        """Why nothing more is recorded."""

    def __call__(self, shape: Hashable, compute: Compute) -> Tensor:
        """Run the graph of a shape; see `Runner`."""
        if shape in self._recorded:
            return self._recorded[shape]()
        self._seen[shape] += 1
        is_early = self._seen[shape] <= _WARM_UPS
        if self.fault or is_early or len(self._recorded) == _MOST_GRAPHS:
            return self._aside(compute)
        try:
            self._recorded[shape] = self._record(compute)
        except RuntimeError as error:  # nothing was computed yet
            self.fault = str(error)
            emit("graphs", captured=False, reason=self.fault)
            return self._aside(compute)
        return self._recorded[shape]()

    def forget(self) -> None:
        """Drop all graphs; see `Runner`."""
        self._recorded.clear()

    def _aside(self, compute: Compute) -> Tensor:
        """Compute on the stream that graphs are recorded on."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = compute()
        current.wait_stream(self._stream)
        return result

    def _record(self, compute: Compute) -> Compute:
        graph = torch.cuda.CUDAGraph()
        # A feed gathers batches on the device from another thread, which may need memory meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            result = compute()

        def replayed() -> Tensor:
            graph.replay()
            return result

        return replayed


def runner_on(device: torch.device) -> Runner:
    """Return what runs updates of a few shapes on a device."""
    return Graphs() if device.type == "cuda" else Eager()


def held_batch(num_rows: int, size: int, num_items: int, device: torch.device) -> Batch:
    """Return a batch to `fill`; its last row, of user -1, has what does not count.

    Args:
        num_rows: Rows that count.
        size: Interactions with those that do not count.
        num_items: Items of the catalog.
        device: Where.

    Returns:
        A batch whose rows that count are empty.
    """
    pointer_P = torch.zeros(num_rows + 2, dtype=torch.int64, device=device)
    pointer_P[-1:].fill_(size)
    user_B = torch.full((num_rows + 1,), _NOBODY, dtype=torch.int64, device=device)
    item_N = torch.arange(size, device=device) % num_items
    return Batch(user_B, pointer_P, item_N, torch.ones(size, device=device))


def fill(held: Batch, batch: Batch) -> None:
    """Copy a batch into another; what remains of earlier ones belongs to the last row.

    Args:
        held: Is changed.
        batch: Has a row less, and fewer interactions.
    """
    count, rows = batch.item_N.shape[0], batch.num_users
    held.user_B[:rows].copy_(batch.user_B)
    held.pointer_P[: rows + 1].copy_(batch.pointer_P)
    held.item_N[:count].copy_(batch.item_N)
    held.value_N[:count].copy_(batch.value_N)


def filled_size(count: int) -> int:
    """Return the size that a number of interactions is filled up to: at most an eighth more.

    Args:
        count: Interactions.

    Returns:
        A larger number, of which there are eight between a power of two and the next.
    """
    unit = 1 << max(count.bit_length() - _STEPS_BITS, _LEAST_BITS)
    return (count // unit + 1) * unit


class FilledUpdates:
    """Makes updates of a few shapes.

    Args:
        step: Model and objective.
        finish: Updates the model by terms of the loss and the size of the batch; returns the norm
            of the gradient.
        device: Where.
        runner: Runs each update.
    """

    def __init__(
        self,
        step: TrainStep,
        finish: Callable[[dict[str, Tensor], int], Tensor],
        device: torch.device,
        runner: Runner,
    ) -> None:
        self._step, self._finish, self._device, self.runner = step, finish, device, runner
        self._num_items = step.model.item_tables()[0].shape[0]
        self._key = torch.zeros((), dtype=torch.int64, device=device)
        self._kl_weight = torch.zeros((), device=device)
        self._held: dict[tuple[int, int], Batch] = {}
        self._names: tuple[str, ...] = ()

    def update(self, batch: RankBatch, rng: CounterRng, step: int) -> Update:
        """Make one update; `why_not` must have no reason against it.

        Args:
            batch: On the device.
            rng: The epoch's randomness.
            step: Updates made so far.

        Returns:
            As an engine does.
        """
        target, size = batch.target, batch.size
        shape = target.num_users, filled_size(target.item_N.shape[0])
        if shape not in self._held:
            self._held[shape] = held_batch(*shape, self._num_items, self._device)
        held = self._held[shape]
        fill(held, target)
        assert isinstance(rng.key, int)  # of the loop
        self._key.fill_(signed(rng.key))
        self._kl_weight.fill_(self._step.objective.kl.weight(step))

        def compute() -> Tensor:
            rng = CounterRng(self._key)
            terms = self._step.filled_terms(held, rng, self._kl_weight, shape[0])
            self._names = tuple(terms)
            norm = self._finish(terms, size)
            return torch.stack([*(term.detach() for term in terms.values()), norm])

        *terms, norm = self.runner((*shape, size), compute).clone().unbind()
        return Update(dict(zip(self._names, terms, strict=True)), norm)


def why_not(
    step: TrainStep,
    optimizer: str,
    *,
    decodes_inputs: bool,
    has_user_rows: bool,
    num_parts: int,
    on_gpu: bool,
) -> str:
    """Return why updates cannot have a few shapes, or not be recorded; "" where they can.

    Args:
        step: Model and objective.
        optimizer: Name of the update rule.
        decodes_inputs: Whether the model predicts the histories that it reads.
        has_user_rows: Whether known users have parameters; the host asks who is known.
        num_parts: Forward passes of an update.
        on_gpu: Whether to record them.

    Returns:
        All reasons.
    """
    num_items, name = step.model.item_tables()[0].shape[0], type(step.model).__name__
    is_split = on_gpu and step.chunks.chunk_items < num_items
    reasons = {
        f"{name} does not predict what it reads": type(step) is not TrainStep or not decodes_inputs,
        f"{name} has rows of users": has_user_rows,
        f"{name} is trained in phases": isinstance(step.model, TrainsInPhases),
        f"{name} sums up what it reads": bool(roles_of(step.model).accumulated),
        "the objective depends on more than each user alone": not step.objective.is_by_row,
        "engine.micro_batch_users splits batches": num_parts > 1,
        f"optimizer.name = {optimizer!r}, use one of {CAPTURABLE}": (
            on_gpu and optimizer not in CAPTURABLE
        ),
        f"engine.block_items = {step.chunks.chunk_items}, set it to {num_items}": is_split,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)
