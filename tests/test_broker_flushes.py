"""How often fdatasync has returned when an acknowledgement is about to be sent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker_flushes import BATCHES

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="cc is missing: install gcc")


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("flushes") / "flushes.so"
    words = ["cc", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o", str(made)]
    subprocess.run([*words, "tests/broker_flushes.c", "-ldl"], cwd=ROOT, check=True, timeout=60)
    return made


def acknowledged(
    preloaded: Path, folder: Path, design: str, flight: int, flush: int
) -> list[dict[str, int]]:
    argv = [sys.executable, "-m", "tests.broker_flushes", folder, design, flight, flush]
    env = {**os.environ, "LD_PRELOAD": str(preloaded)}
    ran = subprocess.run(
        [str(word) for word in argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [each["number"] for each in found] == list(range(BATCHES))
    return found


@pytest.mark.parametrize("design", ["kafka", "frieda"])
def test_one_at_a_time_each_has_one_on_either_log(
    preloaded: Path, design: str, tmp_path: Path
) -> None:
    for each in acknowledged(preloaded, tmp_path, design, flight=1, flush=1):
        assert (each["leader"], each["follower"]) == (each["number"] + 1,) * 2


@pytest.mark.parametrize("design", ["kafka", "frieda"])
def test_overlapped_none_is_answered_before_its_own(
    preloaded: Path, design: str, tmp_path: Path
) -> None:
    """The leader's call for that batch has returned, and after it one of the follower."""
    for each in acknowledged(preloaded, tmp_path, design, flight=5, flush=1):
        assert each["leader"] >= each["number"] + 1
        assert each["follower_since"] >= 1


def test_without_the_policy_there_is_none(preloaded: Path, tmp_path: Path) -> None:
    for each in acknowledged(preloaded, tmp_path, "kafka", flight=5, flush=0):
        assert (each["leader"], each["follower"]) == (0, 0)
