"""Events per second of RecBole's SASRec; run by next_item.py with the Python of its own venv.

Times what RecBole's Trainer does in an epoch, after two batches, and nothing else: no evaluation.
"""

import argparse
import itertools
import json
import logging
import os
import resource
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


def measured(inter: Path, num_batches: int) -> dict:
    from recbole.config import Config
    from recbole.data import create_dataset
    from recbole.data.utils import get_dataloader
    from recbole.utils import get_model, get_trainer, init_seed

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it writes logs where it stands
        wanted = settings(folder, inter) | {
            "n_layers": 2,
            "n_heads": 1,
            "hidden_size": 64,
            "inner_size": 64,
            "hidden_dropout_prob": 0.2,
            "attn_dropout_prob": 0.2,
            "loss_type": "CE",
            "MAX_ITEM_LIST_LENGTH": 50,
            "train_batch_size": 2048,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "group_by": "user",
                "order": "TO",
                "mode": "full",
            },
        }
        config = Config(model="SASRec", dataset="bench", config_dict=wanted)
        logging.disable(logging.WARNING)
        init_seed(config["seed"], config["reproducibility"])
        train_set = create_dataset(config).build()[0]
        loader = get_dataloader(config, "train")(config, train_set, None, shuffle=True)
        model = get_model("SASRec")(config, train_set).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
        forever = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
        trainer._train_epoch(itertools.islice(forever, 2), 0)
        rows: list[int] = []
        started_s = time.perf_counter()
        trainer._train_epoch(counted(itertools.islice(forever, num_batches), rows), 0)
        elapsed_s = time.perf_counter() - started_s
        os.chdir("/")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"events_per_s": sum(rows) / elapsed_s, "peak_mb": peak_mb}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("inter", type=Path)
    parser.add_argument("--batches", type=int, default=30)
    given = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads it, too
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    result, sys.stdout = sys.stdout, sys.stderr
    found = measured(given.inter.absolute(), given.batches)
    print(json.dumps(found), file=result, flush=True)
