"""Ray workers forked from a process that has imported everything already.

A worker that Ray starts spends seconds of CPU time on imports, again and again: that was most of
the time of these tests. Within `forking`, Ray starts a small script in place of each worker
(`fork_client`); it hands its command, environment and open files to a server, which forks.

A root process imports what does not depend on a cluster; it forks a server for each cluster and
job, because Ray reads its settings when it is imported. Processes form one tree below the tests.

Differs from real workers: memory settings of glibc and the number of OpenMP threads (1) are read at
the start of a process, so they are those of the root; the workers of a cluster share one hash seed,
and NumPy's global generator begins with the same numbers in all of them.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from tests.fork_client import SOCKET, received, send

ROOT = Path(__file__).parents[1]
_SCRIPT = str(Path(__file__).with_name("fork_client.py"))
_MODULE = ("-m", "tests.forked_workers")
_COMMON = (
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "scipy.stats",
    "torch._dynamo",
)
_OF_RAY = ("ray.data", "ray.train.torch", "ray._private.workers")
_ONE_THREAD = {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""No thread survives a fork; and OpenMP reads how many a worker may have when it is imported."""

_POLL_S = 1.0


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Fork the workers of all clusters that this process starts inside."""
    from ray._private import ray_constants  # Ray has no public setting for the script

    with tempfile.TemporaryDirectory() as folder:
        os.environ[SOCKET] = str(Path(folder) / "socket")
        command, env = [sys.executable, *_MODULE, "--root"], os.environ | _ONE_THREAD
        root = subprocess.Popen(command, cwd=ROOT, env=env)
        before, ray_constants.SETUP_WORKER_FILENAME = ray_constants.SETUP_WORKER_FILENAME, _SCRIPT
        try:
            while not Path(os.environ[SOCKET]).exists():
                assert root.poll() is None
                time.sleep(0.05)
            yield
        finally:
            ray_constants.SETUP_WORKER_FILENAME = before
            del os.environ[SOCKET]
            root.terminate()
            root.wait()


def running(script: str, *arguments: str) -> list[str]:
    """Return the command to run a script from `ROOT`; within `forking`, its clusters fork, too."""
    return [sys.executable, *(_MODULE if SOCKET in os.environ else ()), script, *arguments]


def _run(script: str) -> None:
    """Run a script as Python would."""
    from ray._private import ray_constants

    ray_constants.SETUP_WORKER_FILENAME = _SCRIPT
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


class Root:
    """Passes each command on to the server of its cluster and job."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.servers: dict[tuple[str, str], socket.socket] = {}

    def serve(self) -> None:
        """Serve until the parent ends."""
        parent = os.getppid()
        while os.getppid() == parent:
            if not _is_ready(self.listener):
                continue
            connection, _ = self.listener.accept()
            # A client may be killed at any time, a server with its cluster.
            with connection, contextlib.suppress(EOFError, ConnectionError):
                self._pass_on(connection)

    def _pass_on(self, connection: socket.socket) -> None:
        content, files = received(connection)
        env = json.loads(content)["env"]
        key = env["RAY_RAYLET_PID"], env["RAY_JOB_ID"]
        if key not in self.servers:
            ours, theirs = socket.socketpair()
            if not os.fork():
                for held in (self.listener, connection, ours, *self.servers.values()):
                    held.close()
                _close(files)
                serve(theirs, env)
            theirs.close()
            self.servers[key] = ours
        send(self.servers[key], content, files)
        _close(files)
        connection.sendall(b".")


def serve(source: socket.socket, env: dict[str, str]) -> None:
    """Fork the workers of one cluster and job until its raylet has ended; does not return."""
    _replace_environment(env)
    sys.path[:1] = [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), str(ROOT)]
    from ray._raylet import ActorClassID, setproctitle

    import distrib

    # Actor classes are numbered when they are imported. Ray's own generator must not start before
    # the forks, or workers would give their objects the same numbers.
    with mock.patch("ray.actor.ActorClassID") as numbers:
        numbers.from_random = lambda: ActorClassID(os.urandom(ActorClassID.size()))
        _import(_OF_RAY)
        _import([module.name for module in pkgutil.walk_packages(distrib.__path__, "distrib.")])

    # Ray names a worker by overwriting the arguments of its process, and finds them beside the
    # environment that the process started with: only before that is replaced.
    setproctitle("forked workers")
    gc.collect()
    gc.freeze()
    raylet = Path("/proc") / env["RAY_RAYLET_PID"]
    while raylet.exists():
        if not _is_ready(source):
            continue
        try:
            content, files = received(source)
        except EOFError:
            break
        if not os.fork():
            source.close()
            _become_worker(json.loads(content), files)
        _close(files)
    os._exit(0)


def _become_worker(task: dict[str, object], files: list[int]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
    _close(files)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray cancels tasks by it
    _replace_environment(task["env"])
    sys.argv = task["argv"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)


def _is_ready(source: socket.socket) -> bool:
    """Wait a moment for something to read."""
    return bool(select.select([source], [], [], _POLL_S)[0])


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _replace_environment(env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)


def _import(names: list[str] | tuple[str, ...]) -> None:
    for name in names:
        importlib.import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread would not survive a fork"


def main() -> None:
    if sys.argv[1:] == ["--root"]:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # DeepSpeed would, with threads
        _import(_COMMON)
        del sys.modules["mlflow"]
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            path = os.environ[SOCKET]
            listener.bind(f"{path}.new")
            listener.listen(64)
            Path(f"{path}.new").rename(path)  # it exists once it listens
            Root(listener).serve()
    else:
        sys.argv = sys.argv[1:]
        _run(sys.argv[0])


if __name__ == "__main__":
    main()
