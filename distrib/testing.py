"""Checks for models of your own: what training, scoring and serving rely on.

``check_model(MyModelConfig())`` in a test of your package raises an `AssertionError` that says what
does not hold. Our own models pass the same checks, and more that need a cluster.
"""

import tempfile

import numpy as np
import pyarrow as pa
import torch

from distrib.batch import Batch
from distrib.checkpoint.bundle import BundleFacts, load_bundle, write_bundle
from distrib.models import ModelConfig
from distrib.models.base import Model, UserState
from distrib.models.capabilities import item_vectors, user_embedding
from distrib.scoring.scorer import Scorer
from distrib.storage import Folder
from distrib.vocabulary import Catalog, Vocabulary

_USERS, _ITEMS, _K = 7, 23, 5
_LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5


def check_model(config: ModelConfig) -> None:
    """Check a model against the contract of `distrib.models.base.Model`.

    Args:
        config: Its configuration, with small widths.

    Raises:
        AssertionError: A part of the contract does not hold; says which.
    """
    again = type(config).model_validate_json(config.model_dump_json())
    assert again == config, "the configuration does not survive JSON"
    catalog = _catalog()
    torch.manual_seed(0)
    model = config.build(catalog).eval().requires_grad_(False)
    spec = config.spec
    assert model.output.kind == spec.output, (
        f"spec.output is {spec.output!r}, but the model's output is {model.output.kind!r}"
    )
    for table in model.item_tables():
        assert len(table) == _ITEMS, "item_tables must have one row for each item"
    batch = _histories()
    state = model.encode(batch)
    _check_encoding(model, batch, state)
    _check_decoding(model, state)
    _check_embeddings(model, state)
    _check_bundle(config, model, batch)


def _catalog() -> Catalog:
    rng = np.random.default_rng(0)
    return Catalog(_ITEMS, _LEVELS, rng.integers(1, 9, (_ITEMS, len(_LEVELS))), 100, 100)


def _histories() -> Batch:
    rng = np.random.default_rng(1)
    items = [[], *(rng.choice(_ITEMS, n, replace=False).tolist() for n in range(1, _USERS))]
    ratings = [rng.integers(1, 6, len(row)).astype(float).tolist() for row in items]
    return Batch.from_lists(items, ratings)


def _close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted, _RELATIVE, _ABSOLUTE)


def _check_encoding(model: Model, batch: Batch, state: UserState) -> None:
    whole = model.decode(state, slice(None)).float()
    again = model.decode(model.encode(batch), slice(None)).float()
    assert torch.equal(whole, again), "inference must be a pure function of the history"
    alone = model.decode(model.encode(batch.slice(3, 4)), slice(None)).float()
    assert _close(whole[3:4], alone), "a user depends on the others of a batch"


def _check_decoding(model: Model, state: UserState) -> None:
    whole = model.decode(state, slice(None)).float()
    assert whole.shape[:2] == (_USERS, _ITEMS), f"decode returns {list(whole.shape)}"
    assert torch.isfinite(whole).all(), "a score is not finite"
    part = model.decode(state, slice(4, 9)).float()
    assert _close(part, whole[:, 4:9]), "a range of items decodes otherwise"
    some = torch.tensor([17, 2, 2])
    assert _close(model.decode(state, some).float(), whole[:, some]), (
        "items at given positions decode otherwise"
    )
    pairs = Batch.from_lists([[n, n + 9] for n in range(_USERS)])
    wanted = whole[pairs.row_N, pairs.item_N]
    found = model.score_pairs(state, pairs).float()
    assert _close(found, wanted), "score_pairs differs from decode"


def _check_embeddings(model: Model, state: UserState) -> None:
    vector_BZ, items = user_embedding(model, state), item_vectors(model)
    if vector_BZ is None or items is None:
        return
    score_BI = vector_BZ.float() @ items.vector_IZ.float().T
    if items.offset_I is not None:
        score_BI = score_BI + items.offset_I.float()
    wanted_BI = model.output.ranking_score(model.decode(state, slice(None)).float())
    assert torch.equal(score_BI.argmax(1), wanted_BI.argmax(1)), (
        "inner products of embeddings and item vectors rank otherwise than the scores"
    )


def _check_bundle(config: ModelConfig, model: Model, batch: Batch) -> None:
    catalog = _catalog()
    vocabulary = Vocabulary(pa.array(range(_ITEMS)), _LEVELS, catalog.train_count_IL, 100, 100)
    with tempfile.TemporaryDirectory() as place:
        folder = Folder(place) / "bundle"
        write_bundle(folder, model.state_dict(), config, vocabulary, BundleFacts())
        loaded = load_bundle(folder)
    wanted = model.output.ranking_score(model.decode(model.encode(batch), slice(None)).float())
    scorer = Scorer(loaded.model, vocabulary, chunk_items=4)
    found = scorer.recommend(batch, None, _K, with_predictions=False)
    best_BK = wanted.sort(dim=1, descending=True, stable=True).values[:, :_K]
    assert _close(found.score_BK, best_BK), (
        "the model of a bundle, scored by chunks, has another top-K"
    )
