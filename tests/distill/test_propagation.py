"""Neighbors, propagation and what is kept of labels, against plain forms and golden numbers."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from distrib.distill.config import SoftenConfig
from distrib.distill.embed import Embedded
from distrib.distill.estimate import core_hours
from distrib.distill.k_means import Points
from distrib.distill.labels import labels_of
from distrib.distill.propagation import (
    affinity,
    by_blocks,
    by_faiss,
    cosine_affinity,
    heaviest,
    neighbors,
    propagated,
)

GOLDEN_A = [[0, 0.880797, 0.119203], [0.731059, 0, 0.268941], [0.268941, 0.731059, 0]]
GOLDEN_D = [[0.698284, 0.301716], [0.352428, 0.647572], [0.722722, 0.277278]]
LINE = np.array([[0.0], [1.0], [3.0]], np.float32)


def vectors(num_users=300, width=6):
    found = np.random.default_rng(0).standard_normal((num_users, width)).astype(np.float32)
    found[50:60] = found[40:50]  # some are at the same place
    return found


def test_golden_numbers_of_propagation():
    near = affinity(LINE, 64, 1.0, "absolute")
    np.testing.assert_allclose(near.toarray(), GOLDEN_A, atol=1e-6)
    labels = csr_array(np.array([[1.0, 0], [0, 1], [1, 0]]))
    found = propagated(near, labels, 0.5, 20, 0.0)
    np.testing.assert_allclose(found.toarray(), GOLDEN_D, atol=1e-6)


def test_many_rounds_reach_the_closed_form():
    near = affinity(vectors(40), 8, 0.7, "absolute")
    labels = csr_array(np.eye(40))
    wanted = 0.5 * np.linalg.inv(np.eye(40) - 0.5 * near.toarray())
    found = propagated(near, labels, 0.5, 60, 0.0).toarray()
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    cut = heaviest(propagated(near, labels, 0.5, 60, 3e-4), 40, labels).toarray()
    np.testing.assert_allclose(cut, wanted, atol=2e-3)
    np.testing.assert_allclose(np.diag(cut), np.diag(wanted), atol=1e-3)
    np.testing.assert_allclose(cut.sum(1), 1.0)


@pytest.mark.parametrize("count", [1, 7, 299, 400])
def test_both_searches_find_the_neighbors_of_a_plain_one(count, monkeypatch):
    points = vectors()
    distance = np.sqrt(((points[:, None].astype(float) - points) ** 2).sum(-1))
    np.fill_diagonal(distance, np.inf)
    wanted = np.argsort(distance, axis=1, kind="stable")[:, : min(count, 299)]
    for search in (by_blocks, by_faiss):
        monkeypatch.setattr("distrib.distill.propagation.by_faiss", search)
        index, found = neighbors(points, count)
        np.testing.assert_array_equal(index, wanted)
        np.testing.assert_allclose(found, np.take_along_axis(distance, wanted, 1), atol=1e-12)


def test_a_relative_temperature_does_not_depend_on_the_norm():
    points = vectors(80)
    one = affinity(points, 16, 0.1, "relative").toarray()
    other = affinity(100 * points, 16, 0.1, "relative").toarray()
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
    absolute = affinity(100 * points, 16, 0.1, "absolute").toarray()
    assert abs(absolute - one).max() > 0.1


def test_a_user_alone_keeps_its_label():
    for near in (affinity(LINE[:1], 5, 1.0, "absolute"), cosine_affinity(LINE[:1], 5)):
        assert near.toarray().tolist() == [[1.0]]


def test_cosines_do_not_depend_on_the_norm_and_rows_add_up():
    points = vectors(60)
    near = cosine_affinity(points, 5).toarray()
    np.testing.assert_allclose(near, cosine_affinity(7 * points, 5).toarray(), atol=1e-6)
    np.testing.assert_allclose(near.sum(1), 1.0)
    assert ((near > 0).sum(1) <= 5).all()


def test_the_heaviest_items_stay_and_targets_in_any_case():
    found = csr_array(np.array([[0.5, 0.1, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]]))
    target = csr_array(np.array([[0, 0, 0, 1.0], [1.0, 0, 0, 0]]))
    kept = heaviest(found, 2, target).toarray()
    np.testing.assert_allclose(kept, [[9 / 16, 0, 27 / 80, 0.1], [0.25, 0.375, 0.375, 0]])
    none = heaviest(csr_array((2, 4)), 2, target)
    assert none.nnz == 0


def test_rounds_that_would_add_nothing_are_left_out_and_cost_grows_with_clusters():
    assert SoftenConfig(smallest=0.0).needed_rounds == 20
    assert SoftenConfig(smallest=1e-3).needed_rounds == 10  # 0.5**10 < 1e-3
    assert SoftenConfig(rounds=3).needed_rounds == 3
    assert SoftenConfig().clusters_of(1_000_000) == 200
    assert SoftenConfig(num_clusters=7).clusters_of(10) == 7
    few, many = (core_hours(SoftenConfig(num_clusters=k), 100_000) for k in (10, 100))
    assert few > many
    assert core_hours(SoftenConfig(), 2_000_000) == pytest.approx(
        2 * core_hours(SoftenConfig(), 1_000_000)
    )


def test_ratings_of_labels_are_means_over_the_users_that_weights_come_from():
    rng = np.random.default_rng(0)
    history = rng.random((30, 12)) < 0.3
    history[:, 0] = True
    rating = rng.integers(0, 6, (30, 12)) * history  # 0 is a rating too
    target = history / history.sum(1, keepdims=True)
    rows, columns = np.nonzero(history)
    rated = csr_array((target[rows, columns] * rating[rows, columns], (rows, columns)), (30, 12))
    points = Points(np.arange(30), vectors(30))
    members = Embedded(points, csr_array(target), csr_array(target), rated)
    config = SoftenConfig(num_neighbors=30, max_items=12, smallest=0.0)
    found = labels_of(members, config)
    near = affinity(points.vector_BZ, 30, 1.0, "absolute").toarray()
    weight, kept = np.eye(30), 0.5 * np.eye(30)
    for _ in range(20):
        weight = 0.5 * near @ weight + kept
    wanted = (weight @ (target * rating)) / (weight @ target)
    rows, columns = found.weight_BI.nonzero()
    assert len(found.rating_N) == found.weight_BI.nnz == 360
    np.testing.assert_allclose(found.rating_N, wanted[rows, columns], atol=1e-9)
    assert labels_of(members._replace(rated_BI=csr_array((30, 12))), config).rating_N is None
