"""Training schemes, one file each; `SCHEMES` lists those that models may name."""

from collections.abc import Mapping

from distrib.errors import ConfigError
from distrib.training.config import TrainingRun
from distrib.training.schemes.base import IterativeScheme, Scheme
from distrib.training.schemes.closed_form import ClosedForm
from distrib.training.schemes.item_rows import ItemRows
from distrib.training.schemes.meta import Meta
from distrib.training.schemes.meta_rows import MetaRows
from distrib.training.schemes.next_item import NextItem
from distrib.training.schemes.pairs import Pairs
from distrib.training.schemes.two_sided import TwoSided
from distrib.training.schemes.user_rows import UserRows

SCHEMES: Mapping[str, Scheme] = {
    "closed_form": ClosedForm(),
    "item_rows": ItemRows(),
    "meta": Meta(),
    "meta_rows": MetaRows(),
    "next_item": NextItem(),
    "pairs": Pairs(),
    "two_sided": TwoSided(),
    "user_rows": UserRows(),
}


def scheme_of(run: TrainingRun) -> Scheme:
    """Return the scheme that a run trains by."""
    brought = run.objective.spec.scheme if run.objective else None
    return SCHEMES[brought or run.model.spec.scheme]


def iterative_scheme_of(run: TrainingRun) -> IterativeScheme:
    """Return the scheme of a run with updates.

    Args:
        run: The run.

    Returns:
        The scheme.

    Raises:
        ConfigError: The model is computed in closed form.
    """
    scheme = scheme_of(run)
    if not isinstance(scheme, IterativeScheme):
        raise ConfigError(
            f"model {run.model.name!r} is computed in closed form, in memory that grows with items "
            "squared; there are no updates to estimate or to try"
        )
    return scheme


def is_iterative(run: TrainingRun) -> bool:
    """Return whether an engine makes updates."""
    return isinstance(scheme_of(run), IterativeScheme)


def can_warm_start(run: TrainingRun) -> bool:
    """Return whether training may start from an earlier model, on other users."""
    return scheme_of(run).can_warm_start and not run.model.spec.has_user_rows
