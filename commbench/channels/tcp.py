"""``tcp``, ``uds`` and ``ipoib``: plain stream sockets.

Connections come from ``sockets.py``. The native data path is ``native/tcp.c``; the Python one is
here, over ``links.py`` and ``wire.py``, and speaks the same bytes, so either end may run either.
"""

from __future__ import annotations

import platform
import secrets
import select
import socket
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from commbench import _native
from commbench.channels import sockets
from commbench.channels.base import (
    Capability,
    Channel,
    Done,
    Exchange,
    Incoming,
    NativeEngine,
    Option,
)
from commbench.channels.links import Asking, Link, Serving
from commbench.channels.sockets import Connections
from commbench.channels.wire import TICK_S, Stream
from commbench.errors import ChannelUnavailable, Interrupted, TransferError
from commbench.harness import interfaces
from commbench.payloads.buffers import Message
from commbench.units import parse_size

if TYPE_CHECKING:
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.world import World

_ANSWER_TIMEOUT_S = 60.0  # an answer that nobody reads
_BUFFER = Option(
    "system", "SO_SNDBUF and SO_RCVBUF in bytes (64K, 4M), or system: the kernel tunes"
)


class SocketChannel(Channel):
    """What all stream sockets have in common: both data paths over given connections."""

    capabilities = Capability.REQUEST | Capability.ONE_WAY | Capability.WINDOW | Capability.IOVEC

    def __init__(self, size: int, connections: Connections, options: Mapping[str, str]) -> None:
        self._options = dict(options)
        self._connections = connections
        self._size = size
        self._ask = {rank: Stream(sock, rank) for rank, sock in connections.ask.items()}
        self._serve = {rank: Stream(sock, rank) for rank, sock in connections.serve.items()}
        self._spin = options["wait"] == "spin"
        self._engine: NativeEngine | None = None

    @classmethod
    def check_options(cls, given: Mapping[str, str]) -> dict[str, str]:
        options = super().check_options(given)
        if options.get("buf", "system") != "system":
            parse_size(options["buf"], "-o buf", least=1)
        return options

    def native(self) -> NativeEngine:
        if self._engine is None:
            ask, serve = (
                [side[rank].fileno() if rank in side else -1 for rank in range(self._size)]
                for side in (self._connections.ask, self._connections.serve)
            )
            self._engine = _native.TcpEngine(ask, serve, self._spin)
        return self._engine

    @abstractmethod
    def _place(self) -> dict[str, str | int | float]:
        """Where the connections are, for ``describe``."""

    def describe(self) -> dict[str, str | int | float]:
        sock = next(iter(self._connections.all()), None)
        return {
            **self._place(),
            **self._options,
            **({} if sock is None else sockets.buffers_in_force(sock)),
            "kernel": platform.release(),
        }

    def close(self) -> None:
        self._connections.close()

    # -- the Python data path

    def prepare(self, exchange: Exchange) -> None:
        window = exchange.window
        self._exchange = exchange
        self._done: deque[tuple[Done, Asking, int]] = deque()
        self._arrived: deque[Incoming] = deque()
        self._given: list[int] = []  # one-way messages handed out by the last accept
        asking = exchange.peers if exchange.asks else ()
        serving = exchange.peers if exchange.serves else ()
        self._asking = {peer: Asking(self._ask[peer], window, self._done) for peer in asking}
        self._serving = [
            Serving(self._serve[peer], window, i * window, exchange.incoming, self._arrived)
            for i, peer in enumerate(serving)
        ]
        self._links: list[Link] = [*self._asking.values(), *self._serving]
        if any(link.stream.receiving or link.stream.sending for link in self._links):
            raise TransferError("an earlier case ended in the middle of a message")

    def finish(self) -> None:
        self._links, self._asking, self._serving = [], {}, []

    def post(self, peer: int, ticket: int, request: Message, reply: Message | None) -> bool:
        return self._asking[peer].start(ticket, request, reply)

    def poll(self, timeout_s: float) -> Sequence[Done]:
        self._until(lambda: bool(self._done), timeout_s, self._links)
        return [self._pop_done() for _ in range(len(self._done))]

    def exchange(self, peer: int, request: Message, reply: Message, timeout_s: float) -> int:
        link = self._asking[peer]
        if self._done or not link.start(0, request, reply):
            raise TransferError("exchange() with something in flight")
        if not self._until(lambda: bool(self._done), timeout_s, [link]):
            raise TransferError(f"no reply from rank {peer} within {timeout_s:g} s")
        return self._pop_done().reply_nbytes

    def accept(self, limit: int, timeout_s: float) -> Sequence[Incoming]:
        self._release_given()
        self._until(lambda: bool(self._arrived), timeout_s, self._links)
        taken = [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]
        self._given = [incoming.ticket for incoming in taken if not incoming.wants_reply]
        return taken

    def answer(self, ticket: int, answer: Message) -> None:
        link = self._serving_of(ticket)
        link.answer(ticket, answer)
        # whoever waits for room goes on reading, or two that answer each other wait for ever
        if not self._until(lambda: not link.stream.sending, _ANSWER_TIMEOUT_S, self._links):
            raise TransferError(f"rank {link.stream.peer} does not read its answer")
        link.release(ticket)

    def progress(self, timeout_s: float) -> bool:
        self._release_given()
        return self._until(lambda: bool(self._done or self._arrived), timeout_s, self._links)

    def _pop_done(self) -> Done:
        done, link, slot = self._done.popleft()
        link.free.append(slot)
        return done

    def _serving_of(self, ticket: int) -> Serving:
        return self._serving[ticket // self._exchange.window]

    def _release_given(self) -> None:
        for ticket in self._given:
            self._serving_of(ticket).release(ticket)
        self._given = []

    def _until(self, ready: Callable[[], bool], timeout_s: float, links: Sequence[Link]) -> bool:
        """Move ``links`` on until ``ready``; False when it is not in time."""
        deadline = time.monotonic() + timeout_s
        left = timeout_s
        while not ready():
            if self._exchange.stop.is_set:
                raise Interrupted("the run was stopped")
            if left < 0:
                return False
            self._move(links, left)
            left = deadline - time.monotonic() if timeout_s else -1.0
        return True

    def _move(self, links: Sequence[Link], wait_s: float) -> None:
        """Send and receive what can be; wait for that at most a tick."""
        only = links[0] if len(links) == 1 else None
        if only and not only.stream.sending and only.can_receive:
            only.receive(wait=wait_s >= TICK_S and not self._spin)
            return
        ready = select.poll()
        for link in links:
            sending = select.POLLOUT if link.stream.sending else 0
            ready.register(link.stream.sock, sending | (select.POLLIN if link.can_receive else 0))
        by_fd = {link.stream.sock.fileno(): link for link in links}
        for fd, events in ready.poll(0 if self._spin else int(min(wait_s, TICK_S) * 1000)):
            if events & select.POLLOUT:
                by_fd[fd].flush()
            if events & ~select.POLLOUT:
                by_fd[fd].receive(wait=False)


class TcpChannel(SocketChannel):
    name = "tcp"
    options: ClassVar[Mapping[str, Option]] = {
        "buf": _BUFFER,
        "wait": Option(
            "block",
            "how a rank waits: asleep, looking all the time, or the kernel polls the device",
            ("block", "spin", "so_busy_poll"),
        ),
    }

    def __init__(
        self, size: int, connections: Connections, options: Mapping[str, str], address: str
    ) -> None:
        super().__init__(size, connections, options)
        self._address = address

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        named = world.interface
        address = interfaces.resolve(named) if named else rendezvous.local_address
        cls.check_interface(address)
        listener = _listener(address, world.size, options)

        def dial(to: Any, timeout_s: float) -> socket.socket:
            return _dial_tcp((str(to[0]), int(to[1])), address, timeout_s, options)

        here = [address, listener.getsockname()[1]]
        connections = sockets.connect_all(rendezvous, listener, here, dial)
        _settle(connections, options)
        return cls(world.size, connections, options, address)

    @classmethod
    def check_interface(cls, address: str) -> None:
        """Raise ChannelUnavailable when this channel cannot use it."""

    def _place(self) -> dict[str, str | int | float]:
        interface = interfaces.find(self._address)
        sock = next(iter(self._connections.all()), None)
        congestion = "" if sock is None else _congestion(sock)
        return {
            "interface": interface.name if interface else "",
            "address": self._address,
            "mtu": interface.mtu if interface else 0,
            "congestion_control": congestion,
            "tcp_nodelay": 1,
        }


class IpoibChannel(TcpChannel):
    """TCP over an InfiniBand interface (IP over InfiniBand, RFC 4391)."""

    name = "ipoib"

    @classmethod
    def missing(cls) -> str | None:
        if any(one.is_infiniband for one in interfaces.interfaces()):
            return None
        return "no interface here is InfiniBand (type 32); load ib_ipoib and bring one up"

    @classmethod
    def check_interface(cls, address: str) -> None:
        interface = interfaces.find(address)
        if interface is not None and interface.is_infiniband:
            return
        would_do = [i.name for i in interfaces.interfaces() if i.is_infiniband]
        raise ChannelUnavailable(
            f"channel ipoib: {interface.name if interface else address} is not InfiniBand "
            f"(type 32); --interface can be: {', '.join(would_do) or 'none on this host'}"
        )


class UdsChannel(SocketChannel):
    """Unix sockets in the abstract namespace: nothing is left in the file system."""

    name = "uds"
    options: ClassVar[Mapping[str, Option]] = {
        "buf": _BUFFER,
        "wait": Option(
            "block", "how a rank waits: asleep, or looking all the time", ("block", "spin")
        ),
    }

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        hosts = sorted(set(world.hosts))
        if len(hosts) > 1:
            raise ChannelUnavailable(
                f"channel uds joins ranks of one host; these are on {', '.join(hosts)}"
            )
        name = f"commbench-{secrets.token_hex(16)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("\0" + name)
        listener.listen(world.size + 64)

        def dial(to: Any, timeout_s: float) -> socket.socket:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout_s)
            return _connected(sock, "\0" + str(to))

        connections = sockets.connect_all(rendezvous, listener, name, dial)
        _settle(connections, options)
        return cls(world.size, connections, options)

    def _place(self) -> dict[str, str | int | float]:
        return {"address": "abstract Unix socket"}


# ---------------------------------------------------------------------- sockets of a kind


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _listener(address: str, size: int, options: Mapping[str, str]) -> socket.socket:
    listener = socket.socket(_family(address))
    try:
        sockets.set_buffers(listener, options["buf"])  # before listen(): sets the window scale
        listener.bind((address, 0))
        listener.listen(size + 64)
    except OSError as error:
        listener.close()
        raise ChannelUnavailable(f"cannot listen on {address}: {error.strerror}") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _dial_tcp(
    to: tuple[str, int], source: str, timeout_s: float, options: Mapping[str, str]
) -> socket.socket:
    sock = socket.socket(_family(source))
    sock.settimeout(timeout_s)
    sockets.set_buffers(sock, options["buf"])
    try:
        sock.bind((source, 0))
    except OSError:
        sock.close()
        raise
    return _connected(sock, to)


def _connected(sock: socket.socket, to: tuple[str, int] | str) -> socket.socket:
    try:
        sock.connect(to)
    except OSError:
        sock.close()
        raise
    return sock


def _settle(connections: Connections, options: Mapping[str, str]) -> None:
    """Options that a connection takes when it stands."""
    try:
        for sock in connections.all():
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                sockets.set_buffers(sock, options["buf"])
            sockets.make_blocking(sock, options["wait"])
    except BaseException:
        connections.close()
        raise


def _congestion(sock: socket.socket) -> str:
    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.split(b"\0")[0].decode()
