"""Do the defaults hold? Models as ``init`` sets them, beside item means and popularity.

``python -m tests.benchmarks.defaults yelp coat --models conv4rec mult_vae``. Logs are those of
DISTRIB_DATA and drawn ones of three densities. Measured on validation, never on test data; a model
holds if its error is below that of item means, and its NDCG above that of popularity, as far as it
predicts ratings or ranks. Nothing here asserts a result.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import distrib
from distrib.cli import connected
from distrib.evaluation.protocol import is_meant
from distrib.events import table

DATA = Path(os.environ.get("DISTRIB_DATA", "."))
REAL = {
    "yelp": "yelp-hin/user_business.dat",
    "ml-100k": "ml-100k/u.data",
    "ml-small": "ml-latest-small/ratings.csv",
    "ml-1m": "ml-1m/ratings.rebuilt.dat.gz",
    "coat": "coat/train.ascii",
    "lastfm": "lastfm-2k/user_artists.dat",
    "beauty": "beauty-5core/Beauty.txt",
}
DRAWN = {"dense": 60, "sparse": 15, "very-sparse": 5}
"""Mean interactions of a user in the drawn logs, of 3,000 users and 1,500 items."""

RANKERS = ("mult_vae", "mult_dae", "rec_vae", "elsa", "ease", "item_knn", "conv4rec")
RATERS = ("autorec", "biased_mf", "vae_bmf", "conv4rec")


def drawn(name: str, folder: Path) -> str:
    """Write a log of users with tastes, whose ratings follow them."""
    rng = np.random.default_rng(0)
    users, items, rank = 3000, 1500, 4
    u, v = rng.standard_normal((users, rank)), rng.standard_normal((items, rank))
    popular = -0.9 * np.log(np.arange(1, items + 1))
    rows = []
    for user in range(users):
        many = min(items, 2 + rng.geometric(1.0 / DRAWN[name]))
        logit = popular + 0.9 * v @ u[user] + rng.gumbel(size=items)
        for item in np.argpartition(-logit, many - 1)[:many]:
            liking = (
                3.4 + 0.5 * v[item] @ u[user] / 2 + 0.4 * v[item, 0] + 0.6 * rng.standard_normal()
            )
            rows.append((user, int(item), float(np.clip(np.rint(liking), 1, 5))))
    path = folder / f"{name}.csv"
    pd.DataFrame(rows, columns=["user", "item", "rating"]).to_csv(path, index=False)
    return str(path)


def measured(log: str, model: str, folder: Path, sections: dict[str, Any]) -> dict[str, Any]:
    """Train a model on a log with defaults; return validation metrics and those of popularity."""
    run = distrib.init(log, run=str(folder / model), model=model, **sections)
    place = folder / ("data-items" if run.data.item_histories else "data")
    run = run.model_copy(update={"data": run.data.model_copy(update={"prepared": str(place)})})
    distrib.prepare(run)
    started_s = time.perf_counter()
    found = distrib.train(run)
    output = run.model.spec.output
    valid = {name: value for name, value in found.valid.items() if is_meant(name, output, 2)}
    return {"valid": valid, "epoch": found.best_epoch, "s": time.perf_counter() - started_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", nargs="+", choices=[*REAL, *DRAWN])
    parser.add_argument("--models", nargs="+", default=[*RANKERS, *RATERS])
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place, connected():
        for name in given.logs:
            folder = Path(place) / name
            folder.mkdir()
            log = drawn(name, folder) if name in DRAWN else str(DATA / REAL[name])
            base = measured(log, "popularity", folder, {})["valid"]
            for model in dict.fromkeys(given.models):
                found = measured(log, model, folder, {})
                rows.append(
                    [
                        name,
                        model,
                        *judged(found["valid"], base),
                        found["epoch"],
                        f"{found['s']:.0f}",
                    ]
                )
                print(json.dumps([*rows[-1], found["valid"]]), flush=True)
    columns = [
        "log",
        "model",
        "RMSE",
        "of item means",
        "NDCG",
        "of popularity",
        "holds",
        "epoch",
        "s",
    ]
    table("Defaults, on validation", columns, rows)


def judged(found: dict[str, float], base: dict[str, float]) -> list[str]:
    """Return the figures of a model beside those of popularity, and whether it is ahead."""
    ndcg = next((name for name in found if name.startswith("ndcg")), None)
    error = "rmse" in found and found["rmse"] > 0
    holds = []
    if error:
        holds.append(found["rmse"] < base["rmse"])
    if ndcg is not None:
        holds.append(found[ndcg] > base[ndcg])
    return [
        f"{found['rmse']:.4f}" if error else "-",
        f"{base.get('rmse', float('nan')):.4f}",
        f"{found[ndcg]:.4f}" if ndcg else "-",
        f"{base.get(ndcg or '', float('nan')):.4f}",
        "yes" if holds and all(holds) else "no",
    ]


if __name__ == "__main__":
    main()
