"""The asking half of the Python loop: one request at a time, or window by window."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from commbench.channels.base import Channel, Done, Exchange
from commbench.errors import Interrupted, PayloadMismatch
from commbench.harness.block import Block, Outcome, Stamps, late
from commbench.payloads import gradients
from commbench.payloads.buffers import Message

_DAWDLE_S = 0.05


class Asker:
    """Asks, stamps and verifies; one per block."""

    def __init__(
        self,
        channel: Channel,
        exchange: Exchange,
        block: Block,
        stamps: Stamps,
        clock: Callable[[], int],
    ) -> None:
        self.channel = channel
        self.exchange = exchange
        self.block = block
        self.stamps = stamps
        self.clock = clock
        self.done = self.messages = self.validated = 0

    def request(self, index: int) -> Message:
        return self.exchange.request[index % len(self.exchange.request)]

    def reply(self, index: int) -> Message:
        return self.exchange.reply[index % len(self.exchange.reply)]

    # -- one at a time

    def pingpong(self) -> Outcome:
        block, exchange, clock = self.block, self.channel.exchange, self.clock
        start, end = self.stamps.start, self.stamps.end
        for index in range(block.count):
            peer = block.targets[index % len(block.targets)]
            request, reply = self.request(index), self.reply(index)
            number = block.number + index // len(block.targets)
            turn = index // len(block.targets)
            if block.verify_every:
                block.fill(request, number, block.call(turn))
            before = clock()
            got = exchange(peer, request, reply, block.timeout_s)
            end[index] = clock()
            start[index] = before
            self.check(request, reply, got, number, turn)
            self.done += 1
            self.messages += 1
            if block.stretch > 1:
                self.dawdle(int(end[index] - before))
        return self.outcome(range(block.count))

    def dawdle(self, spent_ns: int) -> None:
        """In pieces, so that the stop flag is seen."""
        until = self.clock() + self.block.dawdle_ns(spent_ns)
        while (left := until - self.clock()) > 0:
            self.check_stop()
            time.sleep(min(left / 1e9, _DAWDLE_S))

    # -- window by window

    def windows(self) -> Outcome:
        block = self.block
        for index in range(block.count):
            first = block.number + index * block.batch
            if block.verify_every:
                for j in range(block.batch):
                    self.request(j).fill(block.seed, block.rank, first + j)
            before = self.clock()
            self.one_window(block.targets[0])
            self.stamps.end[index] = self.clock()
            self.stamps.start[index] = before
            self.done += 1
            self.messages += block.batch
        return self.outcome(range(block.count * block.batch))

    def one_window(self, peer: int) -> None:
        batch, every = self.block.batch, self.exchange.reply_every == 1
        posted, left = 0, batch
        while left:
            while posted < batch:
                reply = self.reply(posted) if every or posted == batch - 1 else None
                if not self.channel.post(peer, posted, self.request(posted), reply):
                    break
                posted += 1
            for done in self.poll():
                left -= 1
                if every or done.ticket == batch - 1:
                    self.check_length(done.reply_nbytes, self.block.reply_nbytes)

    def poll(self) -> Sequence[Done]:
        done = self.channel.poll(self.block.timeout_s)
        if not done:
            self.check_stop()
            raise late("completion", self.block)
        return done

    # -- checks

    def check_stop(self) -> None:
        if self.exchange.stop.is_set:
            raise Interrupted("the run was stopped")

    def check_length(self, got: int, wanted: int) -> None:
        if got != wanted:
            raise PayloadMismatch(f"a reply has {got} bytes instead of {wanted}")

    def check(self, request: Message, reply: Message, got: int, number: int, turn: int) -> None:
        """``turn``: which message of this block to that peer was answered."""
        self.check_length(got, self.block.reply_length(request))
        if self.block.verify_every and got:
            self.check_content(reply.cut(got), number, turn)

    def check_content(self, reply: Message, number: int, turn: int) -> None:
        block = self.block
        if block.parameters is None:
            reply.verify(block.seed, block.rank, number)
        elif not block.parameters.deferred:
            return  # nobody but the server knows whose pushes it holds
        else:
            steps, call = turn // block.parameters.calls + 1, block.call(turn)
            table = block.parameters.expected(block.number, block.verify_every, call, steps)
            what = f"weights after step {steps} of this block differ"
            gradients.check(reply, block.seed, call, table, what)
        self.validated += 1

    def outcome(self, slots: Sequence[int]) -> Outcome:
        """Checks the last replies when asked to; ``slots``: those that replies landed in."""
        block = self.block
        if block.verify_last and block.calls:
            for op in range(block.count)[-len(block.calls) * len(block.targets) :]:
                self.check_content(self.reply(op), block.number, op // len(block.targets))
        elif block.verify_last and block.reply_nbytes:
            for slot in slots[: max(self.exchange.window, len(self.exchange.reply))]:
                reply = self.reply(slot).cut(block.reply_nbytes)
                reply.verify(block.seed, block.rank, block.number)
                self.validated += 1
        return Outcome(self.done, 0, self.messages, self.validated)
