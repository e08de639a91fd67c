"""One connection during one case, as the Python data path of the socket channels sees it.

Requests go one way on a connection and replies the other: the asker's end is ``Asking``, the
server's end ``Serving``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from commbench.channels.base import Done, Incoming
from commbench.channels.wire import ONE_WAY, REPLY, REQUEST, Header, Stream
from commbench.errors import TransferError
from commbench.payloads.buffers import Message


@dataclass(slots=True)
class _Flight:
    """A message of ours that is not done."""

    ticket: int
    reply: Message | None


class Link(ABC):
    """``free``: slots of the window that hold no message."""

    def __init__(self, stream: Stream, window: int) -> None:
        self.stream = stream
        self.free = deque(range(window))

    @property
    def can_receive(self) -> bool:
        return True

    def flush(self) -> None:
        self.stream.flush()

    def receive(self, wait: bool) -> bool:
        """Take one message; False when none is complete."""
        header = self.stream.receive(self.place, wait)
        if header is not None:
            self.delivered(header)
        return header is not None

    @abstractmethod
    def place(self, header: Header) -> Message:
        """Where a message goes. Raises TransferError when it is none of this case."""

    @abstractmethod
    def delivered(self, header: Header) -> None:
        """It is there."""

    def refuse(self, header: Header, room: int) -> TransferError:
        if header.nbytes > room:
            return TransferError(
                f"rank {self.stream.peer} sent a message of {header.nbytes} bytes "
                f"where {room} are the most"
            )
        return TransferError(f"rank {self.stream.peer} sent something that is no message")


class Asking(Link):
    """Finished messages are appended to ``done``, with the slot that they free."""

    def __init__(self, stream: Stream, window: int, done: deque[tuple[Done, Asking, int]]) -> None:
        super().__init__(stream, window)
        self._done = done
        self._flights: dict[int, _Flight] = {}

    def start(self, ticket: int, request: Message, reply: Message | None) -> bool:
        """Send what can be sent now; False when the window is full."""
        if not self.free:
            return False
        slot = self.free.popleft()
        self._flights[slot] = _Flight(ticket, reply)
        self.stream.send(request, slot, ONE_WAY if reply is None else REQUEST)
        self.flush()
        return True

    def flush(self) -> None:
        for slot in self.stream.flush():
            if self._flights[slot].reply is None:
                self._finish(slot, 0)

    def place(self, header: Header) -> Message:
        flight = self._flights.get(header.slot)
        if flight is None or flight.reply is None or header.kind != REPLY:
            raise self.refuse(header, header.nbytes)
        if header.nbytes > flight.reply.nbytes:
            raise self.refuse(header, flight.reply.nbytes)
        return flight.reply

    def delivered(self, header: Header) -> None:
        self._finish(header.slot, header.nbytes)

    def _finish(self, slot: int, reply_nbytes: int) -> None:
        self._done.append((Done(self._flights.pop(slot).ticket, reply_nbytes), self, slot))


class Serving(Link):
    """Requests land in ``incoming`` and go to ``arrived``; tickets count from ``base``."""

    def __init__(
        self,
        stream: Stream,
        window: int,
        base: int,
        incoming: Sequence[Message],
        arrived: deque[Incoming],
    ) -> None:
        super().__init__(stream, window)
        self._base = base
        self._incoming = incoming
        self._arrived = arrived
        self._asker: dict[int, int] = {}  # our slot -> the asker's

    @property
    def can_receive(self) -> bool:
        return bool(self.free) or self.stream.receiving

    def place(self, header: Header) -> Message:
        room = self._incoming[self._base + self.free[0]]
        if header.kind not in (REQUEST, ONE_WAY) or header.nbytes > room.nbytes:
            raise self.refuse(header, room.nbytes)
        return room

    def delivered(self, header: Header) -> None:
        slot = self.free.popleft()
        self._asker[slot] = header.slot
        ticket = self._base + slot
        message = self._incoming[ticket].cut(header.nbytes)
        wanted = header.kind == REQUEST
        self._arrived.append(Incoming(ticket, self.stream.peer, wanted, message))

    def answer(self, ticket: int, answer: Message) -> None:
        """Queue an answer; the slot is free after ``release``."""
        self.stream.send(answer, self._asker[ticket - self._base], REPLY)
        self.flush()

    def release(self, ticket: int) -> None:
        self.free.append(ticket - self._base)
