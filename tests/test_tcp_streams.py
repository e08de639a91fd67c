"""Both data paths of the socket channels against a peer that this test writes byte by byte."""

from __future__ import annotations

import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from commbench import _native
from commbench.channels.base import Channel, Exchange
from commbench.channels.sockets import Connections, make_blocking
from commbench.channels.tcp import TcpChannel
from commbench.channels.wire import ONE_WAY, REPLY, REQUEST
from commbench.errors import Interrupted, PeerLost, TransferError
from commbench.harness.loops import Block, Loop, NativeLoop, PythonLoop, Stamps
from commbench.payloads.buffers import Message, allocate
from tests.socket_ranks import Hall, open_rank, together

pytestmark = pytest.mark.native
LOOPS: list[Callable[[Channel, Exchange], Loop]] = [NativeLoop, PythonLoop]
WAITS = ["block", "spin"]
PEER = 1
SEED = 9


class Wire:
    """A channel of rank 0, and the raw ends that its peer holds."""

    def __init__(self, wait: str) -> None:
        ours, self.asks = _pair()  # our requests leave here
        serving, self.serves = _pair()  # the peer's requests come here
        for sock in (ours, serving):
            make_blocking(sock, wait)
        options = TcpChannel.check_options({"wait": wait})
        self.channel = TcpChannel(
            2, Connections({PEER: ours}, {PEER: serving}), options, "127.0.0.1"
        )
        self.stop = _native.StopFlag()

    def exchange(self, sizes: tuple[int, ...], window: int, asks: bool, serves: bool) -> Exchange:
        return Exchange(
            peers=(PEER,),
            window=window,
            reply_every=1,
            asks=asks,
            serves=serves,
            request=allocate(sizes, window),
            reply=allocate(sizes, window),
            incoming=allocate(sizes, window),
            answer_nbytes=sum(sizes),
            stop=self.stop,
        )

    def close(self) -> None:
        self.channel.close()
        self.asks.close()
        self.serves.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


@pytest.fixture(params=WAITS)
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    made = Wire(request.param)
    yield made
    made.close()


def framed(message: Message, slot: int, kind: int) -> bytes:
    return struct.pack("<QII", message.nbytes, slot, kind) + b"".join(message.views)


def requests(message: Message, count: int, kind: int, first: int = 0) -> bytes:
    """Messages first.. of the peer, each with content of its own."""
    stream = b""
    for number in range(first, first + count):
        message.fill(SEED, PEER, number)
        stream += framed(message, number % 4, kind)
    return stream


def serve_block(nbytes: int, count: int, handler: str, number: int = 0) -> Block:
    return Block(
        kind="serve",
        handler=handler,
        targets=(),
        rank=0,
        count=0,
        serve=count,
        seed=SEED,
        number=number,
        request_nbytes=nbytes,
        verify_every=True,
        timeout_s=5.0,
    )


def ask_block(nbytes: int, count: int, window: int) -> Block:
    return Block(
        kind="closed",
        handler=None,
        targets=(PEER,),
        rank=0,
        count=count,
        serve=0,
        seed=SEED,
        request_nbytes=nbytes,
        reply_nbytes=nbytes,
        verify_every=True,
        timeout_s=5.0,
    )


def in_pieces(sock: socket.socket, stream: bytes, seed: int) -> threading.Thread:
    """Writes in pieces of random length, some of which arrive alone."""
    chance = random.Random(seed)

    def write() -> None:
        at = 0
        while at < len(stream):
            piece = chance.choice((1, 3, 15, 17, 100, 5000, 70_000))
            sock.sendall(stream[at : at + piece])
            at += piece
            if chance.random() < 0.1:
                time.sleep(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("make", LOOPS)
@pytest.mark.parametrize("sizes", [(0,), (1,), (3, 0, 60, 0), (4096,), (10, 5000), (0, 40_000, 7)])
def test_any_pieces(wire: Wire, make: Callable[..., Loop], sizes: tuple[int, ...]) -> None:
    loop = make(wire.channel, wire.exchange(sizes, 4, asks=False, serves=True))
    message = allocate(sizes, 1)[0]
    writer = in_pieces(wire.serves, requests(message, 30, ONE_WAY), seed=sum(sizes))
    outcome = loop.run(serve_block(message.nbytes, 30, "sink"), Stamps(1))
    writer.join()
    loop.close()
    assert (outcome.served, outcome.validated) == (30, 30)


@pytest.mark.parametrize("make", LOOPS)
@pytest.mark.parametrize("short", [1, 6000, 29_999])
def test_shorter_messages_followed_by_whole_ones(
    wire: Wire, make: Callable[..., Loop], short: int
) -> None:
    """All is in the kernel at once: a read for a whole message swallows what follows a short one.

    The window has room for all of them, so that nothing waits for a slot.
    """
    loop = make(wire.channel, wire.exchange((10_000, 20_000), 16, asks=False, serves=True))
    message = allocate((10_000, 20_000), 1)[0]
    cut = message.cut(message.nbytes - short)
    stream = requests(cut, 5, ONE_WAY) + requests(message, 5, ONE_WAY, first=5)
    writer = threading.Thread(target=lambda: wire.serves.sendall(stream))
    writer.start()
    time.sleep(0.05)
    first = loop.run(serve_block(cut.nbytes, 5, "sink"), Stamps(1))
    then = loop.run(serve_block(message.nbytes, 5, "sink", number=5), Stamps(1))
    writer.join()
    loop.close()
    assert (first.validated, then.validated) == (5, 5)


@pytest.mark.parametrize("make", LOOPS)
@pytest.mark.parametrize("sizes", [(64,), (100, 30_000)])
def test_replies_in_any_order(
    wire: Wire, make: Callable[..., Loop], sizes: tuple[int, ...]
) -> None:
    """The peer waits for four requests and echoes them in a random order, several times."""
    nbytes = sum(sizes)

    def echo() -> None:
        chance = random.Random(4)
        with wire.asks.makefile("rb") as stream:
            for _ in range(10):
                kept = [stream.read(16 + nbytes) for _ in range(4)]
                chance.shuffle(kept)
                wire.asks.sendall(
                    b"".join(k[:12] + struct.pack("<I", REPLY) + k[16:] for k in kept)
                )

    loop = make(wire.channel, wire.exchange(sizes, 4, asks=True, serves=False))
    server = threading.Thread(target=echo)
    server.start()
    # four at once: a block of four operations at a time, as nobody answers earlier
    for _ in range(10):
        outcome = loop.run(ask_block(nbytes, 4, 4), Stamps(4))
        assert (outcome.done, outcome.validated) == (4, 4)
    server.join()
    loop.close()


NONSENSE = {
    "garbage": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "length 2^63": struct.pack("<QII", 1 << 63, 0, REQUEST) + b"x" * 64,
    "length beyond the slot": struct.pack("<QII", 65, 0, ONE_WAY) + b"x" * 65,
    "a reply that nobody asked for": struct.pack("<QII", 4, 0, REPLY) + b"abcd",
}


@pytest.mark.parametrize("make", LOOPS)
@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_to_a_server(wire: Wire, make: Callable[..., Loop], name: str) -> None:
    loop = make(wire.channel, wire.exchange((64,), 2, asks=False, serves=True))
    wire.serves.sendall(NONSENSE[name])
    with pytest.raises(TransferError, match=r"rank 1 sent (something|a message of)"):
        loop.run(serve_block(64, 1, "echo"), Stamps(1))
    loop.close()


@pytest.mark.parametrize("make", LOOPS)
@pytest.mark.parametrize(
    "reply",
    [
        struct.pack("<QII", 1 << 63, 0, REPLY),
        struct.pack("<QII", 64, 1 << 31, REPLY),
        struct.pack("<QII", 64, 0, REQUEST),
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
@pytest.mark.parametrize("size", [64, 20_000])
def test_nonsense_to_an_asker(
    wire: Wire, make: Callable[..., Loop], reply: bytes, size: int
) -> None:
    loop = make(wire.channel, wire.exchange((size,), 1, asks=True, serves=False))
    wire.asks.sendall(reply)
    with pytest.raises(TransferError, match=r"rank 1 sent (something|a message of)"):
        loop.run(ask_block(size, 1, 1), Stamps(1))
    loop.close()


@pytest.mark.parametrize("make", LOOPS)
@pytest.mark.parametrize("asks", [True, False])
def test_a_peer_that_closes(wire: Wire, make: Callable[..., Loop], asks: bool) -> None:
    loop = make(wire.channel, wire.exchange((64,), 1, asks=asks, serves=not asks))
    (wire.asks if asks else wire.serves).close()
    with pytest.raises(PeerLost, match="rank 1 is gone"):
        loop.run(ask_block(64, 1, 1) if asks else serve_block(64, 1, "echo"), Stamps(1))
    loop.close()


@pytest.mark.parametrize("make", LOOPS)
@pytest.mark.parametrize("shape", ["exchange", "window", "serve", "ask-and-serve", "send"])
def test_the_stop_flag_ends_a_wait(wire: Wire, make: Callable[..., Loop], shape: str) -> None:
    """``send``: nobody reads, so the kernel's buffers fill up."""
    asks, serves = shape != "serve", shape in ("serve", "ask-and-serve")
    window = 64 if shape == "send" else 1 if shape == "exchange" else 2
    sizes = (1 << 20,) if shape == "send" else (64,)
    loop = make(wire.channel, wire.exchange(sizes, window, asks, serves))
    block = ask_block(sum(sizes), window, window)
    if serves:
        block = serve_block(64, 1, "echo")
    timer = threading.Timer(0.2, wire.stop.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        loop.run(block, Stamps(window))
    assert time.monotonic() - began < 1.0
    timer.join()
    loop.close()


@pytest.mark.parametrize("make", LOOPS)
def test_a_case_cannot_begin_within_a_message(make: Callable[..., Loop]) -> None:
    """What a stopped case left half read would be taken for the next one's messages."""
    wire = Wire("block")
    wire.serves.sendall(struct.pack("<QII", 64, 0, REQUEST) + b"x" * 10)
    exchange = wire.exchange((64,), 1, asks=False, serves=True)
    loop = make(wire.channel, exchange)
    threading.Timer(0.1, wire.stop.set).start()
    with pytest.raises(Interrupted):
        loop.run(serve_block(64, 1, "echo"), Stamps(1))
    loop.close()
    wire.stop.clear()
    with pytest.raises(TransferError, match="in the middle of a message"):
        make(wire.channel, exchange)
    wire.close()


_VICTIM = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
while True:
    got = sock.recv(4096)
    sock.sendall(got[:12] + b"\\x03" + got[13:])
"""


@pytest.mark.parametrize("make", LOOPS)
def test_a_peer_that_is_killed(wire: Wire, make: Callable[..., Loop]) -> None:
    fd = wire.asks.fileno()
    victim = subprocess.Popen([sys.executable, "-c", _VICTIM, str(fd)], pass_fds=[fd])
    wire.asks.close()
    loop = make(wire.channel, wire.exchange((64,), 1, asks=True, serves=False))
    loop.run(ask_block(64, 10, 1), Stamps(10))
    threading.Timer(0.2, lambda: victim.send_signal(signal.SIGKILL)).start()
    with pytest.raises(PeerLost, match="rank 1 is gone"):
        loop.run(ask_block(64, 1 << 18, 1), Stamps())
    victim.wait()
    loop.close()


@pytest.mark.parametrize("make", LOOPS)
@pytest.mark.parametrize("wait", WAITS)
def test_four_threads_all_to_all(make: Callable[..., Loop], wait: str) -> None:
    """Requests and replies larger than the sockets' buffers, everyone with everyone."""
    hall = Hall(4)
    size, count = 300_000, 6

    def one(rank: int) -> int:
        channel, meeting = open_rank(hall, rank, wait=wait, buf="64K")
        others = tuple(r for r in range(4) if r != rank)
        slots = allocate((100, size), 6)
        exchange = Exchange(
            others, 2, 1, True, True, slots, allocate((100, size), 6), allocate((100, size), 6),
            size + 100, meeting.stop,
        )  # fmt: skip
        block = Block(
            kind="ask-and-serve", handler="echo", targets=others, rank=rank, count=count,
            serve=count, seed=SEED, request_nbytes=size + 100, reply_nbytes=size + 100,
            verify_every=True, timeout_s=20.0,
        )  # fmt: skip
        loop = make(channel, exchange)
        meeting.allgather(None)
        outcome = loop.run(block, Stamps(count))
        meeting.allgather(None)
        loop.close()
        channel.close()
        return outcome.validated

    assert list(together(4, one)) == [2 * count] * 4


def test_a_rank_that_is_no_peer(wire: Wire) -> None:
    loop = NativeLoop(wire.channel, wire.exchange((64,), 1, asks=True, serves=False))
    with pytest.raises(TransferError, match="peer"):
        loop.run(replace(ask_block(64, 1, 1), targets=(7,)), Stamps(1))
    loop.close()
