"""Users per second of RecBole's MultiVAE; run by training.py with the Python of its own venv.

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


def measured(inter: Path, batch_users: int, num_batches: int) -> dict:
    from recbole.config import Config
    from recbole.data import create_dataset
    from recbole.data.utils import get_dataloader
    from recbole.utils import get_model, get_trainer, init_seed

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it writes logs where it stands
        wanted = settings(folder, inter) | {
            "dropout_prob": 0.5,
            "train_batch_size": batch_users,
            "eval_args": {
                "split": {"RS": [1.0]},
                "group_by": "none",
                "order": "RO",
                "mode": "full",
            },
        }
        config = Config(model="MultiVAE", dataset="bench", config_dict=wanted)
        logging.disable(logging.WARNING)
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        (train_set,) = dataset.build()
        loader = get_dataloader(config, "train")(config, train_set, None, shuffle=True)
        model = get_model("MultiVAE")(config, train_set).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], "MultiVAE")(config, model)
        forever = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
        trainer._train_epoch(itertools.islice(forever, 2), 0)
        rows: list[int] = []
        started_s = time.perf_counter()
        trainer._train_epoch(counted(itertools.islice(forever, num_batches), rows), 0)
        elapsed_s = time.perf_counter() - started_s
        os.chdir("/")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"users_per_s": sum(rows) / elapsed_s, "peak_mb": peak_mb}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("inter", type=Path)
    parser.add_argument("--batch-users", type=int, default=500)
    parser.add_argument("--batches", type=int, default=20)
    given = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads it, too
    warnings.filterwarnings("ignore")
    result, sys.stdout = sys.stdout, sys.stderr
    found = measured(given.inter.absolute(), given.batch_users, given.batches)
    print(json.dumps(found), file=result, flush=True)
