"""The ``evaluate`` section of a run file."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from distrib.config import Config
from distrib.labeled_metrics import LABELED_METRICS

INTERACTIONS = ("interactions_expected", "interactions_known")
"""Calibration: the sum of a user's probabilities, and the number of encoded interactions."""

CALIBRATION = "rating_calibration_error"
"""Name of the expected calibration error of rating levels."""

Cutoffs = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class EvaluateConfig(Config):
    """Settings of evaluation."""

    recall_at: Cutoffs = (20, 50, 100)
    """Cutoffs of Recall."""

    ndcg_at: Cutoffs = (100,)
    """Cutoffs of NDCG."""

    hit_rate_at: tuple[PositiveInt, ...] = ()
    """Cutoffs of the hit rate, which is Recall for users with one target."""

    mrr_at: tuple[PositiveInt, ...] = ()
    """Cutoffs of MRR."""

    precision_at: tuple[PositiveInt, ...] = ()
    """Cutoffs of precision."""

    map_at: tuple[PositiveInt, ...] = ()
    """Cutoffs of mean average precision."""

    catalog_at: tuple[PositiveInt, ...] = ()
    """Cutoffs at which lists are measured apart from hits: ``coverage`` (share of the catalog that
    is shown to anyone), ``gini`` (how unevenly), ``popularity`` (mean training interactions of what
    is shown) and ``novelty`` (bits: log2 of users over users who have an item)."""

    by_popularity: bool = False
    """Whether Recall is also measured apart on ``head`` targets, the most popular items that have
    half of the training interactions, and on ``tail`` targets."""

    propensity_power: Annotated[float, Field(ge=0.0)] = 0.0
    """Where above 0, ``ips_recall`` weights each target by its training interactions to the minus
    this power, as if that were the chance that it was observed."""

    item_groups: str | None = None
    """Parquet file with the columns ``item`` and ``group``, e.g. genres or brands. Measures Recall
    on the targets of each group, such as ``recall@20 of drama``, and ``diversity`` at the cutoffs
    of ``catalog_at``: the share of pairs in a list whose groups differ."""

    effective_rank: bool = False
    """Whether the effective rank of the user embeddings is measured, for models that have them: how
    many directions they use."""

    recent_days: PositiveFloat = 7.0
    """Days before testing whose popularity is measured beside the model, where the split is
    ``global_time``."""

    exclude_seen: bool = True
    """Whether lists leave out what the user has met already, unless it is a target. Where the data
    keep repeats (``data.cleaning.duplicates``), what the user has met already is then no target;
    set it to false to measure the next item whether or not it is a repeat."""

    lists: Literal["always", "test", "never"] = "always"
    """When lists from the whole catalog are measured: in validation and test, in the test only, or
    never. They cost far more than labeled pairs and ratings do."""

    batch_users: PositiveInt = 512
    """Users measured at a time."""

    gpus_per_actor: Annotated[float, Field(ge=0.0)] = 0.0
    """Share of a GPU that each evaluation actor takes; 0 uses the CPU."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of all metrics that can select the best checkpoint."""
        ranking = [f"{name}@{n}" for name, at in self.ranking_metrics.items() for n in at]
        ranking = ranking if self.lists == "always" else []
        return (*ranking, "rmse", "mae", *LABELED_METRICS)

    @property
    def ranking_metrics(self) -> dict[str, tuple[int, ...]]:
        """Cutoffs of the metrics of lists, by name."""
        return {
            "recall": self.recall_at,
            "ndcg": self.ndcg_at,
            "hit_rate": self.hit_rate_at,
            "mrr": self.mrr_at,
            "precision": self.precision_at,
            "map": self.map_at,
        }

    @property
    def test_metrics(self) -> set[str]:
        """Names of all metrics that a test may have; models and logs decide which it has."""
        found = {f"{name}@{n}" for name, at in self.ranking_metrics.items() for n in at}
        parts = ["head_", "tail_"] * self.by_popularity + ["ips_"] * bool(self.propensity_power)
        found |= {f"{part}recall@{n}" for part in parts for n in self.recall_at}
        of_lists = ["coverage", "gini", "popularity", "novelty"]
        of_lists += ["diversity"] * (self.item_groups is not None)
        found |= {f"{name}@{n}" for name in of_lists for n in self.catalog_at}
        found = set() if self.lists == "never" else found | set(INTERACTIONS)
        found |= {"effective_rank"} if self.effective_rank else set()
        return found | {"rmse", "rmse_uncut", "mae", CALIBRATION, *LABELED_METRICS}
