"""Policies against loops over all items of one user after another."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from distrib.batch import Batch
from distrib.errors import ConfigError, DataError
from distrib.models.autoencoders.mult_vae import MultVaeConfig
from distrib.models.shallow.ease import EaseConfig
from distrib.scoring.policy import PolicyConfig
from distrib.scoring.rules import Rules, item_table
from tests.scoring.test_scorer import IDS, scorer_of

K = 8


def rules_of(scorer, **policy):
    return Rules.of(PolicyConfig(**policy), scorer.model, scorer.vocabulary)


def listed(scorer, small, rules, k=K):
    found = scorer.recommend(small.batch, small.batch, k, rules=rules)
    return [[item for item in row if item >= 0] for row in found.item_BK.tolist()], found


def scores(scorer, small):
    with torch.no_grad():
        output = scorer.model.decode(scorer.model.encode(small.batch), slice(None)).float()
    score = scorer.model.output.ranking_score(output).clone()
    score[small.batch.row_N, small.batch.item_N] = -torch.inf
    return score


def in_order(row, keep=None):
    order = sorted(range(len(row)), key=lambda item: (-row[item], item))
    return [item for item in order if row[item] > -np.inf and (keep is None or keep(item))]


@pytest.fixture
def groups(tmp_path):
    """Items in three large groups and, the last ten, in none."""
    path = str(tmp_path / "groups.parquet")
    table = {"item": IDS[:40], "group": [f"g{n % 3}" for n in range(40)]}
    pq.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize("as_file", [False, "csv", "txt", "parquet"])
def test_allowed_and_denied_items(as_file, small, tmp_path):
    scorer = scorer_of(small, MultVaeConfig(), block_items=7)
    allow = [1000 - n for n in range(0, 50, 2)]
    if as_file:
        path = tmp_path / f"allow.{as_file}"
        if as_file == "parquet":
            pq.write_table(pa.table({"item": allow}), path)
        else:
            head = "item\n" if as_file == "csv" else ""
            path.write_text(head + "\n".join(map(str, allow)))
    rules = rules_of(scorer, allow=str(path) if as_file else tuple(allow), deny=(1000, 998, 12345))
    lists, _ = listed(scorer, small, rules)
    for row, found in zip(scores(scorer, small).tolist(), lists, strict=True):
        assert found == in_order(row, lambda item: item % 2 == 0 and item not in {0, 2})[:K]


def test_popularity_is_damped_and_low_scores_do_not_come_up(small):
    scorer = scorer_of(small, MultVaeConfig(), block_items=7)
    support = torch.from_numpy(small.catalog.train_count_IL.sum(1)).float()
    damped = scores(scorer, small) - 0.1 * torch.log1p(support)
    limit = damped[damped > -torch.inf].quantile(0.9).item()
    lists, found = listed(scorer, small, rules_of(scorer, popularity_damping=0.1, min_score=limit))
    assert any(len(row) < K for row in lists)
    for user, row in enumerate(damped.tolist()):
        assert lists[user] == in_order(row, lambda item, row=row: row[item] >= limit)[:K]
        wanted = [row[item] for item in lists[user]]
        assert found.score_BK[user, : len(wanted)].tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("at_most", [1, 2])
def test_no_group_has_more_than_its_share(at_most, small, groups):
    scorer = scorer_of(small, MultVaeConfig(), block_items=7)
    k = 3 * at_most + 6  # far down the list: the candidates are asked for again and again
    lists, _ = listed(scorer, small, rules_of(scorer, groups=groups, max_per_group=at_most), k)
    for row, found in zip(scores(scorer, small).tolist(), lists, strict=True):
        wanted, taken = [], {}
        for item in in_order(row):
            group = item % 3 if item < 40 else None
            if group is None or taken.get(group, 0) < at_most:
                wanted.append(item)
                taken[group] = taken.get(group, 0) + 1
        assert found == wanted[:k]


def greedy(row, vectors, weight, pool):
    """Choose one item after another, two at most of each group."""
    candidates = in_order(row)[:pool]
    best, least = row[candidates[0]], row[candidates[-1]]
    chosen, taken = [], {}

    def worth(item):
        likeness = max([0.0] + [float(vectors[item] @ vectors[other]) for other in chosen])
        return (1 - weight) * (row[item] - least) / (best - least) - weight * likeness

    while len(chosen) < K:
        open_items = [
            item
            for item in candidates
            if item not in chosen and (item >= 40 or taken.get(item % 3, 0) < 2)
        ]
        if not open_items:
            break
        chosen.append(max(open_items, key=worth))
        if chosen[-1] < 40:
            taken[chosen[-1] % 3] = taken.get(chosen[-1] % 3, 0) + 1
    return chosen


def test_diverse_lists_are_those_of_the_greedy_rule(small, groups):
    scorer = scorer_of(small, MultVaeConfig(), block_items=7)
    weight, pool = 0.6, 20
    rules = rules_of(scorer, diversity=weight, diversity_pool=pool, groups=groups, max_per_group=2)
    lists, _ = listed(scorer, small, rules)
    vectors = torch.nn.functional.normalize(scorer.model.output_IH.detach(), dim=1)
    for row, found in zip(scores(scorer, small).tolist(), lists, strict=True):
        wanted = greedy(row, vectors, weight, pool)
        if len(wanted) < K:  # caps left too few of the best: of all items, then
            wanted = greedy(row, vectors, weight, 50)
        assert found == wanted
    plain, _ = listed(scorer, small, Rules())
    assert lists != plain


def test_a_user_without_candidates_has_an_empty_list(small, groups):
    scorer = scorer_of(small, MultVaeConfig())
    rules = rules_of(scorer, min_score=1e9, groups=groups, max_per_group=1, diversity=0.5)
    found = scorer.recommend(Batch.from_lists([[], [1]]), None, 5, rules=rules)
    assert (found.item_BK == -1).all()


def test_policies_that_make_no_sense_are_refused(small, tmp_path):
    scorer = scorer_of(small, MultVaeConfig())
    with pytest.raises(DataError, match=r"policy.allow: none of its ids is an item"):
        rules_of(scorer, allow=(1, 2))
    with pytest.raises(DataError, match=r"policy.deny: item ids are string"):
        rules_of(scorer, deny=("x",))
    with pytest.raises(DataError, match=r"absent.csv: no such file"):
        rules_of(scorer, deny=str(tmp_path / "absent.csv"))
    (tmp_path / "no.csv").write_text("sku\n1\n")
    with pytest.raises(DataError, match=r"no.csv: lacks column\(s\) \['item'\]"):
        rules_of(scorer, deny=str(tmp_path / "no.csv"))
    with pytest.raises(ConfigError, match="diversity needs item embeddings, but Ease has none"):
        rules_of(scorer_of(small, EaseConfig()), diversity=0.5)
    with pytest.raises(ValueError, match="groups and max_per_group belong together"):
        PolicyConfig(groups="x")


def test_files_of_text_ids_keep_their_leading_zeros(tmp_path):
    (tmp_path / "a.txt").write_text("007\n\n 8 \n")
    (tmp_path / "a.csv").write_text("item,group\n007,1\n8,2\n")
    pq.write_table(pa.table({"item": ["007", "8"]}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.csv", "a.parquet"):
        found = item_table(str(tmp_path / name), ("item",), "string")
        assert found["item"].to_pylist() == ["007", "8"]
    assert item_table(str(tmp_path / "a.csv"), ("item",), "int")["item"].to_pylist() == [7, 8]
    (tmp_path / "b.txt").write_text("7\n\N{SUPERSCRIPT TWO}\n")
    with pytest.raises(DataError, match="is not an integer, as the model's ids are"):
        item_table(str(tmp_path / "b.txt"), ("item",), "int")
    (tmp_path / "b.txt").write_text("9223372036854775808\n")
    with pytest.raises(DataError, match="is not an integer"):
        item_table(str(tmp_path / "b.txt"), ("item",), "int")
    (tmp_path / "b.csv").write_text("item,item\n7,8\n")
    with pytest.raises(DataError, match="more than once"):
        item_table(str(tmp_path / "b.csv"), ("item",), "int")
