import pytest
import torch

from distrib.topk import best_keys, items_of, merge, rank_keys, scores_of


def best(score_BI, k, block):
    kept = torch.empty(score_BI.shape[0], 0, dtype=torch.int64)
    for low in range(0, score_BI.shape[1], block):
        kept, _ = merge(kept, best_keys(score_BI[:, low : low + block], low, k), k)
    return items_of(kept)


def test_blocks_do_not_matter_and_ties_go_to_the_lower_item():
    torch.manual_seed(0)
    score = torch.randint(-3, 4, (20, 41)).float()  # many ties, signs, zeros
    score[0, :5] = torch.tensor([0.0, -0.0, 0.0, -0.0, 0.0])
    plain = torch.stack(
        [torch.tensor(sorted(range(41), key=lambda i: (-row[i].item(), i))[:9]) for row in score]
    )
    for block in (1, 7, 41):
        assert torch.equal(best(score, 9, block), plain)


def test_scores_of_all_sizes_sort_like_numbers():
    score = torch.tensor([[1e-38, -1e30, 3.5, float("-inf"), -2.0, 1e30, 0.0]])
    assert best(score, 7, 3).tolist() == [[5, 2, 0, 6, 4, 1, -1]]  # what scores -inf is unwanted


def test_unwanted_items_come_up_as_none():
    keys = best_keys(torch.tensor([[1.0, float("-inf"), float("-inf")]]), 0, 2)
    kept, _ = merge(torch.empty(1, 0, dtype=torch.int64), keys, 2)
    assert items_of(kept).tolist() == [[0, -1]]


def test_scores_come_back_from_keys_bit_for_bit():
    score = torch.tensor([[1e-38, -1e30, 3.5, float("-inf"), -2.0, 0.0]])
    assert torch.equal(scores_of(rank_keys(score, torch.arange(6))), score)


@pytest.mark.parametrize("levels", [2, 7, 1_000_000])
@pytest.mark.parametrize(
    ("items", "k"), [(199, 9), (200, 9), (1_003, 3), (1_003, 60), (5_000, 100)]
)
def test_groups_pass_over_nothing_that_is_among_the_best(items, k, levels):
    torch.manual_seed(items + k)
    score = torch.randint(levels, (30, items)).float() / 7
    score[torch.rand(30, items) < 0.3] = -torch.inf
    score[0] = -torch.inf
    score[1, : items - k // 2] = -torch.inf
    every = rank_keys(score, torch.arange(items))
    expected = every.sort(dim=1, descending=True).values[:, :k]
    assert torch.equal(best_keys(score, 0, k), expected)
