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
