"""The two models that evaluation compares."""

from distrib.models.shallow.popularity import Popularity
from distrib.score.scorer import Scorer
from distrib.storage import Folder


def model_and_popularity(bundle: str, device: str = "cpu") -> dict[str, Scorer]:
    """Return the scorer of a bundle, and that of popularity on the same items, by name."""
    scorer = Scorer.from_bundle(Folder(bundle), device=device)
    popularity = Popularity(scorer.vocabulary.catalog)
    return {"model": scorer, "popularity": Scorer(popularity, scorer.vocabulary, device=device)}
