"""Rows per second of a RecBole model in training; run by other benchmarks with its own Python.

Times what RecBole's Trainer does in an epoch, after two batches, and nothing else: no evaluation.
A row is a user of MultiVAE, a labeled pair of NeuMF, a target of SASRec.
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

import torch
from recbole_settings import settings  # beside this file; run with RecBole's own Python

WHOLE = {"split": {"RS": [1.0]}, "group_by": "none", "order": "RO"}
PAIRS = {
    "mf_embedding_size": 32,
    "mlp_embedding_size": 128,
    "mlp_hidden_size": [128, 64, 32],
    "dropout_prob": 0.0,
    "mf_train": True,
    "threshold": {"rating": 2.5},
    "load_col": {"inter": ["user_id", "item_id", "rating"]},
    "eval_args": {**WHOLE, "mode": "labeled"},
    "metrics": ["AUC"],
    "valid_metric": "AUC",
}
CASES = {
    "mult_vae": ("MultiVAE", {"dropout_prob": 0.5, "eval_args": {**WHOLE, "mode": "full"}}),
    "gmf": ("NeuMF", {**PAIRS, "mlp_train": False}),
    "neumf": ("NeuMF", {**PAIRS, "mlp_train": True}),
    "sas_rec": (
        "SASRec",
        {
            "n_layers": 2,
            "n_heads": 1,
            "hidden_size": 64,
            "inner_size": 64,
            "hidden_dropout_prob": 0.2,
            "attn_dropout_prob": 0.2,
            "loss_type": "CE",
            "MAX_ITEM_LIST_LENGTH": 50,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "group_by": "user",
                "order": "TO",
                "mode": "full",
            },
        },
    ),
}


def counted(batches, rows):
    for batch in batches:
        rows.append(len(batch))
        yield batch


def measured(inter: Path, case: str, batch_rows: int, num_batches: int) -> dict:
    from recbole.config import Config
    from recbole.data import create_dataset
    from recbole.data.utils import get_dataloader
    from recbole.utils import get_model, get_trainer, init_seed

    name, own = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it writes logs where it stands
        wanted = settings(folder, inter) | own | {"train_batch_size": batch_rows}
        config = Config(model=name, dataset="bench", config_dict=wanted)
        logging.disable(logging.WARNING)
        init_seed(config["seed"], config["reproducibility"])
        train_set = create_dataset(config).build()[0]
        loader = get_dataloader(config, "train")(config, train_set, None, shuffle=True)
        model = get_model(name)(config, train_set).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
        forever = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
        trainer._train_epoch(itertools.islice(forever, 2), 0)
        rows: list[int] = []
        started_s = time.perf_counter()
        trainer._train_epoch(counted(itertools.islice(forever, num_batches), rows), 0)
        elapsed_s = time.perf_counter() - started_s
        os.chdir("/")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows_per_s": sum(rows) / elapsed_s, "peak_mb": peak_mb}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("inter", type=Path)
    parser.add_argument("--batch-rows", type=int, required=True)
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sys.argv = sys.argv[:1]  # RecBole reads it, too
    warnings.filterwarnings("ignore")
    result, sys.stdout = sys.stdout, sys.stderr
    found = measured(given.inter.absolute(), given.case, given.batch_rows, given.batches)
    print(json.dumps(found), file=result, flush=True)
