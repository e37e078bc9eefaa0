"""Bulk scoring through a server, which is busy, away, and killed in between."""

import socket
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn

from distrib.errors import ConfigError, DataError
from distrib.scoring.commit import SUCCESS
from distrib.scoring.policy import ScoreConfig
from distrib.scoring.tables import recommend_table
from distrib.serve.client import Endpoint, score_through
from distrib.storage import Folder
from tests.scoring.test_scorer import histories
from tests.serve.conftest import served


class Running:
    """The application on a port; answers every n-th request with a fault first."""

    def __init__(self, app, fault_every=0, status=503):
        self.requests, self.fault_every, self.status = 0, fault_every, status
        self._app = app
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            self.requests += 1
            if self.fault_every and self.requests % self.fault_every == 0:
                await send({"type": "http.response.start", "status": self.status, "headers": []})
                await send({"type": "http.response.body", "body": b"come again"})
                return
        await self._app(scope, receive, send)

    def __enter__(self):
        config = uvicorn.Config(self, port=self.port, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{self.port}"

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def given(small, tmp_path):
    table = histories(small)
    no_user = pa.table({"user": [None], "items": [[1000]], "ratings": [[1.0]]}, table.schema)
    (tmp_path / "in").mkdir()
    pq.write_table(table.slice(0, 20), tmp_path / "in" / "a.parquet", row_group_size=5)
    pq.write_table(pa.concat_tables([table.slice(20), no_user]), tmp_path / "in" / "b.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "in" / "c.parquet")
    return str(tmp_path / "in")


def lists(output):
    folder = Folder(output)
    return pa.concat_tables(folder.read_parquet(name) for name in folder.files(".parquet"))


def test_everyone_is_scored_though_the_server_is_busy_now_and_then(small, run, given, tmp_path):
    server = served({"default": run}, token="t")
    running = Running(server.app, fault_every=3, status=429)
    with running as url:
        endpoint = Endpoint(url, token="t", k=6, users=3, concurrency=3)
        result = score_through(endpoint, given, str(tmp_path / "out"), fragment_users=10)
        again = running.requests
        assert score_through(endpoint, given, str(tmp_path / "out"), fragment_users=10) == result
        assert running.requests == again
    assert result.counts.users_read == 38
    assert result.counts.users == 37
    assert result.counts.users_rejected == {"no user id": 1}
    assert result.counts.versions == (server.hosts["default"].loaded.version,)
    scorer = server.hosts["default"].loaded.scorer
    direct, _ = recommend_table(scorer, histories(small), None, ScoreConfig(k=6))
    found = lists(str(tmp_path / "out"))
    assert found["user"].to_pylist() == direct["user"].to_pylist()
    assert found["items"].to_pylist() == direct["items"].to_pylist()


def test_a_second_start_goes_on_where_the_server_went_away(run, given, tmp_path):
    output = str(tmp_path / "out")
    running = Running(served({"default": run}).app, status=403)
    with running as url:
        endpoint = Endpoint(url, k=6, users=5, concurrency=1)
        running.fault_every = 4
        with pytest.raises(DataError, match="refused with 403: come again"):
            score_through(endpoint, given, output, fragment_users=10)
        (work,) = Folder(output).folders()
        assert len(Folder(f"{output}/{work}/receipts").files()) == 1
        assert not Folder(output).exists(SUCCESS)
        running.fault_every, running.requests = 0, 0
        score_through(endpoint, given, output, fragment_users=10)
        assert running.requests == 2 + 4 + 1  # all but the first fragment
    assert len(lists(output)) == 37


def test_wishes_go_along_and_another_page_is_no_answer(small, run, given, tmp_path):
    server = served({"default": run})
    with Running(server.app) as url:
        wishes = {"exclude_seen": "false", "min_score": "-1e9", "outputs": "rating"}
        score_through(Endpoint(url, k=50, options=wishes), given, str(tmp_path / "out"))
        found = lists(str(tmp_path / "out"))
        assert found.column_names == ["user", "history_digest", "items", "ratings"]
        assert all(len(items) == 50 for items in found["items"].to_pylist())
        odd = Endpoint(url, options={"diversity": "much"})
        with pytest.raises(DataError, match="refused with 422"):
            score_through(odd, given, str(tmp_path / "odd"))

    async def login_page(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"<html>log in</html>"})

    with Running(login_page) as url, pytest.raises(DataError, match="not a table of lists"):
        score_through(Endpoint(url), given, str(tmp_path / "page"))


def test_what_the_server_refuses_is_told_and_not_tried_again(run, given, tmp_path):
    running = Running(served({"default": run}, token="t").app)
    with running as url:
        with pytest.raises(DataError, match=r"refused with 401: .*missing or invalid bearer token"):
            score_through(Endpoint(url), given, str(tmp_path / "out"))
        assert running.requests <= 4
        with pytest.raises(DataError, match=r"refused with 404: .*no model 'other'"):
            score_through(Endpoint(url, "other", "t"), given, str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"no answer for 0.1 s"):
        score_through(Endpoint(url, retry_s=0.1), given, str(tmp_path / "away"))
    for wrong in ("localhost:8000", "http://user:hunter2@host"):
        with pytest.raises(ConfigError, match="--url: give http://host:port") as reported:
            score_through(Endpoint(wrong), given, str(tmp_path / "wrong"))
        assert "hunter2" not in str(reported.value)
    with pytest.raises(ConfigError, match="--users = 0: give 1 or more"):
        score_through(Endpoint(url, users=0), given, str(tmp_path / "wrong"))
    with pytest.raises(DataError, match="holds files that scoring did not write"):
        score_through(Endpoint(url), given, given)


def test_times_reach_the_server(small, run, tmp_path):
    table = histories(small)
    times = [[0.0] * len(items) for items in table["items"].to_pylist()]
    times[3] = [0.0]
    (tmp_path / "in").mkdir()
    pq.write_table(table.append_column("times", pa.array(times)), tmp_path / "in" / "a.parquet")
    with Running(served({"default": run}).app) as url:
        found = score_through(Endpoint(url), str(tmp_path / "in"), str(tmp_path / "out"))
    assert found.counts.users_rejected == {"items, ratings and times differ in number": 1}
