"""One case on one rank: buffers, the verified pass, warm-up, the timed blocks.

Every rank of a case runs the same steps and knows how many operations a block has, so no message
has to say "stop": a timed run by duration is a row of blocks whose length the ranks agree on
through the rendezvous, with the clock stopped.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from commbench import _native
from commbench.benchmarks import Benchmark, BrokerSpec, PsSpec, Role, benchmark
from commbench.channels.base import Capability, Channel, Exchange
from commbench.errors import UsageError
from commbench.harness.loops import Block, Loop, NativeLoop, Outcome, PythonLoop, Stamps
from commbench.harness.steps import Steps, slots, step_memory_nbytes, steps_of
from commbench.harness.stop import StopFlag
from commbench.harness.timeline import gather_span
from commbench.histogram import Histogram, Int64Array
from commbench.payloads.buffers import Message, allocate
from commbench.plan import Case
from commbench.record import halved

VERIFIED_MESSAGES = 16  # at least so many, or one window, in the untimed verified pass
VERIFIED_MEMORY = 64 << 20  # the verified pass takes a smaller window rather than more than this
FIRST_VERIFIED = 1  # number of the first message of the verified pass
TIMED_NUMBER = 10**9  # and of the timed part: the two never meet, and an error tells them apart
FIRST_BLOCK = 16  # operations of the first block when running by duration
PATIENCE_S = 7 * 86400.0  # a rank without a part waits as long as the others are at work:
# their loops notice a standstill after --timeout, and the rendezvous a rank that is gone
BLOCK_S = 1.0  # a block of a run by duration is aimed at no more than this


class Meeting(Protocol):
    """What a case needs of the rendezvous."""

    @property
    def stop(self) -> StopFlag: ...
    def barrier(self, timeout_s: float) -> None: ...
    def allgather(self, value: Any, timeout_s: float) -> Sequence[object]: ...


SaveStamps = Callable[[Int64Array, Int64Array], None]


@dataclass(slots=True)
class Share:
    """What one rank contributes to a case; sums over its blocks."""

    histogram: Histogram = field(default_factory=Histogram)
    elapsed_ns: int = 0  # of the operations that count: first start to last end of each block,
    # with many askers of all of them
    summed_ns: int = 0  # of all operations that were stamped, warm-up included
    operations: int = 0
    messages: int = 0
    validated: int = 0
    blocks: int = 0
    issuing_ns: int = 0  # with many askers: while all of them were issuing
    issued: int = 0  # operations of this rank that started and ended in that time
    nbytes: int = 0  # of the messages that count
    issued_nbytes: int = 0
    elements: int = 0  # float32 that this server added in the steps that count
    copied: int = 0  # payload bytes that its channel copied for them
    broker: dict[str, Any] = field(default_factory=dict)  # of the benchmark broker, by role


class CaseRun:
    """Runs one case on one rank; all ranks must do so together."""

    def __init__(
        self,
        case: Case,
        channel: Channel,
        rendezvous: Meeting,
        rank: int,
        stamps: Stamps,
        save: SaveStamps | None = None,
    ) -> None:
        self.case = case
        self.channel = channel
        self.rendezvous = rendezvous
        self.rank = rank
        self.kind: Benchmark = benchmark(case.benchmark)
        self.role = role_of(case, channel, rank)
        roles = (role_of(case, channel, each) for each in range(case.ranks))
        self.fan = max(len(role.targets) for role in roles)
        self.steps = steps_of(case, self.role, rank, channel.ranks_inside)
        self.turns = len(self.steps.calls) if self.steps else 1  # messages of a step to a target
        self.native = uses_native(case, channel)
        self.one_way = Capability.ONE_WAY in channel.capabilities
        self.stamps = stamps
        self.save = save
        self.share = Share()
        self.number = TIMED_NUMBER

    @property
    def batch(self) -> int:
        return self.case.window if self.kind.windowed else 1

    @property
    def every(self) -> bool:
        return self.case.validation == "every"

    def run(self) -> Share:
        """Collective. Raises PayloadMismatch, PeerLost, TransferError, Interrupted, UsageError."""
        window = self.verified_window()
        self.channel.begin("native" if self.native else "python")
        loop = self.prepare(window, distinct=True)
        self.verified_pass(loop, window)
        if self.case.window > 1 and not (self.every and window == self.case.window):
            self.end(loop)
            loop = self.prepare(self.case.window, distinct=self.every)
        self.timed(loop)
        self.end(loop)
        return self.share

    # -- getting ready

    def verified_window(self) -> int:
        """Messages in flight of the verified pass: the case's, or what the memory allows."""
        if self.every or self.case.nbytes == 0:
            return self.case.window
        return max(1, min(self.case.window, VERIFIED_MEMORY // self.case.nbytes))

    def prepare(self, window: int, distinct: bool) -> Loop | None:
        """Slots of their own for each message in flight, or one for all as OSU's bandwidth has.

        None on a rank that takes no part.
        """
        peers = self.role.peers
        slots = window * max(1, len(peers))
        different = slots if distinct else 1
        sizes = self.case.payload.sizes
        reply = () if self.kind.handler == "sink" else sizes
        if self.steps is not None:
            return self.prepare_steps(self.steps)
        asks, serves = (bool(ranks) * slots for ranks in (self.role.targets, self.role.sources))
        exchange = Exchange(
            peers=peers,
            window=window,
            reply_every=(window if self.one_way else 1) if self.kind.windowed else 1,
            asks=asks > 0,
            serves=serves > 0,
            request=slots_for("request", sizes, different, asks),
            reply=slots_for("reply", reply, different, asks),
            incoming=slots_for("incoming", sizes, different, serves),
            answer_nbytes=sum(reply),
            stop=self.rendezvous.stop,
        )
        self.requests = exchange.request[:different]
        return self.prepared(exchange)

    def prepare_steps(self, steps: Steps) -> Loop | None:
        """Each message of a step has slots of its own, and one call is in flight to each target."""
        exchange = Exchange(
            peers=self.role.peers,
            window=1,
            reply_every=1,
            asks=bool(self.role.targets),
            serves=bool(self.role.sources),
            request=slots("request", steps.requests),
            reply=slots("reply", steps.requests),
            incoming=slots("incoming", (steps.incoming,) * len(self.role.sources)),
            answer_nbytes=max(steps.calls),
            stop=self.rendezvous.stop,
            calls=len(steps.calls),
        )
        self.requests = exchange.request
        if steps.parameters is not None:
            steps.parameters.clear()
        return self.prepared(exchange)

    def prepared(self, exchange: Exchange) -> Loop | None:
        loop = self.make(exchange) if exchange.peers else None
        self.rendezvous.barrier(PATIENCE_S)
        return loop

    def make(self, exchange: Exchange) -> Loop:
        return (NativeLoop if self.native else PythonLoop)(self.channel, exchange)

    def end(self, loop: Loop | None) -> None:
        if loop is not None:
            loop.close()
        self.rendezvous.barrier(PATIENCE_S)

    # -- blocks

    @property
    def most(self) -> int:
        """Steps that a block may have: the stamps' room, and sums that stay exact."""
        most = self.stamps.capacity // (self.fan * self.turns)
        if self.steps is not None and self.steps.parameters is not None:
            most = min(most, self.steps.parameters.most_steps)
        return max(1, most)

    def block(self, count: int, batch: int, number: int, every: bool, last: bool) -> Block:
        """``count`` steps: operations with each target, or where a step has several, so many
        times these."""
        steps, count = self.steps, count * self.turns
        role, nbytes = self.role, self.case.nbytes
        return Block(
            kind=self.loop_kind(),
            handler=self.handler if role.sources else None,
            targets=role.targets,
            rank=self.rank,
            count=count * len(role.targets),
            serve=count * batch * len(role.sources),
            batch=batch,
            seed=self.case.payload.seed,
            number=number,
            request_nbytes=nbytes,
            reply_nbytes=nbytes if self.kind.handler == "echo" else 0,
            verify_every=every,
            verify_last=last,
            ordered=Capability.UNORDERED not in self.channel.capabilities,
            timeout_s=self.case.timeout_s,
            calls=steps.calls if steps else (),
            parameters=steps.parameters if steps else None,
            stretch=self.case.ps.stretch(self.rank) if self.case.ps else 1.0,
        )

    @property
    def handler(self) -> str:
        ps = self.case.ps
        return self.kind.handler if ps is None or ps.mode == "echo" else "accumulate"

    def loop_kind(self) -> str:
        if len(self.role.targets) > 1 or (self.role.targets and self.role.sources):
            return "ask-and-serve"  # all targets at once
        if not self.role.targets:
            return "serve"
        return "windowed" if self.kind.windowed else "closed"

    def go(self, loop: Loop | None, block: Block) -> Outcome:
        outcome = loop.run(block, self.stamps) if loop is not None else Outcome()
        self.channel.settle(self.role.peers, self.case.timeout_s)
        self.share.validated += outcome.validated
        return outcome

    def verified_pass(self, loop: Loop | None, window: int) -> None:
        """Untimed, through the same loop and engine; each message has content of its own."""
        batch = window if self.kind.windowed else 1
        count = -(-VERIFIED_MESSAGES // (batch * self.turns))
        self.go(loop, self.block(count, batch, FIRST_VERIFIED, every=True, last=False))

    def timed(self, loop: Loop | None) -> None:
        if self.role.targets and not self.every:
            block = self.block(1, self.batch, TIMED_NUMBER, every=False, last=False)
            for index, request in enumerate(self.requests):
                block.fill(request, TIMED_NUMBER, index // len(self.role.targets))
        if self.case.duration_s:
            self.by_duration(loop)
        else:
            self.by_count(loop)

    def by_count(self, loop: Loop | None) -> None:
        """Warm-up and iterations run through without a pause, as OSU's do."""
        skip, left = self.case.warmup, self.case.warmup + self.case.iterations
        while left:
            count = min(left, self.most)
            self.timed_block(loop, count, min(skip, count))
            left -= count
            skip -= min(skip, count)

    def by_duration(self, loop: Loop | None) -> None:
        """Blocks until the time is up; the ranks agree on each block's length."""
        rate = FIRST_BLOCK / BLOCK_S
        for limit_s, warm in ((self.case.warmup_s, True), (self.case.duration_s, False)):
            spent_s = 0.0
            while spent_s < limit_s:
                count = max(FIRST_BLOCK, round(rate * min(BLOCK_S, limit_s - spent_s)))
                count = min(count, self.most)
                mine = self.timed_block(loop, count, count if warm else 0)
                block_s = self.longest(mine) / 1e9
                spent_s += max(block_s, 1e-6)
                rate = count / max(block_s, 1e-6)

    def longest(self, mine: int) -> int:
        return max(int(str(each)) for each in self.rendezvous.allgather(mine, PATIENCE_S))

    def timed_block(self, loop: Loop | None, count: int, skip: int) -> int:
        """One block of ``count`` operations with each target, the first ``skip`` of which are
        warm-up; ns from first start to last end.

        The barrier keeps the blocks of several askers apart on the ranks that serve them.
        """
        if self.steps is not None and self.steps.parameters is not None:
            self.steps.parameters.clear()
        if self.share.blocks or self.kind.many:
            self.rendezvous.barrier(PATIENCE_S)
        origin = _native.now_ns()
        block = self.block(count, self.batch, self.number, every=self.every, last=not self.every)
        if self.every:
            self.number += count * self.batch * self.turns
        self.share.blocks += 1
        before = loop.copied() if loop is not None else 0
        outcome = self.go(loop, block)
        if loop is not None and self.role.sources:
            self.share.elements += outcome.elements * (count - skip) // count
            self.share.copied += (loop.copied() - before) * (count - skip) // count
        start, end = self.stamps.start[: block.count], self.stamps.end[: block.count]
        self.share.summed_ns += int((end - start).sum())
        if skip < count:
            warm = skip * len(self.role.targets) * self.turns
            if self.kind.many:
                self.together(start, end, warm, origin)
            self.keep(start[warm:], end[warm:])
        return elapsed_ns(start, end)

    def keep(self, start: Int64Array, end: Int64Array) -> None:
        """Fold a block into the histogram."""
        if not len(start):
            return
        if not self.kind.many:
            self.share.elapsed_ns += elapsed_ns(start, end)
        spent = end - start
        halve = self.kind.estimator(self.case.rtt) == "rtt/2"
        self.share.histogram.add(halved(spent) if halve else spent)
        self.share.operations += len(start)
        self.share.messages += len(start) * self.batch
        self.share.nbytes += self.sent_nbytes(np.ones(len(start), bool)) * self.batch
        if self.save is not None:
            self.save(start, end)

    def together(self, start: Int64Array, end: Int64Array, warm: int, origin: int) -> None:
        """Collective: the time of all askers, and the calls in the part of it in which all of them
        were issuing; the first ``warm`` stamps are warm-up."""
        mine = (int(start[warm:].min()), int(end.max())) if len(start) else None
        span = gather_span(self.rendezvous, origin, mine, PATIENCE_S)
        self.share.elapsed_ns += span.elapsed_ns
        self.share.issuing_ns += span.issuing_ns
        inside = (start >= span.all_from) & (end <= span.all_until)
        self.share.issued += int(inside.sum())
        self.share.issued_nbytes += self.sent_nbytes(inside)

    def sent_nbytes(self, which: NDArray[np.bool_]) -> int:
        """Bytes of the chosen operations of a whole number of steps."""
        if self.steps is None:
            return int(which.sum()) * self.case.nbytes
        sizes = np.array(self.steps.op_nbytes, np.int64)
        return int((which.reshape(-1, len(sizes)).sum(0) * sizes).sum()) if len(which) else 0


def elapsed_ns(start: Int64Array, end: Int64Array) -> int:
    """From the first start to the last end; 0 of no operation."""
    return int(end.max() - start.min()) if len(start) else 0


def memory_nbytes(case: Case) -> int:
    """What the buffers of all ranks take at least: a request, a reply and what arrives, of each
    slot."""
    if case.broker is not None:
        return case.broker.memory_nbytes(case.nbytes)
    if case.ps is not None and case.ps.differs:
        return step_memory_nbytes(case.ps, case.payload.sizes)
    page = mmap.PAGESIZE
    message = sum(max(page, -(-size // page) * page) for size in case.payload.sizes)
    kind = benchmark(case.benchmark)
    asking, serving = pairs_of(kind, case.ranks, case.ps)
    messages = asking * (1 if kind.handler == "sink" else 2) + serving
    return messages * message * (case.window if case.validation == "every" else 1)


@lru_cache(maxsize=8)
def pairs_of(kind: Benchmark, ranks: int, ps: PsSpec | BrokerSpec | None) -> tuple[int, int]:
    """How many requests may be sent, and served, by all ranks at once with a window of 1."""
    roles = [kind.role(rank, ranks, ps) for rank in range(ranks)]
    return sum(len(role.targets) for role in roles), sum(len(role.sources) for role in roles)


def role_of(case: Case, channel: Channel | type[Channel], rank: int) -> Role:
    """A rank's part; over a channel that stays inside a rank, rank 0 asks itself."""
    if channel.ranks_inside:
        return Role((0,), (0,)) if rank == 0 else Role()
    return benchmark(case.benchmark).role(rank, case.ranks, case.spec)


def uses_native(case: Case, channel: Channel) -> bool:
    """Which loop: what --loop says; auto takes the native one where there is an engine."""
    if case.loop == "python":
        return False
    has_engine = channel.native() is not None
    if case.loop == "native" and not has_engine:
        raise UsageError(
            f"--loop native: channel {channel.name} has no native engine; allowed: auto, python"
        )
    return has_engine


def slots_for(use: str, sizes: tuple[int, ...], different: int, slots: int) -> Sequence[Message]:
    """So many slots, of which ``different`` have memory of their own; a rank that needs none has
    no memory for them."""
    return buffers(use, sizes, different) * (slots // different) if slots else ()


@lru_cache(maxsize=8)
def buffers(use: str, sizes: tuple[int, ...], count: int) -> tuple[Message, ...]:
    """Slots for one ``use``; the next case of the same shape gets the same ones."""
    return tuple(allocate(sizes, count))
