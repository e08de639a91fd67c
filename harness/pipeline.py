"""Several requests in flight, several targets, open loop, and asking while serving.

The Python twin of ``native/pipeline.c``.
"""

from __future__ import annotations

from dataclasses import dataclass

from commbench.channels.base import Done
from commbench.harness.asking import Asker
from commbench.harness.block import Outcome, late
from commbench.harness.serving import Server

_SPIN_S = 100e-6  # an open loop does not sleep closer than this to its next send


@dataclass(slots=True)
class _Target:
    """One rank that is asked: its operations, and its slots that are not in flight."""

    total: int
    number: int
    free: list[int]
    ops: int = 0
    posted: int = 0
    left: int = 0
    ready: int = 0  # a straggler's next call is not before


class Pipeline:
    """Several requests in flight, several targets, open loop: as native/pipeline.c."""

    def __init__(self, asker: Asker, open_loop: bool) -> None:
        block, window = asker.block, asker.exchange.window
        n = len(block.targets)
        self.asker = asker
        self.open = open_loop
        self.targets = [
            _Target(
                block.count // n + (i < block.count % n),
                block.number,
                list(range((i + 1) * window - 1, i * window - 1, -1)),
            )
            for i in range(n)
        ]
        # slot in flight -> operation, number, request and reply slot, replied
        self.flights: dict[int, tuple[int, int, int, bool]] = {}
        self.replied: set[int] = set()
        self.origin = asker.clock()

    def run(self, server: Server | None) -> Outcome:
        """Until all is asked and served. Raises TransferError after a time without progress."""
        asker = self.asker
        quiet_since = self.origin
        if server is not None:
            server.start()
        try:
            while asker.done < asker.block.count or (server is not None and server.busy):
                busy = self.turn(server)
                asker.check_stop()
                now = asker.clock()
                if busy or self.idle_by_schedule():
                    quiet_since = now
                elif now - quiet_since > asker.block.timeout_s * 1e9:
                    raise late(
                        "request" if asker.done == asker.block.count else "reply", asker.block
                    )
        finally:
            if server is not None:
                server.stop()
        if self.open:
            asker.stamps.intended[: asker.block.count] += self.origin
        outcome = asker.outcome(sorted(self.replied))
        if server is None:
            return outcome
        server.verify_last()
        return Outcome(
            outcome.done,
            server.served,
            outcome.messages,
            outcome.validated + server.validated,
            getattr(server.handler, "elements", 0),
        )

    def turn(self, server: Server | None) -> int:
        """Post, reap and serve what can be; how much happened."""
        asker = self.asker
        asking = asker.done < asker.block.count
        serving = server is not None and server.busy
        wait = self.patience()
        if asking:
            self.post_all()
        if asking and serving and server is not None and not server.inline:
            if not asker.channel.progress(wait):
                return 0
            wait = 0.0
        reaped = self.reap(wait) if asking else 0
        served = server.some(0.0 if asking else wait) if serving and server is not None else 0
        return reaped + served

    def patience(self) -> float:
        """Seconds that the next wait may last; at most 0.1, so that the stop flag is seen."""
        wait = min(0.1, self.asker.block.timeout_s)
        if self.asker.block.stretch > 1:
            now = self.asker.clock()
            ready = [t.ready - now for t in self.targets if t.ops < t.total and t.free]
            return max(0.0, min([wait, *(each / 1e9 for each in ready)]))
        if not self.open:
            return wait
        now = self.asker.clock() - self.origin
        for i, target in enumerate(self.targets):
            if target.ops < target.total and target.free:
                op = target.ops * len(self.targets) + i
                wait = min(wait, (int(self.asker.stamps.intended[op]) - now) / 1e9)
        return wait - _SPIN_S if wait > _SPIN_S else 0.0

    def idle_by_schedule(self) -> bool:
        """Nothing is in flight and the next send lies in the future."""
        scheduled = self.open or self.asker.block.stretch > 1
        return scheduled and not self.flights and self.asker.done < self.asker.block.count

    def may_post(self, i: int) -> bool:
        """May the next message to target i go out now? Stamps an operation's start."""
        asker, target, block = self.asker, self.targets[i], self.asker.block
        if not target.free:
            return False
        if target.posted:
            return True
        if target.ops == target.total or (block.batch > 1 and target.left):
            return False
        op = target.ops * len(self.targets) + i
        if self.open and asker.clock() - self.origin < asker.stamps.intended[op]:
            return False
        if target.ready and asker.clock() < target.ready:
            return False
        if block.verify_every:
            for j in range(block.batch):
                request = asker.request(self.slot_of(i, target.free[-1 - j]))
                block.fill(request, target.number + j, block.call(target.ops))
        asker.stamps.start[op] = asker.clock()
        return True

    def slot_of(self, i: int, free: int) -> int:
        """Calls that differ have slots of their own, and one in flight for each target."""
        return self.targets[i].ops * len(self.targets) + i if self.asker.block.calls else free

    def post_one(self, i: int) -> bool:
        asker, target, block = self.asker, self.targets[i], self.asker.block
        slot, every = target.free[-1], asker.exchange.reply_every
        replied = every == 1 or (every > 1 and target.posted == block.batch - 1)
        message = self.slot_of(i, slot)
        reply = asker.reply(message) if replied else None
        if not asker.channel.post(block.targets[i], slot, asker.request(message), reply):
            return False
        op = target.ops * len(self.targets) + i
        self.flights[slot] = (op, target.number, message, replied)
        target.free.pop()
        target.number += 1
        target.left += 1
        target.posted += 1
        if target.posted == block.batch:
            target.posted = 0
            target.ops += 1
        return True

    def post_all(self) -> None:
        for i in range(len(self.targets)):
            while self.may_post(i) and self.post_one(i):
                pass

    def reap(self, wait: float) -> int:
        done = self.asker.channel.poll(wait)
        now = self.asker.clock() if done else 0
        for each in done:
            self.complete(each, now)
        return len(done)

    def complete(self, done: Done, now: int) -> None:
        asker, slot = self.asker, done.ticket
        op, number, message, replied = self.flights.pop(slot)
        target = self.targets[slot // asker.exchange.window]
        asker.stamps.end[op] = now  # the last message of an operation overwrites the others
        target.free.append(slot)
        target.left -= 1
        asker.messages += 1
        if asker.block.stretch > 1:
            target.ready = now + asker.block.dawdle_ns(now - int(asker.stamps.start[op]))
        if asker.block.batch == 1 or (target.left == 0 and target.posted == 0):
            asker.done += 1
        if replied:
            self.replied.add(slot)
            turn = op // len(self.targets)
            asker.check(
                asker.request(message), asker.reply(message), done.reply_nbytes, number, turn
            )
