"""What both measurements of RecBole set: Mult-VAE 600-200-600 on one atomic file, on the CPU."""

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
