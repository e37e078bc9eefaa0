"""Users per second of RecBole's full-sort evaluation; run by scoring.py with its own Python."""

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

BATCH_USERS = 512


def measured(inter: Path, num_batches: int) -> dict:
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it writes logs where it stands
        wanted = settings(folder, inter) | {
            "topk": [100],
            "metrics": ["Recall", "NDCG"],
            "valid_metric": "Recall@100",
            # Users of a batch are this by the items, so that it does not take one at a time.
            "eval_batch_size": BATCH_USERS * 27_001,
            "eval_args": {
                "split": {"RS": [0.8, 0.0, 0.2]},
                "group_by": "user",
                "order": "RO",
                "mode": "full",
            },
        }
        config = Config(model="MultiVAE", dataset="bench", config_dict=wanted)
        logging.disable(logging.WARNING)
        init_seed(config["seed"], config["reproducibility"])
        train_set, _, test_set = data_preparation(config, create_dataset(config))
        model = get_model("MultiVAE")(config, train_set.dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], "MultiVAE")(config, model)
        trainer.tot_item_num = test_set._dataset.item_num
        trainer.item_tensor = test_set._dataset.get_item_feature()
        trainer.eval_collector.data_collect(train_set)
        model.eval()
        users, started_s = 0, 0.0
        for number, batch in enumerate(itertools.islice(iter(test_set), num_batches + 1)):
            if number == 1:
                users, started_s = 0, time.perf_counter()
            interaction, scores, positive_u, positive_i = trainer._full_sort_batch_eval(batch)
            trainer.eval_collector.eval_batch_collect(scores, interaction, positive_u, positive_i)
            users += len(interaction)
        elapsed_s = time.perf_counter() - started_s
        os.chdir("/")
    return {"users_per_s": users / elapsed_s}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("inter", type=Path)
    parser.add_argument("--batches", type=int, default=10)
    given = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads it, too
    warnings.filterwarnings("ignore")
    result, sys.stdout = sys.stdout, sys.stderr
    found = measured(given.inter.absolute(), given.batches)
    print(json.dumps(found), file=result, flush=True)
