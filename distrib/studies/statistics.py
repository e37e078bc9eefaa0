"""Intervals, paired tests and ranks: what is significant against what.

Two sources of variance are kept apart: users (or cells), over which a metric is a mean, and seeds,
over which a model is. Resampling users says how far the result holds for other users of the same
log; the spread over seeds says how far it depends on luck in training.
"""

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from distrib.config import Record

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.05
"""Level of significance, after correction."""

_DRAWS_AT_ONCE = 64
_FEWEST_BLOCKS, _FEWEST_OPTIONS = 3, 3


class Samples(NamedTuple):
    """A metric of one option: for each seed and user a sum, and of how many numbers."""

    sum_SU: FloatArray
    count_U: FloatArray
    is_root: bool = False
    """Whether the metric is the root of the mean."""

    @classmethod
    def of(cls, value_SU: FloatArray) -> "Samples":
        """Return samples of one number a user; NaN where the metric is not defined."""
        is_missing_U = np.isnan(value_SU).any(axis=0)
        count_U = np.asarray(1.0 - is_missing_U, dtype=np.float64)
        return cls(np.nan_to_num(value_SU) * count_U, count_U)

    @property
    def by_seed(self) -> FloatArray:
        """The metric of each seed, ``[S]``."""
        return self.final(np.asarray(self.sum_SU.sum(1) / max(self.count_U.sum(), 1.0)))

    @property
    def mean_U(self) -> FloatArray:
        """Sums of each user, mean over seeds."""
        return np.asarray(self.sum_SU.mean(0))

    def final(self, mean: FloatArray) -> FloatArray:
        """Return the metric of a mean."""
        return np.asarray(np.sqrt(np.maximum(mean, 0.0))) if self.is_root else mean


class Interval(Record):
    """A metric with its errors."""

    mean: float
    """Mean over seeds."""

    low: float | None
    """Of the 95 % interval over users, by resampling; None for what is no mean over users."""

    high: float | None
    error_of_users: float | None
    """Standard error over users, by resampling."""

    error_of_seeds: float | None
    """Standard error over seeds; None for one seed."""

    users: int


class Comparison(Record):
    """One option against another on the same users."""

    option: str
    against: str
    difference: float
    """Of the metric, option less the other."""

    low: float
    """Of the 95 % interval of the difference over users, by resampling."""

    high: float
    p: float
    """Of the paired t-test over users."""

    p_adjusted: float
    """Corrected for all comparisons of the metric on the same data (Holm)."""

    p_wilcoxon: float
    """Of Wilcoxon's signed-rank test, uncorrected."""

    seeds_ahead: int
    """Seeds in which the option has the better value, paired by seed."""

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant at the corrected level."""
        return self.p_adjusted < LEVEL


def resampled(samples: Sequence[Samples], num_draws: int, seed: int) -> FloatArray:
    """Resample users with replacement, the same for all samples.

    Args:
        samples: Of the same users.
        num_draws: Number of resamples R.
        seed: Of the draws.

    Returns:
        Metrics of each resample, mean over seeds, ``[R, M]``.
    """
    sum_UM = np.concatenate([one.sum_SU.T for one in samples], axis=1)
    count_UM = np.stack([one.count_U for one in samples], axis=1)
    num_users = len(sum_UM)
    generator = np.random.default_rng(seed)
    parts: list[list[FloatArray]] = [[] for _ in samples]
    ends = np.cumsum([len(one.sum_SU) for one in samples])
    for start in range(0, num_draws, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, num_draws - start)
        drawn = generator.integers(num_users, size=(size, num_users))
        times_RU = np.stack([np.bincount(row, minlength=num_users) for row in drawn]).astype(float)
        count_RM = np.maximum(times_RU @ count_UM, 1.0)
        by_option = np.split(times_RU @ sum_UM, ends[:-1], axis=1)
        for number, (one, sum_RS) in enumerate(zip(samples, by_option, strict=True)):
            # Each seed's metric first, so that an interval is one of the mean over seeds.
            parts[number].append(one.final(sum_RS / count_RM[:, [number]]).mean(1))
    return np.stack([np.concatenate(found) for found in parts], axis=1)


def interval(samples: Samples, draw_R: FloatArray) -> Interval:
    """Return a metric with its errors.

    Args:
        samples: The metric.
        draw_R: Its column of `resampled`.

    Returns:
        Mean, interval and both errors.
    """
    by_seed = samples.by_seed
    low, high = np.quantile(draw_R, [0.025, 0.975])
    error = float(by_seed.std(ddof=1) / len(by_seed) ** 0.5) if len(by_seed) > 1 else None
    return Interval(
        mean=float(by_seed.mean()),
        low=float(low),
        high=float(high),
        error_of_users=float(draw_R.std(ddof=1)),
        error_of_seeds=error,
        users=int((samples.count_U > 0).sum()),
    )


def compared(
    samples: Mapping[str, Samples],
    draws: Mapping[str, FloatArray],
    against: str,
    *,
    lower_is_better: bool,
) -> list[Comparison]:
    """Test every option against one, on the same users.

    Args:
        samples: Of one metric by option.
        draws: Columns of `resampled` by option.
        against: The option that others are tested against.
        lower_is_better: Whether low values are good.

    Returns:
        A comparison for each other option, corrected for all of them.
    """
    base = samples[against]
    others = [name for name in samples if name != against]
    tests = [_tested(samples[name], base) for name in others]
    if not others:
        return []
    from statsmodels.stats.multitest import multipletests  # starts threads, which forks lose

    adjusted = multipletests([p for p, _ in tests], alpha=LEVEL, method="holm")[1]
    found = []
    for name, (p, p_wilcoxon), p_adjusted in zip(others, tests, adjusted, strict=True):
        difference_R = draws[name] - draws[against]
        low, high = np.quantile(difference_R, [0.025, 0.975])
        gaps = samples[name].by_seed - base.by_seed
        found.append(
            Comparison(
                option=name,
                against=against,
                difference=float(samples[name].by_seed.mean() - base.by_seed.mean()),
                low=float(low),
                high=float(high),
                p=p,
                p_adjusted=float(p_adjusted),
                p_wilcoxon=p_wilcoxon,
                seeds_ahead=int((gaps < 0 if lower_is_better else gaps > 0).sum()),
            )
        )
    return found


def star(comparisons: Sequence[Comparison], option: str) -> str:
    """Return the mark of an option that differs significantly, or nothing."""
    is_marked = any(one.option == option and one.is_significant for one in comparisons)
    return "*" if is_marked else ""


def _tested(one: Samples, other: Samples) -> tuple[float, float]:
    """Return the p-values of the paired t-test and of Wilcoxon's test over users."""
    is_in_U = (one.count_U > 0) & (other.count_U > 0)
    difference_U = (one.mean_U - other.mean_U)[is_in_U]
    if len(difference_U) < 2 or not difference_U.any():
        return 1.0, 1.0
    zeros_U = np.zeros_like(difference_U)
    t_test = stats.ttest_rel(difference_U, zeros_U)
    signed = stats.wilcoxon(difference_U, zero_method="wilcox")
    p = 0.0 if np.isnan(t_test.pvalue) else float(t_test.pvalue)  # the same difference everywhere
    return p, float(signed.pvalue)


class Ranks(Record):
    """How options rank over several data sets."""

    mean_ranks: dict[str, float]
    """1 is best."""

    p_friedman: float
    """That all options are equal."""

    critical_difference: float
    """Mean ranks that differ by less do not differ significantly (Nemenyi)."""

    blocks: int
    """Data sets."""

    bayesian: dict[str, dict[str, float]]
    """By option and other: probability that the option is larger in practice, by a Bayesian
    signed-rank test with a region of practical equivalence; empty for less than five data sets."""


def ranks(mean_BO: pd.DataFrame, *, lower_is_better: bool) -> Ranks | None:
    """Rank options over data sets: Friedman's test, Nemenyi's critical difference.

    Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006;
    Benavoli et al., "Time for a Change", JMLR 18, 2017; both by the library autorank.

    Args:
        mean_BO: A metric by data set (rows) and option (columns).
        lower_is_better: Whether low values are good.

    Returns:
        The ranks; None for fewer than three data sets or options.
    """
    mean_BO = mean_BO.dropna(axis=1)
    num_blocks, num_options = mean_BO.shape
    if num_blocks < _FEWEST_BLOCKS or num_options < _FEWEST_OPTIONS:
        return None
    rank_BO = stats.rankdata(mean_BO if lower_is_better else -mean_BO, axis=1)
    p_friedman = float(stats.friedmanchisquare(*mean_BO.to_numpy().T).pvalue)
    quantile = float(stats.studentized_range.ppf(1 - LEVEL, num_options, np.inf)) / 2**0.5
    critical = quantile * (num_options * (num_options + 1) / (6 * num_blocks)) ** 0.5
    return Ranks(
        mean_ranks=dict(zip(map(str, mean_BO), map(float, rank_BO.mean(0)), strict=True)),
        p_friedman=p_friedman,
        critical_difference=critical,
        blocks=num_blocks,
        bayesian=_bayesian(mean_BO),
    )


_FEWEST_FOR_BAYES = 5


def _bayesian(mean_BO: pd.DataFrame) -> dict[str, dict[str, float]]:
    if len(mean_BO) < _FEWEST_FOR_BAYES:
        return {}
    from autorank import autorank  # imports seaborn, which takes seconds

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        found = autorank(mean_BO, approach="bayesian", verbose=False)
    larger: dict[str, dict[str, float]] = {str(name): {} for name in mean_BO}
    for row, columns in found.posterior_matrix.iterrows():
        for column, value in columns.items():
            if isinstance(value, tuple):  # half of the matrix; that the row is larger comes first
                larger[str(row)][str(column)] = float(value[0])
                larger[str(column)][str(row)] = float(value[2])
    return larger
