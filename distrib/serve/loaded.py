"""Loads a bundle with everything that requests need."""

import hashlib
import json
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distrib.batch import Batch
from distrib.checkpoint.bundle import Bundle, load_bundle
from distrib.checkpoint.manifest import Manifest
from distrib.ids import IdKind, id_column
from distrib.models.capabilities import user_embedding
from distrib.scoring.policy import PolicyConfig
from distrib.scoring.rules import Rules, item_table
from distrib.scoring.scorer import Scorer, require_numbers
from distrib.scoring.tables import SINGULAR, output_columns
from distrib.serve.config import ServeConfig
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

_CACHED_RULES = 64


class Loaded(NamedTuple):
    """A loaded bundle; immutable, replaced as a whole by a newer one."""

    scorer: Scorer
    bundle: Bundle
    version: str
    outputs: tuple[str, ...]
    """Outputs that the model predicts."""
    rules_of: Callable[[PolicyConfig], Rules]
    titles: dict[Any, str]
    by_popularity: pa.Table
    """``item``, ``title``, ``interactions`` and the searchable ``text``, most popular first."""
    loaded_at: str

    @property
    def vocabulary(self) -> Vocabulary:
        """Items."""
        return self.scorer.vocabulary


def load(folder: Folder, config: ServeConfig) -> Loaded:
    """Load a bundle and check that it can score.

    Args:
        folder: Folder of the bundle.
        config: Device, precision, policy and titles.

    Returns:
        The loaded model.

    Raises:
        CheckpointError: There is no bundle, or it is damaged.
        ConfigError: The policy does not fit the model.
        DataError: A configured file is absent or not a table.
    """
    bundle = load_bundle(folder)
    device = "cuda" if config.gpus_per_replica else "cpu"
    precision = config.precision
    scorer = Scorer(bundle.model, bundle.vocabulary, device=device, precision=precision)

    rules = Rules.of(config.policy, scorer.model, scorer.vocabulary)

    @lru_cache(maxsize=_CACHED_RULES)
    def rules_of(policy: PolicyConfig) -> Rules:
        return rules.with_numbers(policy, scorer.model, scorer.vocabulary)

    require_numbers(scorer)
    titles = _titles(config.titles, scorer.vocabulary.id_kind)
    return Loaded(
        scorer,
        bundle,
        version_of(bundle.manifest),
        _outputs(scorer),
        rules_of,
        titles,
        _by_popularity(scorer.vocabulary, titles),
        time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def version_of(manifest: Manifest) -> str:
    """Return the version of a bundle: a short hash of its manifest."""
    return hashlib.sha256(json.dumps(manifest.to_json(), sort_keys=True).encode()).hexdigest()[:12]


def _titles(url: str | None, kind: IdKind) -> dict[Any, str]:
    if url is None:
        return {}
    table = item_table(url, ("item", "title"), kind)
    titles = table["title"].cast(pa.string()).to_pylist()
    return dict(zip(id_column(table["item"], kind).ids.to_pylist(), titles, strict=True))


def _by_popularity(vocabulary: Vocabulary, titles: dict[Any, str]) -> pa.Table:
    count_I = vocabulary.train_count_IL.sum(1)
    order = np.argsort(-count_I, kind="stable")
    items = vocabulary.ids.take(pa.array(order))
    names = pa.array([titles.get(item) for item in items.to_pylist()], pa.string())
    ids = items.cast(pa.string())
    text = pc.binary_join_element_wise(ids, pc.fill_null(names, ""), " ")
    columns = {"item": items, "title": names, "interactions": count_I[order]}
    return pa.table({**columns, "text": pc.utf8_lower(text)})


def _outputs(scorer: Scorer) -> tuple[str, ...]:
    """Return the outputs that a model predicts, found by scoring an empty history."""
    no_user = Batch.from_lists([[]])
    columns = output_columns(scorer, scorer.recommend(no_user, None, 1), None)
    names = [SINGULAR[column] for column in columns]
    if {"probability", "rating"} <= {*names} and len(scorer.vocabulary.levels) > 1:
        names.append("serendipity")
    if user_embedding(scorer.model, scorer.model.encode(no_user.to(scorer.device))) is not None:
        names.append("embedding")
    return tuple(names)
