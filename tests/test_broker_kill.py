"""A broker that is killed 50 times with requests in flight loses nothing that it acknowledged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker_kill import PHASES

SEED = 20211105  # of the moments; a failure says which moment it was
MOMENTS = 50
ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.broker_kill", str(SEED), str(MOMENTS), str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(found) == MOMENTS
    for each in found:
        assert each["killed"], each
        for replica in (each["leader"], each["follower"]):
            assert replica["bad"] == 0, each
            assert replica["found"] >= each["acked"], each
        assert each["leader"]["found"] <= each["records"], each
    in_flight = [each["records"] - each["acked"] for each in found]
    assert sum(count >= 5 for count in in_flight) >= 40, in_flight
    phases = [each["phase"] for each in found]
    assert all(phases.count(phase) >= 5 for phase in PHASES), phases
