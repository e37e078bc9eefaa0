"""Azurite, Microsoft's emulator of Azure Blob Storage, as an ordinary process."""

import base64
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.stores.process import free_ports, stop, wait_for

ACCOUNT = "testaccount"


@contextmanager
def azurite(root: Path, executable: Path) -> Iterator[str]:
    """Run Azurite's blob service for the time of the block.

    Args:
        root: An empty folder for its data and its log.
        executable: ``node_modules/.bin/azurite-blob``.

    Yields:
        The connection string.

    Raises:
        RuntimeError: The server ended or did not answer in time; its log is in the message.
    """
    root = root.absolute()
    (root / "data").mkdir(parents=True)
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    port = free_ports(1)[0]
    log = root / "azurite.log"
    command = [str(executable), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--location", str(root / "data"), "--silent"]
    command += ["--skipApiVersionCheck", "--disableTelemetry"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(process, port, log)
            yield (
                f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};"
                f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
            )
        finally:
            stop(process)
