"""What Ray starts in place of a worker: hands the worker's command to `tests.forked_workers`.

It imports next to nothing, as it runs for every worker.
"""

import json
import os
import socket
import struct
import sys

SOCKET = "TEST_FORK_SOCKET"
"""Environment variable with the path of the root's socket."""

_CONTEXT = "--serialized-runtime-env-context="
_LENGTH = struct.Struct("Q")


def hand_over(command: list[str]) -> None:
    """Let the root run a worker's command as it would run here."""
    context = [part for part in command if part.startswith(_CONTEXT)]
    env_vars = json.loads(context[0].removeprefix(_CONTEXT))["env_vars"] if context else {}
    argv = [part for part in command if part not in context and "--language=" not in part]
    content = json.dumps({"argv": argv, "env": {**os.environ, **env_vars}}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as root:
        root.connect(os.environ[SOCKET])
        send(root, content, [0, 1, 2])
        root.recv(1)  # until the root has the files


def send(target: socket.socket, content: bytes, files: list[int]) -> None:
    """Send a command with open files."""
    socket.send_fds(target, [_LENGTH.pack(len(content))], files)
    target.sendall(content)


def received(source: socket.socket) -> tuple[bytes, list[int]]:
    """Receive what `send` sent.

    Raises:
        EOFError: The other end was closed.
    """
    header, files, _, _ = socket.recv_fds(source, _LENGTH.size, 3)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,), content = _LENGTH.unpack(header), b""
    while len(content) < length:
        part = source.recv(length - len(content))
        if not part:
            raise EOFError
        content += part
    return content, files


if __name__ == "__main__":
    hand_over(sys.argv[1:])
