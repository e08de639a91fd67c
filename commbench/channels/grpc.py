"""``grpc``: grpcio, as Python programs use it. It measures gRPC *and* Python.

Generic handlers, no generated code, no compression, no limit on message lengths. A call cannot be
one-way: every message is answered, a one-way one with an empty message (``acked``). All waits
look at the stop flag through a thread that wakes 20 times a second.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Self

from commbench.channels.base import (
    Capability,
    Channel,
    Done,
    Exchange,
    Handler,
    Incoming,
    Option,
)
from commbench.channels.grpc_messages import Arguments, Posted, codec_named, credential_of
from commbench.errors import CommbenchError, Interrupted, TransferError, UsageError
from commbench.payloads.buffers import Message

if TYPE_CHECKING:
    from commbench.channels.grpc_client import Peer
    from commbench.channels.grpc_server import Call, Desk, Listener
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.stop import StopFlag
    from commbench.harness.world import World

_CONNECT_S = 10.0
_WATCH_S = 0.05
_NEVER = float("inf")

# -o name -> gRPC's channel argument and what it does; "" leaves gRPC's own default
ARGUMENTS: Mapping[str, tuple[str, str]] = {
    "bdp_probe": ("grpc.http2.bdp_probe", "1: size windows by probing the bandwidth (default)"),
    "lookahead_bytes": ("grpc.http2.lookahead_bytes", "stream window in bytes, bdp_probe=0"),
    "max_frame_size": ("grpc.http2.max_frame_size", "HTTP/2 frame: 16384 to 16777215 bytes"),
    "minimal_stack": ("grpc.minimal_stack", "1: leave optional filters out"),
    "optimization_target": ("grpc.optimization_target", "latency, blend or throughput"),
    "tcp_read_chunk_size": ("grpc.experimental.tcp_read_chunk_size", "bytes"),
    "tcp_receive_buffer_size": ("grpc.tcp_receive_buffer_size", "SO_RCVBUF in bytes"),
    "tcp_zerocopy": ("grpc.experimental.tcp_tx_zerocopy_enabled", "1: MSG_ZEROCOPY"),
    "write_buffer_size": ("grpc.http2.write_buffer_size", "bytes per write"),
}
_CHOICES = {
    "bdp_probe": ("", "0", "1"),
    "minimal_stack": ("", "0", "1"),
    "optimization_target": ("", "latency", "blend", "throughput"),
    "tcp_zerocopy": ("", "0", "1"),
}


class GrpcChannel(Channel):
    name = "grpc"
    threads = True
    capabilities = (
        Capability.REQUEST | Capability.UNORDERED | Capability.WINDOW | Capability.SERIALIZED
    )
    options: ClassVar[Mapping[str, Option]] = {
        "mode": Option(
            "non-serialized", "raw bytes, or protobuf", ("non-serialized", "serialized")
        ),
        "rpc": Option("unary", "a call for each message, or one stream", ("unary", "stream")),
        "workers": Option("1024", "most server threads; they are started as needed"),
        **{name: Option("", text, _CHOICES.get(name, ())) for name, (_, text) in ARGUMENTS.items()},
    }

    _desk: Desk  # of the case
    _watcher: threading.Thread

    def __init__(self, options: Mapping[str, str], hosts: Sequence[str], stop: StopFlag) -> None:
        self._options = dict(options)
        self._hosts = hosts
        self._stop = stop
        self._listener: Listener | None = None
        self._codec = codec_named(options["mode"])
        self._events: SimpleQueue[Posted | Call | None] = SimpleQueue()
        self._done: deque[Posted] = deque()
        self._arrived: deque[Call] = deque()
        self._peers: dict[int, Peer] = {}
        self._case: Exchange | None = None
        self._late_at = _NEVER  # inside exchange(): its deadline
        self._over = threading.Event()

    # -- life

    @classmethod
    def missing(cls) -> str | None:
        if find_spec("grpc") and find_spec("google") and find_spec("google.protobuf"):
            return None
        return 'grpcio and protobuf are missing: pip install "commbench[grpc]"'

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        arguments = _arguments(options)
        workers = _whole("workers", options["workers"], 1)
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
        channel = cls(options, world.hosts, rendezvous.stop)
        try:
            channel._listen(world, rendezvous, arguments, workers)
            channel._connect(world, rendezvous, arguments)
        except BaseException:
            channel.close()
            raise
        return channel

    def _listen(
        self, world: World, rendezvous: Rendezvous, arguments: Arguments, workers: int
    ) -> None:
        from commbench.channels.grpc_server import Listener
        from commbench.harness.interfaces import resolve

        self._listener = Listener(
            resolve(world.interface) if world.interface else rendezvous.local_address,
            arguments,
            workers,
            self._codec,
            [credential_of(rendezvous.token, rank) for rank in range(world.size)],
            self._options["rpc"] == "stream",
        )
        self._address = self._listener.address

    def _connect(self, world: World, rendezvous: Rendezvous, arguments: Arguments) -> None:
        from commbench.channels.grpc_client import StreamPeer, UnaryPeer

        kind = StreamPeer if self._options["rpc"] == "stream" else UnaryPeer
        credential = credential_of(rendezvous.token, world.rank)
        for rank, address in enumerate(rendezvous.allgather(self._address)):
            if rank == world.rank:
                continue
            peer = kind(str(address), arguments, self._codec, credential, self._hand_over)
            self._peers[rank] = peer
            try:
                peer.connect(_CONNECT_S)
            except Exception as error:
                raise self._failed(error, rank) from None

    def prepare(self, exchange: Exchange) -> None:
        from commbench.channels.grpc_server import Desk

        self._case = exchange
        self._stop = exchange.stop
        self._codec.keep(exchange.request, exchange.incoming)
        self._inflight = dict.fromkeys(exchange.peers, 0)
        self._done.clear()
        self._arrived.clear()
        self._events = SimpleQueue()
        self._desk = Desk(self._codec, exchange, self._hand_over)
        self._seat(self._desk)
        self._over.clear()
        self._watcher = threading.Thread(target=self._watch, name="grpc-watch", daemon=True)
        self._watcher.start()

    def finish(self) -> None:
        if self._case is None:
            return
        self._case = None
        self._over.set()
        self._watcher.join()
        self._desk.dismiss("the case is over")
        self._seat(None)
        self._codec.keep(())
        for peer in self._peers.values():
            peer.finish()

    def close(self) -> None:
        self.finish()
        while self._peers:
            self._peers.popitem()[1].close()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _seat(self, desk: Desk | None) -> None:
        if self._listener is not None:
            self._listener.desk = desk

    def _watch(self) -> None:
        """Ends what the stop flag or a deadline of ours must end; a thread for each case."""
        while not self._over.wait(_WATCH_S):
            stopped = self._stop.is_set
            if stopped:
                self._events.put(None)  # wakes poll(), accept() or progress()
            if self._late_at < (_NEVER if stopped else monotonic()):
                for peer in tuple(self._peers.values()):
                    peer.interrupt()
                return

    # -- asking

    def exchange(self, peer: int, request: Message, reply: Message, timeout_s: float) -> int:
        self._late_at = late_at = monotonic() + timeout_s
        try:
            wire = self._peers[peer].exchange(self._codec.encode(request))
        except Exception as error:
            if monotonic() > late_at and not self._stop.is_set:
                late = f"grpc: rank {peer} on {self._hosts[peer]}: no reply within {timeout_s:g} s"
                raise TransferError(late) from None
            raise self._failed(error, peer) from None
        finally:
            self._late_at = _NEVER
        return self._codec.decode(wire, reply)

    def post(self, peer: int, ticket: int, request: Message, reply: Message | None) -> bool:
        assert self._case is not None
        if self._inflight[peer] >= self._case.window:
            return False
        self._inflight[peer] += 1
        try:
            self._peers[peer].post(self._codec.encode(request), Posted(peer, ticket, reply))
        except Exception as error:
            raise self._failed(error, peer) from None
        return True

    def poll(self, timeout_s: float) -> Sequence[Done]:
        self._gather(timeout_s, self._done)
        done = [self._complete(posted) for posted in self._done]
        self._done.clear()
        return done

    def _complete(self, posted: Posted) -> Done:
        self._inflight[posted.peer] -= 1
        try:
            assert posted.outcome is not None
            wire = posted.outcome.result()
        except Exception as error:
            raise self._failed(error, posted.peer) from None
        nbytes = 0 if posted.reply is None else self._codec.decode(wire, posted.reply)
        return Done(posted.ticket, nbytes)

    # -- serving

    def accept(self, limit: int, timeout_s: float) -> Sequence[Incoming]:
        self._gather(timeout_s, self._arrived)
        count = min(limit, self._desk.room(), len(self._arrived))
        return [self._desk.accept(self._arrived.popleft()) for _ in range(count)]

    def answer(self, ticket: int, answer: Message) -> None:
        self._desk.answer(ticket, answer)

    def serve_inline(self, handler: Handler | None) -> bool:
        self._desk.handle(handler)
        if handler is None:
            return True
        self._sort()
        for _ in range(len(self._arrived)):
            call = self._arrived.popleft()
            if not self._desk.offer(call):
                self._arrived.append(call)
        return True

    def progress(self, timeout_s: float) -> bool:
        self._gather(timeout_s, self._done, self._arrived)
        return bool(self._done or self._arrived)

    # -- what gRPC's threads hand over; one thread takes

    def _gather(self, timeout_s: float, *wanted: deque[Posted] | deque[Call]) -> None:
        """Wait until one of ``wanted`` has something. Raises Interrupted."""
        deadline = monotonic() + timeout_s
        while True:
            self._sort()
            if self._stop.is_set:
                raise Interrupted("the run was stopped")
            left = deadline - monotonic()
            if left <= 0 or any(wanted):
                return
            try:
                self._sort_one(self._events.get(timeout=left))
            except Empty:
                return

    def _hand_over(self, event: Posted | Call) -> None:
        self._events.put(event)

    def _sort(self) -> None:
        while not self._events.empty():
            self._sort_one(self._events.get_nowait())

    def _sort_one(self, event: Posted | Call | None) -> None:
        if isinstance(event, Posted):
            self._done.append(event)
        elif event is not None:
            self._arrived.append(event)

    # -- what it is

    def describe(self) -> dict[str, str | int | float]:
        set_ones = {key: value for key, value in self._options.items() if value}
        return {
            **set_ones,
            "transport": "grpcio",
            "address": self._address,
            "compression": "none",
            "grpcio": version("grpcio"),
            "protobuf": version("protobuf"),
        }

    def _failed(self, error: Exception, peer: int) -> CommbenchError:
        from commbench.channels.grpc_client import transfer_error

        if isinstance(error, CommbenchError):
            return error
        if self._stop.is_set:
            return Interrupted("the run was stopped")
        return transfer_error(error, peer, self._hosts[peer])


def _arguments(options: Mapping[str, str]) -> Arguments:
    """gRPC's channel arguments. Raises UsageError for what is no number."""
    arguments: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    for name, (key, _) in ARGUMENTS.items():
        value = options[name]
        if value:
            text = name == "optimization_target"
            arguments.append((key, value if text else _whole(name, value, 0)))
    return arguments


def _whole(name: str, value: str, least: int) -> int:
    if not value.isdecimal() or not least <= int(value) < 1 << 31:
        raise UsageError(f"-o {name}={value}: allowed for channel grpc: a number from {least}")
    return int(value)
