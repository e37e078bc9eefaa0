"""K-means of parts: that of all users at once, wherever parts are computed."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from distrib.distill.k_means import Points, k_means, nearest


class Listed:
    """Parts in a list, one after the other."""

    def __init__(self, parts):
        self.parts = parts

    def map(self, function, *arguments):
        return [function(part, *arguments) for part in self.parts]


def blobs(num_users=400, num_blobs=5, seed=0):
    rng = np.random.default_rng(seed)
    centers = 10 * rng.standard_normal((num_blobs, 8))
    vectors = centers[rng.integers(0, num_blobs, num_users)] + rng.standard_normal((num_users, 8))
    return Points(np.arange(num_users), vectors.astype(np.float32))


def cut(points, num_parts):
    return Listed(
        [
            Points(points.number_B[place::num_parts], points.vector_BZ[place::num_parts])
            for place in range(num_parts)
        ]
    )


@pytest.mark.parametrize("start", ["k-means||", "random"])
def test_rounds_end_where_those_of_a_library_do(start):
    points = blobs(num_blobs=1)  # whole, so that no cluster becomes empty
    found = k_means(cut(points, 3), 5, start=start, seed=3, max_rounds=100)
    label_B, distance_B = nearest(points.vector_BZ, found.center_KZ)
    again = KMeans(5, init=found.center_KZ, n_init=1, max_iter=100).fit(points.vector_BZ)
    np.testing.assert_allclose(found.center_KZ, again.cluster_centers_, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.bincount(label_B, minlength=5), found.count_K)
    assert found.mean_distance == pytest.approx(float(distance_B.mean()), rel=1e-5)
    assert found.rounds < 100


def test_good_centers_to_start_from_find_every_blob():
    found = k_means(cut(blobs(), 2), 5, start="k-means||", seed=0, max_rounds=100)
    assert found.mean_distance < 10  # 8 dimensions of variance 1
    assert found.count_K.min() > 40


def test_the_same_parts_give_the_same_bits_and_others_nearly_the_same():
    settings = {"start": "k-means||", "seed": 1, "max_rounds": 50}
    one, again = (k_means(cut(blobs(), 4), 5, **settings) for _ in range(2))
    np.testing.assert_array_equal(one.center_KZ, again.center_KZ)
    other = k_means(cut(blobs(), 7), 5, **settings)
    order = np.lexsort(other.center_KZ.T)
    np.testing.assert_allclose(
        one.center_KZ[np.lexsort(one.center_KZ.T)], other.center_KZ[order], atol=1e-5
    )


@pytest.mark.parametrize("start", ["k-means||", "random"])
def test_fewer_users_than_clusters_and_equal_users(start):
    few = k_means(cut(blobs(3), 2), 8, start=start, seed=0, max_rounds=9)
    assert few.count_K.sum() == 3
    same = Points(np.arange(30), np.ones((30, 4), np.float32))
    found = k_means(cut(same, 2), 4, start=start, seed=0, max_rounds=9)
    assert found.count_K.sum() == 30
    assert found.mean_distance == 0


def test_of_equal_distances_the_first_center_wins():
    label_B, distance_B = nearest(np.zeros((2, 1), np.float32), np.array([[3.0], [-1], [1]], "f4"))
    assert label_B.tolist() == [1, 1]
    assert distance_B.tolist() == [1, 1]
