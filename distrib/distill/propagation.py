"""Labels that spread between users of a cluster, in proportion to how near they are."""

import importlib
import importlib.util
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, eye_array

from distrib.distill.k_means import FloatArray, IntArray

_BLOCK_CELLS = 1 << 23
_SPARE = 8
_MEDIAN_NEIGHBOR = 10
_TINY = float(np.finfo(np.float32).tiny)

Distances = npt.NDArray[np.float64]


def neighbors(vector_BZ: FloatArray, count: int) -> tuple[IntArray, Distances]:
    """Return the nearest other vectors of each, by Euclidean distance; exact.

    Candidates come from faiss where it is installed, or from blocks of products; their distances
    are then computed in float64, so that both give the same. Ties go to the lower index.

    Args:
        vector_BZ: Of some users.
        count: Neighbors of each; fewer if there are fewer others.

    Returns:
        Index and distance ``[B, M]``, the nearest first.
    """
    num_users = len(vector_BZ)
    count = min(count, num_users - 1)
    wanted = min(count + 1 + _SPARE, num_users)  # itself, and some that rounding may have misplaced
    has_faiss = importlib.util.find_spec("faiss") is not None
    candidates = by_faiss if has_faiss else by_blocks
    index_BM = np.sort(candidates(vector_BZ, wanted), axis=1)
    index, distance = np.empty((num_users, count), np.int64), np.empty((num_users, count))
    step = max(1, _BLOCK_CELLS // (wanted * vector_BZ.shape[1]))
    for low in range(0, num_users, step):
        found_BM = index_BM[low : low + step]
        own_B1Z = vector_BZ[low : low + step, None].astype(np.float64)
        distance_BM = np.sqrt(((vector_BZ[found_BM] - own_B1Z) ** 2).sum(-1))
        distance_BM[found_BM == np.arange(low, low + len(found_BM))[:, None]] = np.inf
        order_BM = np.argsort(distance_BM, axis=1, kind="stable")[:, :count]
        index[low : low + step] = np.take_along_axis(found_BM, order_BM, 1)
        distance[low : low + step] = np.take_along_axis(distance_BM, order_BM, 1)
    return index, distance


def by_faiss(vector_BZ: FloatArray, count: int) -> IntArray:
    """Return the nearest vectors of each, itself among them, in any order."""
    search = importlib.import_module("faiss").IndexFlatL2(vector_BZ.shape[1])
    search.add(vector_BZ)
    return np.asarray(search.search(vector_BZ, count)[1])


def by_blocks(vector_BZ: FloatArray, count: int) -> IntArray:
    """Return what `by_faiss` does, by products of blocks."""
    found, square_B = np.empty((len(vector_BZ), count), np.int64), (vector_BZ**2).sum(1)
    step = max(1, _BLOCK_CELLS // len(vector_BZ))
    for low in range(0, len(vector_BZ), step):
        distance_BB = square_B - 2.0 * (vector_BZ[low : low + step] @ vector_BZ.T)
        if count < len(vector_BZ):
            found[low : low + step] = np.argpartition(distance_BB, count - 1, axis=1)[:, :count]
        else:
            found[low : low + step] = np.arange(count)
    return found


def affinity(
    vector_BZ: FloatArray, count: int, temperature: float, scale: Literal["absolute", "relative"]
) -> csr_array:
    """Return the softmax of negative distances over each user's neighbors.

    Args:
        vector_BZ: Embeddings of the users of a cluster.
        count: Neighbors of each.
        temperature: See `SoftenConfig`.
        scale: See `SoftenConfig`.

    Returns:
        float64 ``[B, B]``, sparse; rows add up to 1. A user alone is its own neighbor.

    Source: DeSoRec's code. Differs from the source: only the nearest ``count`` have a weight.
    """
    num_users = len(vector_BZ)
    if num_users == 1:
        return csr_array(eye_array(1))
    index_BM, distance_BM = neighbors(vector_BZ, count)
    if scale == "relative":
        tenth_B = distance_BM[:, min(_MEDIAN_NEIGHBOR, distance_BM.shape[1]) - 1]
        temperature *= max(float(np.median(tenth_B)), _TINY)
    weight_BM = np.exp((distance_BM[:, :1] - distance_BM) / temperature)
    return _rows(index_BM, weight_BM, num_users)


def cosine_affinity(vector_BZ: FloatArray, count: int) -> csr_array:
    """Return cosines to the nearest users by cosine, at least 0 and scaled to add up to 1."""
    if len(vector_BZ) == 1:
        return csr_array(eye_array(1))
    norm_B1 = np.linalg.norm(vector_BZ, axis=1, keepdims=True)
    unit_BZ = vector_BZ / np.maximum(norm_B1, _TINY)
    index_BM, distance_BM = neighbors(unit_BZ, count)
    cosine_BM = (1.0 - distance_BM**2 / 2).clip(min=_TINY)
    return _rows(index_BM, cosine_BM, len(vector_BZ))


def _rows(index_BM: IntArray, weight_BM: Distances, num_users: int) -> csr_array:
    share_BM = weight_BM / weight_BM.sum(1, keepdims=True)
    pointer = np.arange(num_users + 1) * index_BM.shape[1]
    found = csr_array((share_BM.ravel(), index_BM.ravel(), pointer), shape=(num_users,) * 2)
    found.sort_indices()
    return found


def propagated(
    affinity_BB: csr_array, label_BI: csr_array, spread: float, rounds: int, smallest: float
) -> csr_array:
    """Repeat D <- spread A D + (1 - spread) D0, from D0.

    Args:
        affinity_BB: A, rows of sum 1.
        label_BI: D0, rows of sum 1.
        spread: Share that comes from neighbors.
        rounds: Repetitions.
        smallest: Entries below this are dropped after each.

    Returns:
        float64 ``[B, I]``; rows of sum 1, or less by what was dropped.
    """
    kept_BI = (1.0 - spread) * label_BI
    found_BI = label_BI
    for _ in range(rounds):
        found_BI = csr_array(spread * (affinity_BB @ found_BI) + kept_BI)
        if smallest:
            found_BI.data[found_BI.data < smallest] = 0.0
            found_BI.eliminate_zeros()
    return found_BI


def normalized(found_BI: csr_array) -> csr_array:
    """Scale rows to a sum of 1; rows of zeros stay."""
    sums_B = np.asarray(found_BI.sum(1)).ravel()
    scale_N = np.repeat(1.0 / np.where(sums_B > 0, sums_B, 1.0), np.diff(found_BI.indptr))
    cells = (found_BI.data * scale_N, found_BI.indices, found_BI.indptr)
    return csr_array(cells, shape=found_BI.shape)


def heaviest(found_BI: csr_array, count: int, target_BI: csr_array) -> csr_array:
    """Keep the targets of each row, and the heaviest of its other entries.

    The weights of targets stay; those of others are scaled so that a row adds up to 1. So the
    confidence in targets is not touched by what is cut off.

    Args:
        found_BI: Rows of sum 1, or less where entries were dropped before.
        count: Other entries kept of each row; of equal ones the first.
        target_BI: Targets are where this is positive.

    Returns:
        Rows of sum 1, with ascending indices.
    """
    found_BI.sort_indices()
    length_B = np.diff(found_BI.indptr)
    num_rows, stride = found_BI.shape
    row_N = np.repeat(np.arange(num_rows), length_B)
    target = target_BI.tocoo()
    own_N = target.row.astype(np.int64)[target.data > 0] * stride + target.col[target.data > 0]
    is_target_N = np.isin(row_N * stride + found_BI.indices, own_N)
    order_N = np.lexsort((-found_BI.data, is_target_N, row_N))
    rank_N = np.empty(len(order_N), np.int64)
    rank_N[order_N] = np.arange(len(order_N)) - np.repeat(found_BI.indptr[:-1], length_B)
    is_kept_N = is_target_N | (rank_N < count)
    row_N, is_target_N = row_N[is_kept_N], is_target_N[is_kept_N]
    weight_N, item_N = found_BI.data[is_kept_N], found_BI.indices[is_kept_N]
    own_B = np.bincount(row_N, weight_N * is_target_N, num_rows)
    rest_B = np.bincount(row_N, weight_N * ~is_target_N, num_rows)
    has_rest_B = rest_B > 0
    scale_B = np.where(has_rest_B, (1.0 - own_B) / np.where(has_rest_B, rest_B, 1.0), 1.0)
    weight_N = np.where(is_target_N & has_rest_B[row_N], weight_N, weight_N * scale_B[row_N])
    pointer_P = np.concatenate([[0], np.bincount(row_N, minlength=num_rows).cumsum()])
    return normalized(csr_array((weight_N, item_N, pointer_P), shape=found_BI.shape))
