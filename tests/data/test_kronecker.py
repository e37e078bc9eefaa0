import numpy as np
import pyarrow as pa
import pytest

from distrib.data.arrow import dense_ids
from distrib.data.logs.config import ExpandedLog, MovieLensSource
from distrib.data.logs.generated import draw, drawn_layout, drawn_pieces
from distrib.data.logs.kronecker import chances, expansion_of
from distrib.data.logs.rating_scale import Scale
from distrib.data.schema import interactions

STARS = Scale((1.0, 2.0, 3.0, 4.0, 5.0))


@pytest.fixture(scope="module")
def grown(request):
    import os
    from pathlib import Path

    if "DISTRIB_DATA" not in os.environ:
        pytest.skip("DISTRIB_DATA is not set; see README, Real data")
    path = str(Path(os.environ["DISTRIB_DATA"]) / "ml-100k/u.data")
    source = ExpandedLog(base=MovieLensSource(path=path), user_copies=5, item_copies=3, growth=6.0)
    layout = drawn_layout(source)
    tables = [draw(piece, source, layout, STARS).interactions for piece in drawn_pieces(source)]
    base = ExpandedLog(base=MovieLensSource(path=path), user_copies=1, item_copies=1, growth=1.0)
    same = draw(drawn_pieces(base)[0], base, drawn_layout(base), STARS).interactions
    return source, pa.concat_tables(tables), same


def test_growing_by_one_is_the_log_itself(grown):
    _, _, same = grown
    assert len(same) == 100_000
    assert len(np.unique(same["user"].to_numpy())) == 943


def test_the_size_is_as_wanted_and_no_pair_comes_twice(grown):
    _, table, _ = grown
    assert len(table) == pytest.approx(600_000, rel=0.01)
    user_N, item_N = dense_ids(table["user"]), dense_ids(table["item"])
    assert user_N.max() + 1 == pytest.approx(5 * 943, rel=0.02)
    assert item_N.max() + 1 == pytest.approx(3 * 1682, rel=0.15)
    assert len(np.unique(user_N * (item_N.max() + 1) + item_N)) == len(table)


def gini(counts):
    ordered = np.sort(counts)
    rank = np.arange(1, len(ordered) + 1)
    return float((2 * rank - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))


def test_popularity_activity_and_ratings_keep_their_shape(grown):
    _, table, same = grown
    for name in ("user", "item"):
        big, small = (np.bincount(dense_ids(part[name])) for part in (table, same))
        assert gini(big) == pytest.approx(gini(small), abs=0.05)
    for level in STARS.levels:
        big, small = ((part["rating"].to_numpy() == level).mean() for part in (table, same))
        assert big == pytest.approx(small, abs=0.02)


def test_a_piece_is_drawn_the_same_each_time_and_by_another_seed_otherwise(grown):
    source, _, _ = grown
    layout, piece = drawn_layout(source), drawn_pieces(source)[3]
    once, twice = (draw(piece, source, layout, STARS).interactions for _ in range(2))
    assert once == twice
    other = source.model_copy(update={"seed": 1})
    assert draw(piece, other, layout, STARS).interactions != once


def test_chances_have_the_shape_of_the_log_and_add_up():
    rng = np.random.default_rng(0)
    user_N = (100 * rng.random(5000) ** 2).astype(np.int64)
    item_N = (80 * rng.random(5000) ** 3).astype(np.int64)
    found = chances(user_N, item_N, 4, 3, 5.0)
    assert found.shape == (4, 3)
    assert found.sum() == pytest.approx(5.0)
    assert found.max() <= 1.0
    assert (np.diff(found.sum(1)) < 0).all()


def test_times_stay_near_those_of_the_log():
    schema = interactions(pa.int64())
    columns = {"user": [1, 2], "item": [1, 1], "rating": [5.0, 1.0], "time": [10**9, 2 * 10**9]}
    zeros = {name: [0, 0] for name in ("status", "origin", "shard")}
    kept = pa.table({**columns, **zeros}, schema=schema)
    source = ExpandedLog(base=MovieLensSource(path="x"), user_copies=3, item_copies=2, growth=6.0)
    drawn = expansion_of(kept, source).draw(1)
    assert len(drawn.time_N) == 4
    assert np.abs(drawn.time_N - np.array([10**9, 2 * 10**9] * 2)).max() <= 12 * 3600
