"""The Python data path of the ``mpi`` channel: the verbs over mpi4py, with the engine's tags.

Requests to a peer carry tag 0 and keep their order; the reply to the k-th carries tag
1 + k mod lanes, where both ends count k, so that replies may overtake each other.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from commbench.channels.base import Channel, Done, Exchange, Incoming
from commbench.errors import Interrupted, TransferError
from commbench.payloads.buffers import Message

if TYPE_CHECKING:
    from commbench.harness.stop import StopFlag

_REQUEST, _REPLY = 0, 1
_MOST_LANES = 16384
_FINISH_S = 5.0


def lanes_for(window: int) -> int:
    """Reply tags in use with one peer: as ``lanes_for`` of the engine."""
    return 1 if window == 1 else min(_MOST_LANES, 1 << (4 * window - 1).bit_length())


@dataclass(slots=True)
class _Ask:
    """A ``post`` in flight."""

    ticket: int
    peer: int
    lane: int
    pending: int
    reply_nbytes: int = 0


@dataclass(slots=True)
class _Peer:
    asked: int = 0
    arrived: int = 0
    in_flight: int = 0
    lanes: set[int] = field(default_factory=set)
    posted: deque[_Slot] = field(default_factory=deque)


@dataclass(slots=True)
class _Slot:
    """An incoming buffer; its index is the ticket."""

    index: int
    peer: int
    message: Message
    number: int = 0
    nbytes: int = -1  # -1: has not arrived
    held: bool = False


@dataclass(slots=True)
class _Operation:
    """One MPI request in flight and what to do with the number of bytes once it is complete."""

    request: Any
    sends: bool
    then: Callable[[int], None]


class MpiMessages(Channel):
    """Everything of the channel that moves messages in Python."""

    def __init__(
        self, module: ModuleType, comm: Any, mode: str, pack: bool, stop: StopFlag
    ) -> None:
        self._mpi: Any = module
        self._comm: Any = comm
        self._mode = mode
        self._pack = pack
        self._types: dict[tuple[tuple[int, int], ...], Any] = {}
        self._active: list[_Operation] = []
        self._case: Exchange | None = None
        self._stop = stop
        self._copied = 0

    # -- a case

    def prepare(self, exchange: Exchange) -> None:
        self._case = exchange
        self._stop = exchange.stop
        self._lanes = lanes_for(exchange.window)
        self._peers = {rank: _Peer() for rank in exchange.peers}
        self._done: deque[_Ask] = deque()
        self._arrived: deque[_Slot] = deque()
        self._loose: list[_Slot] = []
        self._closing = False
        self._slots: list[_Slot] = []
        if not exchange.serves:
            return
        for index in range(len(exchange.peers) * exchange.window):
            rank = exchange.peers[index // exchange.window]
            self._slots.append(_Slot(index, rank, exchange.incoming[index]))
        if not self._serial:
            for slot in self._slots:
                self._post_slot(slot)

    def finish(self) -> None:
        if self._case is None:
            return
        self._closing = True
        try:
            self._wait(lambda: not any(each.sends for each in self._active), _FINISH_S)
            for each in self._active:
                each.request.Cancel()
            self._wait(lambda: not self._active, _FINISH_S)
            if self._active:
                raise TransferError("channel mpi: messages are still in flight")
        finally:
            self._case = None
            self._slots = []
            for datatype in self._types.values():
                datatype.Free()
            self._types.clear()

    @property
    def _serial(self) -> bool:
        """One peer that waits for each reply: a blocking receive is all that is needed."""
        case = self._open_case
        return (
            self._mode == "blocking"
            and case.serves
            and not case.asks
            and len(case.peers) == 1
            and case.window == 1
        )

    @property
    def _open_case(self) -> Exchange:
        assert self._case is not None, "prepare() comes first"
        return self._case

    # -- asking

    def post(self, peer: int, ticket: int, request: Message, reply: Message | None) -> bool:
        state = self._peers[peer]
        lane = state.asked % self._lanes
        if state.in_flight == self._open_case.window or lane in state.lanes:
            return False
        ask = _Ask(ticket, peer, lane, 1 if reply is None else 2)
        state.in_flight += 1
        state.lanes.add(lane)
        state.asked += 1
        if reply is not None:
            self._receive(reply, peer, _REPLY + lane, lambda n: self._asked(ask, n))
        self._send(request, peer, _REQUEST, lambda _: self._asked(ask, 0))
        return True

    def poll(self, timeout_s: float) -> Sequence[Done]:
        self._wait(lambda: bool(self._done), timeout_s)
        done = []
        while self._done:
            ask = self._done.popleft()
            state = self._peers[ask.peer]
            state.in_flight -= 1
            state.lanes.discard(ask.lane)
            done.append(Done(ask.ticket, ask.reply_nbytes))
        return done

    def exchange(self, peer: int, request: Message, reply: Message, timeout_s: float) -> int:
        if self._mode != "blocking":
            return self._exchange_polled(peer, request, reply, timeout_s)
        state = self._peers[peer]
        tag = _REPLY + state.asked % self._lanes
        state.asked += 1
        status = self._mpi.Status()
        with self._errors():
            self._comm.Send(self._outgoing(request), peer, _REQUEST)
            buffer, landed = self._landing(reply)
            self._comm.Recv(buffer, peer, tag, status)
        nbytes = int(status.Get_count(self._mpi.BYTE))
        landed(nbytes)
        return nbytes

    def _exchange_polled(
        self, peer: int, request: Message, reply: Message, timeout_s: float
    ) -> int:
        if not self.post(peer, 0, request, reply):
            raise TransferError("channel mpi: exchange with requests in flight")
        done = self.poll(timeout_s)
        if not done:
            self._check_stop()
            raise TransferError(f"channel mpi: no reply from rank {peer} within {timeout_s:g} s")
        return done[0].reply_nbytes

    def _asked(self, ask: _Ask, nbytes: int) -> None:
        ask.reply_nbytes += nbytes
        ask.pending -= 1
        if ask.pending == 0:
            self._done.append(ask)

    # -- serving

    def accept(self, limit: int, timeout_s: float) -> Sequence[Incoming]:
        if self._serial:
            return self._accept_one(timeout_s)
        while self._loose:
            self._post_slot(self._loose.pop())
        self._wait(lambda: bool(self._arrived), timeout_s)
        return [self._deliver() for _ in range(min(limit, len(self._arrived)))]

    def _accept_one(self, timeout_s: float) -> Sequence[Incoming]:
        slot = self._slots[0]
        if slot.held:  # the window is full: nothing can come before it is answered
            self._wait(lambda: not slot.held, timeout_s)
            return ()
        if timeout_s == 0 and not self._comm.Iprobe(slot.peer, _REQUEST):
            return ()
        status = self._mpi.Status()
        buffer, landed = self._landing(slot.message)
        with self._errors():
            self._comm.Recv(buffer, slot.peer, _REQUEST, status)
        slot.nbytes = status.Get_count(self._mpi.BYTE)
        landed(slot.nbytes)
        slot.number = self._peers[slot.peer].arrived
        self._peers[slot.peer].arrived += 1
        self._arrived.append(slot)
        return [self._deliver()]

    def _deliver(self) -> Incoming:
        slot = self._arrived.popleft()
        every = self._open_case.reply_every
        slot.held = every > 0 and (slot.number + 1) % every == 0
        if not slot.held and not self._serial:
            self._loose.append(slot)
        return Incoming(slot.index, slot.peer, slot.held, slot.message.cut(slot.nbytes))

    def answer(self, ticket: int, answer: Message) -> None:
        slot = self._slots[ticket]
        if not slot.held:
            raise TransferError(f"channel mpi: an answer to ticket {ticket}, which waits for none")
        slot.held = False
        tag = _REPLY + slot.number % self._lanes
        if self._serial:
            with self._errors():
                self._comm.Send(self._outgoing(answer), slot.peer, tag)
        else:
            self._send(answer, slot.peer, tag, lambda _: self._post_slot(slot))

    def _post_slot(self, slot: _Slot) -> None:
        if self._closing:
            return
        slot.nbytes = -1
        self._peers[slot.peer].posted.append(slot)
        self._receive(slot.message, slot.peer, _REQUEST, lambda n: self._arrive(slot, n))

    def _arrive(self, slot: _Slot, nbytes: int) -> None:
        """Requests of a peer are handed out in the order in which they were sent."""
        slot.nbytes = nbytes
        state = self._peers[slot.peer]
        while state.posted and state.posted[0].nbytes >= 0:
            first = state.posted.popleft()
            first.number = state.arrived
            state.arrived += 1
            self._arrived.append(first)

    def progress(self, timeout_s: float) -> bool:
        return self._wait(lambda: bool(self._done or self._arrived), timeout_s)

    # -- requests

    def _send(self, message: Message, peer: int, tag: int, then: Callable[[int], None]) -> None:
        with self._errors():
            if self._mode == "persistent":
                request = self._comm.Send_init(self._outgoing(message), peer, tag)
                request.Start()
            else:
                request = self._comm.Isend(self._outgoing(message), peer, tag)
        self._active.append(_Operation(request, True, then))

    def _receive(self, message: Message, peer: int, tag: int, then: Callable[[int], None]) -> None:
        buffer, landed = self._landing(message)
        with self._errors():
            if self._mode == "persistent":
                request = self._comm.Recv_init(buffer, peer, tag)
                request.Start()
            else:
                request = self._comm.Irecv(buffer, peer, tag)

        def arrived(nbytes: int) -> None:
            landed(nbytes)
            then(nbytes)

        self._active.append(_Operation(request, False, arrived))

    def _look(self) -> None:
        """Look at everything that is in flight once; what completed is taken out."""
        if not self._active:
            return
        statuses = [self._mpi.Status() for _ in self._active]
        with self._errors(statuses):
            indices = self._mpi.Request.Testsome([o.request for o in self._active], statuses) or []
        completed = [self._active[index] for index in indices]
        gone = set(indices)
        self._active = [each for i, each in enumerate(self._active) if i not in gone]
        for each, status in zip(completed, statuses, strict=False):
            if self._mode == "persistent":
                each.request.Free()
            if not self._closing:
                each.then(0 if each.sends else int(status.Get_count(self._mpi.BYTE)))

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not ready():
            self._look()
            if ready():
                break
            self._check_stop()
            if timeout_s == 0 or time.monotonic() >= deadline:
                return False
            os.sched_yield()
        return True

    def _check_stop(self) -> None:
        if self._stop.is_set:
            raise Interrupted("channel mpi: the run was stopped")

    # -- buffers

    def copied(self) -> int:
        return self._copied

    def _outgoing(self, message: Message) -> list[Any]:
        if self._pack and len(message.views) > 1:
            self._copied += message.nbytes
            return [b"".join(message.views), message.nbytes, self._mpi.BYTE]
        return self._described(message)

    def _landing(self, message: Message) -> tuple[list[Any], Callable[[int], None]]:
        """What to receive into, and what to call with the length that arrived."""
        if not self._pack or len(message.views) < 2:
            return self._described(message), lambda _: None
        staging = memoryview(bytearray(message.nbytes))

        def unpack(nbytes: int) -> None:
            at = 0
            self._copied += nbytes
            for view in message.cut(nbytes).views:
                view[:] = staging[at : at + view.nbytes]
                at += view.nbytes

        return [staging, message.nbytes, self._mpi.BYTE], unpack

    def _described(self, message: Message) -> list[Any]:
        if len(message.views) == 1:
            return [message.views[0], message.nbytes, self._mpi.BYTE]
        if message.nbytes == 0:
            return [None, 0, self._mpi.BYTE]
        key = message.addresses
        if key not in self._types:
            lengths = [nbytes for _, nbytes in key]
            datatype = self._mpi.BYTE.Create_hindexed(lengths, [address for address, _ in key])
            self._types[key] = datatype.Commit()
        return [self._mpi.BOTTOM, 1, self._types[key]]

    @contextmanager
    def _errors(self, statuses: Sequence[Any] = ()) -> Iterator[None]:
        try:
            yield
        except self._mpi.Exception as error:
            codes = [error.Get_error_code()]
            if error.Get_error_class() == self._mpi.ERR_IN_STATUS:  # it stands in one of them
                codes = [s.Get_error() for s in statuses if s.Get_error()] + codes
            reason = " ".join(self._mpi.Get_error_string(codes[0]).split())
            raise TransferError(f"channel mpi: {reason}") from error
