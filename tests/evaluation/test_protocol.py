"""The one measuring loop: batches do not matter, nor do the parts that users come in."""

import numpy as np
import pyarrow as pa
import pytest

from distrib.data.feeds.collate import example
from distrib.data.history_arrays import HistoryArrays, eval_rows
from distrib.data.schema import Role
from distrib.errors import ConfigError
from distrib.evaluation.config import EvaluateConfig
from distrib.evaluation.protocol import Measurer, measure, selection_score
from distrib.metrics import Sums
from distrib.models import Conv4RecConfig, PopularityConfig
from distrib.scoring.scorer import Scorer
from distrib.vocabulary import LogFacts, Vocabulary
from tests.conftest import LEVELS
from tests.in_process import filled


def scorer_of(config, small):
    counts = small.catalog.train_count_IL
    return Scorer(filled(config, small), Vocabulary(pa.array(range(50)), LEVELS, counts, 37, 37))


def rows_of(small):
    """Histories whose last interaction is a test target, and the one before a validation target."""
    number_B, pointer_P, item_N, value_N = (part.numpy() for part in small.batch)
    role_N = np.full(len(item_N), Role.TRAIN_TARGET, np.int8)
    role_N[pointer_P[1:] - 1] = Role.TEST_TARGET
    has_two_B = np.diff(pointer_P) > 1
    role_N[pointer_P[1:][has_two_B] - 2] = Role.VALID_TARGET
    return HistoryArrays(number_B, pointer_P, item_N.astype(np.int32), value_N, role_N)


@pytest.mark.parametrize("role", [Role.VALID_TARGET, Role.TEST_TARGET])
def test_batches_and_parts_give_the_sums_of_measuring_at_once(role, small):
    scorers = {
        "model": scorer_of(Conv4RecConfig(latent_width=8), small),
        "popularity": scorer_of(PopularityConfig(), small),
    }
    rows = eval_rows(rows_of(small), role)
    everyone = np.arange(rows.num_users)
    config = EvaluateConfig(recall_at=(5,), ndcg_at=(5, 10), batch_users=4)
    batches = []
    measurer = Measurer(scorers, role, config)
    found = measurer.added(
        measurer.nothing(), rows, everyone[:11], on_batch=lambda: batches.append(1)
    )
    found = measurer.added(found, rows, everyone[11:])
    assert len(batches) == 3
    for name, scorer in scorers.items():
        expected = measure(scorer, example(rows, everyone, role), config).summaries()
        assert found[name].summaries().keys() == expected.keys()
        for metric, summary in expected.items():
            other = found[name].summaries()[metric]
            assert other.num_observations == summary.num_observations
            assert other.mean == pytest.approx(summary.mean, rel=1e-5)
            assert other.standard_error == pytest.approx(summary.standard_error, rel=1e-4, abs=1e-6)


def test_users_are_encoded_once_for_all_that_is_measured(small, monkeypatch):
    scorer = scorer_of(Conv4RecConfig(latent_width=8), small)
    rows = eval_rows(rows_of(small), Role.TEST_TARGET)
    held_out = example(rows, np.arange(rows.num_users), Role.TEST_TARGET)
    calls, encode = [], scorer.model.encode
    monkeypatch.setattr(scorer.model, "encode", lambda batch: calls.append(1) or encode(batch))
    found = measure(scorer, held_out, EvaluateConfig()).means()
    assert {"recall@20", "rmse", "interactions_expected"} <= found.keys()
    assert len(calls) == 1


def test_targets_are_never_among_what_the_model_reads(small):
    rows = eval_rows(rows_of(small), Role.TEST_TARGET)
    held_out = example(rows, np.arange(rows.num_users), Role.TEST_TARGET)
    read = set(zip(held_out.source.row_N.tolist(), held_out.source.item_N.tolist(), strict=True))
    targets = set(zip(held_out.target.row_N.tolist(), held_out.target.item_N.tolist(), strict=True))
    assert targets
    assert not read & targets


@pytest.mark.parametrize(("exclude_seen", "hits"), [(True, [1.0]), (False, [1.0, 1.0])])
def test_where_data_keep_repeats_they_are_targets_or_not_measured(exclude_seen, hits, small):
    scorer = scorer_of(PopularityConfig(), small)
    scorer.vocabulary.facts = LogFacts(has_repeats=True)
    best = int(small.catalog.train_count_IL.sum(1).argmax())
    other = 1 if best == 0 else 0
    item_N = np.array([best, best, other, best], np.int32)  # one user comes back, the other is new
    roles = np.array([Role.TRAIN_TARGET, Role.TEST_TARGET] * 2, np.int8)
    rows = HistoryArrays(np.arange(2), np.array([0, 2, 4]), item_N, np.ones(4, np.float32), roles)
    config = EvaluateConfig(hit_rate_at=(1,), exclude_seen=exclude_seen)
    measurer = Measurer({"m": scorer}, Role.TEST_TARGET, config)
    found = measurer.added(measurer.nothing(), rows, np.arange(2))["m"].summaries()["hit_rate@1"]
    assert (found.mean, found.num_observations) == (np.mean(hits), len(hits))


def test_what_a_user_has_met_is_in_lists_only_where_that_is_set(small):
    rows = eval_rows(rows_of(small), Role.TEST_TARGET)
    scorer = scorer_of(PopularityConfig(), small)
    held_out = example(rows, np.arange(rows.num_users), Role.TEST_TARGET)
    again = held_out._replace(target=held_out.source, seen=held_out.source)  # all is met again
    config = EvaluateConfig(recall_at=(5,), hit_rate_at=(5,), mrr_at=(1, 5))
    without = measure(scorer, again, config).means()
    with_seen = measure(scorer, again, config.model_copy(update={"exclude_seen": False})).means()
    assert {name: without[name] for name in ("recall@5", "hit_rate@5", "mrr@5")} == {
        "recall@5": 0.0,
        "hit_rate@5": 0.0,
        "mrr@5": 0.0,
    }
    assert with_seen["hit_rate@5"] >= with_seen["recall@5"] > 0.0
    assert with_seen["mrr@5"] >= max(with_seen["mrr@1"], 1e-9)
    assert {"hit_rate@5", "mrr@1"} <= set(config.metric_names)


def test_the_selection_score_is_a_geometric_mean_with_errors_inverted():
    assert selection_score({"ndcg@10": 0.5, "rmse": 2.0}, ("ndcg@10", "rmse")) == 0.5
    with pytest.raises(ConfigError, match=r"'rmse', but only \['ndcg@10'\] were measured"):
        selection_score({"ndcg@10": 0.5}, ("rmse",))


def test_sums_over_no_users_have_no_summaries():
    assert Sums({}).merged(Sums({})).summaries() == {}
