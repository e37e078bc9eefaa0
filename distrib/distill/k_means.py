"""K-means over parts of the users: sums of parts, added up in their order.

So the result depends on the parts, but not on who computes them, or how many at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from distrib.rng import CounterRng

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
T = TypeVar("T")

_BLOCK_CELLS = 1 << 22
_START, _JOIN = 251, 252  # random streams
_JOIN_ROUNDS = 5


class Points(NamedTuple):
    """Embeddings of some users."""

    number_B: IntArray
    """Numbers of the users, which key all draws."""

    vector_BZ: FloatArray


class Parts(Protocol):
    """All users, in parts."""

    def map(self, function: Callable[..., T], *arguments: Any) -> list[T]:
        """Return ``function(points, *arguments)`` of each part, in order."""


class Sums(NamedTuple):
    """What a round needs of the users of each of K clusters."""

    vector_KZ: npt.NDArray[np.float64]
    count_K: IntArray
    distance: float
    """Sum of squared distances to the nearest center."""


class Clustering(NamedTuple):
    """Result of k-means."""

    center_KZ: FloatArray
    count_K: IntArray
    rounds: int
    mean_distance: float
    """Mean squared distance to the nearest center."""


def k_means(
    parts: Parts,
    num_clusters: int,
    *,
    start: Literal["k-means||", "random"],
    seed: int,
    max_rounds: int,
) -> Clustering:
    """Cluster users by squared Euclidean distance; Lloyd's rounds until no center moves.

    Of two centers at the same distance the first wins. A cluster that loses all users keeps its
    center.

    Args:
        parts: The users.
        num_clusters: K; fewer if there are fewer users.
        start: How initial centers are chosen.
        seed: Seed of the draws.
        max_rounds: Rounds at most.

    Returns:
        Centers and sizes.
    """
    rng = CounterRng.of(seed, 0)
    if start == "random":
        center_KZ = _smallest(parts, num_clusters, rng)
    else:
        center_KZ = _drawn(parts, num_clusters, rng, seed)
    rounds, sums = 0, added(parts.map(sums_of, center_KZ))
    while rounds < max_rounds:
        moved_KZ = center_KZ.copy()
        is_used_K = sums.count_K > 0
        mean_KZ = sums.vector_KZ[is_used_K] / sums.count_K[is_used_K, None]
        moved_KZ[is_used_K] = mean_KZ.astype(np.float32)
        rounds += 1
        if np.array_equal(moved_KZ, center_KZ):
            break
        center_KZ = moved_KZ
        sums = added(parts.map(sums_of, center_KZ))
    return Clustering(center_KZ, sums.count_K, rounds, sums.distance / max(sums.count_K.sum(), 1))


def nearest(vector_BZ: FloatArray, center_KZ: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return the nearest center of each vector, and the squared distance to it."""
    square_K = (center_KZ**2).sum(1)
    label_B = np.empty(len(vector_BZ), np.int64)
    distance_B = np.empty(len(vector_BZ), np.float32)
    step = max(1, _BLOCK_CELLS // max(len(center_KZ), 1))
    for low in range(0, len(vector_BZ), step):
        block_BZ = vector_BZ[low : low + step]
        distance_BK = square_K - 2.0 * (block_BZ @ center_KZ.T)
        label_B[low : low + step] = found_B = distance_BK.argmin(1)
        least_B = np.take_along_axis(distance_BK, found_B[:, None], 1)[:, 0]
        distance_B[low : low + step] = (least_B + (block_BZ**2).sum(1)).clip(min=0.0)
    return label_B, distance_B


def sums_of(points: Points, center_KZ: FloatArray) -> Sums:
    """Assign the users of a part to centers and add them up."""
    label_B, distance_B = nearest(points.vector_BZ, center_KZ)
    size = (len(center_KZ), len(label_B))
    by_cluster = csr_array((np.ones(size[1]), (label_B, np.arange(size[1]))), shape=size)
    vector_KZ = np.asarray(by_cluster @ points.vector_BZ.astype(np.float64))
    return Sums(vector_KZ, np.bincount(label_B, minlength=size[0]), float(distance_B.sum()))


def added(sums: Sequence[Sums]) -> Sums:
    """Add up the sums of parts, in their order."""
    vectors, counts, distances = zip(*sums, strict=True)
    return Sums(sum(vectors), sum(counts), float(sum(distances)))


def _smallest(parts: Parts, count: int, rng: CounterRng) -> FloatArray:
    """Return the vectors of the users of smallest draw."""
    found = parts.map(_smallest_of, count, rng)
    draws, vectors = (np.concatenate(column) for column in zip(*found, strict=True))
    return np.asarray(vectors[np.argsort(draws, kind="stable")[:count]])


def _smallest_of(
    points: Points, count: int, rng: CounterRng
) -> tuple[npt.NDArray[np.float64], FloatArray]:
    draw_B = _draws(points, rng, _START)
    order = np.argsort(draw_B, kind="stable")[:count]
    return draw_B[order], points.vector_BZ[order]


def _draws(points: Points, rng: CounterRng, stream: int, *more: int) -> npt.NDArray[np.float64]:
    """Return a number in 0..1 for each user."""
    counters = [torch.tensor([value]) for value in more]
    found = rng.uniform(stream, torch.tensor(points.number_B), *counters)
    return np.asarray(found.double().numpy())


def _drawn(parts: Parts, count: int, rng: CounterRng, seed: int) -> FloatArray:
    """Return centers by k-means||: rounds of draws by distance, then k-means++ among those.

    Source: Bahmani et al., "Scalable K-Means++", VLDB 2012, with l = 2 k.
    """
    center_CZ = _smallest(parts, 1, rng)
    for turn in range(_JOIN_ROUNDS):
        total = added(parts.map(sums_of, center_CZ)).distance
        if not total > 0:
            break
        found = parts.map(_joining, center_CZ, 2 * count / total, rng, turn)
        center_CZ = np.concatenate([center_CZ, *found])
    if len(center_CZ) < count:
        return np.unique(np.concatenate([center_CZ, _smallest(parts, count, rng)]), axis=0)[:count]
    from sklearn.cluster import kmeans_plusplus  # starts threads, so not in every worker

    weight_C = added(parts.map(sums_of, center_CZ)).count_K
    weights = np.maximum(weight_C, 1e-9)  # a copy of another center has none
    chosen, _ = kmeans_plusplus(center_CZ, count, sample_weight=weights, random_state=seed)
    return np.asarray(chosen, np.float32)


def _joining(
    points: Points, center_CZ: FloatArray, rate: float, rng: CounterRng, turn: int
) -> FloatArray:
    _, distance_B = nearest(points.vector_BZ, center_CZ)
    return points.vector_BZ[_draws(points, rng, _JOIN, turn) < rate * distance_B]
