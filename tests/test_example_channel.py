"""The channel of a third party that ``examples/`` shows: its contract, and its entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from commbench.testing import ChannelContract

EXAMPLES = Path(__file__).parent.parent / "examples"


class TestPipe(ChannelContract):
    channel = "pipe_channel:PipeChannel"
    loops = ("python",)
    environment: ClassVar[Mapping[str, str]] = {"PYTHONPATH": str(EXAMPLES)}


class TestSmallPipe(TestPipe):
    options: ClassVar[Mapping[str, str]] = {"buf": "4K"}


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has installed the package of the example."""
    (tmp_path / "pipe_channel.py").write_text((EXAMPLES / "pipe_channel.py").read_text())
    info = tmp_path / "commbench_pipe-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: commbench-pipe\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "[commbench.channels]\npipe = pipe_channel:PipeChannel\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def commbench(environ: Mapping[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "commbench", *argv]
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def test_found_by_its_entry_point(installed: dict[str, str]) -> None:
    listed = commbench(installed, "channels", "-v")
    assert "pipe       usable" in listed.stdout
    assert "-o buf=1M" in listed.stdout


def test_runs_as_any_channel(installed: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "pipe.jsonl"
    flags = ["-C", "pipe", "-m", "64,64K", "-i", "50", "-x", "5", "--output", str(out)]
    ran = commbench(installed, "run", "latency,bandwidth,bibw,message-rate", *flags)
    assert ran.returncode == 0, ran.stderr
    cases = [json.loads(line) for line in out.read_text().splitlines()[1:-1]]
    assert len(cases) == 8
    assert {case["case"]["channel"] for case in cases} == {"pipe"}
    assert {case["delivery"] for case in cases} == {"request", "one-way"}
    assert all(case["channel_info"]["transport"] == "named pipe" for case in cases)


@pytest.mark.parametrize("value", ["nonsense", "1G"])
def test_refuses_a_pipe_size(installed: dict[str, str], value: str) -> None:
    ran = commbench(installed, "run", "-C", "pipe", "-m", "1", "-i", "1", "-o", f"buf={value}")
    assert ran.returncode == 2, ran.stderr
    assert "-o buf" in ran.stderr
    assert "Traceback" not in ran.stderr
