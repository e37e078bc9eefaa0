"""Data, losses, bundles, lists and answers are byte by byte what they were before restructuring.

The digests depend on the processor and on torch, so others skip. After a change that is meant to
change them, record again: ``python -m tests.golden.record tests/golden/golden.json``.
"""

import json
from pathlib import Path

import pytest

from tests.golden import record

STORED = json.loads(Path(__file__).with_name("golden.json").read_text())

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.mark.skipif(STORED["machine"] != record.machine(), reason="recorded on another machine")
def test_every_digest_is_as_recorded(tmp_path):
    assert record.recorded(tmp_path) == {key: STORED[key] for key in ("demo", "models")}
