"""Cross-entropy with soft labels, whose confidence and whose other items are weighted apart."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch, ChunkEntries
from distrib.config import Config
from distrib.objectives.base import (
    Candidates,
    Carry,
    Defaults,
    KlSchedule,
    LossContext,
    ObjectiveSpec,
    sum_by_row,
)
from distrib.objectives.chunked import (
    ChunkDecoder,
    ChunkedObjective,
    Observed,
    Weights,
    chunked_terms,
)
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.label_config import Label, PopularityLabel, Share, StoredLabel, UniformLabel
from distrib.rng import CounterRng
from distrib.soft_labels import SoftLabels, joined
from distrib.vocabulary import Catalog

_NEVER = -1e30  # a score whose exponential is 0; no infinity, whose differences are not numbers
_MOST = 80.0  # the exponential of a larger number is beyond float32


class SoftTargetConfig(Config):
    """Settings of the loss with soft labels; the defaults are DeSoRec's for Diginetica."""

    name: Literal["soft_target"] = "soft_target"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec("scores", needs_whole_catalog=True)

    label: Label
    """What the soft label is."""

    form: Literal["decoupled", "coupled"] = "decoupled"
    """``coupled``: cross-entropy with the mixture of target and soft label."""

    label_share: Share = 0.3
    """Lambda 1: share of the soft label in the mixture, from which the confidence follows."""

    target_weight: Share | None = None
    """Lambda 2: weight of the confidence in the targets, 0.7 if not set; the distribution over the
    other items has the rest. Of the decoupled form only."""

    kl_weight: Annotated[float, Field(ge=0.0)] = 0.2
    """Of a variational autoencoder; see the objective ``multinomial``."""

    anneal_steps: NonNegativeInt = 200_000
    """See the objective ``multinomial``."""

    @model_validator(mode="after")
    def _weight_is_used(self) -> "SoftTargetConfig":
        if self.form == "coupled" and self.target_weight is not None:
            raise ValueError("target_weight has no effect with form = 'coupled'; remove it")
        return self

    @property
    def split(self) -> tuple[float, float]:
        """Weights of the confidence and of the other items."""
        weight = 0.7 if self.target_weight is None else self.target_weight
        return weight, 1.0 - weight

    def without_files(self) -> "SoftTargetConfig":
        """Return settings with a uniform label; see `ReadsLabels`."""
        return self.model_copy(update={"label": UniformLabel()})

    def build(self, catalog: Catalog) -> "SoftTarget":
        """Make the objective; reads stored labels."""
        return SoftTarget(self, catalog)


class SoftTarget(Defaults):
    """A softmax over items, trained with a soft label z beside the n targets O of a row, nats.

    With p the softmax, p_O its sum over O, N the other items, and confidence
    c = 1 - l1 (1 - z_O):

    n l2 (-c log p_O - (1 - c) log(1 - p_O)) + l2 c sum_O -log(p_i / p_O)
    + n (1 - l2) KL(z / z_N || p / (1 - p_O)) over N.

    For one target this is the loss of the source; l1 = 0, l2 = 1 is the cross-entropy. Coupled, it
    is n times the cross-entropy with the mixture (1 - l1) / n on O + l1 z. A row without a label is
    trained on its targets alone.

    Source: "Learning Recommender Systems with Soft Target: A Decoupled Perspective", DASFAA 2024;
    with several targets our extension, exact by the chain rule of the divergence.
    """

    terms = ("targets", "others")

    def __init__(self, config: SoftTargetConfig, catalog: Catalog) -> None:
        self.config = config
        self.kl = KlSchedule(config.kl_weight, config.anneal_steps)
        self.labels: SoftLabels | None = None
        self.prior_I: Tensor | None = None
        if isinstance(config.label, StoredLabel):
            self.labels = SoftLabels.open(config.label.path)
        else:
            power = config.label.power if isinstance(config.label, PopularityLabel) else 0.0
            count_I = np.asarray(catalog.train_count_IL, dtype=np.float64).sum(1)
            mass_I = count_I**power if count_I.any() else np.ones_like(count_I)
            self.prior_I = torch.from_numpy(mass_I / mass_I.sum()).float()
            self.is_by_row = True

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute both terms by chunks; see `Objective`."""
        if self.prior_I is not None:
            self.prior_I = self.prior_I.to(target.item_N.device)
            label = target._replace(value_N=self.prior_I[target.item_N])
            task = _Chunked.with_prior(self.config, target, label, self.prior_I)
            return chunked_terms(ChunkDecoder.of(model), task, users, target, context)
        assert self.labels is not None  # one of the two is set
        both, is_target_N, weight_N = joined(target, self.labels.of(target.user_B))
        task = _Chunked.sparse(self.config, both, is_target_N, weight_N)
        return chunked_terms(ChunkDecoder.of(model), task, users, both, context)


class _Label(NamedTuple):
    """What is known of targets and soft label before anything is decoded."""

    is_target_N: Tensor
    """bool; of each entry that is decoded by name."""

    weight_N: Tensor
    """float32; of each entry in the soft label."""

    targets_B: Tensor
    """float32; number of targets, n."""

    own_mass_B: Tensor
    """float32; mass of the soft label on the targets."""

    rest_B: Tensor
    """float32; mass on all other items; 0 for a row without a label."""

    rest_log_B: Tensor
    """float32; sum of z log z over all other items."""

    prior_I: Tensor | None
    """float32; the label of all other items, where it is the same for every row."""

    @property
    def mass_B(self) -> Tensor:
        """Mass of the soft label; 0 for a row without one."""
        return self.own_mass_B + self.rest_B

    def share_B(self, config: SoftTargetConfig) -> Tensor:
        """Return lambda 1 of each row; 0 for a row without a label."""
        return config.label_share * (self.mass_B > 0).float()


class _Carry(NamedTuple):
    """Sums over the chunks so far; log-sum-exps of targets and of other items."""

    own_B: Tensor
    others_B: Tensor
    target_sum_B: Tensor
    """Scores of the targets."""

    own_label_sum_B: Tensor
    """Scores of the targets, weighted by the soft label."""

    label_sum_B: Tensor
    """Scores of other items, weighted by the soft label."""


class _Chunked(ChunkedObjective):
    """The loss of one batch; see `SoftTarget`.

    Gradients with respect to the scores, for the weights g1, g2 of the terms, decoupled:
    l2 g1 (n p_i - c) on O; n (l2 g1 (c - p_O) + (1 - l2) g2) p_j / (1 - p_O)
    - n (1 - l2) g2 z_j / z_N on N. Coupled: n p_i (a g1 + l1 g2) - a g1 - n l1 g2 z_i on O, with
    a = 1 - l1, and n p_j (a g1 + l1 g2) - n l1 g2 z_j on N.
    """

    terms = SoftTarget.terms

    def __init__(self, config: SoftTargetConfig, label: _Label) -> None:
        self.config, self.label = config, label

    @classmethod
    def sparse(
        cls, config: SoftTargetConfig, both: Batch, is_target_N: Tensor, weight_N: Tensor
    ) -> "_Chunked":
        """Of labels that name a few items of each row."""

        def summed(value_N: Tensor, is_in_N: Tensor) -> Tensor:
            zeros = value_N.new_zeros(both.num_users)
            return zeros.index_add(0, both.row_N[is_in_N], value_N[is_in_N])

        own_B, rest_B = summed(weight_N, is_target_N), summed(weight_N, ~is_target_N)
        rest_log_B = summed(torch.xlogy(weight_N, weight_N), ~is_target_N)
        targets_B = summed(torch.ones_like(weight_N), is_target_N)
        label = _Label(is_target_N, weight_N, targets_B, own_B, rest_B, rest_log_B, None)
        return cls(config, label)

    @classmethod
    def with_prior(
        cls, config: SoftTargetConfig, target: Batch, label: Batch, prior_I: Tensor
    ) -> "_Chunked":
        """Of a label that is the same for every row."""
        weight_N, zeros_B = label.value_N, prior_I.new_zeros(target.num_users)
        own_B = zeros_B.index_add(0, target.row_N, weight_N)
        own_log_B = zeros_B.index_add(0, target.row_N, torch.xlogy(weight_N, weight_N))
        rest_log_B = torch.xlogy(prior_I, prior_I).sum() - own_log_B
        is_target_N = torch.ones_like(target.item_N, dtype=torch.bool)
        known = (is_target_N, weight_N, target.length_B.float(), own_B, (1.0 - own_B).clamp(min=0))
        return cls(config, _Label(*known, rest_log_B, prior_I))

    @override
    def candidates(self, target: Batch, rng: CounterRng, step: int) -> Candidates | None:
        return None

    @override
    def observe(self, output: Tensor, entries: ChunkEntries) -> Observed:
        score_M = output[entries.row_M, entries.column_M].float()
        prior_B = score_M.new_zeros(len(output))
        if self.label.prior_I is not None:
            prior_B = output.float() @ self._prior_of(entries, output.shape[1])
        if output.shape[1] == 0:
            nothing_B = prior_B.new_full((len(output),), _NEVER)
            return nothing_B, output.float(), score_M, prior_B, nothing_B
        softmax_BJ = torch.softmax(output, dim=1, dtype=torch.float32)
        log_normalizer_B = output.amax(1).float() - softmax_BJ.amax(1).log()
        is_target_M = self.label.is_target_N[entries.place_M]
        softmax_BJ[entries.row_M[is_target_M], entries.column_M[is_target_M]] = 0.0
        # Summed without the targets: 1 less their share would round to 0 where they have nearly
        # all of it.
        others_B = log_normalizer_B + softmax_BJ.sum(1).log()
        return others_B.clamp(min=_NEVER), softmax_BJ, score_M, prior_B, log_normalizer_B

    def _prior_of(self, entries: ChunkEntries, count: int) -> Tensor:
        assert self.label.prior_I is not None  # the caller knows
        return self.label.prior_I[entries.first_item : entries.first_item + count]

    @override
    def accumulate(self, carry: Carry | None, observed: Observed, entries: ChunkEntries) -> Carry:
        others_B, _, score_M, prior_B, _ = observed
        num_rows = len(others_B)
        weight_M = self.label.weight_N[entries.place_M]
        is_target_M = self.label.is_target_N[entries.place_M]
        own_M = torch.where(is_target_M, score_M, 0.0)
        own_label_B = sum_by_row(own_M * weight_M, entries, num_rows)
        label_B = sum_by_row((score_M - own_M) * weight_M, entries, num_rows)
        if self.label.prior_I is not None:
            label_B = prior_B - own_label_B
        block = _Carry(
            _log_sum_exp(score_M[is_target_M], entries.row_M[is_target_M], num_rows),
            others_B,
            sum_by_row(own_M, entries, num_rows),
            own_label_B,
            label_B,
        )
        return block if carry is None else self.merged([carry, block])

    @override
    def merged(self, carries: Sequence[Carry]) -> Carry:
        own, others, *sums = (torch.stack(parts) for parts in zip(*carries, strict=True))
        return _Carry(own.logsumexp(0), others.logsumexp(0), *(part.sum(0) for part in sums))

    @override
    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        del target
        found, label, config = _Carry(*carry), self.label, self.config
        all_B = torch.logaddexp(found.own_B, found.others_B)
        log_rest_B = found.others_B - all_B  # log(1 - p_O)
        targets_B = label.targets_B
        own_loss_B = targets_B * all_B - found.target_sum_B  # of the cross-entropy
        share_B = label.share_B(config)
        if config.form == "coupled":
            soft_B = label.mass_B * all_B - found.own_label_sum_B - found.label_sum_B
            terms_TB = torch.stack([(1.0 - share_B) * own_loss_B, share_B * targets_B * soft_B])
            return terms_TB, (found.others_B, all_B)
        confidence_B = 1.0 - share_B * label.rest_B
        first_B = confidence_B * own_loss_B - targets_B * (1.0 - confidence_B) * log_rest_B
        # sum z' log z' - sum z' log p', with z' = z / z_N and p' = p / (1 - p_O) over N.
        rest_B = label.rest_B.clamp(min=torch.finfo(torch.float32).tiny)
        divergence_B = (label.rest_log_B - found.label_sum_B) / rest_B - rest_B.log()
        divergence_B = torch.where(label.rest_B > 0, divergence_B + found.others_B, 0.0)
        first, second = config.split
        terms_TB = torch.stack([first * first_B, second * targets_B * divergence_B])
        return terms_TB, (found.others_B, all_B)

    @override
    def fill_gradient(
        self, out: Tensor, observed: Observed, entries: ChunkEntries, weights: Weights
    ) -> None:
        label, config = self.label, self.config
        _, softmax_BJ, score_M, _, chunk_normalizer_B = observed
        others_B, all_B = weights.learned
        factor = _factors(config, label, others_B - all_B, weights.gradient_TB)
        mass_B = (chunk_normalizer_B - others_B).clamp(max=_MOST).exp_().mul_(factor.others_B)
        torch.mul(softmax_BJ, mass_B[:, None], out=out)
        if label.prior_I is not None:
            prior_J = self._prior_of(entries, out.shape[1])
            out.addr_(factor.label_B.to(out.dtype), prior_J.to(out.dtype), alpha=-1.0)
        row_M, weight_M = entries.row_M, label.weight_N[entries.place_M]
        is_target_M = label.is_target_N[entries.place_M]
        share_M = (score_M - all_B[row_M]).exp()
        own_M = share_M * factor.own_B[row_M] - factor.target_B[row_M]
        own_M -= weight_M * factor.own_label_B[row_M]
        # Autograd's chunk: what is set below replaces what was filled in for targets above.
        columns = row_M, entries.column_M
        before_M = out[columns].float()
        other_M = before_M - weight_M * factor.label_B[row_M] * (label.prior_I is None)
        out[columns] = torch.where(is_target_M, own_M, other_M).to(out.dtype)


class _Factors(NamedTuple):
    """What multiplies the parts of the gradient, by row; see `_Chunked`."""

    own_B: Tensor
    """Softmax of a target."""

    target_B: Tensor
    """1, of a target."""

    own_label_B: Tensor
    """Soft label of a target."""

    others_B: Tensor
    """Softmax of another item among the others."""

    label_B: Tensor
    """Soft label of another item."""


def _factors(
    config: SoftTargetConfig, label: _Label, log_rest_B: Tensor, gradient_TB: Tensor
) -> _Factors:
    """Return the factors of the gradient; the log is that of 1 - p_O."""
    first_B, second_B = gradient_TB
    count_B = label.targets_B
    rest_share_B = log_rest_B.exp()
    share_B = label.share_B(config)
    if config.form == "coupled":
        soft_B = share_B * count_B * second_B
        both_B = (1.0 - share_B) * count_B * first_B + soft_B * label.mass_B
        return _Factors(both_B, (1.0 - share_B) * first_B, soft_B, both_B * rest_share_B, soft_B)
    confidence_B = 1.0 - share_B * label.rest_B
    first, second = config.split
    first_B = first * first_B
    second_B = torch.where(label.rest_B > 0, second * second_B, 0.0)
    own_share_B = 1.0 - rest_share_B
    others_B = count_B * (first_B * (confidence_B - own_share_B) + second_B)
    tiny = torch.finfo(torch.float32).tiny
    label_B = count_B * second_B / label.rest_B.clamp(min=tiny)
    zeros_B = torch.zeros_like(first_B)
    return _Factors(count_B * first_B, confidence_B * first_B, zeros_B, others_B, label_B)


def _log_sum_exp(score_M: Tensor, row_M: Tensor, num_rows: int) -> Tensor:
    """Return the log-sum-exp of entries by row, about -1e30 for a row without any."""
    most_B = score_M.new_full((num_rows,), _NEVER).scatter_reduce(0, row_M, score_M, "amax")
    sums_B = score_M.new_zeros(num_rows).index_add(0, row_M, (score_M - most_B[row_M]).exp())
    return torch.where(sums_B > 0, most_B + sums_B.clamp(min=1.0).log(), most_B)
