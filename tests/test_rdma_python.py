"""The Python data path of ``rdma``: its frames against ``native/rdma/wire.h``, and its credits,
rendezvous and memory over a device in this process. Real ones: ``tests/test_rdma_pyverbs.py``.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address
from typing import Any, cast

import pytest

from commbench.channels import rdma, rdma_devices, rdma_memory, rdma_python, rdma_pyverbs
from commbench.channels import rdma_frames as frames
from commbench.channels.rdma_frames import Credits, Ring, Segment, Tail
from commbench.channels.rdma_python import PythonEngine
from commbench.errors import (
    ChannelUnavailable,
    CommbenchError,
    Interrupted,
    TransferError,
    UsageError,
)
from commbench.harness.rendezvous import Rendezvous
from commbench.harness.stop import StopFlag
from commbench.harness.world import World
from commbench.payloads.buffers import Message, allocate
from tests.rdma_ends import exchange, options, run, together
from tests.rdma_fabric import FabricDevice

OPS = ("send", "write", "write-imm", "read")

# ---------------------------------------------------------------------- frames


def test_tail_is_as_the_header_page_lays_it_out() -> None:
    raw = memoryview(bytearray(40))
    Tail(nbytes=1 << 40, slot=7, kind=4, payload=24, consumed=9, more=1, seq=513).pack_into(raw, 8)
    expected = (
        b"\0\0\0\0\0\1\0\0"  # nbytes, 64 bits
        b"\7\0\0\0"
        b"\4\0\0\0"
        b"\x18\0\0\0"
        b"\11\0\0\0"
        b"\1\0\0\0"
        b"\1\2\0\0"  # seq is last: what op=write watches
    )
    assert bytes(raw[8:]) == expected and len(expected) == frames.TAIL_NBYTES == 32
    assert Tail.unpack_from(raw, 8) == (1 << 40, 7, 4, 24, 9, 1, 513)


def test_a_bare_frame_says_what_follows_from_the_one_before() -> None:
    top = (1 << 32) - 1
    assert Tail(5, 7, 1, 5, 9, 0, 20).followed(9) == Tail(5, 8, 1, 5, 10, 0, 21)
    assert Tail(5, 7, 3, 5, top, 0, top).followed(8) == Tail(5, 0, 3, 5, 0, 0, 0)
    one_way = Tail(5, 0, frames.ONE_WAY, 5, 9, 0, 20)
    assert one_way.followed(1) == one_way._replace(seq=21)


@pytest.mark.parametrize("seq", [1, 513, 0xFE000000, (1 << 32) - 1, 0])
def test_a_written_frame_is_told_by_its_last_four_bytes(seq: int) -> None:
    entry = memoryview(bytearray(64))
    frames.mark_untouched(entry, 64, seq)
    assert frames.written(entry, 64, seq) is None
    entry[60:63] = b"abc"  # as if half of them had come
    assert frames.written(entry, 64, seq) is None
    entry[63] ^= 1
    assert frames.written(entry, 64, seq) is True
    entry[60:] = struct.pack("<I", seq)
    assert frames.written(entry, 64, seq) is False


def test_segments_are_as_the_header_page_lays_them_out() -> None:
    packed = frames.pack_segments([Segment(0x1122334455667788, 5, 6)])
    assert packed == bytes.fromhex("8877665544332211 0500000000000000 06000000 00000000")
    assert len(packed) == frames.SEGMENT_NBYTES == 24
    assert list(frames.unpack_segments(memoryview(packed + b"rest"))) == [
        (0x1122334455667788, 5, 6)
    ]


def test_segments_that_touch_are_joined() -> None:
    pieces = [Segment(100, 10, 1), Segment(110, 0, 1), Segment(110, 5, 1), Segment(115, 5, 2)]
    assert frames.join_segments(pieces) == [(100, 15, 1), (115, 5, 2)]


@pytest.mark.parametrize(("eager", "stride"), [(0, 4160), (4096, 4160), (16384, 16448)])
def test_stride_holds_the_longest_frame(eager: int, stride: int) -> None:
    """As ``open_device`` of native/rdma/device.h rounds it."""
    assert frames.stride_for(eager) == stride


@pytest.mark.parametrize(
    ("depth", "stride", "problem"),
    [(16, 4160, False), (65536, 4160, False), (8, 4160, True), (24, 4160, True), (16, 4127, True)],
)
def test_rings_that_no_end_can_have(depth: int, stride: int, problem: bool) -> None:
    assert Ring(4096, 1, depth, stride).problem() is problem


def test_a_written_frame_ends_where_its_entry_ends() -> None:
    assert Ring(1 << 20, 1, 16, 4160).target(2, 100) == (1 << 20) + 3 * 4160 - 100


def test_pieces_of_a_message() -> None:
    buffers = ((1000, 10), (5000, 0), (2000, 20))
    assert list(frames.pieces_of(buffers, 0, 30)) == [(1000, 10), (2000, 20)]
    assert list(frames.pieces_of(buffers, 7, 12)) == [(1007, 3), (2000, 2)]
    assert list(frames.pieces_of(buffers, 10, 11)) == [(2000, 1)]
    assert list(frames.pieces_of(buffers, 30, 30)) == []


# ---------------------------------------------------------------------- credits


def test_the_last_entries_are_for_credit_frames_alone() -> None:
    credits = Credits(ours=16, theirs=16)
    while credits.may_send():
        credits.stamp()
    assert credits.sent == 16 - frames.RESERVE
    assert credits.may_send(0)
    assert credits.hear(5)
    assert credits.may_send()


def test_credits_are_owed_after_half_a_ring_that_nobody_told_of() -> None:
    credits = Credits(ours=16, theirs=16)
    for _ in range(7):
        credits.take()
    assert not credits.owes
    credits.take()
    assert credits.owes
    assert credits.stamp() == (8, 1)
    assert not credits.owes


def test_counters_go_on_past_32_bits() -> None:
    credits = Credits(ours=16, theirs=16)
    credits.sent = credits.credited = credits.taken = credits.told = (1 << 32) - 1
    assert credits.may_send() and credits.awaited == 0 and credits.next_out == 15
    assert credits.stamp() == ((1 << 32) - 1, 0)
    credits.take()
    assert (credits.taken, credits.awaited, credits.next_out) == (0, 1, 0)
    assert credits.hear(0) and credits.credited == 0


def test_a_peer_cannot_have_taken_what_was_not_sent() -> None:
    credits = Credits(ours=16, theirs=16)
    credits.stamp()
    assert not credits.hear(2)
    assert credits.hear(1)
    assert not credits.hear(0)  # nor less than it said before


# ---------------------------------------------------------------------- memory


def test_pages_are_registered_once() -> None:
    (one,), (two,) = allocate((10, 5000), 1), allocate((4096,), 1)
    asked: list[tuple[int, int]] = []

    def register(address: int, nbytes: int) -> rdma_memory.Keys:
        asked.append((address, nbytes))
        return rdma_memory.Keys(len(asked), len(asked), lambda: asked.remove((address, nbytes)))

    regions = rdma_memory.Regions(register)
    regions.add([one, one, two.cut(100), two])
    first = one.addresses[0][0]
    assert (first, 3 * 4096) in asked or sum(n for _, n in asked) == 4 * 4096
    assert regions.at(*one.addresses[1]).lkey
    before = len(asked)
    regions.adopt(one.cut(20))
    assert len(asked) == before
    regions.adopt(Message([memoryview(bytearray(3 * 4096))]))
    assert len(asked) == before + 1
    regions.release()
    assert asked == [] and len(regions) == 0


def test_a_registration_that_fails_names_memlock() -> None:
    error = rdma_memory.cannot_register(4096, "mlx5_0", 12)
    assert "4096 bytes cannot be registered on mlx5_0" in str(error) and "ulimit -l" in str(error)
    assert "ulimit" not in str(rdma_memory.cannot_register(4096, "mlx5_0", 14))


# ---------------------------------------------------------------------- pyverbs


def test_no_pyverbs_is_one_line_that_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdma_pyverbs, "find_spec", lambda _: None)
    said = rdma_pyverbs.missing()
    assert said and "apt install python3-pyverbs" in said and "\n" not in said


def test_a_pyverbs_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __file__ = "/opt/pyverbs/addr.so"
        AHAttr = GID = None

    monkeypatch.setattr(rdma_pyverbs, "find_spec", lambda _: object())
    monkeypatch.setattr(rdma_pyverbs, "import_module", lambda _: Old)
    said = rdma_pyverbs.missing()
    assert said and "/opt/pyverbs/addr.so is another version: no GlobalRoute" in said


def test_a_pyverbs_of_another_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(rdma_pyverbs, "find_spec", lambda _: object())
    monkeypatch.setattr(rdma_pyverbs, "import_module", refuse)
    said = rdma_pyverbs.missing()
    assert said and "No module named 'pyverbs.addr'" in said and "python3-pyverbs" in said


# ---------------------------------------------------------------------- two ends


@contextmanager
def connected(
    monkeypatch: pytest.MonkeyPatch, op: str, **more: int
) -> Iterator[tuple[PythonEngine, PythonEngine]]:
    monkeypatch.setattr(rdma_python, "Device", FabricDevice)
    ends = [PythonEngine(options("fabric0", rank, op, **more), StopFlag()) for rank in (0, 1)]
    records = [end.endpoint(1 - rank) for rank, end in enumerate(ends)]
    for rank, end in enumerate(ends):
        end.join(1 - rank, records[1 - rank])
        for state in ("init", "rtr", "rts"):
            end.modify(1 - rank, state, records[1 - rank])
    yield ends[0], ends[1]
    for end in ends:
        end.close()
        end.close()


LAYOUTS = ((1,), (0,), (700, 300), (1025,), (5, 0, 120_000, 7), (40,) * 12, (4096,) * 300)


@pytest.mark.parametrize("op", OPS)
def test_messages_of_any_shape_arrive_as_they_were_sent(
    monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    """Empty, inline, gathered, packed, one segment, several, more than a frame has room for."""
    with connected(monkeypatch, op) as (one, two):
        for layout in LAYOUTS:
            together(
                lambda: run(one, 0, layout),  # noqa: B023 - runs at once
                lambda: run(two, 1, layout),  # noqa: B023
            )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", [(1,), (1000,), (900, 2000)])
@pytest.mark.parametrize("batch", [1, 64])
def test_a_window_larger_than_the_ring(
    monkeypatch: pytest.MonkeyPatch, op: str, layout: tuple[int, ...], batch: int
) -> None:
    """The device refuses a frame that finds no receive request, so credits must be right."""
    with connected(monkeypatch, op) as (one, two):
        together(
            lambda: run(one, 0, layout, 64, batch, False),
            lambda: run(two, 1, layout, 64, batch, False),
        )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", [(64,), (3000,)])
def test_both_ask_and_serve_at_once(
    monkeypatch: pytest.MonkeyPatch, op: str, layout: tuple[int, ...]
) -> None:
    with connected(monkeypatch, op) as (one, two):
        together(
            lambda: run(one, 0, layout, 32, 1, True),
            lambda: run(two, 1, layout, 32, 1, True),
        )


def test_copies_of_small_messages_are_counted_and_large_ones_are_not_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with connected(monkeypatch, "send") as (one, two):
        for layout, copied in (((1000,), 40 * 1000), ((5000,), 0), ((10,) * 12, 40 * 240)):
            before = one.copied(), two.copied()
            together(
                lambda: run(one, 0, layout),  # noqa: B023
                lambda: run(two, 1, layout),  # noqa: B023
            )
            # out of the ring at either end; twelve buffers are more than it gathers: packed, too
            assert (one.copied() - before[0], two.copied() - before[1]) == (copied, copied)


def test_an_end_alone_stops_at_its_deadline_and_at_the_stop_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with connected(monkeypatch, "send") as (one, _two):
        case = exchange(0, (8,), 1, 1, False)
        one.prepare(case)
        with pytest.raises(TransferError, match=r"no reply from rank 1 within 0\.05 s"):
            one.exchange(1, case.request[0], case.reply[0], 0.05)
        case.stop.set()
        with pytest.raises(Interrupted):
            one.poll(5.0)
        one.finish()


def test_what_is_no_frame_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(monkeypatch, "send") as (one, two):
        cases = [exchange(rank, (8,), 1, 1, False) for rank in (0, 1)]
        one.prepare(cases[0])
        two.prepare(cases[1])
        link = one._links[1]
        link.send(one._regions, 77, 0, 0)
        with pytest.raises(TransferError, match="rank 0 sent a frame of kind 77"):
            two.accept(1, 5.0)
    with connected(monkeypatch, "send") as (one, two):
        one.prepare(cases[0])
        two.prepare(cases[1])
        one._links[1].credits.sent += 1
        one.post(1, 0, cases[0].request[0], cases[0].reply[0])
        with pytest.raises(TransferError, match="rank 0 sent something that is no frame"):
            two.accept(1, 5.0)


def test_a_message_longer_than_its_slot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(monkeypatch, "send") as (one, two):
        cases = [exchange(rank, (8 + 8 * (1 - rank),), 1, 1, False) for rank in (0, 1)]
        one.prepare(cases[0])
        two.prepare(cases[1])
        one.post(1, 0, cases[0].request[0], cases[0].reply[0])
        with pytest.raises(CommbenchError, match="16 bytes where 8 are the most"):
            two.accept(1, 5.0)


def test_a_segment_beyond_the_message_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(monkeypatch, "send") as (one, two):
        cases = [exchange(rank, (5000,), 1, 1, False) for rank in (0, 1)]
        one.prepare(cases[0])
        two.prepare(cases[1])
        one.post(1, 0, cases[0].request[0], cases[0].reply[0])
        two.progress(0.0)  # it has the RTS, and answers; the second answer is too much
        listed = struct.pack("<QQII", cases[1].incoming[0].addresses[0][0], 5001, 1, 0)
        two._links[0].send_list(frames.CTS_REQUEST, 0, 5000, listed, False)
        with pytest.raises(TransferError, match="rank 1 sent a frame of kind 7"):
            one.poll(5.0)


# ---------------------------------------------------------------------- the channel


class Meeting:
    """A rendezvous of two threads: what the channel needs of the real one."""

    local_address = "127.0.0.1"

    def __init__(self, rank: int, values: list[Any], door: threading.Barrier) -> None:
        self.rank, self.stop = rank, StopFlag()
        self._values, self._door = values, door

    def allgather(self, value: Any) -> list[Any]:
        self._values[self.rank] = json.loads(json.dumps(value))
        self._door.wait(10)
        gathered = list(self._values)
        self._door.wait(10)
        return gathered

    def barrier(self) -> None:
        self._door.wait(10)


def port(rank: int) -> rdma_devices.Address:
    gid = rdma_devices.Gid(1, IPv6Address(f"::ffff:10.0.0.{rank + 1}"), "RoCE v2", "eth0")
    found = rdma_devices.Port(
        f"fabric{rank}", 1, "4: ACTIVE", "", "Ethernet", 0, (gid,), "eth0", 1500, ""
    )
    return rdma_devices.Address(found, gid)


@pytest.fixture
def fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ports, and no native engine: both loops get the Python one."""
    open_any = rdma.RdmaChannel._engine_of
    monkeypatch.setattr(rdma_python, "Device", FabricDevice)
    monkeypatch.setattr(rdma, "python_missing", lambda: None)
    monkeypatch.setattr(rdma, "native_missing", lambda: "it is left out")
    monkeypatch.setattr(rdma.rdma_devices, "choose", lambda _, local_rank, **more: port(local_rank))
    monkeypatch.setattr(rdma.RdmaChannel, "_engine_of", lambda self, _: open_any(self, "python"))


def in_two_ranks(part: Callable[[rdma.RdmaChannel, int], None], **given: str) -> None:
    values: list[Any] = [None, None]
    door = threading.Barrier(2)

    def rank(number: int) -> None:
        world = World(number, 2, number, 2, "threads", ("here", "there"))
        meeting = cast(Rendezvous, Meeting(number, values, door))
        channel = rdma.RdmaChannel.open(world, meeting, rdma.RdmaChannel.check_options(given))
        try:
            part(channel, number)
        finally:
            channel.close()
            channel.close()

    together(lambda: rank(0), lambda: rank(1))


@pytest.mark.usefixtures("fabric")
def test_the_ranks_connect_anew_when_a_loop_changes_anywhere() -> None:
    def part(channel: rdma.RdmaChannel, rank: int) -> None:
        first = channel._engine
        run(channel, rank, (8,), count=4)
        channel.begin("python")
        assert channel._engine is first
        channel.begin(("native", "python")[rank])
        assert channel._engine is not first
        run(channel, rank, (5000,), count=4)
        sent = channel._sent
        described = channel.describe()
        assert (described["device"], described["mtu"]) == (f"fabric{rank}", 4096)
        assert sent > 0 and str(described["proof"]).startswith("none")

    in_two_ranks(part)


@pytest.mark.usefixtures("fabric")
def test_the_python_loops_refuse_to_sleep() -> None:
    with pytest.raises(UsageError, match="-o wait=block: the Python loops of channel rdma always"):
        in_two_ranks(lambda channel, rank: None, wait="block")


def test_a_python_loop_without_pyverbs_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, fabric: None
) -> None:
    monkeypatch.setattr(rdma, "python_missing", lambda: "no pyverbs. Debian: apt install it")
    with pytest.raises(ChannelUnavailable, match="--loop python: no pyverbs"):
        in_two_ranks(lambda channel, rank: None)


def test_a_shared_receive_queue_is_the_native_engines(fabric: None) -> None:
    with pytest.raises(UsageError, match=r"-o srq=on: .* --loop python: off"):
        in_two_ranks(lambda channel, rank: None, srq="on")
