"""The serving half of the Python loop: accept, check, handle, answer."""

from __future__ import annotations

import threading
from collections import deque

from commbench.channels.base import Answer, Channel, Exchange, Handler, Incoming
from commbench.errors import PayloadMismatch, TransferError
from commbench.harness.block import Block
from commbench.payloads.buffers import Message


class Server:
    """Serves ``block.serve`` messages through accept and answer, or inline.

    Inline: the channel calls ``on_request`` and ``next_ready`` on threads of its own; what goes
    wrong there is raised by the next ``some``.
    """

    def __init__(
        self, channel: Channel, exchange: Exchange, block: Block, handler: Handler | None
    ) -> None:
        if handler is None:
            raise TransferError("serving needs a handler")
        self.channel = channel
        self.block = block
        self.handler = handler
        self.inline = False
        self.served = self.validated = 0
        self._watched = 0  # of served, by the last _watch
        self._deferred = 0
        # By peer: the next message, or in any order all that may be in flight and have not come.
        ahead = 1 if block.ordered else exchange.window
        first = range(block.number, block.number + ahead)
        self._expected: dict[int, deque[int]] = {peer: deque(first) for peer in exchange.peers}
        self._calls = dict.fromkeys(exchange.peers, 0)  # messages of each peer, with block.calls
        self._last: deque[Incoming] = deque(maxlen=exchange.window)
        self._wake = threading.Condition()
        self._failure: Exception | None = None

    def start(self) -> None:
        self.inline = self.channel.serve_inline(self)

    def stop(self) -> None:
        if self.inline:
            self.channel.serve_inline(None)

    @property
    def busy(self) -> bool:
        return self.served < self.block.serve or self._deferred > 0

    def some(self, wait: float) -> int:
        """Serve what has arrived, waiting at most ``wait`` seconds for the first; how many."""
        if self.inline:
            return self._watch(wait)
        limit = min(64, self.block.serve - self.served)
        arrived = self.channel.accept(limit, wait) if limit else ()
        for incoming in arrived:
            answer = self.on_request(incoming)
            if isinstance(answer, Message) and incoming.wants_reply:
                self.channel.answer(incoming.ticket, answer)
        return len(arrived) + self._answer_deferred()

    def on_request(self, incoming: Incoming) -> Message | Answer:
        """Count, check and handle one request; called by ``some`` or by an inline channel.

        No lock: an inline channel calls this and ``next_ready`` one at a time, and all that the
        thread in ``_watch`` does is wait.
        """
        block, served = self.block, self.served
        if served >= block.serve:
            return Answer.LATER  # the asker is already in its next block
        try:
            if block.calls:
                self._check_call(incoming)
            elif block.verify_every or incoming.message.nbytes != block.request_nbytes:
                self._check(incoming, block.request_nbytes, 0)
            answer = self.handler.on_request(incoming)
        except Exception as error:
            self._failure = error
            self._tell()
            raise
        if not isinstance(answer, Message):
            self._deferred += 1
        self._last.append(incoming)
        self.served = served = served + 1
        # Only when there is something to do: a thread that wakes is part of the measurement.
        if served == block.serve:
            self._tell()
        return answer

    def next_ready(self) -> tuple[int, Message] | None:
        """The next deferred answer: what an inline channel asks for after each request."""
        ready = self.handler.next_ready() if self._deferred else None
        if ready is not None:
            self._deferred -= 1
            if not self.busy:
                self._tell()
        return ready

    def _tell(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def verify_last(self) -> None:
        """Check the last window when the block asks for it."""
        block = self.block
        if block.parameters is not None:
            steps = block.serve // (block.parameters.workers * block.parameters.calls)
            self.validated += block.parameters.check(
                block.seed, block.number, block.verify_every, steps
            )
            return
        if not block.verify_last:
            return
        for incoming in self._last:
            incoming.message.verify(self.block.seed, incoming.peer, self.block.number)
            self.validated += 1

    def _watch(self, wait: float) -> int:
        with self._wake:
            if wait > 0 and self.busy and self._failure is None:
                self._wake.wait(wait)
        if self._failure is not None:
            raise self._failure
        new, self._watched = self.served - self._watched, self.served
        return new

    def _answer_deferred(self) -> int:
        answered = 0
        while (ready := self.next_ready()) is not None:
            self.channel.answer(*ready)
            answered += 1
        return answered

    def _check_call(self, incoming: Incoming) -> None:
        call = self.block.call(self._calls[incoming.peer])
        self._calls[incoming.peer] += 1
        self._check(incoming, self.block.calls[call], call)

    def _check(self, incoming: Incoming, wanted: int, call: int) -> None:
        nbytes = incoming.message.nbytes
        if nbytes != wanted and self.block.parameters is not None:
            raise PayloadMismatch(
                f"a push of rank {incoming.peer} has {nbytes} bytes instead of {wanted}: not the "
                f"tensors of call {call} of this step"
            )
        if nbytes != wanted:
            raise PayloadMismatch(
                f"a request of rank {incoming.peer} has {nbytes} bytes instead of {wanted}"
            )
        if self.block.verify_every:
            self._check_content(incoming, call)

    def _check_content(self, incoming: Incoming, call: int) -> None:
        """It is the next message of this peer, or in any order one that it has in flight."""
        expected = self._expected[incoming.peer]
        for number in expected:
            try:
                self.block.verify(incoming.message, incoming.peer, number, call)
            except PayloadMismatch:
                continue
            expected.remove(number)
            expected.append(max(number, expected[-1] if expected else number) + 1)
            self.validated += 1
            return
        self.block.verify(incoming.message, incoming.peer, expected[0], call)
