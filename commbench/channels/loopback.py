"""``loopback``: one process asks itself. No transport: its numbers are the harness floor.

``-o fault=flip|swap|short|few|repeat`` damages message ``fault_at`` on purpose, so that anyone can
see validation fail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from commbench import _native
from commbench.channels.base import (
    Capability,
    Channel,
    Done,
    Exchange,
    Incoming,
    NativeEngine,
    Option,
)
from commbench.errors import Interrupted, TransferError, UsageError
from commbench.payloads.buffers import Message, copy

if TYPE_CHECKING:
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.world import World


@dataclass(slots=True)
class _Parcel:
    """One message on its way; its index is the server's ticket."""

    ticket: int = 0
    reply: Message | None = None
    reply_nbytes: int = 0


class LoopbackChannel(Channel):
    name = "loopback"
    capabilities = Capability.REQUEST | Capability.ONE_WAY | Capability.WINDOW | Capability.IOVEC
    ranks_inside = True
    options: ClassVar[Mapping[str, Option]] = {
        "fault": Option("", "damage one message", ("", "flip", "swap", "short", "few", "repeat")),
        "fault_at": Option("5", "number of the damaged message, from 0"),
    }

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = dict(options)
        self._fault, self._fault_at = options["fault"], int(options["fault_at"])
        self._posted = 0
        self._copied = 0

    @classmethod
    def check_options(cls, given: Mapping[str, str]) -> dict[str, str]:
        options = super().check_options(given)
        at = options["fault_at"]
        if not (at.isascii() and at.isdecimal() and int(at) < 1 << 63):
            raise UsageError(f"-o fault_at={at}: allowed: 0 to 2^63 - 1")
        return options

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        return cls(options)

    def prepare(self, exchange: Exchange) -> None:
        size = exchange.window * len(exchange.peers)
        self._exchange = exchange
        self._parcels = [_Parcel() for _ in range(size)]
        self._idle = deque(range(size))
        self._arrived: deque[Incoming] = deque()
        self._done: deque[int] = deque()

    def finish(self) -> None:
        self._parcels = []

    def post(self, peer: int, ticket: int, request: Message, reply: Message | None) -> bool:
        if not self._idle:
            return False
        index = self._idle.popleft()
        self._parcels[index] = _Parcel(ticket, reply)
        message = self._deliver(self._exchange.incoming[index], request)
        self._posted += 1
        self._arrived.append(Incoming(index, peer, reply is not None, message))
        return True

    def poll(self, timeout_s: float) -> Sequence[Done]:
        done = []
        while self._done:
            index = self._done.popleft()
            parcel = self._parcels[index]
            done.append(Done(parcel.ticket, parcel.reply_nbytes))
            self._idle.append(index)
        return done

    def exchange(self, peer: int, request: Message, reply: Message, timeout_s: float) -> int:
        raise TransferError("loopback serves itself: use the ask-and-serve loop")

    def accept(self, limit: int, timeout_s: float) -> Sequence[Incoming]:
        if self._exchange.stop.is_set:
            raise Interrupted("the run was stopped")
        incoming: list[Incoming] = []
        while self._arrived and len(incoming) < limit:
            incoming.append(self._arrived.popleft())
            if not incoming[-1].wants_reply:
                self._done.append(incoming[-1].ticket)
        return incoming

    def answer(self, ticket: int, answer: Message) -> None:
        parcel = self._parcels[ticket]
        if parcel.reply is None:
            raise TransferError(f"no ticket {ticket} to answer")
        parcel.reply_nbytes = self._copy(parcel.reply, answer)
        parcel.reply = None
        self._done.append(ticket)

    def progress(self, timeout_s: float) -> bool:
        return bool(self._done or self._arrived)

    def copied(self) -> int:
        return self._copied

    def native(self) -> NativeEngine:
        return _native.LoopbackEngine(self._fault, self._fault_at)

    def describe(self) -> dict[str, str | int | float]:
        return {**self._options, "transport": "memcpy"}

    def close(self) -> None:
        """Nothing is held."""

    def _copy(self, to: Message, source: Message) -> int:
        nbytes = copy(to, source)
        self._copied += nbytes
        return nbytes

    def _deliver(self, slot: Message, request: Message) -> Message:
        """Fill the slot; the fault strikes here, as a broken transport's would."""
        struck = self._fault if self._posted == self._fault_at else ""
        if struck == "repeat":
            return slot
        message = slot.cut(self._copy(slot, request))
        if struck == "flip" and slot.nbytes:
            slot.views[-1][0] ^= 0x10
        elif struck == "swap" and len(slot.views) > 1:
            part = min(slot.views[0].nbytes, slot.views[1].nbytes)
            first = bytes(slot.views[0][:part])
            slot.views[0][:part] = slot.views[1][:part]
            slot.views[1][:part] = first
        elif struck == "short":
            return slot.cut(message.nbytes - 1)
        elif struck == "few" and slot.views:
            return slot.cut(message.nbytes - slot.views[-1].nbytes)
        return message
