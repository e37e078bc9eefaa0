"""Hosts on one machine: network namespaces on a bridge, each with its own /tmp/ray and /dev/shm."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

BRIDGE = "distrib-rh"
NETWORK = "10.231.7"
GATEWAY = f"{NETWORK}.1"


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Host:
    """One network namespace; what is started in it sees mounts of its own.

    Args:
        name: Of the host.
        number: Last part of its address.
        places: Folders or files of this machine, by where the host has them.
        environment: Of everything that is started in it.
        log: Where what it says goes.
    """

    def __init__(
        self,
        name: str,
        number: int,
        places: Mapping[str, Path],
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self.name, self.address = f"distrib-{name}", f"{NETWORK}.{number}"
        self.places, self.environment, self.log = places, environment, log
        self._started: list[subprocess.Popen[bytes]] = []
        outside, inside = f"{name[:8]}-out", f"{name[:8]}-in"
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
        run("ip", "link", "set", inside, "netns", self.name)
        run("ip", "link", "set", outside, "master", BRIDGE, "up")
        inner = ("ip", "-n", self.name)
        run(*inner, "link", "set", inside, "name", "eth0")
        run(*inner, "addr", "add", f"{self.address}/24", "dev", "eth0")
        run(*inner, "link", "set", "eth0", "up")
        run(*inner, "link", "set", "lo", "up")
        run(*inner, "route", "add", "default", "via", GATEWAY)

    def start(self, command: str) -> "subprocess.Popen[bytes]":
        """Start a command of the shell in the host."""
        with self.log.open("ab") as log:
            started = subprocess.Popen(self._inside(command), stdout=log, stderr=subprocess.STDOUT)
        self._started.append(started)
        return started

    def call(self, command: str, timeout_s: float) -> "subprocess.CompletedProcess[str]":
        """Run a command of the shell in the host to its end."""
        return subprocess.run(
            self._inside(command), capture_output=True, text=True, timeout=timeout_s
        )

    def die(self) -> None:
        """End everything in the host at once, as a machine that loses power."""
        for _ in range(100):
            pids = run("ip", "netns", "pids", self.name).split()
            if not pids:
                for one in self._started:
                    one.wait()
                return
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        raise TimeoutError(f"{self.name}: {pids} do not end")

    def remove(self) -> None:
        self.die()
        run("ip", "netns", "del", self.name)

    def _inside(self, command: str) -> list[str]:
        mounts = ["mkdir -p /tmp/ray"]
        mounts += [f"mount -t tmpfs tmpfs {place}" for place in ("/dev/shm", "/tmp/ray")]
        for there, here in self.places.items():
            mounts.append(f"mount --bind {here} {there}")
        script = " && ".join([*mounts, f"cd /tmp/ray && exec bash -c {_quoted(command)}"])
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        unshared = ["unshare", "--mount", "bash", "-c", script]
        return ["ip", "netns", "exec", self.name, "env", "-i", *variables, *unshared]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


class Network:
    """The bridge and its hosts; all gone when it is left."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> "Network":
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        self._stack.callback(run, "ip", "link", "del", BRIDGE)
        run("ip", "addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def place(self, path: str, *, is_file: bool) -> None:
        """Make what hosts mount over, and take it away again."""
        made, at = [], Path(path)
        for parent in reversed([at, *at.parents]):
            if not parent.exists():
                made.append(parent)
                parent.touch() if is_file and parent == at else parent.mkdir()
        for one in made:
            self._stack.callback(lambda one=one: one.unlink() if one.is_file() else one.rmdir())

    def add(self, host: Host) -> Host:
        self._stack.callback(host.remove)
        return host
