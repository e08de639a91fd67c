"""``grpc``: grpcio, as Python programs use it. It measures gRPC *and* Python.

Generic handlers, no generated code, no compression, no limit on message lengths. A call cannot be
one-way: every message is answered, a one-way one with an empty message (``acked``). All waits
look at the stop flag through a thread that wakes 20 times a second.
"""

from __future__ import annotations

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
from commbench.channels.grpc_messages import Posted, codec_named, credential_of
from commbench.channels.grpc_options import (
    ARGUMENT_OPTIONS,
    MODE,
    Arguments,
    channel_arguments,
    check_all_came,
    check_numbers,
    check_path,
    check_size,
    own_address,
    place,
    quiet,
    whole,
)
from commbench.errors import CommbenchError, Interrupted, TransferError
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


class GrpcChannel(Channel):
    name = "grpc"
    threads = True
    loops = ("python",)
    capabilities = (
        Capability.REQUEST | Capability.UNORDERED | Capability.WINDOW | Capability.SERIALIZED
    )
    options: ClassVar[Mapping[str, Option]] = {
        "mode": MODE,
        "rpc": Option("unary", "a call for each message, or one stream", ("unary", "stream")),
        "workers": Option("1024", "most server threads; they are started as needed"),
        **ARGUMENT_OPTIONS,
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
    def check_options(cls, given: Mapping[str, str]) -> dict[str, str]:
        return check_numbers(cls.name, super().check_options(given), "workers")

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        arguments = channel_arguments(cls.name, options)
        workers = whole(cls.name, "workers", options["workers"], 1)
        quiet()
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

        self._listener = Listener(
            own_address(world, rendezvous),
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
        addresses = rendezvous.allgather(self._address)
        for rank, address in enumerate(addresses):
            if rank == world.rank:
                continue
            peer = kind(str(address), arguments, self._codec, credential, self._hand_over)
            self._peers[rank] = peer
            try:
                peer.connect(_CONNECT_S)
            except Exception as error:
                raise self._failed(error, rank) from None
        rendezvous.allgather(True)  # all have called
        came = self._listener.came if self._listener else []
        check_all_came(self.name, [rank for rank, _ in came], self._peers, 1)
        check_path(self.name, came, addresses)

    @classmethod
    def check_payload(cls, sizes: Sequence[int], serialized: bool) -> None:
        check_size(cls.name, sizes, serialized)

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

    def copied(self) -> int:
        return self._codec.copied

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
            **place(self._address),
            "transport": "grpcio",
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
