"""Python objects that ranks exchange."""

from typing import Any

import torch.distributed


def gather_objects(mine: Any) -> list[Any]:
    """Return what each rank has, in the order of ranks."""
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def broadcast_object(of_first: Any) -> Any:
    """Give all ranks what rank 0 has."""
    box = [of_first]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
