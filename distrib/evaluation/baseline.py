"""The models that evaluation compares."""

import torch

from distrib.models.shallow.popularity import Popularity
from distrib.scoring.scorer import Scorer
from distrib.storage import Folder
from distrib.vocabulary import IntArray

POPULARITY = "popularity"
RECENT = "recent_popularity"


def with_popularity(scorer: Scorer, device: torch.device | str = "cpu") -> dict[str, Scorer]:
    """Return a scorer and that of popularity on the same items, by name.

    Args:
        scorer: Of a model.
        device: Where popularity scores.

    Returns:
        ``model`` and `POPULARITY`.
    """
    vocabulary = scorer.vocabulary
    baseline = Scorer(Popularity(vocabulary.catalog), vocabulary, device=device)
    return {"model": scorer, POPULARITY: baseline}


def model_and_popularity(
    bundle: str, device: str = "cpu", recent_IL: IntArray | None = None
) -> dict[str, Scorer]:
    """Return the scorer of a bundle, and those of popularity on the same items, by name.

    Args:
        bundle: The bundle.
        device: Where they score.
        recent_IL: Interactions of the last days by item and level, for a split by time.

    Returns:
        ``model``, `POPULARITY`, and with recent counts `RECENT`.
    """
    scorer = Scorer.from_bundle(Folder(bundle), device=device)
    found = with_popularity(scorer, device)
    if recent_IL is not None:
        vocabulary = scorer.vocabulary
        recent = Popularity(vocabulary.catalog._replace(train_count_IL=recent_IL))
        found[RECENT] = Scorer(recent, vocabulary, device=device)
    return found
