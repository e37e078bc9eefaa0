"""gcp-storage-emulator, an emulator of Google Cloud Storage, as an ordinary process."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.stores.process import free_ports, stop, wait_for


@contextmanager
def gcs(root: Path, python: Path) -> Iterator[str]:
    """Run the emulator for the time of the block.

    Args:
        root: An empty folder for its data and its log.
        python: The interpreter of an environment in which gcp-storage-emulator is installed.

    Yields:
        The URL, for STORAGE_EMULATOR_HOST.

    Raises:
        RuntimeError: The server ended or did not answer in time; its log is in the message.
    """
    root = root.absolute()
    (root / "data").mkdir(parents=True)
    port = free_ports(1)[0]
    log = root / "gcs.log"
    command = [str(python.parent / "gcp-storage-emulator"), "start"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=root,
            env={
                **os.environ,
                "STORAGE_BASE": str(root),
                "STORAGE_DIR": "data",
                "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            },
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(process, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(process)
