"""What ends a run of the broker benchmark, and what does not: lost ranks, a silent replica, a full
disk, a log that was damaged, strangers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from pathlib import Path

import pytest

from commbench import _native
from tests import usable
from tests.broker_ranks import PRODUCE, batch, request
from tests.command import COMMBENCH, Running, cases, commbench, in_second_case, until

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


def test_a_damaged_log_is_cut_and_the_case_says_how_much(tmp_path: Path) -> None:
    """One bit of its last batch but one: what comes behind it is whole and goes, too."""
    argv = ("--log-dir", tmp_path / "logs", "--records", 100, "-x", 0, "--batch-size", "1K")
    commbench("run", "broker", *argv).ok()
    folder = tmp_path / "logs" / "broker-0" / "commbench-0"
    (file,) = folder.glob("*.log")
    data = bytearray(file.read_bytes())
    starts = batch_starts(data)
    data[starts[-1] - 1] ^= 1
    file.write_bytes(data)

    output = tmp_path / "x.jsonl"
    commbench("run", "broker", *argv, "--output", output).ok()
    (case,) = cases(output)
    (line,) = [each for each in case["warnings"] if "was cut" in each]
    last_records = struct.unpack_from(">i", data, starts[-1] + 57)[0]
    assert "the log of partition 0 on rank 0 was cut: " in line
    assert f"{len(data) - starts[-2]} bytes, {last_records} whole records among them" in line
    is_whole(folder)


def batch_starts(log: bytes | bytearray) -> list[int]:
    """Where its batches begin: an offset of 8 bytes, the length of the rest in 4, the rest."""
    starts, at = [], 0
    while at < len(log):
        starts.append(at)
        at += 12 + int.from_bytes(log[at + 8 : at + 12], "big")
    return starts


@pytest.mark.parametrize("channel", ["tcp", usable.channel("grpc-core")])
def test_a_stranger_brings_no_record_into_the_log(channel: str, tmp_path: Path) -> None:
    """Whatever port a broker listens at in mid-run: a PRODUCE without the token gets no answer."""
    output, data = tmp_path / "x.jsonl", request(PRODUCE, 0x5EADBEEF, body=batch([b"stranger" * 4]))
    argv = ("-C", channel, "--rate", 1000, "-D", "3s", "--log-dir", tmp_path / "logs")
    running = Running(COMMBENCH, "run", "broker", *argv, "--output", output)
    log = tmp_path / "logs" / "broker-0" / "commbench-0"
    until(lambda: any(each.stat().st_size > 20_000 for each in log.glob("*.log")), "no record")
    ports = listening(running.rank(0))
    heard = [said_to(port, data) for port in ports]
    refused = [called(port, data) for port in ports] if channel == "grpc-core" else []
    running.end(30).ok()
    assert [each for each in heard if data[8:12] in each[:28]] == [], "its correlation"
    assert channel == "tcp" or "UNAUTHENTICATED" in refused
    assert "OK" not in refused
    (case,) = cases(output)
    assert case["broker"]["refused"] == 0
    assert case["broker"]["log"]["records"] == case["broker"]["records"]
    is_whole(log)
    assert all(b"stranger" not in each.read_bytes() for each in log.glob("*.log"))


def said_to(port: int, data: bytes) -> bytes:
    """What comes back from there, if anything does."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as sock:
        sock.settimeout(0.5)
        sock.sendall(data)
        return sock.recv(4096)
    return b""


def called(port: int, data: bytes) -> str:
    """The status of a call without the token."""
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary("/commbench/Ask")(data, timeout=2)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"


def listening(pid: int) -> list[int]:
    """The TCP ports at which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(link.readlink().name.removeprefix("socket:[").rstrip("]"))
    tables = [Path("/proc/net", each).read_text() for each in ("tcp", "tcp6")]
    rows = [line.split() for each in tables for line in each.splitlines()]
    return [int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes]
