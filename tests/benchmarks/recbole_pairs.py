"""Labeled pairs per second of RecBole's NeuMF; run by pairs.py with the Python of its own venv.

Times what RecBole's Trainer does in an epoch, after two batches, and nothing else: no evaluation.
"""

import argparse
import itertools
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

from recbole_settings import settings  # beside this file; run with RecBole's own Python


def counted(batches, rows):
    for batch in batches:
        rows.append(len(batch))
        yield batch


def measured(inter: Path, batch_pairs: int, num_batches: int, parts: str) -> dict:
    from recbole.config import Config
    from recbole.data import create_dataset
    from recbole.data.utils import get_dataloader
    from recbole.utils import get_model, get_trainer, init_seed

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it writes logs where it stands
        wanted = settings(folder, inter) | {
            "mf_embedding_size": 32,
            "mlp_embedding_size": 128,
            "mlp_hidden_size": [128, 64, 32],
            "dropout_prob": 0.0,
            "mf_train": True,
            "mlp_train": parts == "neumf",
            "threshold": {"rating": 2.5},
            "load_col": {"inter": ["user_id", "item_id", "rating"]},
            "train_batch_size": batch_pairs,
            "eval_args": {
                "split": {"RS": [1.0]},
                "group_by": "none",
                "order": "RO",
                "mode": "labeled",
            },
            "metrics": ["AUC"],
            "valid_metric": "AUC",
        }
        config = Config(model="NeuMF", dataset="bench", config_dict=wanted)
        logging.disable(logging.WARNING)
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        (train_set,) = dataset.build()
        loader = get_dataloader(config, "train")(config, train_set, None, shuffle=True)
        model = get_model("NeuMF")(config, train_set).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], "NeuMF")(config, model)
        forever = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
        trainer._train_epoch(itertools.islice(forever, 2), 0)
        rows: list[int] = []
        started_s = time.perf_counter()
        trainer._train_epoch(counted(itertools.islice(forever, num_batches), rows), 0)
        elapsed_s = time.perf_counter() - started_s
        os.chdir("/")
    return {"pairs_per_s": sum(rows) / elapsed_s, "pairs": sum(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inter", type=Path)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--parts", choices=["gmf", "neumf"], default="gmf")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    found = measured(given.inter.resolve(), given.batch, given.batches, given.parts)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
