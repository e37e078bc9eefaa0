"""Training schemes, one file each; `SCHEMES` lists those that models may name."""

from collections.abc import Mapping

from distrib.models.base import ModelSpec
from distrib.train.schemes.base import Scheme
from distrib.train.schemes.closed_form import ClosedForm
from distrib.train.schemes.item_rows import ItemRows
from distrib.train.schemes.two_sided import TwoSided
from distrib.train.schemes.user_rows import UserRows

SCHEMES: Mapping[str, Scheme] = {
    "closed_form": ClosedForm(),
    "item_rows": ItemRows(),
    "two_sided": TwoSided(),
    "user_rows": UserRows(),
}


def scheme_of(spec: ModelSpec) -> Scheme:
    """Return the scheme that trains a model."""
    return SCHEMES[spec.scheme]


def can_warm_start(spec: ModelSpec) -> bool:
    """Return whether training may start from an earlier model, on other users."""
    return scheme_of(spec).can_warm_start and not spec.has_user_rows
