"""The models that evaluation compares."""

from distrib.models.shallow.popularity import Popularity
from distrib.scoring.scorer import Scorer
from distrib.storage import Folder
from distrib.vocabulary import IntArray

RECENT = "recent_popularity"


def model_and_popularity(
    bundle: str, device: str = "cpu", recent_IL: IntArray | None = None
) -> dict[str, Scorer]:
    """Return the scorer of a bundle, and those of popularity on the same items, by name.

    Args:
        bundle: The bundle.
        device: Where they score.
        recent_IL: Interactions of the last days by item and level, for a split by time.

    Returns:
        ``model``, ``popularity``, and with recent counts `RECENT`.
    """
    scorer = Scorer.from_bundle(Folder(bundle), device=device)
    vocabulary = scorer.vocabulary
    catalogs = {"popularity": vocabulary.catalog}
    if recent_IL is not None:
        catalogs[RECENT] = vocabulary.catalog._replace(train_count_IL=recent_IL)
    found = {
        name: Scorer(Popularity(catalog), vocabulary, device=device)
        for name, catalog in catalogs.items()
    }
    return {"model": scorer, **found}
