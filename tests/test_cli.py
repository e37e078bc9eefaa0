import pytest
import ray

from distrib import cli


def test_ray_that_does_not_start_is_reported_in_one_line(monkeypatch, capsys):
    def fails(*_, **__):
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", fails)

    def work():
        with cli.connected():
            raise AssertionError

    assert cli.run_and_report(work) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ClusterError: Ray did not start on this machine (The current node")


@pytest.mark.parametrize(
    ("signal", "code", "text"),
    [(KeyboardInterrupt(), 130, "interrupted"), (cli._Terminated(), 143, "terminated")],
)
def test_a_signal_inside_of_rays_core_ends_a_job_as_any_other(capsys, signal, code, text):
    def work():
        raise SystemError("returned a result with an exception set") from signal

    assert cli.run_and_report(work) == code
    assert capsys.readouterr().err == f"{text}; rerun the same command to continue\n"


def test_another_error_of_the_interpreter_is_a_bug(capsys):
    def work():
        raise SystemError("bad argument")

    assert cli.run_and_report(work) == 70
    assert "SystemError: bad argument" in capsys.readouterr().err
