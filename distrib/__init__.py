"""Distributed training and bulk scoring of autoencoder recommenders on Ray.

Legend of the shape letters that end tensor and array names, for the whole project:

====== ==============================================================
letter axis
====== ==============================================================
B      users (rows) of a batch
C      classes of a user-item pair: not observed, then the rating levels
D      channels of an item in the tables of Conv4Rec
E      edges of the item-neighbor graph, all items end to end
F      neighbor matches of a batch, all rows end to end; or statuses
G      groups of duplicate rows
H      hidden units
I      items: the whole catalog, or one chunk
J      some of the items: a sample, or a part of a chunk
K      recommended items of a user, best first
L      rating levels, one less than C
M      those of the N entries that fall into one chunk, or are malformed;
       or the neighbors of an item
N      interactions (stored entries) of a batch, all rows end to end
O      outputs of a layer
P      row pointers of a batch, one more than B; or a pool of candidates
Q      attention queries: users or items, times networks
R      some of the rows, or the rows of one side of a tile
S      sampled items, or an item together with its neighbors
T      terms of a loss
U      all users; or the distinct items of a batch, in an exchange
W      networks of an encoder: that of means, that of variances
Z      latent dimensions
====== ==============================================================

A 1 in place of a letter is an axis of length 1. A chunk is a range of the items of the last layer,
decoded at a time. A tile is a group of users x a group of items, which VAE-BMF trains on.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distrib.api import compare, evaluate, init, prepare, score, train
    from distrib.recommender import Recommender

__version__ = "0.2.0"
__all__ = [
    "Recommender",
    "__version__",
    "compare",
    "evaluate",
    "init",
    "prepare",
    "score",
    "train",
]

_JOBS = ("compare", "evaluate", "init", "prepare", "score", "train")
_HOME = dict.fromkeys(_JOBS, "distrib.api")
_HOME["Recommender"] = "distrib.recommender"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and Ray take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'distrib' has no attribute {name!r}")
    from distrib.cluster.quiet import quiet
    from distrib.events import own_standard_output

    quiet()  # Ray's libraries log when they are imported, and again later
    with own_standard_output(), warnings.catch_warnings():  # DeepSpeed prints when it is imported
        warnings.filterwarnings("ignore", message="IProgress not found")  # of Ray, in a notebook
        module = importlib.import_module(_HOME[name])
    return getattr(module, name)
