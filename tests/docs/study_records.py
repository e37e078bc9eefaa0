"""Records of studies for the documentation, without places: what its tables can be traced to.

``python -m tests.docs.study_records runs/studies/NAME docs/studies/NAME.json``
"""

import json
import os
import sys
from pathlib import Path

from distrib.studies.results import RESULT, StudyResult

ROOT = "/studies"
"""Stands for the folder of runs."""

KEPT = ("axes", "compared", "metrics", "seeds", "finished", "title")


def record(folder: Path) -> dict:
    """Return what documentation keeps of a study."""
    text = (folder / RESULT).read_text()
    result = StudyResult.model_validate_json(text)
    text = text.replace(str(Path(result.runs).absolute()), ROOT).replace(result.runs, ROOT)
    text = text.replace(os.environ["DISTRIB_DATA"].rstrip("/"), "${DISTRIB_DATA}")
    result = StudyResult.model_validate_json(text)
    rows = [
        {
            "options": row.options,
            "seed": row.seed,
            "address": row.address,
            "data": row.run.data,
            "best_epoch": row.run.best_epoch,
            "settings": row.run.settings,
            "metrics": {name: row.run.mean(name) for name in result.metrics},
        }
        for row in result.rows
        if row.run is not None
    ]
    known = {name: getattr(result, name) for name in KEPT}
    return {**known, "environment": result.environment, "rows": rows}


def main() -> None:
    folder, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(record(folder), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
