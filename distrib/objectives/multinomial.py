"""Multinomial likelihood: one softmax over all items, each interaction a draw from it."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch, ChunkEntries
from distrib.config import Config
from distrib.objectives.base import (
    Candidates,
    Carry,
    KlSchedule,
    ObjectiveSpec,
    add_to_entries,
    sum_by_row,
)
from distrib.objectives.chunked import ChunkedObjective, Observed, Weights
from distrib.objectives.sampling import ItemSampler
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog


class MultinomialConfig(Config):
    """Settings of the multinomial objective; the defaults are Mult-VAE's for ML-20M."""

    name: Literal["multinomial"] = "multinomial"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec("scores")

    kl_weight: Annotated[float, Field(ge=0.0)] = 0.2
    """Final weight of the KL term; 1 is the evidence lower bound."""

    anneal_steps: NonNegativeInt = 200_000
    """Updates over which the weight would grow from 0 to 1; it stops at the cap."""

    num_sampled: NonNegativeInt = 0
    """Items drawn per update in place of the whole catalog, if that is very large; 0 takes all."""

    sampling_power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Items are drawn in proportion to this power of 1 + their interactions; 0 is uniform."""

    def build(self, catalog: Catalog) -> "Multinomial":
        """Make the objective."""
        return Multinomial(self, catalog)


class _Carry(NamedTuple):
    log_normalizer_B: Tensor
    targets_B: Tensor


class _Learned(NamedTuple):
    log_normalizer_B: Tensor
    length_B: Tensor


class Multinomial(ChunkedObjective):
    """-sum over a user's interactions of log softmax, nats, plus the annealed KL term.

    The log-normalizer is accumulated over the chunks in float32. The loss is not divided by the
    length of the history, so long histories weigh more.

    With ``num_sampled`` S, the sum of exponentials over the items outside a user's history is
    estimated from S draws with replacement, the same for all users of an update, each weighted by
    1 / (S q): unbiased for any q. The user's own items have weight 1.

    Source: Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW 2018, eq. 2
    and 6. Sampling: Bengio, Senecal, "Quick Training of Probabilistic Neural Nets by Importance
    Sampling", AISTATS 2003. Differs from the source: sampling is our addition, and off by default.
    """

    terms: tuple[str, ...] = ("reconstruction",)

    def __init__(self, config: MultinomialConfig, catalog: Catalog) -> None:
        self.kl = KlSchedule(config.kl_weight, config.anneal_steps)
        self.sampler = (
            ItemSampler(config.num_sampled, config.sampling_power, catalog)
            if config.num_sampled
            else None
        )
        self.is_by_row = self.sampler is None

    def candidates(self, target: Batch, rng: CounterRng, step: int) -> Candidates | None:
        """Draw items if sampling is on; see `ChunkedObjective`."""
        return None if self.sampler is None else self.sampler.draw(target, rng, step)

    def observe(self, output: Tensor, entries: ChunkEntries) -> Observed:
        """Return the chunk's own log-normalizer and softmax, and the targets' scores."""
        targets_M = output[entries.row_M, entries.column_M].float()
        if entries.log_weight_J is not None or output.shape[1] == 0:
            return *_weighted_softmax(output, entries), targets_M
        softmax_BJ = torch.softmax(output, dim=1, dtype=torch.float32)
        # max_j p_j = exp(max_j s_j - lse), so lse = max_j s_j - log max_j p_j without another sum.
        log_normalizer_B = output.amax(1).float() - softmax_BJ.amax(1).log()
        return log_normalizer_B, softmax_BJ, targets_M

    def accumulate(self, carry: Carry | None, observed: Observed, entries: ChunkEntries) -> Carry:
        """Merge a chunk into the log-sum-exp and add its targets' scores."""
        log_normalizer_B, _, targets_M = observed
        targets_B = sum_by_row(targets_M, entries, len(log_normalizer_B))
        block = _Carry(log_normalizer_B, targets_B)
        return block if carry is None else self.merged([carry, block])

    def merged(self, carries: Sequence[Carry]) -> Carry:
        """Merge log-normalizers and scores."""
        normalisers, targets = zip(*carries, strict=True)
        joined_B = torch.logsumexp(torch.stack(normalisers), dim=0)
        return _Carry(joined_B, torch.stack(targets).sum(0))

    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        """Return length * log-sum-exp - sum of the targets' scores: -sum_i (s_i - lse)."""
        log_normalizer_B, targets_B = carry
        length_B = target.length_B.to(torch.float32)
        loss_B = length_B * log_normalizer_B - targets_B
        return loss_B[None], _Learned(log_normalizer_B, length_B)

    def fill_gradient(
        self, out: Tensor, observed: Observed, entries: ChunkEntries, weights: Weights
    ) -> None:
        """Fill in length * softmax - observed, times the weight."""
        # dloss/ds_j = length p_j - [j observed], where p is the softmax over all items, which
        # follows from that of the chunk: p = softmax_BJ exp(chunk_normalizer_B - log_normalizer_B).
        chunk_normalizer_B, softmax_BJ, _ = observed
        log_normalizer_B, length_B = weights.learned
        gradient_B = weights.gradient_TB[0]
        mass_B = (chunk_normalizer_B - log_normalizer_B).exp_().mul_(length_B * gradient_B)
        torch.mul(softmax_BJ, mass_B[:, None], out=out)
        add_to_entries(out, entries, -gradient_B[entries.row_M])


class LogNormalizer(Multinomial):
    """The two parts of the multinomial loss, which is length x ``log_normalizer`` - ``targets``.

    For losses of single items, whose log-probability is their score less the log-normalizer.
    """

    terms = ("log_normalizer", "targets")

    @override
    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        """Return the log-sum-exp, and the sum of the targets' scores."""
        del target
        log_normalizer_B, targets_B = carry
        return torch.stack([log_normalizer_B, targets_B]), (log_normalizer_B,)

    @override
    def fill_gradient(
        self, out: Tensor, observed: Observed, entries: ChunkEntries, weights: Weights
    ) -> None:
        """Fill in softmax and observed, each times the weight of its part."""
        chunk_normalizer_B, softmax_BJ, _ = observed
        by_normalizer_B, by_targets_B = weights.gradient_TB
        mass_B = (chunk_normalizer_B - weights.learned[0]).exp_().mul_(by_normalizer_B)
        torch.mul(softmax_BJ, mass_B[:, None], out=out)
        add_to_entries(out, entries, by_targets_B[entries.row_M])


def _weighted_softmax(output_BJ: Tensor, entries: ChunkEntries) -> tuple[Tensor, Tensor]:
    """Return log-normalizer and softmax of a chunk whose items represent several items each.

    A user's own items have weight 1. The log-normalizer is -infinity if all weights are 0.
    """
    # lse = log sum_j w_j exp(s_j) = log sum_j exp(s_j + log w_j), with w_j = 1 for own items.
    weighted_BJ = output_BJ.float()
    if entries.log_weight_J is not None:
        weighted_BJ = weighted_BJ + entries.log_weight_J
        weighted_BJ[entries.row_M, entries.column_M] = output_BJ[
            entries.row_M, entries.column_M
        ].float()
    log_normalizer_B = torch.logsumexp(weighted_BJ, dim=1)
    finite_B = torch.nan_to_num(log_normalizer_B, neginf=0.0)  # -inf - (-inf) would be NaN
    return log_normalizer_B, (weighted_BJ - finite_B[:, None]).exp_()
