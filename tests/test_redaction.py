"""No message repeats a secret, in whatever form it came."""

import json
import subprocess
import sys
import time

import pytest

from distrib import redaction
from distrib.cli import UNEXPECTED, run_and_report
from distrib.config import load
from distrib.errors import ConfigError, DataError
from distrib.events import emit
from distrib.redaction import hide, is_secret, redacted
from distrib.run_file import RunFile

MARK = "s3cr3t-Zq7"
BASE = '[data]\nprepared = "p"\n[model]\nname = "popularity"\n'


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(redaction, "_values", set())


@pytest.mark.parametrize(
    "name",
    ["token", "serve.token", "DISTRIB_TOKEN", "api_key", "AWS_SECRET_ACCESS_KEY", "auth", "tokn",
     "passwd", "db-password", "x.sas", "account_key", "credentials"],
)  # fmt: skip
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["author", "authors.name", "TOKENIZERS_PARALLELISM", "key", "keep_above", "stock", "k"]
)
def test_names_of_no_secrets(name):
    assert not is_secret(name)


@pytest.mark.parametrize(
    "text",
    [
        f"s3://key:{MARK}@bucket", f"https://h/x?a=1&sig={MARK}", f"token={MARK}",
        f'serve={{token="{MARK}"}}', f'{{"api_key": "{MARK}"}}', f"password = '{MARK}'",
        f"https://h/?X-Amz-Security-Token={MARK}", f"AWS_SECRET_ACCESS_KEY={MARK}",
    ],
)  # fmt: skip
def test_secrets_are_found_where_they_stand(text):
    assert MARK not in redacted(text)


def test_what_is_no_secret_stays():
    text = (
        'serve.token = "${DISTRIB_TOKEN}": unknown key; s3://bucket/a:b/c, http://h:80/a@b, tokens'
    )
    assert redacted(text) == text


def test_long_text_costs_little_time():
    started_s = time.perf_counter()
    for text in ("x" * 10**6, "token" * 10**5, "://" * 10**5, "token=" * 10**5, "a:" * 10**5 + "@"):
        redacted(text)
    assert time.perf_counter() - started_s < 10


def test_known_values_go_wherever_they_are(capsys):
    hide('with "quotes" and more')
    emit("failed", error='found with "quotes" and more here')
    shown = capsys.readouterr().err
    assert "quotes" not in shown
    assert json.loads(shown)["error"] == "found *** here"


OVERRIDES = [
    f"serve={{token={MARK}}}", f'serve=[{{token="{MARK}"}}]', f"serve.token={MARK}",
    f'serve={{token="{MARK}", host="${{UNSET_X}}"}}', f'serve.token=["{MARK}"]',
    f'serve={{api_key="{MARK}"}}', f'serve.tokn="{MARK}"', f'data.prepared="s3://a:{MARK}@b/c"',
    f'serve.token="{MARK}"\nserve.port="x"', f'token.x.y="{MARK}"',
]  # fmt: skip


@pytest.mark.parametrize("override", OVERRIDES)
def test_no_message_of_a_run_file_repeats_a_secret(tmp_path, override, capsys):
    (tmp_path / "run.toml").write_text('run = "r"\n' + BASE)

    def work():
        load(RunFile, tmp_path / "run.toml", overrides=[override], environment={})
        raise DataError(f"late: {override}")

    assert run_and_report(work) in (1, 2)
    assert MARK not in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    ["#", "=", "", "a=" + "9" * 5000, "a=" + "[" * 5000, "a.b.c", "run.x=1", "a=\ud800"],
)
def test_overrides_that_are_none_are_refused_in_short(tmp_path, override):
    (tmp_path / "run.toml").write_text('run = "r"\n' + BASE)
    with pytest.raises(ConfigError, match="--set") as found:
        load(RunFile, tmp_path / "run.toml", overrides=[override], environment={})
    assert len(str(found.value)) < 600


@pytest.mark.parametrize(
    "content",
    [
        'run = "r"\nx = ' + "[" * 250 + "]" * 250 + f'\n[serve]\ntoken = "{MARK}"\n',
        'run = "r"\nx = ' + "[" * 5000 + f'"{MARK}"', 'run = "${BAD}"\n' + BASE,
        "seed = " + "9" * 6000,
        'run = "r"\n[train]\ncollective_timeout_s = inf\nlog_every_s = nan\n' + BASE,
        'run = "r"\nevil = """' + "x" * 100_000 + '"""\n' + BASE,
    ],
)  # fmt: skip
def test_odd_run_files_are_refused_in_short(tmp_path, content):
    (tmp_path / "run.toml").write_text(content)
    with pytest.raises(ConfigError) as found:
        load(RunFile, tmp_path / "run.toml", environment={"BAD": "a\udcffb"})
    assert MARK not in str(found.value)
    assert len(str(found.value)) < 3000


def test_what_nothing_foresaw_is_one_line_and_a_log(capsys):
    hide(MARK)

    def work():
        raise RuntimeError(f"odd {MARK}\nof two lines")

    assert run_and_report(work) == UNEXPECTED
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    log = line.partition("the traceback is in ")[2].partition(";")[0]
    with open(log, encoding="utf-8") as file:  # noqa: PTH123
        trace = file.read()
    assert "in work" in trace
    assert MARK not in line + trace


def test_a_secret_of_the_environment_does_not_come_out_of_a_job(tmp_path):
    (tmp_path / "run.toml").write_text('run = "${DISTRIB_TOKEN}://x/y"\n' + BASE)
    source = '{format="csv", path="${DISTRIB_TOKEN}", columns={user="u", item="i"}}'
    command = [sys.executable, "jobs/prepare.py", "--config", str(tmp_path / "run.toml")]
    found = subprocess.run(
        [*command, "--set", f"data.source={source}"],
        capture_output=True,
        text=True,
        check=False,
        env={"DISTRIB_TOKEN": MARK, "PATH": ""},
    )
    assert found.returncode in (1, 2)
    assert MARK not in found.stderr + found.stdout
