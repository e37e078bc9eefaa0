"""Ray's trainer, without the cleaner in a cluster that ends with this process.

The cleaner finds its cluster by looking at this machine's processes: beside another cluster it dies
with a traceback, and without a dashboard it cannot query anything.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)

from distrib.cluster.resources import is_fixed


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer."""

    def _create_default_callbacks(self) -> list[Any]:
        found: list[Any] = super()._create_default_callbacks()
        if not is_fixed():
            return found
        return [one for one in found if not isinstance(one, PlacementGroupCleanerCallback)]
