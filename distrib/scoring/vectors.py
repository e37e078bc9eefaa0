"""Item embeddings for external inner-product search: a table, an exact index, and faiss."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.checkpoint.bundle import Bundle
from distrib.checkpoint.manifest import MANIFEST, open_sealed, read_manifest, seal
from distrib.config import Config, JsonObject
from distrib.errors import ConfigError, DataError
from distrib.models.base import Model
from distrib.models.capabilities import item_vectors
from distrib.scoring.scorer import Scorer
from distrib.storage import Folder
from distrib.topk import best_keys, items_of, merge, scores_of

ITEMS, FAISS = "items.parquet", "items.faiss"
_BLOCK_ITEMS = 65_536
_LINKS = 32
_BREADTH = 128

FloatArray = npt.NDArray[np.float32]


class ExportConfig(Config):
    """Settings of the embedding export."""

    output: str | None = None
    """Output folder; ``vectors`` inside the run folder by default."""

    users: bool = True
    """Also write the embeddings of all users, by bulk scoring."""

    index: Literal["exact", "hnsw"] = "hnsw"
    """``exact``: only the table, searched exhaustively; ``hnsw``: also a faiss HNSW graph, an
    approximate search at the cost of a few hundred products (``pip install 'distrib[faiss]'``)."""


def require_vectors(model: Model) -> None:
    """Refuse a model without item embeddings.

    Args:
        model: The bundle's model.

    Raises:
        DataError: It has none.
    """
    if item_vectors(model) is None:
        raise DataError(
            f"{type(model).__name__} has no item embeddings whose inner products are its scores; "
            "use distrib score instead"
        )


def require_faiss(config: ExportConfig) -> None:
    """Refuse an index that cannot be built here.

    Args:
        config: What to export.

    Raises:
        ConfigError: faiss is not installed.
    """
    if config.index != "exact" and importlib.util.find_spec("faiss") is None:
        raise ConfigError(
            f"export.index = {config.index!r}, but faiss is not installed; pip install "
            "'distrib[faiss]', or set it to 'exact'"
        )


def write_items(
    bundle: Bundle,
    target: Folder,
    index: Literal["exact", "hnsw"],
    check: Callable[[], object] = bool,
) -> JsonObject:
    """Write the embeddings of all items, and an index.

    The last element of an item vector is the item's offset: a score is its inner product with the
    user embedding and an appended 1.

    Args:
        bundle: The model.
        target: Output folder; valid once its manifest is written.
        index: Kind of index; see `ExportConfig`.
        check: Called before the first file is written; may raise.

    Returns:
        Width of the vectors and number of items.
    """
    table = vector_table(bundle)
    vector_IZ = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    files = {ITEMS: _parquet(table)}
    if index == "hnsw":
        files[FAISS] = _graph(vector_IZ)
    about = {"items": len(vector_IZ), "width": vector_IZ.shape[1]}
    made_from = {"vocabulary": bundle.vocabulary.fingerprint, "bundle": bundle.manifest.digests}
    check()
    seal(target, files, {**about, **made_from})
    return about


def vector_table(bundle: Bundle) -> pa.Table:
    """Return ``item`` and ``vector`` of all items.

    Args:
        bundle: The model.

    Returns:
        The vectors, float32; their last element is the item's offset.

    Raises:
        DataError: The model has no item embeddings.
    """
    vector_IZ = _item_matrix(bundle.model).numpy()
    flat = pa.array(vector_IZ.ravel())
    columns = {
        "item": bundle.vocabulary.ids,
        "vector": pa.FixedSizeListArray.from_arrays(flat, vector_IZ.shape[1]),
    }
    return pa.table(columns)


def similarities(scorer: Scorer, position_Q: Tensor) -> Tensor:
    """Compare some items with all.

    Args:
        scorer: The model.
        position_Q: int64 positions.

    Returns:
        Cosines of item embeddings, float32 ``[Q, I]`` on the CPU; of a model without embeddings,
        the scores of users who met one of the items only.
    """
    found = item_vectors(scorer.model)
    if found is not None:
        unit_IZ = torch.nn.functional.normalize(found.vector_IZ.float(), dim=1)
        return (unit_IZ[position_Q.to(unit_IZ.device)] @ unit_IZ.T).cpu()
    met = Batch.from_lists([[int(at)] for at in position_Q])
    top = scorer.vocabulary.levels[-1]
    state = scorer.model.encode(met._replace(value_N=met.value_N * top).to(scorer.device))
    output_QI = scorer.model.decode(state, slice(None)).float()
    return scorer.model.output.ranking_score(output_QI).cpu().clone()


class ExactIndex:
    """Exhaustive search over all items.

    Args:
        folder: Written by `write_items`.

    Raises:
        CheckpointError: The folder is absent or damaged.
    """

    def __init__(self, folder: Folder) -> None:
        _, files = open_sealed(folder)
        table = pq.read_table(pa.BufferReader(files[ITEMS]))
        self.ids = table["item"].combine_chunks()
        flat = table["vector"].combine_chunks().flatten().to_numpy().copy()
        self._vector_IZ = torch.from_numpy(flat).view(len(self.ids), -1)

    def search(self, user_BZ: FloatArray, k: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Return scores and positions of each user's best items, best first.

        Args:
            user_BZ: As scoring writes them in ``embedding``; the 1 for the offset is added here.
            k: Number of items.

        Returns:
            ``[B, K]`` each; ties go to the lower position.
        """
        vector_BZ = torch.from_numpy(with_one(user_BZ))
        best = torch.empty(len(user_BZ), 0, dtype=torch.int64)
        for low in range(0, len(self._vector_IZ), _BLOCK_ITEMS):
            score_BI = vector_BZ @ self._vector_IZ[low : low + _BLOCK_ITEMS].T
            best, _ = merge(best, best_keys(score_BI, low, k), k)
        return scores_of(best).numpy(), items_of(best).numpy()


def faiss_index(folder: Folder) -> Any:
    """Return the faiss index of a folder; positions are those of ``items.parquet``."""
    faiss = importlib.import_module("faiss")
    _, files = open_sealed(folder)
    return faiss.deserialize_index(np.frombuffer(files[FAISS], np.uint8))


def with_one(user_BZ: FloatArray) -> FloatArray:
    """Append the 1 that multiplies the item offsets to user embeddings."""
    ones = np.ones((len(user_BZ), 1), np.float32)
    return np.ascontiguousarray(np.concatenate([user_BZ, ones], axis=1, dtype=np.float32))


def _item_matrix(model: Model) -> Tensor:
    require_vectors(model)
    found = item_vectors(model)
    assert found is not None  # checked by require_vectors
    vector_IZ = found.vector_IZ.detach().float().cpu()
    offset_I = found.offset_I if found.offset_I is not None else vector_IZ.new_zeros(len(vector_IZ))
    return torch.cat([vector_IZ, offset_I.detach().float().cpu()[:, None]], dim=1).contiguous()


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _graph(vector_IZ: FloatArray) -> bytes:
    faiss = importlib.import_module("faiss")
    graph = faiss.IndexHNSWFlat(vector_IZ.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = graph.hnsw.efSearch = _BREADTH
    graph.add(vector_IZ)
    return bytes(faiss.serialize_index(graph))


def is_written(target: Folder, bundle: Bundle, config: ExportConfig) -> bool:
    """Return whether the items of this bundle are already exported."""
    if not target.exists(MANIFEST):
        return False
    found = read_manifest(target)
    has_index = (FAISS in found.files) == (config.index == "hnsw")
    return bool(found.facts.get("bundle") == bundle.manifest.digests and has_index)
