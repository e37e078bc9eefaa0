"""The pages do what they say: Python blocks and commands run, others are valid."""

import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import distrib
from distrib.config import load
from distrib.console import JOBS, OTHERS, cli
from distrib.run_file import RunFile
from distrib.studies.config import StudyFile

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("quickstart", "python", "recipes", "contributing")
"""Pages whose blocks run from first to last."""

FEWER = ["--set", "train.num_epochs=2", "--set", "train.num_workers=1"]
ELSEWHERE = ("submit", "plan", "serve", "score-through")
"""Commands that need a cluster, or do not end; their pages have tests of their own."""


def blocks(page, *languages):
    """Fenced blocks of a page, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if language in languages]


def commands(page):
    """Commands in fenced blocks and in code spans, without remarks."""
    for _, text in blocks(page, "sh", ""):
        joined = text.replace("\\\n", " ")
        for line in joined.split("\n"):
            if line.startswith(("distrib ", "make ", "python jobs/", "python -m tests")):
                yield shlex.split(line, comments=True)
    for span in re.findall(r"`((?:distrib|make) [^`]+)`", page.read_text()):
        if "<" not in span and "|" not in span and "..." not in span:
            yield shlex.split(span)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_is_one(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            names = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            assert {*names} <= targets, words
        elif words[0] == "distrib" and len(words) > 1:
            assert words[1] in {*JOBS, *OTHERS, "config", "--help", "--version"}, words
            settings = [words[n + 1] for n, word in enumerate(words) if word == "--set"]
            environment = {"DISTRIB_DATA": "/data"}
            changed = [text for text in settings if "model=" not in text]
            kind, file = (StudyFile, "studies/demo") if words[1] == "study" else (RunFile, "demo")
            load(kind, ROOT / f"configs/{file}.toml", overrides=changed, environment=environment)
        elif words[1] == "-m":
            assert (ROOT / f"{words[2].replace('.', '/')}.py").exists(), words
        elif words[0] == "python":
            assert (ROOT / words[1]).exists(), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_toml_blocks_are_valid_settings(page):
    import tomllib

    for _, text in blocks(page, "toml"):
        tomllib.loads(text)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder with the logs that the pages name."""
    rng = np.random.default_rng(0)
    taste = rng.integers(0, 4, 120)
    rows = [
        (f"user-{user}", f"item-{item}", 1_700_000_000 + user * 100 + n)
        for user in range(120)
        for n, item in enumerate(rng.choice(12, 8, replace=False) * 4 + taste[user])
    ]
    columns = dict(zip(("user", "item", "time"), zip(*rows, strict=True), strict=True))
    table = pa.table({name: list(values) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "events.parquet")
    (tmp_path / "events").mkdir()
    pq.write_table(table, tmp_path / "events" / "day-1.parquet")
    (tmp_path / "people.txt").write_text("user-3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words):
    if words[1] in ELSEWHERE:
        return
    more = FEWER if words[1] in {*JOBS} - {"prepare", "forget"} else []
    found = CliRunner().invoke(cli, [*words[1:], *more])
    assert found.exit_code == 0, (words, found.output[-3000:])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", RUN)
def test_blocks_run_from_first_to_last(name, shop, cluster):
    names = {}
    if name == "python":  # the page's second way to name a run
        CliRunner().invoke(cli, ["init", "events.parquet"])
        text = (shop / "events.toml").read_text().replace("num_epochs = 100", "num_epochs = 2")
        (shop / "events.toml").write_text(text)
        distrib.prepare("events.toml")
    for language, text in blocks(ROOT / f"docs/{name}.md", "sh", "python"):
        if language == "python":
            exec(compile(text, f"docs/{name}.md", "exec"), names)
            continue
        for line in text.replace("\\\n", " ").strip().split("\n"):
            run(shlex.split(line, comments=True))
