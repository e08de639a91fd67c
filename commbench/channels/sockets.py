"""Connecting stream sockets between all ranks, once, for both data paths.

Each ordered pair (asker, server) has a connection of its own: requests go one way on it, replies
the other. Whoever connects proves first that it knows the run's token, and the listener proves it
in return; a stranger is dropped and the others go on.
"""

from __future__ import annotations

import hashlib
import hmac
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from commbench.channels.wire import TICK_S
from commbench.errors import ChannelUnavailable, TransferError, UsageError
from commbench.units import parse_size

if TYPE_CHECKING:
    from commbench.harness.rendezvous import JSON, Rendezvous

CONNECT_TIMEOUT_S = 30.0
_GUEST_TIMEOUT_S = 5.0  # how long a connection may take to say who it is
_GUESTS = 64  # connections beside those of the ranks that may be undecided at once
_RANK = struct.Struct("<I")
_PROOF = 32
_SO_BUSY_POLL = getattr(socket, "SO_BUSY_POLL", 46)
_BUSY_POLL_US = 50

Dial = Callable[[Any, float], socket.socket]  # (a rank's address, seconds) -> connected


@dataclass(frozen=True, slots=True)
class Connections:
    """By rank: ``ask`` carries our requests to it, ``serve`` its requests to us."""

    ask: Mapping[int, socket.socket]
    serve: Mapping[int, socket.socket]

    def all(self) -> list[socket.socket]:
        return [*self.ask.values(), *self.serve.values()]

    def close(self) -> None:
        for sock in self.all():
            sock.close()


def connect_all(
    rendezvous: Rendezvous,
    listener: socket.socket,
    address: JSON,
    dial: Dial,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> Connections:
    """Connect every rank with every other; collective. Closes ``listener``.

    ``address``: where others reach the listener, as JSON. Raises TransferError naming the rank that
    cannot be reached or did not come, and what ``rendezvous.check`` raises.
    """
    me = rendezvous.rank
    others = [rank for rank in range(rendezvous.size) if rank != me]
    with ExitStack() as undo:
        undo.callback(listener.close)
        addresses = rendezvous.allgather(address, timeout_s)
        deadline = time.monotonic() + timeout_s
        ask: dict[int, socket.socket] = {}
        serve: dict[int, socket.socket] = {}
        undo.callback(lambda: Connections(ask, serve).close())
        for rank in others:
            rendezvous.check()
            ask[rank] = _dial(rank, addresses[rank], dial, deadline)
            ask[rank].sendall(proof("ask", rendezvous.token) + _RANK.pack(me))
        _admit(serve, others, listener, rendezvous, deadline)
        for rank in others:
            _expect_proof(ask[rank], rank, rendezvous, deadline)
        undo.pop_all()
        listener.close()
    return Connections(ask, serve)


def proof(label: str, token: str) -> bytes:
    """32 bytes that only who knows the token can say; the token itself stays unsaid."""
    return hashlib.blake2b(
        token.encode(), digest_size=_PROOF, person=f"commbench {label}".encode()
    ).digest()


def _dial(rank: int, address: object, dial: Dial, deadline: float) -> socket.socket:
    try:
        return dial(address, max(0.001, deadline - time.monotonic()))
    except OSError as error:
        raise TransferError(
            f"cannot connect to rank {rank} at {_shown(address)}: {error.strerror or error}"
        ) from error


def _shown(address: object) -> str:
    return ":".join(str(part) for part in address) if isinstance(address, list) else str(address)


@dataclass(slots=True)
class _Guest:
    """A connection that has not proved itself."""

    deadline: float
    said: bytearray = field(default_factory=bytearray)


class _Door:
    """Reads exactly one hello from each guest, and keeps none that is slow or says nonsense."""

    def __init__(self, listener: socket.socket, token: str, limit: int) -> None:
        self._listener = listener
        self._hello = proof("ask", token)
        self._limit = limit
        self._guests: dict[socket.socket, _Guest] = {}
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def wait(self, seconds: float) -> list[tuple[int, socket.socket]]:
        """(rank, connection) of those who proved that they belong to the run."""
        proved = []
        for key, _ in self._selector.select(seconds):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is self._listener:
                self._let_in()
            elif sock in self._guests and (rank := self._listen(sock)) is not None:
                proved.append((rank, sock))
        self._drop(s for s, g in list(self._guests.items()) if g.deadline < time.monotonic())
        return proved

    def close(self) -> None:
        self._drop(list(self._guests))
        self._selector.close()

    def _let_in(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it went away again
        sock.setblocking(False)
        self._guests[sock] = _Guest(time.monotonic() + _GUEST_TIMEOUT_S)
        self._selector.register(sock, selectors.EVENT_READ)
        self._drop(list(self._guests)[: -self._limit])

    def _listen(self, sock: socket.socket) -> int | None:
        said = self._guests[sock].said
        try:
            data = sock.recv(_PROOF + _RANK.size - len(said))
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        said += data
        if data and len(said) < _PROOF + _RANK.size:
            return None
        if not data or not hmac.compare_digest(bytes(said[:_PROOF]), self._hello):
            self._drop([sock])
            return None
        self._selector.unregister(sock)
        del self._guests[sock]
        return int(_RANK.unpack(said[_PROOF:])[0])

    def _drop(self, socks: Iterable[socket.socket]) -> None:
        for sock in socks:
            del self._guests[sock]
            self._selector.unregister(sock)
            sock.close()


def _admit(
    serve: dict[int, socket.socket],
    ranks: Iterable[int],
    listener: socket.socket,
    rendezvous: Rendezvous,
    deadline: float,
) -> None:
    missing = set(ranks)
    door = _Door(listener, rendezvous.token, _GUESTS + len(missing))
    answer = proof("serve", rendezvous.token)
    try:
        while missing:
            rendezvous.check()
            if time.monotonic() > deadline:
                raise TransferError(f"no connection from rank {min(missing)} in time")
            for rank, sock in door.wait(TICK_S):
                if rank not in missing:
                    sock.close()
                    continue
                missing.remove(rank)
                serve[rank] = sock
                sock.send(answer)
    finally:
        door.close()


def _expect_proof(sock: socket.socket, rank: int, rendezvous: Rendezvous, deadline: float) -> None:
    """What listens there belongs to the run too: a port may have been taken over."""
    said = b""
    sock.settimeout(TICK_S)
    while len(said) < _PROOF:
        rendezvous.check()
        if time.monotonic() > deadline:
            raise TransferError(f"rank {rank} did not answer the connection in time")
        try:
            data = sock.recv(_PROOF - len(said))
        except TimeoutError:
            continue
        except OSError:
            data = b""
        said += data
        if not data:
            raise TransferError(f"rank {rank} refused the connection")
    if not hmac.compare_digest(said, proof("serve", rendezvous.token)):
        raise TransferError(f"what answers as rank {rank} does not belong to this run")


# ---------------------------------------------------------------------- socket options


def set_buffers(sock: socket.socket, option: str) -> None:
    """``-o buf``: SO_SNDBUF and SO_RCVBUF. UsageError when the kernel grants less."""
    if option == "system":
        return
    nbytes = parse_size(option, "-o buf", least=1)
    for name, limit in ((socket.SO_SNDBUF, "wmem_max"), (socket.SO_RCVBUF, "rmem_max")):
        sock.setsockopt(socket.SOL_SOCKET, name, min(nbytes, (1 << 31) - 1))
        granted = sock.getsockopt(socket.SOL_SOCKET, name) // 2  # Linux doubles it, socket(7)
        if granted < nbytes:
            raise UsageError(
                f"-o buf={option}: the kernel grants {granted} bytes; allowed: up to "
                f"net.core.{limit}, which sysctl can raise"
            )


def make_blocking(sock: socket.socket, wait: str) -> None:
    """As both data paths expect it: calls block for at most a tick. ``wait`` is ``-o wait``."""
    sock.setblocking(True)
    tick = struct.pack("@ll", 0, int(TICK_S * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
    if wait == "so_busy_poll":
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_BUSY_POLL, _BUSY_POLL_US)
        except OSError as error:
            raise ChannelUnavailable(
                f"-o wait=so_busy_poll: the kernel refuses ({error.strerror}); it takes "
                f"CAP_NET_ADMIN, or sysctl net.core.busy_read={_BUSY_POLL_US}"
            ) from error


def buffers_in_force(sock: socket.socket) -> dict[str, int]:
    """As the kernel counts them: twice what was asked for, socket(7)."""
    return {
        "sndbuf": sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
        "rcvbuf": sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
    }
