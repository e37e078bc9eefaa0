"""A folder of soft labels, as `jobs/soften.py` writes them."""

import functools
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@functools.cache
def label_folder(num_users: int = 37, item_count: int = 50, *, ratings: bool = True) -> str:
    """Labels of five random items for each user, in two files; the first user has none."""
    folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    rows = [
        {
            "number": user,
            "items": np.sort(rng.choice(item_count, 5, replace=False)).tolist(),
            "weights": rng.dirichlet(np.ones(5)).tolist(),
            "ratings": rng.uniform(1.0, 5.0, 5).tolist(),
        }
        for user in range(1, num_users)
    ]
    types = {"items": pa.list_(pa.int32())}
    types |= {name: pa.list_(pa.float32()) for name in ("weights", "ratings")}
    schema, files = pa.schema({"number": pa.int64(), **types}), []
    for place in range(2):
        name = f"part-{place}.parquet"
        table = pa.Table.from_pylist(rows[place::2], schema=schema)
        if not ratings:
            table = table.drop("ratings")
        pq.write_table(table, folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        files.append({"name": name, "sha256": digest})
    success = {
        "recipe": {"soften": {}, "data": "none", "targets": "last", "has_ratings": ratings},
        "files": files,
    }
    (folder / "_SUCCESS").write_text(json.dumps(success))
    return str(folder)


def stored_table(labels: list[dict[int, tuple[float, float]]]) -> pa.Table:
    """Labels by user: weight and rating by item."""
    rows = [
        {
            "number": user,
            "items": list(label),
            "weights": [weight for weight, _ in label.values()],
            "ratings": [rating for _, rating in label.values()],
        }
        for user, label in enumerate(labels)
    ]
    types = {"number": pa.int64(), "items": pa.list_(pa.int32())}
    types |= {name: pa.list_(pa.float32()) for name in ("weights", "ratings")}
    return pa.Table.from_pylist(rows, schema=pa.schema(types))
