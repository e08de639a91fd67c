"""What ends a run of the broker benchmark: lost ranks, a silent replica, a full disk.

A stranger without the run's token never reaches a broker: the channels' own tests have that
(``tests/test_channel_tcp.py``, ``tests/test_channel_grpc_core.py``).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commbench import _native
from tests import usable
from tests.command import COMMBENCH, Running, commbench, in_second_case

HOST = socket.gethostname()
JOB = """
[global]
benchmark = "broker"
channel = "{channel}"
log-dir = "{folder}"
rate = 4000
{more}
[short]
records = 100
warmup = 0
[long]
duration = "5m"
"""
REPLICATED = 'brokers = 2\nreplication = 2\nacks = "all"\n'


def begin(tmp_path: Path, channel: str = "tcp", more: str = "") -> Running:
    """A run in the middle of its second case."""
    job, output = tmp_path / "broker.toml", tmp_path / "x.jsonl"
    job.write_text(JOB.format(channel=channel, folder=tmp_path / "logs", more=more))
    running = Running(COMMBENCH, "run", job, "--in-order", "--output", output)
    in_second_case(running, output)
    return running


def is_whole(folder: Path) -> None:
    """The log opens, and nothing had to be cut off."""
    log = _native.Log(str(folder))
    assert log.recovery.reason == ""
    assert log.next_offset > 0
    log.close()


@pytest.mark.parametrize(
    ("channel", "victim"),
    [("tcp", 0), ("tcp", 1), usable.channel("grpc-core", 0), usable.channel("mpi", 1)],
)
def test_a_broker_or_a_producer_killed_in_mid_run(
    channel: str, victim: int, tmp_path: Path
) -> None:
    running = begin(tmp_path, channel)
    running.kill_rank(victim)
    running.end(30).one_line(5, f"rank {victim} on {HOST} was killed by SIGKILL")


def test_a_follower_killed_under_acks_all(tmp_path: Path) -> None:
    running = begin(tmp_path, more=REPLICATED)
    running.kill_rank(1)
    running.end(30).one_line(5, f"rank 1 on {HOST} was killed by SIGKILL")


def test_a_follower_that_hangs_is_named_in_time(tmp_path: Path) -> None:
    """It is there and its connections are open, but it does not confirm."""
    running = begin(tmp_path, more=REPLICATED + 'partitions = 1\ntimeout = "2s"\n')
    follower = running.rank(1)
    running.fault()
    os.kill(follower, signal.SIGSTOP)
    time.sleep(4)  # it has ended by then but for the rank that hangs, for which our launcher waits
    os.kill(follower, signal.SIGCONT)
    running.end(30).one_line(5, "follower rank 1 has not confirmed offset")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    tried = subprocess.run(mount, capture_output=True, text=True, timeout=20)
    if tried.returncode:
        pytest.skip(f"no tmpfs can be mounted: {tried.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)


@pytest.mark.parametrize("acks", ["0", "1"])
def test_a_full_disk_refuses_records_and_keeps_the_log(acks: str, small_disk: Path) -> None:
    argv = ("--log-dir", small_disk, "--acks", acks, "--records", 100_000)
    ended = commbench("run", "broker", *argv)
    ended.one_line(5, "refused", *(["No space left on device"] if acks == "1" else []))
    is_whole(small_disk / "broker-0" / "commbench-0")


def test_two_brokers_cannot_have_one_log(tmp_path: Path) -> None:
    """The folder of a run that is going on is refused, and that run does not notice."""
    running = begin(tmp_path)
    ended = commbench("run", "broker", "--log-dir", tmp_path / "logs", "--records", 10)
    ended.one_line(2, "--log-dir")
    time.sleep(0.2)
    assert running.process.poll() is None
    running.kill_rank(0)
    running.end(30)


def test_a_second_run_goes_on_with_the_log(tmp_path: Path) -> None:
    for _ in range(2):
        argv = ("--log-dir", tmp_path, "--records", 500, "-x", 0, "-c")
        commbench("run", "broker", *argv).ok()
    log = _native.Log(str(tmp_path / "broker-0" / "commbench-0"))
    assert log.next_offset == 2 * (64 + 500)
    log.close()


def test_temporary_logs_are_removed(tmp_path: Path) -> None:
    commbench("run", "broker", "--records", 100, TMPDIR=str(tmp_path)).ok()
    assert list(tmp_path.glob("commbench-broker-*")) == []
