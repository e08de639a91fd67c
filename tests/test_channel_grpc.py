"""The grpc channel: the contract in real processes, and what only gRPC has, over real sockets."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

grpc = pytest.importorskip("grpc", reason='grpcio is missing: pip install "commbench[grpc]"')
pytest.importorskip("google.protobuf", reason='protobuf is missing: pip install "commbench[grpc]"')

from commbench.channels.base import Answer, Capability, Exchange, Incoming  # noqa: E402
from commbench.channels.grpc import GrpcChannel  # noqa: E402
from commbench.channels.grpc_messages import (  # noqa: E402
    ProtobufCodec,
    RawCodec,
    credential_of,
)
from commbench.channels.grpc_options import (  # noqa: E402
    ARGUMENTS,
    LARGEST,
    channel_arguments,
    check_path,
    host_of,
)
from commbench.errors import (  # noqa: E402
    ChannelUnavailable,
    Interrupted,
    PeerLost,
    TransferError,
    UsageError,
)
from commbench.harness.stop import StopFlag  # noqa: E402
from commbench.harness.world import World  # noqa: E402
from commbench.payloads.buffers import EMPTY, Message, allocate  # noqa: E402
from commbench.registry import load  # noqa: E402
from commbench.testing import ChannelContract  # noqa: E402

TOKEN = "5e" * 16
MODES = ("non-serialized", "serialized")
RPCS = ("unary", "stream")


class TestGrpcUnary(ChannelContract):
    channel = "grpc"
    loops = ("python",)


class TestGrpcStream(ChannelContract):
    channel = "grpc"
    loops = ("python",)
    options: ClassVar[Mapping[str, str]] = {"rpc": "stream"}


class TestGrpcSerialized(ChannelContract):
    channel = "grpc"
    loops = ("python",)
    options: ClassVar[Mapping[str, str]] = {"mode": "serialized"}


class TestGrpcSerializedStream(ChannelContract):
    channel = "grpc"
    loops = ("python",)
    options: ClassVar[Mapping[str, str]] = {"mode": "serialized", "rpc": "stream"}


# ---------------------------------------------------------------------- two ranks in one process


class Meeting:
    """What open() needs of a rendezvous, for ranks that are threads of this process."""

    token = TOKEN
    local_address = "127.0.0.1"

    def __init__(self, rank: int, values: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self._values, self._barrier = rank, values, barrier
        self.stop = StopFlag()

    def allgather(self, value: Any, timeout_s: float = 60.0) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(10.0)
        values = list(self._values)
        self._barrier.wait(10.0)  # nobody writes again before all have read
        return values


class Pair:
    """Rank 0 asks, rank 1 serves; both channels are in this process."""

    def __init__(self, **options: str) -> None:
        values, barrier = [None, None], threading.Barrier(2)
        meetings = [Meeting(rank, values, barrier) for rank in (0, 1)]
        self.stops = [meeting.stop for meeting in meetings]
        checked = GrpcChannel.check_options(options)
        with futures.ThreadPoolExecutor(2) as pool:
            opened = [
                pool.submit(
                    GrpcChannel.open,
                    World(meeting.rank, 2, meeting.rank, 2, "test", ("one", "two")),
                    meeting,  # type: ignore[arg-type]
                    checked,
                )
                for meeting in meetings
            ]
        self.asker, self.server = (each.result() for each in opened)
        self.address = str(self.server.describe()["address"])

    def prepare(self, sizes: tuple[int, ...], window: int = 1) -> Message:
        """Both ends; returns the request, filled."""
        slots = [allocate(sizes, window) for _ in range(4)]
        for channel, stop, peer, asks in (
            (self.asker, self.stops[0], 1, True),
            (self.server, self.stops[1], 0, False),
        ):
            own = slots[:2] if asks else slots[2:]
            channel.prepare(
                Exchange(
                    peers=(peer,),
                    window=window,
                    reply_every=1,
                    asks=asks,
                    serves=not asks,
                    request=own[0],
                    reply=own[1],
                    incoming=own[1],
                    answer_nbytes=sum(sizes),
                    stop=stop,
                )
            )
        self.request, self.reply = slots[0], slots[1]
        for message in self.request:
            message.fill(1, 0, 2)
        return self.request[0]

    def close(self) -> None:
        self.asker.close()
        self.server.close()


class Reply:
    """An inline handler."""

    def __init__(self, answer: Callable[[Incoming], Message | Answer]) -> None:
        self._answer = answer

    def on_request(self, incoming: Incoming) -> Message | Answer:
        return self._answer(incoming)

    def next_ready(self) -> tuple[int, Message] | None:
        return None


ECHO = Reply(lambda incoming: incoming.message)


@pytest.fixture(name="pair")
def _pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    options: Mapping[str, str] = getattr(request, "param", {})
    pair = Pair(**options)
    yield pair
    pair.close()


@contextmanager
def stub(address: str, method: str, token: str = TOKEN, rank: int = 0) -> Iterator[Any]:
    """A caller without any code of ours."""
    agent = [("grpc.primary_user_agent", credential_of(token, rank))] if token else []
    with grpc.insecure_channel(address, options=agent) as channel:
        call = channel.unary_unary(f"/commbench/{method}")
        yield lambda request: call(request, timeout=5.0)


def wire(*buffers: bytes) -> bytes:
    """``repeated bytes buffers = 1`` as protobuf.dev describes it, for buffers below 128 B."""
    return b"".join(b"\x0a" + bytes([len(buffer)]) + buffer for buffer in buffers)


# ---------------------------------------------------------------------- token


@pytest.mark.parametrize("token", ["", "00" * 16, TOKEN[:-1], TOKEN + "0"])
def test_stranger_is_refused_before_the_handler_runs(pair: Pair, token: str) -> None:
    pair.prepare((8,))
    served: list[Incoming] = []
    pair.server.serve_inline(Reply(lambda incoming: served.append(incoming) or EMPTY))
    for method in ("Ask", "Send", "Hello"):
        with stub(pair.address, method, token) as call, pytest.raises(grpc.RpcError) as caught:
            call(bytes(8))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not served
    assert not pair.server.progress(0.0)


def test_rank_beyond_the_world_is_refused(pair: Pair) -> None:
    with stub(pair.address, "Hello", rank=2) as call, pytest.raises(grpc.RpcError) as caught:
        call(b"")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_unknown_method(pair: Pair) -> None:
    with stub(pair.address, "Nothing") as call, pytest.raises(grpc.RpcError) as caught:
        call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# ---------------------------------------------------------------------- what is on the wire


@pytest.mark.parametrize("pair", [{"mode": "serialized"}], indirect=True)
def test_serialized_server_speaks_protobuf(pair: Pair) -> None:
    pair.prepare((3, 2))
    pair.server.serve_inline(ECHO)
    with stub(pair.address, "Ask") as call:
        assert call(wire(b"abc", b"de")) == wire(b"abc", b"de")
        assert call(wire(b"abcde")) == wire(b"abc", b"de")  # another layout, the same bytes
        assert call(wire(b"abc", b"d")) == wire(b"abc", b"d")


@pytest.mark.parametrize("pair", [{"mode": "serialized"}], indirect=True)
def test_serialized_server_parses_what_it_gets(pair: Pair) -> None:
    pair.prepare((3,))
    pair.server.serve_inline(ECHO)
    with stub(pair.address, "Ask") as call, pytest.raises(grpc.RpcError) as caught:
        call(b"\x0a\x7fabc")  # says 127 bytes, has three
    assert caught.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(("mode", "sent"), [("non-serialized", b"abcde"), ("serialized", None)])
def test_asker_sends_what_the_mode_says(mode: str, sent: bytes | None) -> None:
    """The other end is grpcio alone: it sees bytes, or protobuf."""
    seen: list[bytes] = []

    def keep(request: bytes, context: Any) -> bytes:
        seen.append(request)
        return request

    with ExitStack() as stack:
        bare = grpc.server(futures.ThreadPoolExecutor(2))
        stack.callback(lambda: bare.stop(0).wait())
        handler = grpc.unary_unary_rpc_method_handler(keep)
        bare.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("commbench", {"Ask": handler}),)
        )
        from commbench.channels.grpc_client import UnaryPeer
        from commbench.channels.grpc_messages import codec_named

        address = f"127.0.0.1:{bare.add_insecure_port('127.0.0.1:0')}"
        bare.start()
        codec = codec_named(mode)
        peer = UnaryPeer(address, [], codec, "credential", seen.append)
        stack.callback(peer.close)
        request, reply = Message([memoryview(b"abc"), memoryview(b"de")]), allocate((3, 2), 1)[0]
        assert codec.decode(peer.exchange(codec.encode(request)), reply) == 5
    assert seen == [sent or wire(b"abc", b"de")]
    assert [bytes(view) for view in reply.views] == [b"abc", b"de"]


def test_raw_request_is_made_anew_when_it_was_filled() -> None:
    single, double = allocate((100,), 1)[0], allocate((100, 3), 1)[0]
    codec = RawCodec()
    codec.keep([single, double])
    for message in (single, double):
        message.fill(1, 2, 3)
        before = codec.encode(message)
        assert codec.encode(message) == before == b"".join(message.views)
        message.fill(1, 2, 4)
        assert codec.encode(message) == b"".join(message.views) != before
    assert codec.encode(single) is codec.encode(single)


def test_raw_answer_is_what_came_until_it_is_written_again() -> None:
    slot, other = allocate((4,), 2)
    codec = RawCodec()
    codec.keep([], [slot])
    wire = bytes([1, 2, 3, 4])
    assert codec.decode(wire, slot) == 4
    assert codec.answer(slot) is wire and codec.answer(slot) == wire
    codec.decode(wire, slot)
    slot.fill(1, 2, 3)
    assert codec.answer(slot) == bytes(slot.views[0]) != wire
    other.fill(1, 2, 4)
    assert codec.answer(other) == bytes(other.views[0])


@pytest.mark.parametrize("codec", [RawCodec(), ProtobufCodec()])
def test_nothing_is_written_past_a_slot(codec: RawCodec | ProtobufCodec) -> None:
    large, small = allocate((10, 10), 2)
    with pytest.raises(TransferError, match="20 bytes came for a slot of 19"):
        codec.decode(codec.encode(large), small.cut(19))


# ---------------------------------------------------------------------- serving


@pytest.mark.parametrize("pair", [{"rpc": rpc} for rpc in RPCS], indirect=True)
def test_requests_before_the_handler_and_after_a_refusal(pair: Pair) -> None:
    """LATER keeps a request for the next handler; one that came before any handler is served."""
    request = pair.prepare((8,), window=3)
    assert all(pair.asker.post(1, i, pair.request[i], pair.reply[i]) for i in range(3))
    assert not pair.asker.post(1, 3, request, pair.reply[0])  # the window is full
    assert pair.server.progress(5.0)
    pair.server.serve_inline(Reply(lambda incoming: Answer.LATER))
    time.sleep(0.2)
    pair.server.serve_inline(None)
    pair.server.serve_inline(ECHO)
    done: list[int] = []
    while len(done) < 3:
        done += [each.ticket for each in pair.asker.poll(5.0)]
    assert sorted(done) == [0, 1, 2]
    for reply in pair.reply:
        reply.verify(1, 0, 2)


@pytest.mark.parametrize("pair", [{"rpc": rpc} for rpc in RPCS], indirect=True)
def test_last_answer_leaves_before_the_case_ends(pair: Pair) -> None:
    """The application may learn of the last request before its answer is made."""
    counted = threading.Event()

    def slow(incoming: Incoming) -> Message:
        counted.set()
        time.sleep(0.3)
        return incoming.message

    request = pair.prepare((8,))
    pair.server.serve_inline(Reply(slow))
    with futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(pair.asker.exchange, 1, request, pair.reply[0], 5.0)
        assert counted.wait(5.0)
        pair.server.serve_inline(None)
        pair.server.finish()
        assert asked.result(5.0) == 8


@pytest.mark.parametrize("pair", [{"rpc": rpc} for rpc in RPCS], indirect=True)
def test_exchange_after_posts(pair: Pair) -> None:
    request = pair.prepare((64, 3), window=2)
    pair.server.serve_inline(ECHO)
    assert pair.asker.exchange(1, request, pair.reply[0], 5.0) == 67
    assert pair.asker.post(1, 7, request, pair.reply[1])
    assert [done.ticket for done in pair.asker.poll(5.0)] == [7]
    assert pair.asker.exchange(1, request, pair.reply[0], 5.0) == 67


@pytest.mark.parametrize("pair", [{"rpc": rpc} for rpc in RPCS], indirect=True)
def test_one_way_is_acknowledged(pair: Pair) -> None:
    request = pair.prepare((8,))
    assert Capability.ONE_WAY not in GrpcChannel.capabilities
    assert pair.asker.post(1, 5, request, None)
    (incoming,) = pair.server.accept(1, 5.0)
    assert not incoming.wants_reply
    (done,) = pair.asker.poll(5.0)
    assert (done.ticket, done.reply_nbytes) == (5, 0)
    assert pair.asker.post(1, 6, request, None)  # its slot is free from the next accept() on
    assert len(pair.server.accept(1, 5.0)) == 1


@pytest.mark.parametrize("pair", [{"rpc": rpc} for rpc in RPCS], indirect=True)
def test_failing_handler_ends_the_call_with_its_words(pair: Pair) -> None:
    def fail(incoming: Incoming) -> Message:
        raise TransferError("this request is not what was sent")

    request = pair.prepare((8,))
    pair.server.serve_inline(Reply(fail))
    with pytest.raises(TransferError, match=r"rank 1 on two: .*this request is not what was sent"):
        pair.asker.exchange(1, request, pair.reply[0], 5.0)


def test_unknown_ticket(pair: Pair) -> None:
    pair.prepare((8,))
    with pytest.raises(TransferError, match="no ticket 3"):
        pair.server.answer(3, EMPTY)


# ---------------------------------------------------------------------- waits that end


@pytest.mark.parametrize("pair", [{"rpc": rpc} for rpc in RPCS], indirect=True)
def test_exchange_has_a_deadline(pair: Pair) -> None:
    request = pair.prepare((8,))
    before = time.monotonic()
    with pytest.raises(TransferError, match=r"rank 1 on two: no reply within 0\.3 s"):
        pair.asker.exchange(1, request, pair.reply[0], 0.3)
    assert 0.25 < time.monotonic() - before < 2.0


@pytest.mark.parametrize("pair", [{"rpc": rpc} for rpc in RPCS], indirect=True)
@pytest.mark.parametrize("wait", ["exchange", "poll", "accept", "progress"])
def test_stop_flag_ends_every_wait(pair: Pair, wait: str) -> None:
    request = pair.prepare((8,))
    waits: dict[str, Callable[[], object]] = {
        "exchange": lambda: pair.asker.exchange(1, request, pair.reply[0], 30.0),
        "poll": lambda: pair.asker.poll(30.0),
        "accept": lambda: pair.asker.accept(1, 30.0),
        "progress": lambda: pair.asker.progress(30.0),
    }
    timer = threading.Timer(0.2, pair.stops[0].set)
    timer.start()
    before = time.monotonic()
    with pytest.raises(Interrupted):
        waits[wait]()
    assert time.monotonic() - before < 1.0
    timer.join()


@pytest.mark.parametrize("rpc", RPCS)
def test_close_leaves_no_thread_behind(rpc: str) -> None:
    """Neither a request that nobody accepted nor one that nobody answered keeps a thread."""
    before = set(threading.enumerate())
    pair = Pair(rpc=rpc)
    pair.prepare((8,), window=2)
    for slot in (0, 1):
        pair.asker.post(1, slot, pair.request[slot], pair.reply[slot])
        assert pair.server.progress(5.0)
        if slot == 0:
            assert len(pair.server.accept(1, 5.0)) == 1
    pair.close()
    deadline = time.monotonic() + 5.0
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


SERVER = """
import sys, threading
sys.path.insert(0, {tests!r})
from test_channel_grpc import *
from commbench.channels.grpc_server import Listener, Desk
from commbench.channels.grpc_messages import codec_named
codec = codec_named("non-serialized")
listener = Listener("127.0.0.1", [], 4, codec, [credential_of(TOKEN, 0)], {stream})
slots = allocate((8,), 1)
listener.desk = Desk(codec, Exchange((0,), 1, 1, False, True, (), (), slots, 8, StopFlag()), print)
print(listener.address, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("rpc", RPCS)
def test_killed_peer_is_lost(rpc: str, request: pytest.FixtureRequest) -> None:
    from commbench.channels.grpc_client import StreamPeer, UnaryPeer, transfer_error

    source = SERVER.format(tests=str(request.path.parent), stream=rpc == "stream")
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        kind = StreamPeer if rpc == "stream" else UnaryPeer
        address = process.stdout.readline().strip()
        peer = kind(address, [], RawCodec(), credential_of(TOKEN, 0), print)
        threading.Timer(0.3, process.kill).start()
        before = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            peer.exchange(bytes(8))
        peer.close()
    assert time.monotonic() - before < 5.0
    error = transfer_error(caught.value, 1, "two")
    assert isinstance(error, PeerLost)
    assert "rank 1 on two is gone" in str(error)


# ---------------------------------------------------------------------- options


def test_options_reach_grpc_and_the_record() -> None:
    options = GrpcChannel.check_options({"max_frame_size": "4194304", "bdp_probe": "0"})
    arguments = dict(channel_arguments("grpc", options))
    assert arguments["grpc.http2.max_frame_size"] == 4194304
    assert arguments["grpc.http2.bdp_probe"] == 0
    assert arguments["grpc.max_receive_message_length"] == -1
    assert set(ARGUMENTS) < set(GrpcChannel.options)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rpc", "duplex", "allowed for channel grpc: unary, stream"),
        ("mode", "json", "allowed for channel grpc: non-serialized, serialized"),
        ("workers", "0", "-o workers=0: allowed for channel grpc: a number from 1"),
        ("max_frame_size", "big", "-o max_frame_size=big: allowed"),
        ("lookahead_bytes", "-1", "-o lookahead_bytes=-1: allowed"),
        ("frame", "1", "channel grpc has no such option"),
    ],
)
def test_wrong_option(key: str, value: str, says: str) -> None:
    world = World(0, 1, 0, 1, "test", ("one",))
    with pytest.raises(UsageError, match=says):
        GrpcChannel.open(
            world,
            Meeting(0, [None], threading.Barrier(1)),  # type: ignore[arg-type]
            GrpcChannel.check_options({key: value}),
        )


# ---------------------------------------------------------------------- limits and the path


@pytest.mark.parametrize(
    ("sizes", "serialized", "fits"),
    [
        ((LARGEST,), False, True),
        ((LARGEST, 1), False, False),
        ((LARGEST,), True, False),
        ((LARGEST - 12, 0), True, True),
    ],
)
@pytest.mark.parametrize("channel", ["grpc", "grpc-core"])
def test_two_gib_is_the_limit(
    channel: str, sizes: tuple[int, ...], serialized: bool, fits: bool
) -> None:
    kind = load(channel)
    if fits:
        kind.check_payload(sizes, serialized)
        return
    with pytest.raises(UsageError, match=rf"{sum(sizes)} bytes; allowed for .*{channel}.*2 GiB"):
        kind.check_payload(sizes, serialized)


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:5", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%5D:5", "fe80::1"),
        ("ipv6:[::ffff:10.0.0.1]:5", "10.0.0.1"),
        ("10.0.0.1:5", "10.0.0.1"),
        ("[fe80::1]:5", "fe80::1"),
    ],
)
def test_host_of_a_peer(peer: str, host: str) -> None:
    assert host_of(peer) == host


def test_calls_by_another_way_are_refused() -> None:
    addresses = ["10.0.0.1:5", "10.0.0.2:6"]
    check_path("grpc", [(1, "ipv4:10.0.0.2:40000")], addresses)
    with pytest.raises(ChannelUnavailable, match=r"rank 1 listens on 10\.0\.0\.2 .*10\.9\.9"):
        check_path("grpc", [(1, "ipv4:10.9.9.9:40000")], addresses)


def test_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # where nobody listens
    monkeypatch.delenv("no_proxy", raising=False)
    pair = Pair()
    pair.close()


def test_address_that_is_not_here() -> None:
    meeting = Meeting(0, [None], threading.Barrier(1))
    meeting.local_address = "192.0.2.1"
    world = World(0, 1, 0, 1, "test", ("one",))
    with pytest.raises(ChannelUnavailable, match=r"cannot listen on 192\.0\.2\.1"):
        GrpcChannel.open(world, meeting, GrpcChannel.check_options({}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pair",
    [
        {"minimal_stack": "1", "optimization_target": "throughput", "tcp_zerocopy": "1"},
        {"bdp_probe": "0", "lookahead_bytes": "4194304", "max_frame_size": "1048576"},
    ],
    indirect=True,
)
def test_tuned_channel_carries_data_and_says_how(pair: Pair) -> None:
    request = pair.prepare((1 << 20,))
    pair.server.serve_inline(ECHO)
    assert pair.asker.exchange(1, request, pair.reply[0], 10.0) == 1 << 20
    pair.reply[0].verify(1, 0, 2)
    described = pair.asker.describe()
    assert described["grpcio"] == grpc.__version__
    assert described["mode"] == "non-serialized"
    assert {"protobuf", "rpc", "workers", "address", "compression"} < set(described)
    assert described.get("minimal_stack", "1") == "1"


def test_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert GrpcChannel.missing() is None
    monkeypatch.setattr("commbench.channels.grpc.find_spec", lambda name: None)
    assert 'pip install "commbench[grpc]"' in (GrpcChannel.missing() or "")


def test_class_is_known_without_grpc() -> None:
    """``commbench channels`` looks at every class on machines that have no grpcio."""
    source = (
        "import sys; sys.modules['grpc'] = sys.modules['google'] = None\n"
        "from commbench.channels.grpc import GrpcChannel; print(GrpcChannel.name)"
    )
    with suppress(ImportError):
        done = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, timeout=30, check=True
        )
        assert done.stdout == "grpc\n"


@pytest.mark.parametrize("delivers", [False, True])
def test_reference_echoes_and_stamps(delivers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare loop that benchmarks/parity.py compares the channel with."""
    root = Path(__file__).parents[1] / "benchmarks" / "reference"
    monkeypatch.syspath_prepend(str(root))
    reference = importlib.import_module("grpc_echo")
    server = reference.EchoServer("127.0.0.1:0", 70_000, delivers)
    client = reference.EchoClient(server.address, 70_000, delivers)
    start, end = np.zeros(20, np.int64), np.zeros(20, np.int64)
    client.pingpong(start, end)
    client.close()
    server.close()
    assert (end > start).all()
    assert (start[1:] >= end[:-1]).all()
