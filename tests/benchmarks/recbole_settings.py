"""What both measurements of RecBole set: Mult-VAE 600-200-600 on one atomic file, on the CPU."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any


def settings(folder: str, inter: Path) -> dict[str, Any]:
    """Lay the file out as RecBole looks for it; return what it is to be run with."""
    Path(f"{folder}/data/bench").mkdir(parents=True)
    Path(f"{folder}/data/bench/bench.inter").symlink_to(inter)
    return {
        "data_path": f"{folder}/data",
        "checkpoint_dir": f"{folder}/saved",
        "use_gpu": False,
        "show_progress": False,
        "mlp_hidden_size": [600],
        "latent_dimension": 400,  # its name for mean and variance together: 200 each
        "train_neg_sample_args": None,
    }


def run_recbole(python: str, inter: Path, case: str, *, threads: int, **sizes: int) -> float:
    """Return the rows per second of one of RecBole's models; see `recbole_training`."""
    script = Path(__file__).with_name("recbole_training.py")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    many = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    quiet = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}  # as ours run
    done = subprocess.run(
        [python, script, case, inter, f"--threads={threads}", *options],
        env={**os.environ, **many, **quiet},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1])["rows_per_s"])
