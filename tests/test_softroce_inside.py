"""The machine from inside: its clock, its two devices, data between them, packets that are lost."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator

import pytest

from commbench.harness.softroce.layout import ENDS
from commbench.harness.softroce.loss import counters, drops, lossy
from commbench.harness.sysfs import Tree

pytestmark = pytest.mark.rdma

TOOL_S = 100.0  # the longest that a tool may take, in an emulated machine on a busy host
FIRST, SECOND = ENDS


def gid_index(device: str, address: str) -> int:
    """Of the RoCE v2 GID of an IPv4 address."""
    port = f"sys/class/infiniband/{device}/ports/1"
    octets = [int(part) for part in address.split(".")]
    tail = f"ffff:{octets[0]:02x}{octets[1]:02x}:{octets[2]:02x}{octets[3]:02x}"
    for name in Tree().names(f"{port}/gids"):
        if (Tree().text(f"{port}/gids/{name}") or "").endswith(tail):
            assert Tree().text(f"{port}/gid_attrs/types/{name}") == "RoCE v2"
            return int(name)
    raise AssertionError(f"{device} has no GID of {address}")


@contextlib.contextmanager
def serving(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A tool that waits for its client."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def between(tool: str, port: int, *words: str) -> str:
    """Run a tool of two ends from the first device to the second; what the client said."""
    ends = []
    for end in ENDS:
        index = str(gid_index(end.device, end.address))
        gid = ("-g" if tool.startswith("ibv_") else "-x", index)
        ends.append((tool, "-d", end.device, *gid, "-p", str(port), *words))
    with serving(*ends[1]) as server:
        until_listening(port)
        client = subprocess.run(
            [*ends[0], SECOND.address],
            capture_output=True,
            text=True,
            timeout=TOOL_S,
            check=False,
        )
        assert client.returncode == 0, client.stdout + client.stderr
        assert server.wait(TOOL_S) == 0
    return client.stdout


def until_listening(port: int) -> None:
    """The server's TCP socket, over which the two exchange their queue pairs."""
    deadline = time.monotonic() + TOOL_S
    wanted = f":{port:04X} "
    while not any(
        wanted in line.split(" ", 3)[-1][:30] and " 0A " in line
        for name in ("tcp", "tcp6")
        for line in (Tree().text(f"proc/net/{name}") or "").splitlines()
    ):
        assert time.monotonic() < deadline, f"nobody listens at port {port}"
        time.sleep(0.05)


def test_the_clock_is_cheap() -> None:
    clock = "sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert Tree().text(clock) == "tsc"


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.device)
def test_a_device_is_active(end: object) -> None:
    device = getattr(end, "device", "")
    assert Tree().text(f"sys/class/infiniband/{device}/ports/1/state") == "4: ACTIVE"


def test_they_have_two_addresses() -> None:
    assert FIRST.address != SECOND.address
    assert gid_index(FIRST.device, FIRST.address) >= 0
    assert gid_index(SECOND.device, SECOND.address) >= 0


def test_pyverbs_sees_both() -> None:
    device = pytest.importorskip("pyverbs.device")
    names = {each.name.decode() for each in device.get_device_list()}
    assert names == {end.device for end in ENDS}


def test_a_ping_pong_goes_over_the_cable() -> None:
    """Both devices send at least one packet for each message."""
    before = [counters(end.device) for end in ENDS]
    said = between("ibv_rc_pingpong", 18600, "-n", "100", "-s", "64")
    assert "100 iters" in said
    for end, was in zip(ENDS, before, strict=True):
        assert counters(end.device)["sent_pkts"] - was["sent_pkts"] >= 100
    assert drops() == {FIRST.interface: 0, SECOND.interface: 0}


def test_perftest() -> None:
    said = between("ib_send_lat", 18601, "-n", "100", "-s", "64")
    assert "Send Latency Test" in said
    row = [line.split() for line in said.splitlines() if line.split()[:2] == ["64", "100"]]
    assert row, said


def test_lost_packets_are_sent_again() -> None:
    """It counts only if packets were lost and the devices noticed."""
    before = [counters(end.device) for end in ENDS]
    with lossy(5.0):
        said = between("ibv_rc_pingpong", 18602, "-n", "200", "-s", "1024")
        lost = drops()
    assert "200 iters" in said
    assert sum(lost.values()) > 0
    again = ("completer_retry_err", "duplicate_request")
    grown = sum(
        counters(end.device)[name] - was[name]
        for end, was in zip(ENDS, before, strict=True)
        for name in again
    )
    assert grown > 0
    assert drops() == {FIRST.interface: 0, SECOND.interface: 0}  # and none are lost from here on
