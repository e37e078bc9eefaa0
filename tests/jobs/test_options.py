"""Options of every job: what it would do, and where its progress is written."""

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from distrib.config import load
from distrib.console import JOBS, cli
from distrib.jobs.dry_run import PLANS
from distrib.run_file import RunFile
from distrib.storage import absolute
from tests.forked_workers import running

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs/demo.toml"


def answer(*arguments):
    return CliRunner().invoke(cli, list(arguments))


@pytest.mark.parametrize("job", JOBS)
def test_a_dry_run_names_what_is_read_and_written_and_does_nothing(job, tmp_path):
    run, data = tmp_path / "run", tmp_path / "data"
    settings = ["--set", f'run="{run}"', "--set", f'data.prepared="{data}"']
    settings += ["--set", 'convert.output="out"', "--set", 'forget.users="people.txt"']
    config = DEMO
    if job == "study":
        config = ROOT / "configs/studies/demo.toml"
        settings = ["--set", f'output="{run}"', "--set", f'runs="{data}"']
    found = answer(job, "--config", str(config), *settings, "--dry-run")
    assert found.exit_code == 0, found.output
    plan = json.loads(found.stdout)
    assert plan["job"] == job
    named = " ".join([*plan["reads"], *plan["writes"]])
    assert str(run) in named or str(data) in named
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    is_ready = job in {"prepare", "pipeline", "nightly", "study"}
    assert bool(plan["not_ready"]) != is_ready, plan


def test_plans_are_of_all_jobs_and_say_where_settings_lead():
    assert PLANS.keys() == JOBS.keys()
    overrides = ['score.output="lists"', 'score.histories="new"', "train.num_workers=4"]
    file = load(RunFile, DEMO, overrides=overrides)
    assert list(PLANS["score"](file).writes) == ["lists"]
    assert "new" in PLANS["score"](file).reads
    assert PLANS["train"](file).needs["workers"] == 4
    whole = PLANS["pipeline"](file)
    assert file.data.prepared not in whole.reads  # it makes them itself
    assert whole.writes[0] == file.data.prepared
    assert absolute(whole.writes[1])


@pytest.mark.long
def test_progress_goes_to_a_file_or_nowhere_and_the_result_to_standard_output(
    forked_workers, tmp_path
):
    settings = ["--set", f'data.prepared="{tmp_path}/data"', "--set", "data.num_shards=2"]
    small = "data.source={format='synthetic', num_users=50, num_items=10, num_interactions=200}"
    command = running("jobs/prepare.py", "--config", str(DEMO))

    def run(*more):
        return subprocess.run(
            [*command, *settings, "--set", small, *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    log = tmp_path / "log.txt"
    first = run("--log-file", str(log))
    assert (first.returncode, first.stderr) == (0, "")
    assert json.loads(first.stdout)["counts"]["users"] > 40
    assert '"event": "prepared"' in log.read_text()
    quiet = run("--quiet")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert json.loads(quiet.stdout)["counts"]["users"] > 40
    wrong = run("--quiet", "--set", "data.num_shards=3")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("DataError: ")
    assert len(wrong.stderr.splitlines()) == 1
    nowhere = run("--log-file", str(tmp_path / "no/such/log"))
    assert nowhere.returncode == 2
    assert "cannot be written" in nowhere.stderr
