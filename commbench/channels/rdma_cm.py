"""Connecting RC queue pairs by the connection manager (``-o connect=cm``).

It finds the way to the peer: the address handle, the partition, packet sequence numbers. All else
is as without it (``rdma_connect.py``), also the records of the rendezvous, which say where rings
are. Each end proves in the private data of the connection that it belongs to the run, before either
has a queue pair that takes anything.
"""

from __future__ import annotations

import hmac
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from commbench.channels.rdma_connect import (
    Endpoints,
    QueuePairAddress,
    check_pair,
    initialised,
    receiving,
    sending,
)
from commbench.channels.sockets import proof
from commbench.errors import ChannelUnavailable, TransferError, UsageError

TIMEOUT_S = 30.0
_TICK_S = 0.1
_HELLO = struct.Struct("<32sI")  # proof, rank; what follows is padding
_FOUND = frozenset(  # by the connection manager
    {"pkey_index", "lid", "is_global", "gid_index", "traffic_class", "hop_limit", "qpn", "rq_psn"}
    | {"sq_psn"}
)
_FAILURES = frozenset(
    ("ADDR_ERROR", "ROUTE_ERROR", "CONNECT_ERROR", "UNREACHABLE", "REJECTED", "DEVICE_REMOVAL")
)


class Manager(Protocol):
    """``commbench._rdma_cm.Connector``: connections by numbers. OSError."""

    @property
    def port(self) -> int: ...
    @property
    def device(self) -> str: ...
    def resolve(self, address: str, port: int) -> int: ...
    def resolve_route(self, id: int) -> None: ...
    def connect(self, id: int, said: bytes, qpn: int, attributes: Mapping[str, int]) -> None: ...
    def accept(self, id: int, said: bytes, qpn: int, attributes: Mapping[str, int]) -> None: ...
    def establish(self, id: int) -> None: ...
    def reject(self, id: int) -> None: ...
    def forget(self, id: int) -> None: ...
    def attributes(self, id: int, state: str) -> tuple[dict[str, int], str]: ...
    def next(self, timeout_s: float) -> tuple[str, int, int, bytes] | None: ...
    def close(self) -> None: ...


def listen(address: str, device: str, ranks: int) -> Manager:
    """On ``address``, which must be one of ``device``'s. ChannelUnavailable, UsageError."""
    if find_spec("commbench._rdma_cm") is None:
        raise ChannelUnavailable(
            "-o connect=cm: built without librdmacm; Debian: apt install librdmacm-dev, then build "
            "commbench again. Or connect=rendezvous"
        )
    from commbench._rdma_cm import Connector

    try:
        manager: Manager = Connector(address, max(ranks, 16))
    except OSError as error:
        raise ChannelUnavailable(
            f"-o connect=cm: {error.strerror}; it takes the module rdma_ucm and an address of the "
            f"device's interface"
        ) from None
    if manager.device != device:
        found = manager.device or "no device"
        manager.close()
        raise UsageError(
            f"-o connect=cm: {address} is the address of {found}, not of {device}; give "
            f"--interface or --ib-dev so that they fit"
        )
    return manager


class Meeting:
    """All queue pairs of one rank, which asks the ranks above it and is asked by those below."""

    def __init__(
        self,
        manager: Manager,
        endpoints: Endpoints,
        rank: int,
        ours: Mapping[int, QueuePairAddress],
        theirs: Mapping[int, QueuePairAddress],
        token: str,
        sl: int,
    ) -> None:
        self._manager = manager
        self._endpoints = endpoints
        self._rank = rank
        self._ours = ours
        self._theirs = theirs
        self._token = token
        self._sl = sl
        self._peers: dict[int, int] = {}  # by connection
        self._missing = set(ours)
        self._steps: dict[str, Callable[[int, bytes], None]] = {
            "ADDR_RESOLVED": lambda id, _: manager.resolve_route(id),
            "ROUTE_RESOLVED": self._ask,
            "CONNECT_REQUEST": self._admit,
            "CONNECT_RESPONSE": self._answered,
            "ESTABLISHED": lambda id, _: self._missing.discard(self._peers.get(id, -1)),
        }

    def run(
        self, contacts: Sequence[Any], check: Callable[[], None], timeout_s: float = TIMEOUT_S
    ) -> None:
        """``contacts``: by rank the address and port of its manager; ``check`` raises when the run
        is over. UsageError; TransferError naming the rank that is not reached."""
        deadline = time.monotonic() + timeout_s
        for peer in sorted(self._ours):
            check_pair(self._ours[peer], self._theirs[peer], peer)
            self._endpoints.join(peer, self._theirs[peer].endpoint)
            if peer > self._rank:
                self._resolve(peer, contacts[peer])
        while self._missing:
            check()
            if time.monotonic() > deadline:
                raise TransferError(
                    f"channel rdma: rank {min(self._missing)} is not connected by rdma_cm within "
                    f"{timeout_s:g} s"
                )
            event = self._manager.next(_TICK_S)
            if event is not None:
                self._heed(*event)

    def _resolve(self, peer: int, contact: Any) -> None:
        match contact:
            case [str(address), int(port)] if 0 < port < 1 << 16:
                self._peers[self._manager.resolve(address, port)] = peer
            case _:
                raise TransferError(f"rank {peer} sent no address of rdma_cm")

    def _heed(self, name: str, id: int, status: int, said: bytes) -> None:
        if name in _FAILURES:
            peer = self._peers.pop(id, None)
            if peer is not None:
                why = f" ({os.strerror(abs(status))})" if name != "REJECTED" and status else ""
                raise TransferError(
                    f"channel rdma: rank {peer} is not reached by rdma_cm: {name}{why}"
                )
            self._manager.forget(id)
        elif name in self._steps:
            self._steps[name](id, said)

    def _ask(self, id: int, _said: bytes) -> None:
        peer = self._peers[id]
        self._step(id, peer, "init")
        self._manager.connect(id, self._hello("ask"), self._ours[peer].qpn, self._reads(peer))

    def _admit(self, id: int, said: bytes) -> None:
        """A stranger is turned away before any queue pair has heard of it."""
        peer = self._proved("ask", said)
        if peer is None or peer >= self._rank or peer in self._peers.values():
            self._manager.reject(id)
            return
        self._peers[id] = peer
        for state in ("init", "rtr", "rts"):
            self._step(id, peer, state)
        self._manager.accept(id, self._hello("srv"), self._ours[peer].qpn, self._reads(peer))

    def _answered(self, id: int, said: bytes) -> None:
        peer = self._peers[id]
        if self._proved("srv", said) != peer:
            raise TransferError(f"what answers as rank {peer} does not belong to this run")
        self._step(id, peer, "rtr")
        self._step(id, peer, "rts")
        self._manager.establish(id)
        self._missing.discard(peer)

    def _step(self, id: int, peer: int, state: str) -> None:
        ours, theirs = self._ours[peer], self._theirs[peer]
        wanted = {
            "init": lambda: initialised(ours),
            "rtr": lambda: receiving(ours, theirs, self._sl),
            "rts": lambda: sending(ours, theirs),
        }[state]()
        path, gid = self._manager.attributes(id, state)
        wanted |= {name: value for name, value in path.items() if name in _FOUND}
        if wanted.get("qpn", theirs.qpn) != theirs.qpn:
            raise TransferError(f"rank {peer} has another queue pair than it said")
        self._endpoints.modify(peer, state, wanted, gid)

    def _reads(self, peer: int) -> dict[str, int]:
        ours, theirs = self._ours[peer], self._theirs[peer]
        return receiving(ours, theirs, self._sl) | sending(ours, theirs)

    def _hello(self, label: str) -> bytes:
        return _HELLO.pack(proof(f"cm {label}", self._token), self._rank)

    def _proved(self, label: str, said: bytes) -> int | None:
        """The rank that said it; None: nobody of this run."""
        if len(said) < _HELLO.size:
            return None
        shown, rank = _HELLO.unpack_from(said)
        return rank if hmac.compare_digest(shown, proof(f"cm {label}", self._token)) else None
