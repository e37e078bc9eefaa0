"""Inverse gradient on pairs: supervised updates, and among them updates that look ahead."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch, TrainInput
from distrib.data.feeds.base import BatchSharding, RankBatch, ResidentRows
from distrib.data.feeds.pairs import PairFeed, PairInput, Phase, labeled_places
from distrib.data.history_arrays import HistoryArrays
from distrib.models.base import Model
from distrib.objectives import Objective
from distrib.objectives.inverse_gradient import (
    DecidesByGradient,
    InverseGradient,
    InverseGradientConfig,
)
from distrib.rng import CounterRng
from distrib.training.config import TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.schemes.base import Sizes
from distrib.training.schemes.look_ahead import Exact, FirstOrder
from distrib.training.schemes.pairs import Pairs, PairStep
from distrib.training.step import TrainStep
from distrib.vocabulary import Vocabulary

_HOLD_OUT = 121  # random stream
_LOOK_AHEAD = 1
"""The phase whose batches are held-out pairs."""


class MetaStep(PairStep):
    """The step of both phases; see `InverseGradientConfig`."""

    def __init__(self, model: Model, objective: InverseGradient, *, block_items: int) -> None:
        super().__init__(model, objective, block_items=block_items)
        config = objective.config
        self.look_ahead: Exact | FirstOrder = (
            Exact(config.look_ahead_rate, by_sign=config.look_ahead == "sign")
            if config.form == "exact"
            else FirstOrder(config, is_sketched=config.form == "sketched")
        )
        self.ratio = config.ratio / config.num_sampled
        """Weight of the sum over unlabeled pairs, beside a sum over labeled ones."""

    @override
    def forward(
        self, inputs: TrainInput, target: Batch, rng: CounterRng, step: int
    ) -> dict[str, Tensor]:
        """Compute the supervised loss, after or beside the step along the unlabeled one."""
        assert isinstance(inputs, PairInput)
        if inputs.phase != _LOOK_AHEAD or not torch.is_grad_enabled():
            return super().forward(inputs, target, rng, step)
        terms = super().forward(inputs, target, rng, step)
        parameters = [held for held in self.parameters() if held.requires_grad]
        if isinstance(self.look_ahead, FirstOrder):
            labeled, unlabeled = self.look_ahead.combined(
                terms["labeled"], terms["unlabeled"], parameters, self.recorder, self.ratio
            )
            return {"labeled": labeled, "unlabeled": unlabeled}
        recorder, is_unlabeled_N = self.recorder, target.value_N.isnan()
        held_out = target.keep(~is_unlabeled_N)

        def held_out_loss() -> tuple[Tensor, int]:
            found = super(MetaStep, self).forward(inputs, held_out, rng, step)
            return found["labeled"].detach(), len(held_out.item_N)

        num_unlabeled = int(is_unlabeled_N.sum())
        self.look_ahead.move(terms["unlabeled"], num_unlabeled, held_out_loss, parameters, recorder)
        terms = super().forward(inputs, held_out, rng, step)
        self.recorder = recorder
        return terms


class Meta(Pairs):
    """See `Scheme`; the objective is the inverse gradient on pairs."""

    @override
    def faults(self, run: TrainingRun) -> Iterator[str]:
        """Refuse where a decision would not be that of all ranks; see `Scheme`."""
        yield from super().faults(run)
        assert isinstance(run.objective, InverseGradientConfig)
        yield from decision_faults(run)
        engine = run.engine
        if run.objective.form == "exact" and (engine.zero_stage or engine.precision != "fp32"):
            yield (
                f"objective.form = 'exact' with engine.zero_stage = {engine.zero_stage} and "
                f"precision {engine.precision!r}: it moves whole parameters; set zero_stage = 0 "
                "and precision = 'fp32', or objective.form = 'sketched'"
            )

    @override
    def phases(self, run: TrainingRun, rows: ResidentRows) -> list[Phase]:
        """Return the pairs for supervised updates, and those held out, which look ahead."""
        assert isinstance(run.objective, InverseGradientConfig)
        place_M, train = labeled_places(rows), rows.train
        row_M = train.pointer_P.searchsorted(place_M, side="right") - 1
        users = torch.from_numpy(train.number_B[row_M])
        items = torch.from_numpy(train.item_N[place_M])
        is_held_out_M = held_out_pairs(run.objective, users, items).numpy()
        sampled = run.objective.num_sampled
        return [
            Phase(place_M[~is_held_out_M], 0),
            Phase(place_M[is_held_out_M], sampled, counts_sampled=False),
        ]

    @override
    def _feed(self, run: TrainingRun, rows: ResidentRows, sharding: BatchSharding) -> PairFeed:
        assert isinstance(run.objective, InverseGradientConfig)
        is_mixed = run.objective.alternate == "batches"
        phases, power = self.phases(run, rows), run.objective.sampling_power
        return PairFeed(rows, sharding, phases, power, mixes_phases=is_mixed)

    @override
    def step(self, model: Model, objective: Objective, engine: EngineConfig) -> TrainStep:
        """Make the step of both phases; see `IterativeScheme`."""
        assert isinstance(objective, InverseGradient)
        return MetaStep(model, objective, block_items=engine.chunk_items)

    @override
    def sample_batches(
        self, run: TrainingRun, train: HistoryArrays, vocabulary: Vocabulary, workers: int
    ) -> Iterator[RankBatch]:
        """Yield batches of both phases in turn; see `Scheme`."""
        share = -(-run.train.batch_users // workers)
        feed = self.feed_of_sample(run, train, vocabulary, share)
        for epoch in itertools.count():
            batches = list(feed.batches(epoch))
            for pair in zip(batches, reversed(batches), strict=True):
                yield from pair

    @override
    def steps_per_epoch(self, run: TrainingRun, sizes: Sizes) -> int:
        """Return the batches of both phases; see `Scheme`."""
        return super().steps_per_epoch(run, sizes) + 1


def held_out_pairs(config: DecidesByGradient, user_N: Tensor, item_N: Tensor) -> Tensor:
    """Return which pairs are held out, bool; a pure function of the settings and the pair."""
    rng = CounterRng.of(config.hold_out_seed, 0)
    return rng.uniform(_HOLD_OUT, user_N, item_N) < config.hold_out


def decision_faults(run: TrainingRun) -> Iterator[str]:
    """Refuse engines on which ranks could not decide alike."""
    engine, found = run.engine, []
    if engine.zero_stage == 3:
        found.append("engine.zero_stage = 3: no rank has whole gradients; set it to 2 or less")
    if engine.precision == "fp16":
        found.append("engine.precision = 'fp16': gradients are compared; use bf16 or fp32")
    if engine.micro_batch_users:
        found.append(
            f"engine.micro_batch_users = {engine.micro_batch_users}: a decision is for a whole "
            "update; set it to 0"
        )
    if engine.parallel == "items":
        found.append("engine.parallel = 'items': no rank has whole gradients; set it to 'data'")
    assert run.objective is not None  # this scheme is brought by one
    yield from (f"objective {run.objective.name!r}. {fault}" for fault in found)
