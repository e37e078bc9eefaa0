import numpy as np
import pyarrow as pa
import pytest
import torch

from distrib.batch import Batch
from distrib.data.feeds.collate import Example
from distrib.errors import ConfigError, DataError
from distrib.evaluation.config import EvaluateConfig
from distrib.evaluation.protocol import measure, selection_score
from distrib.models.autoencoders.conv4rec import Conv4RecConfig
from distrib.models.autoencoders.mult_vae import MultVaeConfig
from distrib.models.capabilities import item_vectors
from distrib.models.sequential.sas_rec import SasRecConfig
from distrib.models.shallow.biased_mf import BiasedMfConfig
from distrib.models.shallow.ease import EaseConfig
from distrib.models.shallow.popularity import Popularity
from distrib.scoring.policy import PolicyConfig, ScoreConfig
from distrib.scoring.results import NoveltyFilter
from distrib.scoring.rules import Rules
from distrib.scoring.scorer import Scorer
from distrib.scoring.tables import recommend_table
from distrib.vocabulary import Vocabulary
from tests.in_process import filled
from tests.models.test_contract import every_model

IDS = pa.array([1000 - n for n in range(50)])


def scorer_of(small, config=None, block_items=50):
    torch.manual_seed(0)
    catalog = small.catalog
    model = Popularity(catalog) if config is None else config.build(catalog)
    vocabulary = Vocabulary(IDS, catalog.levels, catalog.train_count_IL, catalog.num_users)
    return Scorer(model.requires_grad_(False), vocabulary, chunk_items=block_items)


def plain_lists(scorer, batch, k):
    """All scores at once, seen items struck out, sorted: the list as anyone would make it."""
    model = scorer.model
    with torch.no_grad():
        score = model.output.ranking_score(model.decode(model.encode(batch), slice(None)).float())
    score[batch.row_N, batch.item_N] = -torch.inf
    lists = []
    for row in score.tolist():
        order = sorted(range(50), key=lambda item: (-row[item], item))
        lists.append([item for item in order if row[item] > -np.inf][:k])
    return lists


@pytest.mark.parametrize("block_items", [1, 7, 50])
@pytest.mark.parametrize(
    "config", [Conv4RecConfig(latent_width=8, rating_width=4), MultVaeConfig(), None]
)
def test_blocks_give_the_same_lists_as_one_sort(config, block_items, small):
    scorer = scorer_of(small, config, block_items)
    found = scorer.recommend(small.batch, small.batch, 45)
    lists = [[item for item in row if item >= 0] for row in found.item_BK.tolist()]
    assert lists == plain_lists(scorer, small.batch, 45)  # the popularity scores have many ties


def test_what_is_told_of_an_item_belongs_to_it(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4), block_items=7)
    found = scorer.recommend(small.batch, small.batch, 10)
    with torch.no_grad():
        output = scorer.model.decode(scorer.model.encode(small.batch), slice(None)).float()
    prediction = scorer.model.output.predict(output)
    row = torch.arange(37)[:, None]
    for reported, whole in zip(found.prediction, prediction, strict=True):
        torch.testing.assert_close(reported, whole[row, found.item_BK], rtol=1e-4, atol=1e-6)


def test_predictions_stand_in_the_order_of_the_targets(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4), block_items=7)
    rating_N, uncut_N, deviation_N, level_NL = scorer.predict(small.batch, small.batch)
    assert uncut_N is None
    assert deviation_N is None
    torch.testing.assert_close(level_NL.sum(1), torch.ones(len(level_NL)))
    with torch.no_grad():
        output = scorer.model.decode(scorer.model.encode(small.batch), slice(None)).float()
    whole = scorer.model.output.predict(output).rating_BI
    torch.testing.assert_close(rating_N, whole[small.batch.row_N, small.batch.item_N])


@pytest.mark.parametrize("decoder", ["ordinal", "linear"])
def test_expected_interactions_add_up_all_probabilities(decoder, small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, decoder=decoder), block_items=7)
    with torch.no_grad():
        output = scorer.model.decode(scorer.model.encode(small.batch), slice(None)).float()
    wanted_B = 1.0 - output.softmax(-1)[..., 0]
    found_B = scorer.expected_interactions(small.batch)
    torch.testing.assert_close(found_B.float(), wanted_B.sum(1), rtol=1e-4, atol=1e-4)
    assert scorer_of(small, MultVaeConfig()).expected_interactions(small.batch) is None


def test_serendipitous_items_are_unseen_unlikely_supported_and_sorted_by_rating(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4), block_items=7)
    found = scorer.serendipitous(small.batch, small.batch, 20, novel=NoveltyFilter(0.5, 8))
    with torch.no_grad():
        output = scorer.model.decode(scorer.model.encode(small.batch), slice(None)).float()
    prediction, support = scorer.model.output.predict(output), small.catalog.train_count_IL.sum(1)
    for user, items in enumerate(found.item_BK.tolist()):
        seen = set(small.items[user])
        median = sorted(prediction.probability_BI[user].tolist())[24]  # the 25th of 50
        wanted = [
            item
            for item in range(50)
            if item not in seen
            and support[item] >= 8
            and prediction.probability_BI[user, item] <= median
        ]
        wanted.sort(key=lambda item: (-prediction.rating_BI[user, item].item(), item))
        assert [item for item in items if item >= 0] == wanted[:20]


def test_a_model_without_ratings_has_no_serendipitous_list(small):
    with pytest.raises(DataError, match="MultVae does not predict both ratings and probabilities"):
        scorer_of(small, MultVaeConfig()).serendipitous(
            small.batch, None, 3, novel=NoveltyFilter(0.5, 0)
        )


def test_popularity_and_item_mean_are_what_counting_gives(small):
    scorer = scorer_of(small)
    counts = small.catalog.train_count_IL
    first = scorer.recommend(Batch.from_lists([[]]), None, 50).item_BK[0].tolist()
    assert counts.sum(1)[first].tolist() == sorted(counts.sum(1), reverse=True)
    item = int(counts.sum(1).argmax())
    mean = (counts[item] * np.arange(1, 6)).sum() / counts[item].sum()
    no_user = Batch.from_lists([[]])
    reported = scorer.predict(no_user, Batch.from_lists([[item]], [[3.0]])).rating_N
    assert reported.item() == pytest.approx(mean, abs=1e-3)


def histories(small, **more):
    table = {
        "user": [f"u{n}" for n in range(37)],
        "items": [[1000 - item for item in items] for items in small.items],
        "ratings": small.values,
    }
    return pa.table({**table, **more})


def test_tables_of_original_ids_give_the_lists_of_the_scorer(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4))
    config = ScoreConfig(k=5, batch_users=8, serendipitous_k=2, min_support=0)
    lists, read = recommend_table(scorer, histories(small), None, config)
    direct = scorer.recommend(small.batch, small.batch, 5)
    assert lists["user"].to_pylist() == [f"u{n}" for n in range(37)]
    assert lists["items"].to_pylist() == [
        [1000 - i for i in row] for row in direct.item_BK.tolist()
    ]
    np.testing.assert_allclose(lists["scores"].to_pylist(), direct.score_BK, rtol=1e-5, atol=1e-5)
    shares = np.array(lists["rating_distribution"].to_pylist())
    assert shares.shape == (37, 5, 5)
    np.testing.assert_allclose(shares.sum(-1), 1.0, rtol=1e-5)
    assert read.row_status["used"] == len(small.batch.item_N)


def test_what_cannot_be_read_is_counted_and_yet_not_recommended(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4))
    table = pa.table(
        {
            "user": [1, 2],
            "items": [[1000, 5, 990, 990], [999, 998]],
            "ratings": [[5.0, 5.0, 1.0, 2.0], [7.0, 4.0]],
        }
    )
    lists, read = recommend_table(scorer, table, None, ScoreConfig(k=50))
    assert read.row_status == {
        "used": 3,
        "item unseen in training": 1,
        "rating outside scale": 1,
        "duplicate": 1,
    }
    found = [set(row) for row in lists["items"].to_pylist()]
    assert not found[0] & {1000, 990}
    assert not found[1] & {999, 998}  # 999 was seen, whatever its rating
    clean = pa.table({"user": [1], "items": [[1000, 990]], "ratings": [[5.0, 2.0]]})
    again = recommend_table(scorer, clean, None, ScoreConfig(k=50))[0]
    (one,), (other,) = lists.slice(0, 1).to_pylist(), again.to_pylist()
    assert set(one["items"]) == set(other["items"])
    # Sums over another number of users may be ordered differently: float32 rounding.
    assert one["scores"] == pytest.approx(other["scores"], rel=1e-5, abs=1e-5)


def test_a_table_without_users_gives_a_table_with_all_columns(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4))
    some = histories(small)
    config = ScoreConfig(k=3, serendipitous_k=2)
    no_user, _ = recommend_table(scorer, some.slice(0, 0), None, config)
    assert no_user.schema == recommend_table(scorer, some, None, config)[0].schema


def test_a_log_without_ratings_is_not_taken_for_all_ones(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4))
    source = Vocabulary(IDS, (1.0,), np.ones((50, 1), dtype=np.int64), 37)
    table = pa.table({"user": [1], "items": [[0, 1]], "ratings": [[1.0, 1.0]]})
    with pytest.raises(DataError, match="the histories have no ratings"):
        recommend_table(scorer, table, source, ScoreConfig())


@pytest.mark.parametrize("absent", ["user", "items", "ratings"])
def test_missing_columns_are_named(small, absent):
    with pytest.raises(DataError, match=absent):
        recommend_table(
            scorer_of(small, Conv4RecConfig()),
            histories(small).drop_columns([absent]),
            None,
            ScoreConfig(),
        )


def test_text_ids_against_numbers_are_refused(small):
    table = pa.table({"user": [1], "items": [["x"]], "ratings": [[1.0]]})
    with pytest.raises(DataError, match="item ids are string, but the vocabulary holds int64"):
        recommend_table(scorer_of(small, Conv4RecConfig()), table, None, ScoreConfig())


def test_measure_agrees_with_the_plain_formulas(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4), block_items=7)
    target = Batch.from_lists([[(items[0] + 1) % 50] for items in small.items], [[3.0]] * 37)
    config = EvaluateConfig(recall_at=(5,), ndcg_at=(5,))
    asked = Example(small.batch, target, small.batch)
    summaries = measure(scorer, asked, config).summaries()
    lists = plain_lists(scorer, small.batch, 5)
    found = [int(t) in row for t, row in zip(target.item_N, lists, strict=True)]
    assert summaries["recall@5"].mean == pytest.approx(np.mean(found))
    error = scorer.predict(small.batch, target).rating_N - 3.0
    assert summaries["rmse"].mean == pytest.approx((error**2).mean().sqrt().item(), rel=1e-5)
    assert summaries["rmse"].num_observations == 37


def test_selection_prefers_more_recall_and_less_error():
    names = ("recall@50", "rmse")
    base = selection_score({"recall@50": 0.3, "rmse": 0.9}, names)
    assert selection_score({"recall@50": 0.31, "rmse": 0.9}, names) > base
    assert selection_score({"recall@50": 0.3, "rmse": 0.89}, names) > base
    with pytest.raises(ConfigError, match="names 'rmse'"):
        selection_score({"recall@50": 0.3}, names)


def test_lists_by_log_odds_alone_tell_what_whole_outcomes_tell(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4), block_items=7)
    fast = scorer.recommend(small.batch, small.batch, 10)
    scorer.model.odds = lambda: None  # the plain way: all outcomes of all items
    plain = scorer.recommend(small.batch, small.batch, 10)
    assert torch.equal(fast.item_BK, plain.item_BK)
    torch.testing.assert_close(fast.score_BK, plain.score_BK, rtol=1e-4, atol=1e-5)
    for one, other in zip(fast.prediction, plain.prediction, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


REASONED = [MultVaeConfig(), BiasedMfConfig(), EaseConfig(), SasRecConfig(max_length=4)]


@pytest.mark.parametrize("config", REASONED)
def test_reasons_are_scores_with_and_without_an_interaction(config, small):
    scorer = scorer_of(small, config)
    for weight in scorer.model.state_dict().values():
        if weight.is_floating_point():
            torch.nn.init.normal_(weight, std=0.1)
    history, items = small.users([5])._replace(user_B=torch.tensor([-1])), torch.tensor([3, 0, 49])

    def scores(batch):
        with torch.no_grad():
            output = scorer.model.decode(scorer.model.encode(batch), slice(None)).float()
        return scorer.model.output.ranking_score(output)[0, items]

    found = scorer.explain(small.users([5]), items)
    assert found.shape == (len(small.items[5]), 3)
    for place in range(len(small.items[5])):
        kept = torch.arange(len(small.items[5])) != place
        wanted = scores(history) - scores(history.keep(kept))
        torch.testing.assert_close(found[place], wanted, rtol=1e-4, atol=1e-5)
    assert scorer.explain(Batch.from_lists([[]]), items).shape == (0, 3)


def test_candidates_limit_those_who_have_them(small):
    scorer = scorer_of(small, MultVaeConfig())
    table = histories(small).slice(0, 3)
    table = table.append_column(
        "candidates", pa.array([[999, 1000, 5], None, []], pa.list_(pa.int64()))
    )
    config = ScoreConfig(k=50, policy=PolicyConfig(exclude_seen=False))
    lists, _ = recommend_table(scorer, table, None, config)
    first, second, third = lists["items"].to_pylist()
    assert set(first) == {999, 1000}
    assert len(second) == 50
    assert third == []


def test_users_without_what_a_list_needs_are_rejected_by_reason(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4))
    table = pa.table(
        {
            "user": ["a", None, "c", "d", "e"],
            "items": [[1000], [999], None, [998, 997], [None, 996]],
            "ratings": [[5.0], [4.0], [3.0], [2.0], [5.0, float("nan")]],
        }
    )
    lists, read = recommend_table(scorer, table, None, ScoreConfig(k=3))
    assert lists["user"].to_pylist() == ["a", "e"]
    assert read.rejected == {
        "no user id": 1,
        "no list of items": 1,
        "items, ratings and times differ in number": 1,
    }
    assert read.row_status["used"] == 1
    assert (
        read.row_status["item unseen in training"] == read.row_status["rating outside scale"] == 1
    )


def test_the_long_form_has_the_rows_of_the_nested_one(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4))
    nested, _ = recommend_table(scorer, histories(small), None, ScoreConfig(k=4))
    long, _ = recommend_table(scorer, histories(small), None, ScoreConfig(k=4, layout="long"))
    assert long["user"].to_pylist() == [u for u in nested["user"].to_pylist() for _ in range(4)]
    assert long["rank"].to_pylist() == [1, 2, 3, 4] * 37
    for one, many in (
        ("item", "items"),
        ("score", "scores"),
        ("rating", "ratings"),
        ("rating_distribution", "rating_distribution"),
    ):
        assert long[one].to_pylist() == [x for row in nested[many].to_pylist() for x in row]


def test_only_what_is_asked_for_is_told(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4))
    config = ScoreConfig(k=4, outputs=("probability", "serendipity", "rating", "embedding"))
    lists, _ = recommend_table(scorer, histories(small), None, config)
    named = {
        "user",
        "history_digest",
        "items",
        "probabilities",
        "serendipity",
        "ratings",
        "embedding",
    }
    assert set(lists.column_names) == named
    row = lists.to_pylist()[0]
    wanted = [
        (1 - p) * (r - 1) / 4 for p, r in zip(row["probabilities"], row["ratings"], strict=True)
    ]
    assert row["serendipity"] == pytest.approx(wanted, rel=1e-5)
    assert len(row["embedding"]) == 8
    alone, _ = recommend_table(
        scorer, histories(small), None, ScoreConfig(outputs=("embedding",), layout="long")
    )
    assert alone.column_names == ["user", "history_digest", "embedding"]
    with pytest.raises(DataError, match="MultVae predicts score, but not deviation, rating"):
        recommend_table(
            scorer_of(small, MultVaeConfig()),
            histories(small),
            None,
            ScoreConfig(outputs=("deviation", "rating")),
        )
    with pytest.raises(DataError, match="has no user embeddings"):
        recommend_table(
            scorer_of(small, EaseConfig()),
            histories(small),
            None,
            ScoreConfig(outputs=("embedding",)),
        )


def test_a_history_has_one_digest_prepared_or_not(small):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4))
    _, raw = recommend_table(scorer, histories(small), None, ScoreConfig(k=1))
    positions = histories(small, items=small.items)
    _, prepared = recommend_table(scorer, positions, scorer.vocabulary, ScoreConfig(k=1))
    np.testing.assert_array_equal(raw.digest_B, prepared.digest_B)
    assert len(set(raw.digest_B.tolist())) == 37
    changed = histories(
        small, ratings=[[r + 1 if r < 5 else 1.0 for r in row] for row in small.values]
    )
    _, other = recommend_table(scorer, changed, None, ScoreConfig(k=1))
    assert not set(other.digest_B.tolist()) & set(raw.digest_B.tolist())


@every_model
@pytest.mark.parametrize("k", [3, 50])
@pytest.mark.parametrize("bends", [{}, {"damping": 0.1}, {"damping": 0.1, "min_score": 0.0}])
def test_candidates_found_in_bfloat16_give_the_lists_of_float32(config, k, bends, small):
    model = filled(config, small)
    counts = small.catalog.train_count_IL
    vocabulary = Vocabulary(IDS, small.catalog.levels, counts, 37)
    plain = Scorer(model, vocabulary)
    fast = Scorer(model, vocabulary, precision="bf16", chunk_items=17)
    assert fast.search.is_halved == (item_vectors(model) is not None)
    damping, min_score = bends.get("damping", 0.0), bends.get("min_score")
    policy = PolicyConfig(popularity_damping=damping, min_score=min_score, deny=(1000, 999))
    rules = Rules.of(policy, model, vocabulary)
    one = plain.recommend(small.batch, small.batch, k, rules=rules)
    other = fast.recommend(small.batch, small.batch, k, rules=rules)
    torch.testing.assert_close(one.score_BK, other.score_BK, rtol=1e-4, atol=1e-5)
    same_BK = one.item_BK == other.item_BK
    assert same_BK.float().mean() > 0.98  # scores equal but for rounding may change places
    told_BK = same_BK & (one.item_BK >= 0)
    for reported, wanted in zip(other.prediction or (), one.prediction or (), strict=True):
        if wanted is not None:
            torch.testing.assert_close(reported[told_BK], wanted[told_BK], rtol=1e-3, atol=1e-4)


def test_a_doubt_in_bfloat16_is_settled_in_float32(small, monkeypatch):
    """Scores so close that bfloat16 sees them as one: the fast way must step aside."""
    scorer = scorer_of(small, MultVaeConfig())
    scorer.model.output_IH.zero_()
    scorer.model.output_bias_I.copy_(1.0 + torch.arange(50) * 1e-5)
    fast = Scorer(scorer.model, scorer.vocabulary, precision="bf16")
    monkeypatch.setattr("distrib.scoring.search._MORE_CANDIDATES", 2)
    found = fast.recommend(Batch.from_lists([[0]]), None, 4)
    assert found.item_BK.tolist() == [[49, 48, 47, 46]]
