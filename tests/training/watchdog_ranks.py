"""A rank that waits in a collective for one that does not come; started by test_watchdog.py."""

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed
from torch.distributed import TCPStore

from distrib.training.workers.watchdog import Watchdog


def main(rank: int, port: int, how: str) -> None:
    store = TCPStore("127.0.0.1", port, 2, is_master=rank == 0, wait_for_workers=False)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )

    def on_hang(missing: list[int], doing: str) -> None:
        print(f"RANK {rank} MISSES {missing} WHILE {doing}", flush=True)
        os._exit(3)

    watchdog = Watchdog(store, rank, 2, limit_s=2.0, on_hang=on_hang)
    for step in range(100):
        watchdog.progress("reading")
        if rank == 1 and step == 20:
            if how == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(60)
        watchdog.progress("computing")
        torch.distributed.all_reduce(torch.ones(3))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
