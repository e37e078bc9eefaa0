"""A folder of soft labels, as `jobs/soften.py` writes them."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@functools.cache
def label_folder(num_users: int = 37, item_count: int = 50) -> str:
    """Labels of five random items for each user, in two files; the first user has none."""
    folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    rows = [
        {
            "number": user,
            "items": np.sort(rng.choice(item_count, 5, replace=False)).tolist(),
            "weights": rng.dirichlet(np.ones(5)).tolist(),
        }
        for user in range(1, num_users)
    ]
    types = {"items": pa.list_(pa.int32()), "weights": pa.list_(pa.float32())}
    schema, files = pa.schema({"number": pa.int64(), **types}), []
    for place in range(2):
        files.append({"name": f"part-{place}.parquet"})
        table = pa.Table.from_pylist(rows[place::2], schema=schema)
        pq.write_table(table, folder / files[-1]["name"])
    success = {"recipe": {"soften": {}, "data": "none"}, "files": files}
    (folder / "_SUCCESS").write_text(json.dumps(success))
    return str(folder)
