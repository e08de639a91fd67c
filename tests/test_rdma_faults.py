"""What ends or hinders a run over ``rdma``, on the devices of the Soft-RoCE machine."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from commbench.channels.rdma import RdmaChannel
from commbench.channels.rdma_devices import choose
from commbench.errors import ChannelUnavailable, PeerLost, UsageError
from commbench.harness.loops import Stamps
from commbench.harness.softroce.layout import ENDS, HOST
from commbench.harness.softroce.loss import counters, drops, lossy
from commbench.harness.sysfs import Tree
from tests.command import COMMBENCH, ENDS_WITHIN_S, Ended, Running, cases, long_job, until
from tests.rdma_ends import run, start, together
from tests.rdma_pair import MISSING, connected

pytestmark = [pytest.mark.rdma, pytest.mark.timeout(400)]  # an emulated machine on a busy host

LONG_S = 150.0
SLOW = {"COMMBENCH_JOIN_TIMEOUT": "100"}  # s until all ranks have come


def started(*argv: object) -> Running:
    return Running(COMMBENCH, "run", *argv, "--bind", "none", **SLOW)


def grown(before: dict[str, dict[str, int]], *names: str) -> int:
    return sum(
        now[name] - before[device][name] for device, now in counted().items() for name in names
    )


def counted() -> dict[str, dict[str, int]]:
    return {end.device: counters(end.device) for end in ENDS}


def said(ended: Ended) -> str:
    """The one line for people."""
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("# ")]
    return line


# ---------------------------------------------------------------------- what is not there


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"device": "mlx5_0"}, "--ib-dev mlx5_0: no device mlx5_0 here; there are: rxe0, rxe1"),
        ({"device": "rxe1", "port": "2"}, "--ib-port 2: rxe1 has no such port; it has: 1"),
        ({"gid_index": "99"}, "--gid-index 99: rxe0 port 1 has no such GID; it has: 0 (RoCE v2"),
    ],
)
def test_what_is_not_there_is_said(flags: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(Tree(), **flags)
    assert line in str(caught.value)


# ---------------------------------------------------------------------- locked memory

PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
from dataclasses import asdict
from tests.rdma_pair import engine
try:
    engine(sys.argv[1], 0, "send", eager_max=16384, rx_depth=256)
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("kind", ["native", "python"])
def test_too_little_locked_memory_names_the_limit(kind: str) -> None:
    """Root registers past the limit, so it goes without that right."""
    if MISSING[kind]:
        pytest.skip(str(MISSING[kind]))
    ended = subprocess.run(
        [*without_lock_right(), sys.executable, "-c", PROGRAM, kind],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    line = "bytes cannot be registered on rxe0: Cannot allocate memory; the limit of locked memory"
    assert line in ended.stdout, ended.stderr
    assert "is 64 KiB: raise it (ulimit -l unlimited" in ended.stdout


def test_slots_beyond_the_locked_memory_end_the_run_in_one_line() -> None:
    """There is enough of it for the frames, and not for the messages of the case."""
    limited = (*without_lock_right(), "prlimit", "--memlock=16777216:16777216", *COMMBENCH)
    ended = Running(limited, "run", "latency", "-C", "rdma", "-m", "32M", **SLOW).end(LONG_S)
    assert ended.exit_code == 5
    assert "the limit of locked memory is 16384 KiB: raise it (ulimit -l unlimited" in said(ended)


def without_lock_right() -> tuple[str, ...]:
    return ("setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock")


# ---------------------------------------------------------------------- peers that go


@pytest.mark.parametrize("part", ["asks", "serves"])
@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_peer_that_vanishes_is_named(kind: str, part: str) -> None:
    """The device says so when retries are exhausted, also to a rank that only waits."""
    kinds = (kind, "native") if part == "asks" else ("native", kind)
    gone: list[float] = []
    before = counted()
    with connected(kinds, "send") as ends:
        rank = 0 if part == "asks" else 1
        other = ends[1 - rank]

        def leave() -> None:
            loop, block = start(other, 1 - rank, (3000,), 8, 8, count=1)
            loop.run(block, Stamps(1))
            other.close()
            gone.append(time.monotonic())

        loop, block = start(ends[rank], rank, (3000,), 8, 8, count=1000)
        leaver = threading.Thread(target=leave, daemon=True)
        leaver.start()
        with pytest.raises(PeerLost, match=f"rank {1 - rank} is gone .*retry"):
            loop.run(block, Stamps(1000))
        assert time.monotonic() - gone[0] < ENDS_WITHIN_S
        leaver.join(LONG_S)
        loop.close()
    assert grown(before, "retry_exceeded_err") > 0


def first_case(running: Running, output: Path) -> None:
    """Wait until it is in the file."""
    try:
        until(lambda: cases(output) or running.process.poll() is not None, "no case", LONG_S)
        assert running.process.poll() is None
    except AssertionError:
        running.process.terminate()
        raise


def test_a_killed_rank_ends_its_run_and_no_other_on_the_device(tmp_path: Path) -> None:
    """The other pair of queue pairs is in this process."""
    output = tmp_path / "out.jsonl"
    job, shape = long_job(tmp_path, "rdma", option=["wait=block"]), (9000,)

    def verified() -> None:
        together(lambda: run(one, 0, shape, 4, count=5), lambda: run(two, 1, shape, 4, count=5))

    with connected(("native", "native"), "send") as (one, two):
        running = started(job, "--in-order", "--output", output)
        try:
            first_case(running, output)
            verified()
            assert running.process.poll() is None
            running.kill_rank(1)
        finally:
            ended = running.end(LONG_S)
        verified()
    assert (ended.exit_code, ended.elapsed_s < ENDS_WITHIN_S) == (5, True)
    assert said(ended) == f"commbench: rank 1 on {HOST} was killed by SIGKILL"


# ---------------------------------------------------------------------- the link


@contextmanager
def unplugged() -> Iterator[None]:
    """One end of the cable is down; a port follows its interface."""
    _link("down")
    try:
        until(lambda: states() != {"4: ACTIVE"}, "the ports stay up")
        yield
    finally:
        _link("up")
        until(lambda: states() == {"4: ACTIVE"}, "the ports do not come up again")


def _link(state: str) -> None:
    subprocess.run(["ip", "link", "set", ENDS[1].interface, state], check=True, timeout=60)


def states() -> set[str | None]:
    ports = (f"sys/class/infiniband/{end.device}/ports/1/state" for end in ENDS)
    return {Tree().text(port) for port in ports}


def test_a_link_that_goes_down_names_the_rank_behind_it(tmp_path: Path) -> None:
    """The rendezvous does not use it, so only the device can say; then there is no port to use."""
    output = tmp_path / "out.jsonl"
    job = long_job(tmp_path, "rdma", option=["wait=block"])
    running = started(job, "--in-order", "--output", output)
    try:
        first_case(running, output)
        before = counted()
        until(lambda: grown(before, "sent_pkts") > 500, "the second case does not run", LONG_S)
        running.fault()
        with unplugged():
            until(lambda: running.process.poll() is not None, "it goes on", LONG_S)
            elapsed_s = time.monotonic() - running.began
            missing = RdmaChannel.missing()
            with pytest.raises(ChannelUnavailable) as caught:
                choose(Tree(), device="rxe1")
    finally:
        ended = running.end(LONG_S)
    line = said(ended)
    assert (ended.exit_code, elapsed_s < ENDS_WITHIN_S) == (5, True), line
    assert line.endswith("; our port is not active"), line
    assert re.search(r"rank [01] (on \S+ is gone|and this one failed to communicate) \(", line)
    assert missing and missing.startswith("no RDMA port is active: rxe0 port 1 is ")
    assert "channel rdma: rxe1 port 1 is 1: DOWN, not 4: ACTIVE" in str(caught.value)


def test_lost_packets_are_sent_again() -> None:
    """Every message is validated, while each device drops one packet in a hundred."""
    before = counted()
    with lossy(1):
        argv = ("latency", "-C", "rdma", "-m", "128K", "-i", 15, "-x", 1, "-c")
        started(*argv).end(LONG_S).ok()
        assert sum(drops().values()) > 0
    assert grown(before, "completer_retry_err", "duplicate_request") > 0


@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_receiver_that_is_not_ready_is_waited_for(kind: str) -> None:
    """Its peer takes its ring for larger than it is, and sends more than was posted there."""
    before = counted()
    with connected((kind, "native"), "send", told={"ring_depth": 32}) as (one, two):

        def later() -> None:
            time.sleep(0.5)
            run(two, 1, (700,), 24, 24, count=3)

        together(lambda: run(one, 0, (700,), 24, 24, count=3), later)
    assert grown(before, "rcvd_rnr_err") > 0
