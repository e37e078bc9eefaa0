"""Vectors of users and items: their products rank as the scorer does."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from distrib.checkpoint.bundle import BUNDLE, BundleFacts, load_bundle, write_bundle
from distrib.errors import CheckpointError, DataError
from distrib.models import EaseConfig, MultVaeConfig
from distrib.scoring.scorer import Scorer
from distrib.scoring.vectors import (
    FAISS,
    ExactIndex,
    ExportConfig,
    faiss_index,
    is_written,
    require_vectors,
    with_one,
    write_items,
)
from distrib.storage import Folder
from distrib.vocabulary import LogFacts, Vocabulary
from tests.in_process import filled
from tests.models.test_contract import every_model

WITHOUT = {"conv_ncf", "ease", "item_knn", "mlp", "neumf", "popularity"}


def bundle_of(config, small, tmp_path):
    counts = small.catalog.train_count_IL
    catalog = small.catalog
    ids = pa.array(range(100, 150))
    vocabulary = Vocabulary(ids, catalog.levels, counts, 37, 37, LogFacts(catalog.feedback))
    weights = filled(config, small).state_dict()
    folder = Folder(str(tmp_path)) / BUNDLE
    write_bundle(folder, weights, config, vocabulary, BundleFacts(data="none"))
    return load_bundle(folder)


@every_model
def test_products_of_vectors_rank_as_the_scores_do(config, small, tmp_path):
    bundle = bundle_of(config, small, tmp_path)
    is_linear = getattr(config, "decoder", "ordinal") == "ordinal"
    if config.name in WITHOUT or not is_linear:
        with pytest.raises(DataError, match="has no item embeddings"):
            require_vectors(bundle.model)
        return
    scorer = Scorer(bundle.model, bundle.vocabulary)
    write_items(bundle, Folder(str(tmp_path / "vectors")), "exact")
    index = ExactIndex(Folder(str(tmp_path / "vectors")))
    _, position_BK = index.search(scorer.embed(small.batch).numpy(), 10)
    state = bundle.model.encode(small.batch)
    score_BI = bundle.model.output.ranking_score(bundle.model.decode(state, slice(None)).float())
    found = score_BI.gather(1, torch.from_numpy(position_BK))
    best = score_BI.sort(dim=1, descending=True).values[:, :10]
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-4)


def test_the_graph_finds_nearly_what_the_exact_search_finds(small, tmp_path):
    pytest.importorskip("faiss")
    bundle = bundle_of(MultVaeConfig(hidden_width=32, latent_width=8), small, tmp_path)
    target = Folder(str(tmp_path / "vectors"))
    about = write_items(bundle, target, "hnsw")
    assert about == {"items": 50, "width": 33}
    users = Scorer(bundle.model, bundle.vocabulary).embed(small.batch).numpy()
    score_BK, position_BK = ExactIndex(target).search(users, 10)
    near_BK, near_position_BK = faiss_index(target).search(with_one(users), 10)
    same = np.mean(
        [len({*a} & {*b}) / 10 for a, b in zip(position_BK, near_position_BK, strict=True)]
    )
    assert same > 0.95
    np.testing.assert_allclose(near_BK[:, 0], score_BK[:, 0], rtol=1e-4)
    assert is_written(target, bundle, ExportConfig())
    assert not is_written(target, bundle, ExportConfig(index="exact"))
    target.write(FAISS, b"damaged")
    with pytest.raises(CheckpointError, match="content differs"):
        faiss_index(target)


def test_models_without_vectors_are_refused(small):
    with pytest.raises(DataError, match="Ease has no item embeddings"):
        require_vectors(EaseConfig().build(small.catalog))
