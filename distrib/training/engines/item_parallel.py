"""The engine for many items: each rank owns a range of them, in the first layer and the last.

Data parallelism reduces gradients as large as the catalog in every step. Here gradients travel only
for the batch: those of the user states, and rows of the items in its histories.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distrib.batch import Batch
from distrib.checkpoint.state import VALUE, SavedState, StatePiece
from distrib.data.feeds.base import RankBatch
from distrib.errors import ConfigError
from distrib.models.capabilities import begin_epoch, end_epoch
from distrib.objectives.base import Candidates, Carry
from distrib.parameters import roles_of
from distrib.rng import CounterRng
from distrib.training.engines.base import Update
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.deepspeed_config import num_micro_batches
from distrib.training.engines.state import (
    buffer_pieces,
    make_alike,
    piece_of,
    restore_buffers,
    take_up,
)
from distrib.training.optimizer import (
    OptimizerConfig,
    groups_of,
    optimizer_of,
    set_rate,
    train_phase,
)
from distrib.training.step import TrainStep


class _Part(NamedTuple):
    """A parameter, and the float32 master of the part that this rank updates."""

    parameter: nn.Parameter
    master: nn.Parameter
    start: int
    """Offset of the master's first element in the flat parameter."""


class _Shard(NamedTuple):
    """See `ItemShard`; this rank owns the items from ``low`` to ``high``, exclusive."""

    target: Batch
    low: int
    high: int

    def gather(self, carry: Carry) -> list[Carry]:
        everyone = [_of_all(part.contiguous()) for part in carry]
        return [tuple(parts) for parts in zip(*everyone, strict=True)]

    def own(self, candidates: Candidates | None) -> Candidates | None:
        if candidates is None:
            return None
        is_mine_J = (candidates.item_J >= self.low) & (candidates.item_J < self.high)
        weight_J = candidates.log_weight_J
        return Candidates(
            candidates.item_J[is_mine_J] - self.low,
            None if weight_J is None else weight_J[is_mine_J],
        )


class ItemEngine:
    """See `Engine`. torch.distributed must be up; every rank makes one and calls all methods.

    Tables that `decode_rows` reads are sharded: a rank keeps and updates its own range of items,
    and decodes it for all users of the global batch. Tables that `encode` reads are replicated in
    the precision of compute; their gradient rows go to the rank that owns the item, which updates
    its range and sends it to all. Other parameters are small, and their gradients are all-reduced.
    """

    def __init__(
        self,
        step: TrainStep,
        optimizer: OptimizerConfig,
        engine: EngineConfig,
        *,
        batch_users: int,
        device: torch.device,
    ) -> None:
        self.device, self.optimizer_config = device, optimizer
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.step_module = step
        make_alike(step.model, device)
        self.num_parts = num_micro_batches(
            engine, batch_users=batch_users, world_size=self.world_size
        )
        self.item_count = step.model.item_tables()[0].shape[0]
        self.chunk = -(-self.item_count // self.world_size)
        self.low = min(self.rank * self.chunk, self.item_count)
        self.high = min(self.low + self.chunk, self.item_count)
        roles = roles_of(step.model)
        output, read = roles.decoder, roles.encoder
        if output.keys() & read.keys():
            raise ConfigError(
                f"engine.parallel = 'items', but {sorted(output.keys() & read.keys())} are read by "
                "both the first layer and the last; use parallel = 'data'"
            )
        self.communication_share = 0.0
        self._kept: dict[int, Tensor] = {}
        """Gradients of the micro-batches so far, float32, by parameter."""

        self.dtype = engine.dtype
        self.output: dict[str, _Part] = {}
        self.read: dict[str, _Part] = {}
        self.small: dict[str, _Part] = {}
        masters: dict[int, nn.Parameter] = {}
        for name, parameter in step.model.named_parameters():
            is_cut = name in output or name in read
            part = self._own(parameter, is_cut=is_cut)
            place = self.output if name in output else self.read if name in read else self.small
            place[name] = part
            masters[id(parameter)] = part.master
            # Decoder tables in the module shrink to this rank's rows: `decode_rows` sees no others.
            held = part.master if name in output else parameter
            parameter.data = held.detach().to(device, self.dtype, copy=True)
        self.parts = [*self.output.values(), *self.read.values(), *self.small.values()]
        self.optimizer = optimizer_of(
            [
                group._replace(parameters=[masters[id(p)] for p in group.parameters])
                for group in groups_of(step.model, optimizer)
            ],
            optimizer,
        )
        step.model.to(device)

    def _own(self, parameter: nn.Parameter, *, is_cut: bool) -> _Part:
        whole = parameter.detach().to(self.device, torch.float32)
        part = whole[self.low : self.high] if is_cut else whole
        start = self.low * (whole.numel() // max(1, whole.shape[0])) if is_cut else 0
        return _Part(parameter, nn.Parameter(part.clone()), start)

    def train_batch(self, batch: RankBatch, rng: CounterRng, *, step: int) -> Update:
        """Forward and backward over each micro-batch, then the update; see `Engine`."""
        batch = batch.to(self.device)
        assert isinstance(batch.inputs, Batch)  # schemes refuse the engine for other inputs
        _waited.clear()
        started_s = time.perf_counter()
        for owned in self.parts:
            owned.parameter.grad = None
        self._kept.clear()
        summed: dict[str, Tensor] = {}
        for part in batch.split(self.num_parts):
            terms = self._backward(part, rng, step)
            self._keep_gradients()
            for name, term in terms.items():
                summed[name] = summed[name] + term if name in summed else term
        self._collect(batch.inputs.item_N)
        norm = _global_norm([*self.output.values(), *self.read.values()], self.small.values())
        if self.optimizer_config.gradient_clipping:
            scale = (self.optimizer_config.gradient_clipping / (norm + 1e-6)).clamp(max=1.0)
            for owned in self.parts:
                owned.master.grad.mul_(scale)  # type: ignore[union-attr]
        set_rate(self.optimizer, self.optimizer_config.rate(step))
        self.optimizer.step()
        self._publish()
        self.communication_share = sum(_waited) / (time.perf_counter() - started_s)
        return Update(summed, norm.float())

    def _backward(self, batch: RankBatch, rng: CounterRng, step: int) -> dict[str, Tensor]:
        """Add to the gradients; return the loss terms of this rank's own users.

        Every rank computes the loss of all users over the items of all ranks, but its gradient
        covers its own items only. So the ranks' gradients of the last layer do not overlap, and
        those of the user states are summed over ranks in `_Gathered`.
        """
        step_module, model = self.step_module, self.step_module.model
        users = model.encode(batch.inputs, rng)
        # Ranks exchange targets and user states here, then what the loss accumulates over the items
        # of each rank (`_Shard.gather`). The outputs for items, by far larger, stay local.
        everyone, sizes = gathered_batch(batch.target)
        first = sum(sizes[: self.rank])
        own = slice(first, first + sizes[self.rank])
        all_users = tuple(_Gathered.apply(tensor, sizes) for tensor in users)  # type: ignore[no-untyped-call]
        is_mine_N = (everyone.item_N >= self.low) & (everyone.item_N < self.high)
        mine = everyone.keep(is_mine_N)
        mine = mine._replace(item_N=mine.item_N - self.low)
        shard = _Shard(everyone, self.low, self.high)
        context = step_module.context(rng, step)._replace(shard=shard)
        terms_TB = step_module.objective(model, all_users, mine, context)
        loss = terms_TB.sum() / batch.size
        # All ranks hold the same terms: reporting own users only counts each user once.
        sums = terms_TB[:, own].sum(1).detach()
        terms = dict(zip(step_module.objective.terms, sums.unbind(), strict=True))
        kl = step_module.weighted_kl(users, step)
        if kl is not None:  # of own users only, so the sum over ranks counts it once, too
            loss = loss + kl / batch.size
            terms["divergence"] = kl.detach()
        loss.backward()
        return terms

    def _keep_gradients(self) -> None:
        """Accumulate the gradients of a micro-batch in float32."""
        if self.num_parts == 1:
            return
        for owned in self.parts:
            kept, fresh = self._kept.get(id(owned.parameter)), _gradient(owned.parameter)
            total = fresh.float() if kept is None else kept.add_(fresh)
            self._kept[id(owned.parameter)] = total
            owned.parameter.grad = None

    def _summed(self, owned: _Part) -> Tensor:
        """Return the gradient over all micro-batches."""
        if self.num_parts == 1:
            return _gradient(owned.parameter)
        return self._kept[id(owned.parameter)]

    def _collect(self, item_N: Tensor) -> None:
        """Give each master its gradient over all ranks."""
        # No exchange: this rank decoded its items for all users, so their gradient is complete.
        for part in self.output.values():
            part.master.grad = self._summed(part).float()
        # `encode` reads rows of the items in the histories; all other gradient rows are 0.
        met_U = torch.unique(item_N)
        for part in self.read.values():
            part.master.grad = self._rows_of_owner(self._summed(part), met_U)
        # Partial on each rank: from own users in the encoder, from own items in the decoder.
        if self.small:
            flat = torch.cat([self._summed(p).float().view(-1) for p in self.small.values()])
            _wait(dist.all_reduce, flat)
            cuts = flat.split([part.parameter.numel() for part in self.small.values()])
            for part, cut in zip(self.small.values(), cuts, strict=True):
                part.master.grad = cut.view(part.master.shape)

    def _rows_of_owner(self, gradient: Tensor, met_U: Tensor) -> Tensor:
        """Send gradient rows to the owners of the items; return the sum for this rank's range."""
        # met_U is sorted and ranges are contiguous: the rows for each owner are one slice.
        bounds = torch.arange(self.world_size + 1, device=met_U.device) * self.chunk
        sent = torch.searchsorted(met_U, bounds).diff()
        received = torch.empty_like(sent)
        _wait(dist.all_to_all_single, received, sent)
        sizes = received.tolist(), sent.tolist()
        rows = gradient[met_U]
        item_R = met_U.new_empty(sum(sizes[0]))
        row_R = rows.new_empty(len(item_R), *rows.shape[1:])
        _wait(dist.all_to_all_single, item_R, met_U, *sizes)
        _wait(dist.all_to_all_single, row_R, rows, *sizes)
        result = torch.zeros(self.high - self.low, *rows.shape[1:], device=rows.device)
        # An item in the histories of several ranks arrives once from each of them.
        return result.index_add_(0, item_R - self.low, row_R.float())

    def _publish(self) -> None:
        """Copy the masters into the parameters used for compute."""
        # Small masters saw equal gradients on all ranks; only encoder tables have to be gathered.
        for part in (*self.output.values(), *self.small.values()):
            part.parameter.data.copy_(part.master.data.view(part.parameter.shape))
        for part in self.read.values():
            part.parameter.data.copy_(
                _rows_of_all(part.master.data.to(self.dtype), self.chunk, self.item_count)
            )

    def begin_epoch(self, epoch: int) -> None:
        """Select the phase to train; see `Engine`."""
        train_phase(self.optimizer, begin_epoch(self.step_module.model, epoch))

    def end_epoch(self, epoch: int) -> None:
        """Notify the model; see `Engine`."""
        end_epoch(self.step_module.model, epoch)

    def weights(self) -> dict[str, Tensor]:
        """Gather the float32 masters; see `Engine`."""
        model = self.step_module.model
        found = {name: part.master.data for name, part in self.small.items()}
        for parts in (self.output, self.read):
            found |= {
                name: _rows_of_all(part.master.data, self.chunk, self.item_count)
                for name, part in parts.items()
            }
        found |= dict(model.named_buffers())
        return {name: found[name].detach().cpu().clone() for name in model.state_dict()}

    def pieces(self) -> Iterator[StatePiece]:
        """Yield this rank's ranges, and a share of the small parameters; see `Engine`."""
        for parts in (self.output, self.read):
            for name, part in parts.items():
                if part.master.numel():
                    yield piece_of(
                        self.optimizer, name, part.master, (part.start, 0, part.master.numel())
                    )
        for place, (name, part) in enumerate(self.small.items()):
            if place % self.world_size == self.rank:
                yield piece_of(self.optimizer, name, part.master, (0, 0, part.master.numel()))
        if self.rank == 0:
            yield from buffer_pieces(self.step_module.model)

    def facts(self) -> dict[str, float]:
        """Return nothing; see `Engine`."""
        return {}

    def restore(self, saved: SavedState, facts: Mapping[str, float]) -> None:
        """Restore this rank's ranges and all small parameters; see `Engine`."""
        del facts
        for parts in (self.output, self.read, self.small):
            for name, part in parts.items():
                stretch = (part.start, 0, part.master.numel())
                if part.master.numel():
                    take_up(self.optimizer, saved, name, part.master, stretch)
        for name, part in self.read.items():
            whole = saved.read(name, VALUE, 0, part.parameter.numel())
            part.parameter.data.copy_(whole.view(part.parameter.shape))
        for part in (*self.output.values(), *self.small.values()):
            part.parameter.data.copy_(part.master.data.view(part.parameter.shape))
        restore_buffers(self.step_module.model, saved)


def _global_norm(cut: Iterable[_Part], small: Iterable[_Part]) -> Tensor:
    """Return the norm of the full gradient; each part of it is on one rank, or on all."""
    squares = torch.stack([_square(part.master.grad) for part in cut]).sum()
    _wait(dist.all_reduce, squares)
    whole = [_square(part.master.grad) for part in small]
    return (squares + sum(whole)).sqrt()


def _rows_of_all(own: Tensor, chunk: int, count: int) -> Tensor:
    """Return the rows of all ranks, of which each holds ``chunk`` or fewer."""
    padded = own.new_zeros(chunk, *own.shape[1:])
    padded[: len(own)] = own
    return torch.cat(_of_all(padded))[:count]


def gathered_batch(mine: Batch) -> tuple[Batch, list[int]]:
    """Return the users of all ranks in the order of ranks, and how many each rank has."""
    sizes = torch.tensor([mine.num_users, len(mine.item_N)], device=mine.item_N.device)
    counts = torch.stack(_of_all(sizes)).tolist()
    users, lengths = [count[0] for count in counts], [count[1] for count in counts]
    length_B = _cat(mine.length_B, users)
    pointer_P = torch.cat([length_B.new_zeros(1), length_B.cumsum(0)])
    batch = Batch(
        _cat(mine.user_B, users),
        pointer_P,
        _cat(mine.item_N, lengths),
        _cat(mine.value_N, lengths),
    )
    return batch, users


class _Gathered(torch.autograd.Function):
    """Rows of all ranks; the gradient of a row is the sum of its gradients on all ranks."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.sizes = sizes
        return _cat(mine, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Each rank's gradient covers the loss over its own items: the sum covers all items.
        summed = gradient.float()
        _wait(dist.all_reduce, summed)
        first = sum(ctx.sizes[: dist.get_rank()])
        own = summed[first : first + ctx.sizes[dist.get_rank()]]
        return own.to(gradient.dtype), None


def _cat(mine: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return all ranks' rows, end to end; ranks may hold different numbers of them."""
    padded = mine.new_zeros(max(sizes), *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = _of_all(padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _of_all(mine: Tensor) -> list[Tensor]:
    """Return the tensor of each rank; all have the same shape."""
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    _wait(dist.all_gather, everyone, mine)
    return everyone


_waited: list[float] = []
"""Seconds of each collective of the current update."""


def _wait(collective: Callable[..., Any], *arguments: Any) -> None:
    """Run a collective and note how long it took; on a GPU that is only its launch."""
    started_s = time.perf_counter()
    collective(*arguments)
    _waited.append(time.perf_counter() - started_s)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _square(gradient: Tensor | None) -> Tensor:
    assert gradient is not None  # every master has been given one
    norm: Tensor = torch.linalg.vector_norm(gradient)
    return norm.double().square()
