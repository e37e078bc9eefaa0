import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.data.config import ConvertConfig, DataConfig
from distrib.data.export import _source_tables, convert, encoded, preflight
from distrib.data.logs.config import (
    Columns,
    CsvSource,
    HetRecSource,
    MovieLensSource,
    ParquetSource,
    RecBoleSource,
)
from distrib.data.logs.rating_scale import RatingsConfig
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import NoSplit
from distrib.errors import ConfigError, DataError, TakenOverError
from distrib.fence import take_over
from distrib.storage import Folder

pytestmark = pytest.mark.ray
HALF = RatingsConfig(levels=tuple(n / 2 for n in range(1, 11)))
USUAL = Columns(user="user_id", item="item_id", rating="rating", time="timestamp")


def digests(folder):
    names = [*sorted((folder / "histories").iterdir()), folder / "items.parquet"]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in names}


@pytest.mark.parametrize("format", ["inter", "csv", "parquet"])
def test_histories_survive_the_way_to_other_files_and_back(cluster, real_data, tmp_path, format):
    log = MovieLensSource(path=str(real_data / "ml-latest-small/ratings.csv"))
    first = DataConfig(prepared=str(tmp_path / "one"), source=log)
    prepare(first)
    result = convert(first, ConvertConfig(output=str(tmp_path / "log"), format=format))
    assert result.counts == {"read": 100_836, "written": 100_836, "rejected": {}}
    back = {
        "inter": RecBoleSource(path=str(tmp_path / "log"), ids="int"),
        "csv": CsvSource(path=str(tmp_path / "log"), columns=USUAL, ids="int"),
        "parquet": ParquetSource(path=str(tmp_path / "log"), columns=USUAL),
    }[format]
    second = DataConfig(prepared=str(tmp_path / "two"), source=back, ratings=HALF)
    prepare(second)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_log_without_times_keeps_its_order_and_counts_their_size(cluster, real_data, tmp_path):
    log = HetRecSource(path=str(real_data / "lastfm-2k/user_artists.dat"))
    config = DataConfig(
        prepared=str(tmp_path / "one"),
        source=log,
        ratings=RatingsConfig(confidence="log"),
        split=NoSplit(),
    )
    prepare(config)
    convert(config, ConvertConfig(output=str(tmp_path / "raw"), format="inter", of="source"))
    header, first = (tmp_path / "raw" / "part-00000.inter").read_text().split("\n")[:2]
    assert header == "user_id:token\titem_id:token\trating:float"
    assert first == "2\t51\t13883"
    back = config.model_copy(
        update={
            "prepared": str(tmp_path / "two"),
            "source": RecBoleSource(path=str(tmp_path / "raw"), ids="int"),
        }
    )
    prepare(back)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_damaged_rows_of_a_source_are_left_out_and_counted(cluster, tmp_path):
    (tmp_path / "log.csv").write_text("who,what,when\na,x,1\n,y,2\nb,y\n")
    source = CsvSource(
        path=str(tmp_path / "log.csv"), columns=Columns(user="who", item="what", time="when")
    )
    config = DataConfig(prepared="unused", source=source)
    to = ConvertConfig(output=str(tmp_path / "out"), format="parquet", of="source")
    counts = convert(config, to).counts
    assert counts == {"read": 3, "written": 1, "rejected": {"malformed": 1, "missing id": 1}}
    assert pq.read_table(tmp_path / "out").to_pylist() == [
        {"user_id": "a", "item_id": "x", "timestamp": 1}
    ]
    assert convert(config, to).counts == counts
    with pytest.raises(DataError, match="already holds files"):
        preflight(config, to.model_copy(update={"format": "csv"}))


def test_a_conversion_that_was_stopped_can_be_started_again(cluster, tmp_path):
    (tmp_path / "log.csv").write_text("who,what\na,x\n")
    source = CsvSource(path=str(tmp_path / "log.csv"), columns=Columns(user="who", item="what"))
    config = DataConfig(prepared="unused", source=source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_begun.json").write_text("{}")
    (tmp_path / "out" / "part-00007.inter").write_text("of the stopped one")
    convert(config, ConvertConfig(output=str(tmp_path / "out"), of="source"))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["_manifest.json", "part-00000.inter"]


def test_a_conversion_that_a_later_start_has_overtaken_does_not_end(cluster, tmp_path, monkeypatch):
    (tmp_path / "log.csv").write_text("who,what\na,x\n")
    source = CsvSource(path=str(tmp_path / "log.csv"), columns=Columns(user="who", item="what"))
    config, out = DataConfig(prepared="unused", source=source), str(tmp_path / "out")
    to = ConvertConfig(output=out, of="source")
    tables = _source_tables

    def overtaken(data):
        take_over(Folder(out), "_begun.json")
        return tables(data)

    with monkeypatch.context() as patch:
        patch.setattr("distrib.data.export._source_tables", overtaken)
        with pytest.raises(TakenOverError, match="a later start of this job"):
            convert(config, to)
    assert not (tmp_path / "out" / "_manifest.json").exists()
    assert convert(config, to).counts["written"] == 1


def test_a_place_to_write_to_is_needed():
    with pytest.raises(ConfigError, match=r"convert\.output is not set"):
        preflight(DataConfig(prepared="p"), ConvertConfig())


def test_ids_that_recbole_cannot_hold_are_refused_by_name():
    table = pa.table({"user_id": ["a\tb"], "item_id": ["x"]})
    with pytest.raises(DataError, match=r"out/1\.inter: an id contains a tab"):
        encoded(table, "inter", "out/1.inter")
    assert b'"a\tb"' not in encoded(table, "csv", "out/1.csv")[:20]
