"""Messages of the ``rdma`` channel on their way out: requests, answers, parts of a rendezvous.

What waits for credits waits in the order in which it was asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from commbench.channels import rdma_frames as frames
from commbench.channels.rdma_frames import Segment
from commbench.channels.rdma_link import Link
from commbench.channels.rdma_memory import Regions
from commbench.payloads.buffers import EMPTY, Message

if TYPE_CHECKING:
    from commbench.channels.base import Exchange

FREE, COMING, COMPLETE, ARRIVED, OPEN = range(5)  # what an incoming slot is doing


@dataclass(slots=True)
class Flight:
    """A message of ours, from ``post`` to ``poll``."""

    peer: int
    slot: int
    ticket: int
    request: Message
    reply: Message | None
    reply_nbytes: int = 0
    number: int = 0  # of the work request that carried it, or its RTS
    moved: int = 0  # bytes of the request written by rendezvous, or announced
    landed: int = 0  # bytes of the reply that are asked for
    due: bool = True


@dataclass(slots=True)
class Arrival:
    """An incoming slot; its index is the ticket."""

    index: int
    peer: int
    slot: int
    room: Message
    state: int = FREE
    message: Message = EMPTY
    wants_reply: bool = False
    answer: Message = EMPTY
    moved: int = 0  # of the answer
    landed: int = 0  # of the request: read, or asked for


@dataclass(slots=True)
class Progress:
    """What the verbs hand out, of all peers."""

    done: deque[Flight] = field(default_factory=deque)
    arrived: deque[Arrival] = field(default_factory=deque)


class Sending:
    """What this rank has to say to one other in a case."""

    def __init__(
        self, link: Link, case: Exchange, index: int, regions: Regions, progress: Progress
    ) -> None:
        window = case.window
        self.link = link
        self._case = case
        self._regions = regions
        self._progress = progress
        self._reads = link.device.options.op == "read"
        self._free = deque(range(window))
        self._flights: list[Flight | None] = [None] * window
        self._waiting: deque[Callable[[], bool]] = deque()  # each sends; False: no credits
        self._order: deque[Arrival] = deque()  # by their first frames
        self._settled = self._settling = 0
        self.arrivals: list[Arrival] = []
        if case.serves:
            first = index * window
            rooms = case.incoming[first : first + window]
            self.arrivals = [
                Arrival(first + slot, link.peer, slot, room) for slot, room in enumerate(rooms)
            ]

    # -- the verbs

    def post(self, ticket: int, request: Message, reply: Message | None) -> bool:
        """False: the window is full."""
        if not self._free:
            return False
        slot = self._free.popleft()
        flight = self._flights[slot] = Flight(self.link.peer, slot, ticket, request, reply)
        self._enqueue(partial(self._send_request, flight))
        self.flush()
        return True

    def retire(self, flight: Flight) -> None:
        """It was handed out; its slot is free."""
        self._flights[flight.slot] = None
        self._free.append(flight.slot)

    def answer(self, arrival: Arrival, answer: Message) -> None:
        arrival.answer = answer
        arrival.moved = 0
        self._enqueue(partial(self._send_answer, arrival))
        self.flush()

    def settle(self) -> None:
        """Tell the peer that this block of operations has ended here."""
        self._settling += 1
        self._enqueue(partial(self._send_empty, frames.SETTLE, 0))
        self.flush()

    @property
    def settled(self) -> bool:
        """The peer's block has ended, too, and it has all that we had to say."""
        return self._settled >= self._settling and not self._waiting

    # -- out

    def _enqueue(self, send: Callable[[], bool]) -> None:
        self._waiting.append(send)

    def flush(self) -> None:
        """In their order, as far as credits go."""
        while self._waiting and self.link.credits.may_send():
            if not self._waiting[0]():
                return
            self._waiting.popleft()

    def _send_request(self, flight: Flight) -> bool:
        request, slot, queue = flight.request, flight.slot, self.link.queue
        one_way = flight.reply is None
        eager = request.nbytes <= self.link.eager_max
        reusable = False
        if eager:
            kind = frames.ONE_WAY if one_way else frames.REQUEST
            reusable = self.link.send(self._regions, kind, slot, request.nbytes, request)
        else:
            kind = frames.RTS_ONE_WAY if one_way else frames.RTS_REQUEST
            flight.moved, complete = self._ready_to_send(kind, slot, request, flight.moved)
            if not complete:
                return False
        flight.number = queue.posted
        if not one_way:
            queue.replied = queue.posted
        elif reusable:
            self._finish(flight)
        elif eager:
            queue.after(partial(self._finish, flight), sent=True)
        return True

    def _send_answer(self, arrival: Arrival) -> bool:
        answer, slot = arrival.answer, arrival.slot
        if answer.nbytes <= self.link.eager_max:
            self.link.send(self._regions, frames.REPLY, slot, answer.nbytes, answer)
            arrival.state = FREE  # a request into this slot says that the answer is there
            return True
        kind = frames.RTS_REPLY
        arrival.moved, complete = self._ready_to_send(kind, slot, answer, arrival.moved)
        return complete

    def _ready_to_send(self, kind: int, slot: int, message: Message, told: int) -> tuple[int, bool]:
        """RTS: with op=read it has the segments, in as many frames as it takes."""
        self._regions.adopt(message)
        if not self._reads:
            self.link.send(self._regions, kind, slot, message.nbytes)
            return 0, True
        told = self._announce(kind, slot, message, message.nbytes, told)
        return told, told == message.nbytes

    def _announce(self, kind: int, slot: int, message: Message, nbytes: int, told: int) -> int:
        """Frames with the segments of bytes ``told`` to ``nbytes``, as far as credits go; up to
        where that was."""
        while told < nbytes and self.link.credits.may_send():
            segments = frames.join_segments(
                Segment(address, length, self._regions.at(address, length).rkey)
                for address, length in frames.pieces_of(message.addresses, told, nbytes)
            )[: self.link.ring.most_segments]
            told += sum(segment.nbytes for segment in segments)
            listed = frames.pack_segments(segments)
            self.link.send_list(kind, slot, nbytes, listed, told < nbytes)
        return told

    def _clear_request(self, arrival: Arrival) -> bool:
        """CTS: where the request is to be written."""
        nbytes = arrival.message.nbytes
        kind = frames.CTS_REQUEST
        arrival.landed = self._announce(kind, arrival.slot, arrival.room, nbytes, arrival.landed)
        return arrival.landed == nbytes

    def _clear_reply(self, flight: Flight) -> bool:
        assert flight.reply is not None
        nbytes, kind = flight.reply_nbytes, frames.CTS_REPLY
        flight.landed = self._announce(kind, flight.slot, flight.reply, nbytes, flight.landed)
        return flight.landed == nbytes

    def _end_request(self, flight: Flight) -> bool:
        """FIN of what was written: it comes behind the data."""
        self._send_empty(frames.FIN_REQUEST, flight.slot)
        if flight.reply is None:
            self.link.queue.after(partial(self._finish, flight), sent=True)
        return True

    def _end_reply(self, arrival: Arrival) -> bool:
        self._send_empty(frames.FIN_REPLY, arrival.slot)
        arrival.state = FREE
        return True

    def _send_empty(self, kind: int, slot: int) -> bool:
        self.link.send(self._regions, kind, slot, 0)
        return True

    def _finish(self, flight: Flight) -> None:
        flight.due = False
        self._progress.done.append(flight)
