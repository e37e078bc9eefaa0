"""The sparse layers against dense algebra, forward and backward."""

import numpy as np
import torch

from distrib.batch import Batch
from distrib.models.folding import fold_in
from distrib.models.layers import history_sum, item_mean, pair_products, unit_input
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog


def dense(batch, by_value):
    x_BI = torch.zeros(batch.num_users, 50, dtype=torch.float64)
    x_BI[batch.row_N, batch.item_N] = batch.value_N.double() if by_value else 1.0
    return x_BI


def test_cell_products_are_picked_from_the_dense_product(small):
    batch = small.batch
    latent_BZ = torch.randn(37, 8, dtype=torch.float64, requires_grad=True)
    table_IZ = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    weight_N = torch.randn(len(batch.item_N), dtype=torch.float64)
    sparse_N = pair_products(latent_BZ, table_IZ, batch.item_N, batch.pointer_P)
    plain_N = (latent_BZ @ table_IZ.T)[batch.row_N, batch.item_N]
    torch.testing.assert_close(sparse_N, plain_N)
    found = torch.autograd.grad((sparse_N * weight_N).sum(), [latent_BZ, table_IZ])
    wanted = torch.autograd.grad((plain_N * weight_N).sum(), [latent_BZ, table_IZ])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_history_sums_are_a_multi_hot_product(small):
    batch = small.batch
    table_IZ = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    value_N = batch.value_N.double().requires_grad_()
    sparse_BZ = history_sum(table_IZ, batch.item_N, value_N, batch.pointer_P)
    x_BI = torch.zeros(37, 50, dtype=torch.float64).index_put((batch.row_N, batch.item_N), value_N)
    plain_BZ = x_BI @ table_IZ
    torch.testing.assert_close(sparse_BZ, plain_BZ)
    weight_BZ = torch.randn_like(plain_BZ)
    found = torch.autograd.grad((sparse_BZ * weight_BZ).sum(), [table_IZ, value_N])
    wanted = torch.autograd.grad((plain_BZ * weight_BZ).sum(), [table_IZ, value_N])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_histories_are_read_at_unit_length_and_what_stays_is_scaled_up(small):
    for by_value in (False, True):
        wanted = torch.nn.functional.normalize(dense(small.batch, by_value), dim=1)
        read, weight_N = unit_input(small.batch, by_value=by_value, stream=1)
        found = torch.zeros(37, 50).index_put((read.row_N, read.item_N), weight_N)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
        read, weight_N = unit_input(
            small.batch, by_value=by_value, dropout=0.25, rng=CounterRng.of(0, 0), stream=1
        )
        kept = torch.zeros(37, 50).index_put((read.row_N, read.item_N), weight_N).double()
        torch.testing.assert_close(kept, torch.where(kept > 0, wanted / 0.75, 0.0))
        assert 0.6 < len(read.item_N) / len(small.batch.item_N) < 0.9


def test_folding_in_is_ridge_regression_for_histories_short_and_long():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(50, 4))
    items = [[], [7], [1, 2, 3], rng.permutation(50)[:30].tolist()]
    batch = Batch.from_lists(items, [[3.0] * len(row) for row in items])
    target = rng.normal(size=len(batch.item_N))
    latent_BZ, bias_B = fold_in(torch.tensor(table), batch, torch.tensor(target), 0.7)
    assert not latent_BZ[0].any()
    assert bias_B[0] == 0.0
    start = 0
    for row, history in enumerate(items):
        wanted = target[start : start + len(history)]
        start += len(history)
        x = np.hstack([table[history], np.ones((len(history), 1))])
        solution = np.linalg.solve(x.T @ x + 0.7 * np.eye(5), x.T @ wanted)
        np.testing.assert_allclose(latent_BZ[row], solution[:4], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(bias_B[row], solution[4], rtol=1e-5, atol=1e-6)


def test_item_means_lean_on_the_mean_of_all():
    count_IL = np.array([[0, 0, 4], [1, 0, 0], [0, 0, 0]])
    mean_I = item_mean(Catalog(3, (1.0, 2.0, 3.0), count_IL, 5), prior_ratings=1.0)
    overall = (4 * 3.0 + 1.0) / 5
    wanted = [(12 + overall) / 5, (1 + overall) / 2, overall]
    torch.testing.assert_close(mean_I, torch.tensor(wanted))
