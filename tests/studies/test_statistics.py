"""Statistics of studies against those of libraries, on random cases."""

import contextlib
import io
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from distrib.studies.statistics import Samples, compared, interval, ranks, resampled


def drawn(seed, *, seeds=3, users=200, shift=0.0):
    rng = np.random.default_rng(seed)
    return Samples.of(rng.beta(2, 5, size=(seeds, users)) + shift)


def test_means_and_errors_are_those_of_users_and_of_seeds():
    value_SU = np.random.default_rng(0).normal(size=(4, 3000))
    samples = Samples.of(value_SU)
    found = interval(samples, resampled([samples], 2000, seed=1)[:, 0])
    assert found.mean == pytest.approx(value_SU.mean())
    assert found.error_of_seeds == pytest.approx(stats.sem(value_SU.mean(1)))
    expected = stats.bootstrap(
        (value_SU.mean(0),), np.mean, n_resamples=2000, method="percentile", rng=1
    )
    assert found.error_of_users == pytest.approx(expected.standard_error, rel=0.1)
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.005)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.005)
    assert found.users == 3000
    assert interval(Samples.of(value_SU[:1]), np.ones(3)).error_of_seeds is None


def test_users_without_a_value_do_not_count():
    value_SU = np.array([[1.0, np.nan, 3.0], [2.0, np.nan, 4.0]])
    samples = Samples.of(value_SU)
    assert samples.by_seed.tolist() == [2.0, 3.0]
    assert interval(samples, np.ones(2)).users == 2


def test_a_root_of_means_over_pairs_is_that_of_all_pairs():
    rng = np.random.default_rng(2)
    count_U = rng.integers(1, 9, 50)
    error = [rng.normal(size=n) for n in count_U]
    sum_SU = np.array([[float((part**2).sum()) for part in error]])
    samples = Samples(sum_SU, count_U.astype(float), is_root=True)
    everything = np.concatenate(error)
    assert samples.by_seed[0] == pytest.approx(np.sqrt((everything**2).mean()))
    draw_R = resampled([samples], 500, seed=0)[:, 0]
    assert draw_R.mean() == pytest.approx(samples.by_seed[0], rel=0.05)


def test_the_interval_of_a_root_is_one_of_the_mean_over_seeds():
    """Seeds of unlike quality: the root of their joint error would lie above the mean of roots."""
    rng = np.random.default_rng(3)
    sum_SU = np.stack([rng.exponential(1.0, 400), rng.exponential(9.0, 400)])
    samples = Samples(sum_SU, np.ones(400), is_root=True)
    found = interval(samples, resampled([samples], 400, seed=0)[:, 0])
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(np.sqrt(sum_SU.mean(1)).mean())


def test_comparisons_are_the_paired_tests_of_scipy_with_the_correction_of_holm():
    samples = {"a": drawn(0), "b": drawn(1, shift=0.01), "c": drawn(2, shift=0.05)}
    draws = dict(zip(samples, resampled([*samples.values()], 1000, seed=0).T, strict=True))
    found = {one.option: one for one in compared(samples, draws, "a", lower_is_better=False)}
    assert found.keys() == {"b", "c"}
    p_values = []
    for name, one in found.items():
        test = stats.ttest_rel(samples[name].mean_U, samples["a"].mean_U)
        assert one.p == pytest.approx(test.pvalue)
        signed = stats.wilcoxon(samples[name].mean_U, samples["a"].mean_U)
        assert one.p_wilcoxon == pytest.approx(signed.pvalue)
        gap = samples[name].mean_U - samples["a"].mean_U
        assert one.difference == pytest.approx(gap.mean())
        assert one.low == pytest.approx(gap.mean() - 1.96 * stats.sem(gap), abs=0.002)
        p_values.append(one.p)
    low, high = sorted(p_values)
    holm = {low: min(2 * low, 1.0), high: max(high, min(2 * low, 1.0))}
    assert all(one.p_adjusted == pytest.approx(holm[one.p]) for one in found.values())
    assert found["c"].is_significant
    assert found["c"].seeds_ahead == 3


def test_the_same_option_twice_does_not_differ():
    samples = {"a": drawn(0), "b": drawn(0)}
    draws = dict(zip(samples, resampled([*samples.values()], 50, seed=0).T, strict=True))
    (one,) = compared(samples, draws, "a", lower_is_better=False)
    assert (one.difference, one.p, one.low, one.high) == (0.0, 1.0, 0.0, 0.0)
    assert not one.is_significant


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_ranks_are_those_of_autorank(lower_is_better):
    from autorank import autorank

    rng = np.random.default_rng(4)
    frame = pd.DataFrame({name: rng.exponential(n + 1, 15) for n, name in enumerate("abcd")})
    found = ranks(frame, lower_is_better=lower_is_better)
    assert found is not None
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        theirs = autorank(
            frame,
            order="ascending" if lower_is_better else "descending",
            force_mode="nonparametric",
            verbose=False,
        )
    assert theirs.omnibus == "friedman"
    assert found.p_friedman == pytest.approx(theirs.pvalue)
    assert found.critical_difference == pytest.approx(theirs.cd, rel=1e-3)
    for name, rank in found.mean_ranks.items():
        assert rank == pytest.approx(theirs.rankdf.meanrank[name])
    assert found.bayesian["d"]["a"] > 0.9
    assert found.bayesian["a"]["d"] < 0.1


def test_few_data_sets_or_options_are_not_ranked():
    assert ranks(pd.DataFrame({"a": [1.0, 2.0], "b": [2.0, 3.0]}), lower_is_better=False) is None
    assert ranks(pd.DataFrame({n: [1.0] for n in "abc"}), lower_is_better=False) is None
