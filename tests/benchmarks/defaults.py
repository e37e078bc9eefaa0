"""Do the defaults hold? Models as ``init`` sets them, beside item means and popularity.

``python -m tests.benchmarks.defaults yelp coat --models conv4rec mult_vae``. Logs are those of
DISTRIB_DATA and drawn ones of three densities. Measured on validation, never on test data; a model
holds if its error is below that of item means, and its NDCG above that of popularity, as far as it
predicts ratings or ranks. The runs are those of a study, so that a second start continues. Nothing
here asserts a result.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

import distrib
from distrib.cli import connected, environment
from distrib.config import checked
from distrib.data.dataset import Dataset
from distrib.evaluation.protocol import is_better, is_meant
from distrib.events import table
from distrib.run_file import RunFile
from distrib.studies.config import StudyFile
from distrib.studies.job import given, study
from distrib.studies.results import RESULT, Row, StudyResult, data_folder, run_folder
from distrib.training.records import history_of
from distrib.training.run_folder import HISTORY

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


def study_of(logs: list[str], models: list[str], folder: Path) -> StudyFile:
    """Return a study with a run of each model on each log, as ``init`` writes it."""
    options = {}
    for log in logs:
        path = drawn(log, folder) if log in DRAWN else str(DATA / REAL[log])
        for model in models:
            run = distrib.init(path, run=str(folder / "none"), model=model)
            base = run.model_dump(mode="json", exclude_unset=True)
            options[f"{log}, {model}"] = {"base": base}
    document = {
        "title": "Defaults",
        "output": str(folder / "defaults"),
        "runs": str(folder / "studies"),
        "seeds": [0],
        "metrics": ["ndcg@100", "rmse"],
        "axes": {"run": options},
    }
    return checked(StudyFile, document, where="the study of defaults")


def judged(result: StudyResult, row: Row) -> list[str]:
    """Return the figures of a run beside those of popularity on the same users."""
    log, model = row.options["run"].split(", ")
    if row.run is None:
        return [log, model, "-", "-", "-", "-", "no", "-", row.fault[:60]]
    folder = run_folder(result.runs, row.address)
    popular = history_of(folder.read_json(HISTORY), folder / HISTORY)[0].popularity
    settings = {**row.run.settings, "run": "r", "data": {**row.run.settings["data"]}}
    settings["data"]["prepared"] = "d"
    output = checked(RunFile, settings, where=model).model.spec.output
    data = Dataset.open(data_folder(result.runs, row.run.prepared))
    num_levels = len(data.vocabulary.levels)
    shown, holds = [], []
    for name in ("rmse", "ndcg@100"):
        value = row.run.valid.get(name, 0.0)
        if name not in popular or not value or not is_meant(name, output, num_levels):
            shown += ["-", f"{popular[name]:.4f}" if name in popular else "-"]
            continue
        shown += [f"{value:.4f}", f"{popular[name]:.4f}"]
        holds.append(is_better(name, value, popular[name]))
    verdict = "yes" if holds and all(holds) else "no"
    return [log, model, *shown, verdict, str(row.run.best_epoch), f"{row.run.cost.train_s:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", nargs="+", choices=[*REAL, *DRAWN])
    parser.add_argument("--models", nargs="+", default=[*RANKERS, *RATERS])
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="runs are kept there")
    wanted = parser.parse_args()
    folder = wanted.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    file = study_of(wanted.logs, [*dict.fromkeys(wanted.models)], folder)
    with connected():
        study(given(file, "tests.benchmarks.defaults", environment()))
    result = StudyResult.model_validate_json((Path(file.output) / RESULT).read_text())
    rows = [judged(result, row) for row in result.rows]
    columns = ["log", "model", "RMSE", "of item means", "NDCG", "of popularity", "holds"]
    table("Defaults, on validation", [*columns, "epoch", "s"], rows)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
