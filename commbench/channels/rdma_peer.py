"""The messages of one case between this rank and one other over the ``rdma`` channel."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from commbench.channels import rdma_frames as frames
from commbench.channels.rdma_frames import Tail
from commbench.channels.rdma_link import Link
from commbench.channels.rdma_memory import Regions
from commbench.channels.rdma_sending import (
    ARRIVED,
    COMING,
    COMPLETE,
    FREE,
    OPEN,
    Arrival,
    Flight,
    Progress,
    Sending,
)
from commbench.errors import TransferError
from commbench.payloads.buffers import Message, scatter

if TYPE_CHECKING:
    from commbench.channels.base import Exchange


class Peer(Sending):
    """Takes what comes, and answers by what ``Sending`` says."""

    def __init__(
        self, link: Link, case: Exchange, index: int, regions: Regions, progress: Progress
    ) -> None:
        super().__init__(link, case, index, regions, progress)
        self._take = {
            frames.REQUEST: self._take_request,
            frames.ONE_WAY: self._take_request,
            frames.REPLY: self._take_reply,
            frames.RTS_REQUEST: self._take_rts_request,
            frames.RTS_ONE_WAY: self._take_rts_request,
            frames.RTS_REPLY: self._take_rts_reply,
            frames.CTS_REQUEST: self._take_cts_request,
            frames.CTS_REPLY: self._take_cts_reply,
            frames.FIN_REQUEST: self._take_fin_request,
            frames.FIN_REPLY: self._take_fin_reply,
            frames.CREDIT: lambda _tail, _payload: True,
            frames.SETTLE: self._take_settle,
        }

    def look(self) -> int:
        """Takes what came; how many frames."""
        taken = 0
        while (frame := self.link.next_frame(self._case.window)) is not None:
            tail, payload = frame
            take = self._take.get(tail.kind)
            if take is None:
                raise self._nonsense(tail)
            if not take(tail, payload):
                break
            self.link.took()
            taken += 1
        if taken or self._waiting:
            self.flush()
            if self.link.credits.owes:
                self.link.send(self._regions, frames.CREDIT, 0, 0)
        return taken

    # -- requests in

    def _take_request(self, tail: Tail, payload: memoryview) -> bool:
        if tail.payload != tail.nbytes:
            raise self._nonsense(tail)
        arrival = self._begin(tail)
        if arrival is None:
            return False
        scatter(arrival.message, payload)
        self.link.copied += tail.nbytes
        self._complete(arrival)
        return True

    def _begin(self, tail: Tail) -> Arrival | None:
        """Room for a request; None: its slot still has the one before."""
        arrival = self._arrival(tail)
        if arrival.state != FREE:
            return None
        if tail.nbytes > arrival.room.nbytes:
            raise self._too_long(tail, arrival.room.nbytes)
        arrival.message = arrival.room.cut(tail.nbytes)
        arrival.wants_reply = tail.kind not in (frames.ONE_WAY, frames.RTS_ONE_WAY)
        arrival.moved = arrival.landed = 0
        self._order.append(arrival)
        return arrival

    def _complete(self, arrival: Arrival) -> None:
        """Requests go to the application in the order in which they were begun."""
        arrival.state = COMPLETE
        while self._order and self._order[0].state == COMPLETE:
            first = self._order.popleft()
            first.state = ARRIVED
            self._progress.arrived.append(first)

    def _take_rts_request(self, tail: Tail, payload: memoryview) -> bool:
        arrival: Arrival | None = self._arrival(tail)
        assert arrival is not None
        if arrival.state != COMING or arrival.landed == 0:
            arrival = self._begin(tail)
        if arrival is None:
            return False
        arrival.state = COMING
        if not self._reads:
            self._enqueue(partial(self._clear_request, arrival))
            return True
        if tail.nbytes != arrival.message.nbytes:
            raise self._nonsense(tail)
        arrival.landed = self._read(tail, payload, arrival.message, arrival.landed)
        if arrival.landed == tail.nbytes:
            self.link.queue.after(partial(self._have_read_request, arrival))
        return True

    def _have_read_request(self, arrival: Arrival) -> None:
        self._enqueue(partial(self._send_empty, frames.FIN_REQUEST, arrival.slot))
        self._complete(arrival)

    def _read(self, tail: Tail, payload: memoryview, into: Message, landed: int) -> int:
        for segment in frames.unpack_segments(payload):
            if segment.nbytes > tail.nbytes - landed:
                raise self._nonsense(tail)
            self.link.queue.read(self._regions, into, landed, segment)
            landed += segment.nbytes
        if not tail.more and landed != tail.nbytes:
            raise self._nonsense(tail)
        return landed

    # -- replies in

    def _take_reply(self, tail: Tail, payload: memoryview) -> bool:
        flight, reply = self._awaiting(tail)
        if tail.payload != tail.nbytes:
            raise self._nonsense(tail)
        if tail.nbytes > reply.nbytes:
            raise self._too_long(tail, reply.nbytes)
        scatter(reply, payload)
        self.link.copied += tail.nbytes
        flight.reply_nbytes = tail.nbytes
        self.link.queue.prove(flight.number)
        self._finish(flight)
        return True

    def _take_rts_reply(self, tail: Tail, payload: memoryview) -> bool:
        flight, reply = self._awaiting(tail)
        if flight.reply_nbytes and (flight.landed == 0 or tail.nbytes != flight.reply_nbytes):
            raise self._nonsense(tail)
        if tail.nbytes > reply.nbytes:
            raise self._too_long(tail, reply.nbytes)
        flight.reply_nbytes = tail.nbytes
        self.link.queue.prove(flight.number)
        if not self._reads:
            self._enqueue(partial(self._clear_reply, flight))
            return True
        flight.landed = self._read(tail, payload, reply, flight.landed)
        if flight.landed == tail.nbytes:
            self.link.queue.after(partial(self._have_read_reply, flight))
        return True

    def _have_read_reply(self, flight: Flight) -> None:
        self._enqueue(partial(self._send_empty, frames.FIN_REPLY, flight.slot))
        self._finish(flight)

    # -- the rest of a rendezvous

    def _take_cts_request(self, tail: Tail, payload: memoryview) -> bool:
        flight = self._flights[tail.slot] if tail.slot < self._case.window else None
        if flight is None or self._reads:
            raise self._nonsense(tail)
        flight.moved = self._write(tail, payload, flight.request, flight.moved)
        if flight.moved == flight.request.nbytes:
            self._enqueue(partial(self._end_request, flight))
        return True

    def _take_cts_reply(self, tail: Tail, payload: memoryview) -> bool:
        arrival = self._arrival(tail)
        if arrival.state != OPEN or self._reads:
            raise self._nonsense(tail)
        arrival.moved = self._write(tail, payload, arrival.answer, arrival.moved)
        if arrival.moved == arrival.answer.nbytes:
            self._enqueue(partial(self._end_reply, arrival))
        return True

    def _write(self, tail: Tail, payload: memoryview, message: Message, moved: int) -> int:
        if moved >= message.nbytes:
            raise self._nonsense(tail)
        for segment in frames.unpack_segments(payload):
            if segment.nbytes > message.nbytes - moved:
                raise self._nonsense(tail)
            self.link.queue.write(self._regions, message, moved, segment)
            moved += segment.nbytes
        return moved

    def _take_fin_request(self, tail: Tail, _payload: memoryview) -> bool:
        if not self._reads:
            arrival = self._arrival(tail)
            if arrival.state != COMING:
                raise self._nonsense(tail)
            self._complete(arrival)
            return True
        flight = self._flights[tail.slot] if tail.slot < self._case.window else None
        if flight is None:
            raise self._nonsense(tail)
        self.link.queue.sent_nbytes += flight.request.nbytes
        if flight.due and flight.reply is None:
            self._finish(flight)
        return True

    def _take_fin_reply(self, tail: Tail, _payload: memoryview) -> bool:
        if not self._reads:
            self._finish(self._awaiting(tail)[0])
            return True
        arrival = self._arrival(tail)
        if arrival.state != OPEN:
            raise self._nonsense(tail)
        self.link.queue.sent_nbytes += arrival.answer.nbytes
        arrival.state = FREE
        return True

    def _take_settle(self, _tail: Tail, _payload: memoryview) -> bool:
        self._settled += 1
        return True

    # -- what a frame speaks of

    def _arrival(self, tail: Tail) -> Arrival:
        if tail.slot >= len(self.arrivals):
            raise self._nonsense(tail)
        return self.arrivals[tail.slot]

    def _awaiting(self, tail: Tail) -> tuple[Flight, Message]:
        flight = self._flights[tail.slot] if tail.slot < self._case.window else None
        if flight is None or not flight.due or flight.reply is None:
            raise self._nonsense(tail)
        return flight, flight.reply

    def _nonsense(self, tail: Tail) -> TransferError:
        return TransferError(
            f"channel rdma: rank {self.link.peer} sent a frame of kind {tail.kind} that is none of "
            f"this case"
        )

    def _too_long(self, tail: Tail, room: int) -> TransferError:
        return TransferError(
            f"channel rdma: rank {self.link.peer} sent a message of {tail.nbytes} bytes where "
            f"{room} are the most"
        )
