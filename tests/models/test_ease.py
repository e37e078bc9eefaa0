"""EASE against a plain solution, per-neighborhood against full; item neighbors against a loop."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from distrib.data.history_arrays import HistoryArrays
from distrib.models import EaseConfig, ItemKnnConfig
from distrib.models.shallow.ease import neighbor_weights, whole_weights
from distrib.models.shallow.item_knn import most_similar
from distrib.training.schemes.gram import added, partial_gram
from tests.conftest import Small


def multi_hot(small):
    x_BI = np.zeros((37, 50))
    x_BI[small.batch.row_N, small.batch.item_N] = 1.0
    return x_BI


def gram(small):
    x_BI = multi_hot(small)
    return csr_array((x_BI.T @ x_BI).astype(np.int32))


def plain_ease(x_BI, penalty):
    p_II = np.linalg.inv(x_BI.T @ x_BI + penalty * np.eye(x_BI.shape[1]))
    b_II = -p_II / np.diag(p_II)
    np.fill_diagonal(b_II, 0.0)
    return b_II


def test_all_items_at_once_equal_a_plain_numpy_solution(small):
    found = whole_weights(gram(small), 3.0, torch.float64).numpy()
    np.testing.assert_allclose(found, plain_ease(multi_hot(small), 3.0), atol=1e-6)
    single = whole_weights(gram(small), 3.0, torch.float32).numpy()
    np.testing.assert_allclose(single, found, atol=1e-4)


def test_the_solution_has_a_zero_diagonal_and_no_slope_elsewhere(small):
    x_BI = multi_hot(small)
    b_II = whole_weights(gram(small), 3.0, torch.float64).double().numpy()
    assert not b_II.diagonal().any()
    slope_II = x_BI.T @ (x_BI @ b_II - x_BI) + 3.0 * b_II  # of the loss, halved
    np.fill_diagonal(slope_II, 0.0)
    assert np.abs(slope_II).max() < 1e-5


def test_scores_are_history_times_weights(small):
    config = EaseConfig(penalty=3.0)
    model = config.build(small.catalog)
    model.load_state_dict(config.solve(gram(small)))
    score_BI = model.decode(model.encode(small.batch), slice(None)).numpy()
    x_BI = multi_hot(small)
    np.testing.assert_allclose(score_BI, x_BI @ plain_ease(x_BI, 3.0), atol=1e-5)


def test_neighborhoods_of_all_items_are_the_whole():
    dense = Small(num_users=600, item_count=16)  # each pair of items has a common user
    x_BI = np.zeros((600, 16))
    x_BI[dense.batch.row_N, dense.batch.item_N] = 1.0
    config = EaseConfig(penalty=3.0, num_neighbors=16)
    model = config.build(dense.catalog)
    model.load_state_dict(config.solve(csr_array((x_BI.T @ x_BI).astype(np.int32))))
    score_BI = model.decode(model.encode(dense.batch), slice(None)).numpy()
    np.testing.assert_allclose(score_BI, x_BI @ plain_ease(x_BI, 3.0), atol=1e-5)


def test_a_neighborhood_is_solved_for_as_if_it_were_all(small):
    x_BI = multi_hot(small)
    few = neighbor_weights(gram(small), 3.0, 5)
    item = 7
    around = [item, *few["index_IM"][item].tolist()]
    column = plain_ease(x_BI[:, around], 3.0)[1:, 0]
    np.testing.assert_allclose(few["weight_IM"][item].numpy(), column, atol=1e-6)


@pytest.mark.parametrize("block_items", [7, 50])
def test_item_neighbors_equal_a_loop_over_pairs(block_items, small):
    config = ItemKnnConfig(num_neighbors=6, shrink=2.0)
    model = config.build(small.catalog)
    model.load_state_dict(config.solve(gram(small)))
    x_BI = multi_hot(small)
    count_I = x_BI.sum(0)
    alike_II = (x_BI.T @ x_BI) / (np.sqrt(np.outer(count_I, count_I)) + 2.0 + 1e-12)
    np.fill_diagonal(alike_II, 0.0)
    wanted_BI = np.zeros((37, 50))
    for item in range(50):
        near = sorted(range(50), key=lambda other: (-alike_II[item, other], other))[:6]
        wanted_BI[:, item] = x_BI[:, near] @ alike_II[item, near]
    state = model.encode(small.batch)
    parts = [
        model.decode(state, slice(low, low + block_items)) for low in range(0, 50, block_items)
    ]
    np.testing.assert_allclose(torch.cat(parts, dim=1).numpy(), wanted_BI, atol=1e-5)


def test_an_item_that_nobody_met_has_no_neighbors():
    lonely = csr_array(np.array([[4, 2, 0], [2, 3, 0], [0, 0, 0]], dtype=np.int32))
    near = most_similar(lonely, 2, shrink=0.0)
    assert near.weight_IM[2].tolist() == [0.0, 0.0]
    assert near.index_IM[0].tolist() == [1, 3]
    assert near.weight_IM[0, 1] == 0.0


def test_partial_gram_matrices_add_up_to_the_dense_one(small):
    total = csr_array((50, 50), dtype=np.int32)
    for users in (range(10), range(10, 11), range(11, 37)):
        batch = small.users(users)
        flat = batch.user_B, batch.pointer_P, batch.item_N, batch.value_N, batch.item_N
        total = added(total, partial_gram(HistoryArrays(*(part.numpy() for part in flat)), 50))
    np.testing.assert_array_equal(total.toarray(), multi_hot(small).T @ multi_hot(small))
