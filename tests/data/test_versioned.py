"""Delta Lake and Iceberg tables: read at a version, deleted rows left out."""

import base64
import json
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.config import checked
from distrib.data.config import DataConfig
from distrib.data.dataset import Dataset
from distrib.data.logs.config import Columns
from distrib.data.logs.formats.delta import DeltaSource
from distrib.data.logs.formats.iceberg import IcebergSource
from distrib.data.logs.rating_scale import RatingsConfig
from distrib.data.prepare.job import preflight, prepare
from distrib.data.splits.rules import NoSplit
from distrib.errors import ConfigError, DataError
from tests.data.test_formats import readings

delta = pytest.importorskip("deltalake")
pytest.importorskip("pyiceberg")

COLUMNS = Columns(user="u", item="i", rating="r", time="t")


def log(users, day=0):
    count = len(users)
    moments = pa.array([(day * 100 + n) * 10**6 for n in range(count)], pa.timestamp("us", "UTC"))
    items = [n % 5 for n in range(count)]
    ratings = [float(n % 5 + 1) for n in range(count)]
    return pa.table(
        {"u": users, "i": items, "r": ratings, "t": moments, "day": [f"d {day}"] * count}
    )


def users_of(source):
    table, quarantine = readings(source)
    assert not len(quarantine)
    return sorted(user for user in table["user"].to_pylist() if user is not None)


@pytest.fixture
def delta_table(tmp_path):
    """Four versions: two days, a person removed, a day added."""
    path = str(tmp_path / "table")
    delta.write_deltalake(path, log([1, 2, 3, 4]), partition_by=["day"])
    delta.write_deltalake(path, log([2, 5], day=1), mode="append")
    delta.DeltaTable(path).delete("u = 2")
    delta.write_deltalake(path, log([6], day=2), mode="append")
    return path


def test_a_delta_table_is_what_its_log_says(delta_table):
    source = DeltaSource(path=delta_table, columns=COLUMNS)
    assert users_of(source) == [1, 3, 4, 5, 6]
    assert users_of(source.model_copy(update={"version": 1})) == [1, 2, 2, 3, 4, 5]
    where = {"day": ("d 1", "d 2")}
    assert users_of(source.model_copy(update={"where": where})) == [5, 6]
    table, _ = readings(source)
    assert max(table["time"].to_pylist()) == 200


def test_a_delta_table_on_an_object_store(object_store, tmp_path):
    url = f"{object_store}/{tmp_path.name}"
    options = {"allow_http": "true"}
    delta.write_deltalake(url, log([1, 2]), storage_options=options)
    delta.DeltaTable(url, storage_options=options).delete("u = 1")
    assert users_of(DeltaSource(path=url, columns=COLUMNS)) == [2]


def change_log(path, change):
    """Rewrite the actions of the first version, as another writer would have written them."""
    at = path / "_delta_log/00000000000000000000.json"
    actions = [json.loads(line) for line in at.read_text().splitlines()]
    for action in actions:
        change(action)
    at.write_text("\n".join(map(json.dumps, actions)))


Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"


def deletion_vector(rows):
    """An inline vector of the Delta protocol: a magic number and a portable 64-bit bitmap."""
    from pyroaring import BitMap64

    raw = struct.pack("<I", 1681511377) + BitMap64(rows).serialize()
    raw += b"\0" * (-len(raw) % 4)
    text = base64.b85encode(raw).decode().translate(str.maketrans(B85, Z85))
    size = 4 + len(BitMap64(rows).serialize())
    return {
        "storageType": "i",
        "pathOrInlineDv": text,
        "sizeInBytes": size,
        "cardinality": len(rows),
    }


def test_rows_of_a_deletion_vector_are_no_rows(tmp_path):
    path = str(tmp_path / "table")
    delta.write_deltalake(path, log(list(range(10))))

    def change(action):
        if "protocol" in action:
            features = {
                "readerFeatures": ["deletionVectors"],
                "writerFeatures": ["deletionVectors"],
            }
            action["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
        if "add" in action:
            action["add"]["deletionVector"] = deletion_vector([0, 7])

    change_log(tmp_path / "table", change)
    source = DeltaSource(path=path, columns=COLUMNS)
    assert users_of(source) == [1, 2, 3, 4, 5, 6, 8, 9]
    (file,) = source.inspect().files
    assert "2 rows deleted" in file.stamp


def test_other_rows_deleted_as_many_are_another_version(tmp_path):
    stamps = set()
    for rows in ([0, 7], [1, 7]):
        path = tmp_path / f"table{rows[0]}"
        delta.write_deltalake(str(path), log(list(range(10))))

        def change(action, rows=rows):
            if "protocol" in action:
                features = {"readerFeatures": ["deletionVectors"]}
                features |= {"writerFeatures": ["deletionVectors"]}
                action["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
            if "add" in action:
                action["add"]["deletionVector"] = deletion_vector(rows)

        change_log(path, change)
        (file,) = DeltaSource(path=str(path), columns=COLUMNS).inspect().files
        stamps.add(file.stamp)
    assert len(stamps) == 2


def test_dates_in_partition_columns_are_times(tmp_path):
    rows = log([1, 2]).drop_columns(["t"])
    days = pa.array([0, 19_000], pa.date32())
    delta.write_deltalake(str(tmp_path / "t"), rows.append_column("t", days), partition_by=["t"])
    table, quarantine = readings(DeltaSource(path=str(tmp_path / "t"), columns=COLUMNS))
    assert not len(quarantine)
    assert sorted(table["time"].to_pylist()) == [0, 19_000 * 86_400]


def test_renamed_columns_are_found_in_files_of_before(tmp_path):
    path = tmp_path / "table"
    delta.write_deltalake(str(path), log([1, 2]).rename_columns(["a", "b", "c", "d", "day"]))

    def change(action):
        if "protocol" in action:
            action["protocol"] = {"minReaderVersion": 2, "minWriterVersion": 5}
        if "metaData" in action:
            schema = json.loads(action["metaData"]["schemaString"])
            for number, (field, name) in enumerate(zip(schema["fields"], "uirt", strict=False)):
                physical = {"delta.columnMapping.physicalName": field["name"]}
                field["metadata"] = {"delta.columnMapping.id": number + 1, **physical}
                field["name"] = name
            schema["fields"][4]["metadata"] = {
                "delta.columnMapping.id": 5,
                "delta.columnMapping.physicalName": "day",
            }
            action["metaData"]["schemaString"] = json.dumps(schema)
            action["metaData"]["configuration"] = {
                "delta.columnMapping.mode": "name",
                "delta.columnMapping.maxColumnId": "5",
            }

    change_log(path, change)
    assert users_of(DeltaSource(path=str(path), columns=COLUMNS)) == [1, 2]


def test_a_column_added_later_is_null_before(tmp_path):
    path = str(tmp_path / "table")
    delta.write_deltalake(path, log([1, 2]))
    wider = log([3], day=1).append_column("source", pa.array(["app"]))
    delta.write_deltalake(path, wider, mode="append", schema_mode="merge")
    source = DeltaSource(path=path, columns=COLUMNS)
    assert users_of(source) == [1, 2, 3]
    assert users_of(source.model_copy(update={"where": {"source": ("app",)}})) == [3]


@pytest.fixture
def iceberg_table(catalog):
    first = log([1, 2, 3, 4])
    table = catalog.create_table("web.ratings", schema=first.schema)
    table.append(first)
    table.append(log([2, 5], day=1))
    table.delete("u = 2")
    return table


def test_an_iceberg_table_is_what_its_snapshot_says(iceberg_table):
    folder = iceberg_table.location()
    source = IcebergSource(path=folder, columns=COLUMNS)
    assert users_of(source) == [1, 3, 4, 5]
    second = iceberg_table.metadata.snapshots[1].snapshot_id
    assert users_of(source.model_copy(update={"version": second})) == [1, 2, 2, 3, 4, 5]
    by_file = source.model_copy(update={"path": iceberg_table.metadata_location})
    assert users_of(by_file) == [1, 3, 4, 5]
    named = source.model_copy(update={"path": "web.ratings", "catalog": "shop"})
    assert users_of(named) == [1, 3, 4, 5]
    assert users_of(named.model_copy(update={"where": {"day": ("d 1",)}})) == [5]


def test_a_renamed_iceberg_column_is_found_in_files_of_before(iceberg_table):
    with iceberg_table.update_schema() as update:
        update.rename_column("u", "person")
    columns = COLUMNS.model_copy(update={"user": "person"})
    source = IcebergSource(path="web.ratings", catalog="shop", columns=columns)
    assert users_of(source) == [1, 3, 4, 5]


def test_clear_errors(tmp_path, delta_table, catalog, monkeypatch):
    with pytest.raises(DataError, match="cannot be used as a table"):
        DeltaSource(path=str(tmp_path / "none"), columns=COLUMNS).inspect()
    with pytest.raises(DataError, match="cannot be used as a table"):
        DeltaSource(path=delta_table, columns=COLUMNS, version=99).inspect()
    columns = COLUMNS.model_copy(update={"user": "x"})
    with pytest.raises(DataError, match=r"no column\(s\) \['x'\]; it has"):
        DeltaSource(path=delta_table, columns=columns).inspect()
    with pytest.raises(DataError, match="not an Iceberg table"):
        IcebergSource(path=delta_table, columns=COLUMNS).inspect()
    catalog.create_table("web.empty", schema=log([1]).schema)
    with pytest.raises(DataError, match="the table is empty"):
        IcebergSource(path="web.empty", catalog="shop", columns=COLUMNS).inspect()
    for path, where in (("web.gone", "shop"), ("web.ratings", "nowhere")):
        with pytest.raises(DataError, match="cannot be used as a table"):
            IcebergSource(path=path, catalog=where, columns=COLUMNS).inspect()
    monkeypatch.setitem(__import__("sys").modules, "deltalake", None)
    with pytest.raises(ConfigError, match=r"pip install 'distrib\[delta\]'"):
        DeltaSource(path=delta_table, columns=COLUMNS).inspect()


def test_the_folder_of_a_table_is_refused_as_plain_files(delta_table, iceberg_table):
    columns = {"user": "u", "item": "i"}
    for path, name in ((delta_table, "delta"), (iceberg_table.location(), "iceberg")):
        source = {"format": "parquet", "path": path.removeprefix("file://"), "columns": columns}
        config = checked(DataConfig, {"prepared": "x", "source": source}, where="here")
        with pytest.raises(DataError, match=f"data.source.format = '{name}'"):
            preflight(config)


def test_a_table_that_grew_is_extended_and_one_that_was_rewritten_is_not(cluster, tmp_path):
    path = str(tmp_path / "table")
    delta.write_deltalake(path, log([1, 2, 3]))
    source = DeltaSource(path=path, columns=COLUMNS)
    prepared = str(tmp_path / "data")
    stars = RatingsConfig(levels=(1.0, 2.0, 3.0, 4.0, 5.0))
    config = DataConfig(
        prepared=prepared, source=source, ratings=stars, split=NoSplit(), extend=True
    )
    prepare(config)
    delta.write_deltalake(path, log([3, 4], day=1), mode="append")
    assert prepare(config).counts.users == 4
    assert Dataset.open(prepared).manifest.generation == 1
    delta.DeltaTable(path).delete("u = 1")
    with pytest.raises(DataError, match="no longer part of the table: its rows were changed"):
        prepare(config)


def test_large_files_are_read_in_pieces(tmp_path):
    path = tmp_path / "table"
    rows = log(list(range(1000)))
    delta.write_deltalake(str(path), rows)
    (file,) = path.glob("*.parquet")
    pq.write_table(pq.read_table(file), file, row_group_size=100)

    def change(action):
        if "add" in action:
            action["add"] = {**action["add"], "size": file.stat().st_size}

    change_log(path, change)
    assert users_of(DeltaSource(path=str(path), columns=COLUMNS)) == list(range(1000))
