"""The socket channels: the contract, set-up among strangers, broken streams, lost peers."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import pytest

from commbench.channels import sockets
from commbench.channels.tcp import IpoibChannel, SocketChannel, TcpChannel, UdsChannel
from commbench.errors import ChannelUnavailable, TransferError, UsageError
from commbench.harness import interfaces
from commbench.harness.rendezvous import Rendezvous
from commbench.harness.world import World
from commbench.testing import ChannelContract
from tests.socket_ranks import Hall, Meeting, open_rank, together


class TestTcp(ChannelContract):
    channel = "tcp"


class TestTcpSpinning(ChannelContract):
    channel = "tcp"
    options: ClassVar[Mapping[str, str]] = {"wait": "spin"}
    ranks = 2  # more would wait for a core, not for each other


class TestTcpSmallBuffers(ChannelContract):
    channel = "tcp"
    options: ClassVar[Mapping[str, str]] = {"buf": "128K"}


class TestUds(ChannelContract):
    channel = "uds"


# ---------------------------------------------------------------------- set-up

GARBAGE = {
    "garbage": b"\x16\x03\x01" * 100,
    "a wrong token": bytes(32) + struct.pack("<I", 1),
    "2^63": struct.pack("<Q", 1 << 63) * 8,
    "nothing": b"",
    "half a hello": sockets.proof("ask", Meeting.token)[:20],
    "a rank that is not there": sockets.proof("ask", Meeting.token) + struct.pack("<I", 77),
}


@pytest.mark.parametrize("kind", [TcpChannel, UdsChannel])
@pytest.mark.parametrize("name", GARBAGE)
def test_strangers_at_the_listener(kind: type[SocketChannel], name: str) -> None:
    """They are there before any rank and stay; the ranks meet all the same."""
    strangers: list[socket.socket] = []

    def intrude(addresses: list[Any]) -> None:
        for address in addresses * 3:
            strangers.append(_connect(address))
            strangers[-1].sendall(GARBAGE[name])

    began = time.monotonic()
    hall = Hall(3, intrude)
    channels = together(3, lambda rank: open_rank(hall, rank, kind)[0])
    assert time.monotonic() - began < 4.0
    for channel in channels:
        assert {len(channel._connections.ask), len(channel._connections.serve)} == {2}
        channel.close()
    for stranger in strangers:
        stranger.close()


def _connect(address: Any) -> socket.socket:
    if isinstance(address, list):
        return socket.create_connection((address[0], address[1]))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect("\0" + address)
    return sock


def test_a_rank_whose_address_answers_for_somebody_else() -> None:
    """A port may have been taken over: what listens there must know the token too."""
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        hall = Hall(1)
        meeting = Meeting(hall, 0)
        meeting.size = 2
        hall.values = [None, list(impostor.getsockname())]
        listener = socket.create_server(("127.0.0.1", 0))
        with pytest.raises(TransferError, match="rank 1"):
            _join(meeting, listener, 0.5)
        assert listener.fileno() == -1


def test_a_rank_that_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = list(gone.getsockname())
    hall = Hall(1)
    meeting = Meeting(hall, 0)
    meeting.size = 2
    hall.values = [None, address]
    with pytest.raises(TransferError, match=rf"rank 1 at 127.0.0.1:{address[1]}: .*refused"):
        _join(meeting, socket.create_server(("127.0.0.1", 0)), 2.0)


def _join(meeting: Meeting, listener: socket.socket, timeout_s: float) -> None:
    def dial(to: Any, left: float) -> socket.socket:
        return socket.create_connection((to[0], to[1]), timeout=left)

    here = list(listener.getsockname())
    sockets.connect_all(cast(Rendezvous, meeting), listener, here, dial, timeout_s)


# ---------------------------------------------------------------------- options


def test_describe() -> None:
    hall = Hall(2)
    first, second = together(2, lambda rank: open_rank(hall, rank, buf="64K", wait="spin")[0])
    told = first.describe()
    assert told["interface"] == "lo"
    assert told["address"] == "127.0.0.1"
    assert told["sndbuf"] == told["rcvbuf"] == 2 * 65536
    assert told["buf"] == "64K"
    assert told["wait"] == "spin"
    assert int(told["mtu"]) > 1000
    assert told["congestion_control"]
    first.close()
    first.close()
    second.close()


def test_nodelay_and_the_measured_interface() -> None:
    hall = Hall(2)
    channels = together(2, lambda rank: open_rank(hall, rank)[0])
    for channel in channels:
        for sock in channel._connections.all():
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert sock.getsockname()[0] == "127.0.0.1"
        channel.close()


def test_a_buffer_beyond_what_the_kernel_grants() -> None:
    with pytest.raises(UsageError, match=r"-o buf=1G: the kernel grants \d+ bytes; allowed: .*max"):
        open_rank(Hall(1), 0, buf="1G")


@pytest.mark.parametrize("buf", ["0", "-1", "many", "9999999999G"])
def test_a_buffer_that_is_no_size(buf: str) -> None:
    with pytest.raises(UsageError, match=f"-o buf {re.escape(buf)}"):
        open_rank(Hall(1), 0, buf=buf)


def test_a_wait_that_is_none() -> None:
    with pytest.raises(UsageError, match="-o wait=sleep: allowed for channel tcp: block, spin, so"):
        open_rank(Hall(1), 0, wait="sleep")


@pytest.fixture
def unprivileged() -> Iterator[None]:
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_busy_polling_needs_leave(unprivileged: None) -> None:
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, sockets._SO_BUSY_POLL, 1)
        except PermissionError:
            with pytest.raises(ChannelUnavailable, match="CAP_NET_ADMIN"):
                sockets.make_blocking(sock, "so_busy_poll")
        else:
            pytest.skip("this kernel lets anyone set SO_BUSY_POLL")


def test_uds_needs_one_host() -> None:
    world = World(0, 2, 0, 1, "threads", ("east", "west"))
    with pytest.raises(ChannelUnavailable, match="ranks of one host; these are on east, west"):
        UdsChannel.open(world, cast(Rendezvous, Meeting(Hall(1), 0)), UdsChannel.check_options({}))


def test_ipoib_refuses_another_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ChannelUnavailable, match=r"lo is not InfiniBand \(type 32\).*none on this"):
        open_rank(Hall(1), 0, IpoibChannel)
    there = interfaces.Interface(
        "ib0", ("10.9.8.7",), interfaces.INFINIBAND, True, 2044, None, None
    )
    everything = [*interfaces.interfaces(), there]
    monkeypatch.setattr(interfaces, "interfaces", lambda: everything)
    assert IpoibChannel.missing() is None
    with pytest.raises(ChannelUnavailable, match=r"--interface can be: ib0$"):
        open_rank(Hall(1), 0, IpoibChannel)
    IpoibChannel.check_interface("10.9.8.7")
