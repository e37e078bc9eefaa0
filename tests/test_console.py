"""The console command: what it knows, and what it costs to ask it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from distrib import __version__, cli
from distrib.console import JOBS, OTHERS
from distrib.console import cli as command
from distrib.submit.request import JOBS as SUBMITTED

ROOT = Path(__file__).parent.parent


def answer(*arguments):
    return CliRunner().invoke(command, list(arguments), prog_name="distrib")


def test_help_needs_neither_torch_nor_ray():
    code = (
        "import sys, distrib.console as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(len({'torch', 'ray', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in [*JOBS, *OTHERS])


def test_every_job_is_a_module_a_command_and_a_script():
    for name in JOBS:
        found = importlib.import_module(f"distrib.jobs.{name}").JOB
        assert callable(found.check)
        assert callable(found.run)
        assert "--config" in answer(name, "--help").output
    others = importlib.import_module("distrib.jobs.others")
    assert all(hasattr(others, name.replace("-", "_")) for name in OTHERS)
    scripts = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert scripts == {name.replace("-", "_") for name in [*JOBS, *OTHERS] if name != "init"}
    for name in scripts:
        assert f'main(["{name.replace("_", "-")}"' in (ROOT / f"jobs/{name}.py").read_text()
    assert set(SUBMITTED) <= set(JOBS)


def completed(words):
    """What a shell offers for the last of some words."""
    given = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    given["_DISTRIB_COMPLETE"] = "bash_complete"
    found = CliRunner().invoke(command, [], prog_name="distrib", env=given)
    return found.output.split()


def test_shells_complete_commands_files_formats_and_settings():
    assert completed(["distrib", "tra"]) == ["plain,train"]
    assert completed(["distrib", "train", "--con"]) == ["plain,--config"]
    assert completed(["distrib", "train", "--config", "a"]) == ["file,a"]
    assert completed(["distrib", "init", "a"])[0].startswith("file,")
    assert completed(["distrib", "study", "--export", "r"]) == ["plain,recbole"]
    found = completed(["distrib", "train", "--set", "train.num_"])
    assert found == ["plain,train.num_epochs=", "plain,train.num_workers="]


def test_wrong_commands_are_one_message_and_exit_code_2():
    for arguments, message in (
        (["trains"], "No such command"),
        (["train"], "Missing option '--config'"),
        (["train", "--config"], "requires an argument"),
    ):
        found = answer(*arguments)
        assert found.exit_code == 2
        assert message in found.output
    assert __version__ in answer("--version").output


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_exit_code_and_the_settings_are_those_of_the_job(monkeypatch, code):
    seen = []

    def job(name, found, plan, arguments):
        seen.append((name, arguments))
        return code

    monkeypatch.setattr(cli, "job", job)
    found = answer("forget", "--config", "my.toml", "--set", "run='x'", "--users", 'a "b".txt')
    assert found.exit_code == code
    name, arguments = seen[0]
    assert name == "forget"
    users = 'forget.users="a \\"b\\".txt"'
    assert arguments == ["--config", "my.toml", "--set", "run='x'", "--set", users]
