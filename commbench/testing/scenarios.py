"""What a channel must do, as collective scenarios; each raises when it does not.

Run by ``commbench.testing.worker`` in every rank. Messages carry verified content of their own, so
a scenario that ends has moved every byte to the right place in the right order.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from commbench.channels.base import Capability, Channel, Exchange
from commbench.errors import Interrupted, TransferError
from commbench.harness.loops import Block, Loop, NativeLoop, Outcome, PythonLoop, Stamps
from commbench.harness.rendezvous import Rendezvous
from commbench.harness.world import World
from commbench.payloads.buffers import allocate

MiB = 1 << 20
LAYOUTS: tuple[tuple[int, ...], ...] = (
    (1,),
    (0,),
    (4096,),
    (10, 10 * 1024, MiB),
    (0, 5, 0, 7, 3),
    (1,) * 64,
    (8 * MiB + 3,),
)


@dataclass
class Context:
    """One rank's view; ``loop``: native, python, or mixed (even ranks native, odd ones Python)."""

    world: World
    rendezvous: Rendezvous
    channel: Channel
    loop: str

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def inside(self) -> bool:
        return self.channel.ranks_inside

    def native(self) -> bool:
        return self.loop == "native" or (self.loop == "mixed" and self.rank % 2 == 0)

    def make(self, exchange: Exchange) -> Loop:
        self.channel.begin("native" if self.native() else "python")
        loop = (NativeLoop if self.native() else PythonLoop)(self.channel, exchange)
        self.rendezvous.barrier()
        return loop

    def end(self, loop: Loop) -> None:
        """As the runner ends a case."""
        loop.close()
        self.rendezvous.barrier()


@dataclass(frozen=True)
class Traffic:
    """Who sends what: ``askers`` send ``count`` operations each, in turn to their ``targets``."""

    layout: tuple[int, ...]
    count: int
    window: int = 1
    batch: int = 1
    handler: str = "echo"
    short: int = 0  # bytes that a request is shorter than its slot
    askers: str = "first"  # "first": rank 0 asks rank 1; "all": everyone asks everyone else


def run(ctx: Context, traffic: Traffic) -> Outcome:
    """One verified block of this traffic; checks that everything asked was served."""
    targets, sources = _peers(ctx, traffic)
    exchange = _exchange(ctx, traffic, targets, sources)
    nbytes = exchange.request[0].nbytes
    block = Block(
        kind=_kind(ctx, traffic, targets, sources),
        handler=traffic.handler if sources else None,
        targets=targets,
        rank=ctx.rank,
        count=traffic.count if targets else 0,
        serve=_served(ctx, traffic, sources) * traffic.batch,
        batch=traffic.batch,
        seed=11,
        number=5,
        request_nbytes=nbytes,
        reply_nbytes=0 if traffic.handler == "sink" else nbytes,
        verify_every=True,
        ordered=Capability.UNORDERED not in ctx.channel.capabilities,
        timeout_s=20.0,
    )
    loop = ctx.make(exchange)
    outcome = loop.run(block, Stamps(max(traffic.count, 1))) if targets or sources else Outcome()
    ctx.channel.settle(exchange.peers, 20.0)
    ctx.end(loop)
    _expect(outcome.done, block.count, "operations")
    _expect(outcome.served, block.serve if sources else 0, "served messages")
    replies = block.count * block.batch if block.reply_nbytes else 0
    requests = block.serve
    _expect(outcome.validated, replies + requests, "validated messages")
    return outcome


def _peers(ctx: Context, traffic: Traffic) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(ranks that this one asks, ranks that ask this one)."""
    if ctx.inside:
        return (0,), (0,)
    if traffic.askers == "first":
        return ((1,), ()) if ctx.rank == 0 else ((), (0,)) if ctx.rank == 1 else ((), ())
    others = tuple(rank for rank in range(ctx.world.size) if rank != ctx.rank)
    return others, others


def _served(ctx: Context, traffic: Traffic, sources: Sequence[int]) -> int:
    """Operations that the sources ask of this rank: each deals its count over its targets."""
    if ctx.inside or traffic.askers == "first":
        return traffic.count * len(sources)
    total = 0
    for source in sources:
        targets = [rank for rank in range(ctx.world.size) if rank != source]
        at = targets.index(ctx.rank)
        total += traffic.count // len(targets) + (at < traffic.count % len(targets))
    return total


def _kind(ctx: Context, traffic: Traffic, targets: Sequence[int], sources: Sequence[int]) -> str:
    if targets and sources:
        return "ask-and-serve"
    if sources or not targets:
        return "serve"
    return "windowed" if traffic.batch > 1 else "closed"


def _exchange(
    ctx: Context, traffic: Traffic, targets: Sequence[int], sources: Sequence[int]
) -> Exchange:
    peers = tuple(sorted({*targets, *sources}))
    slots = traffic.window * max(1, len(peers))
    one_way = Capability.ONE_WAY in ctx.channel.capabilities
    request = allocate(traffic.layout, slots)
    return Exchange(
        peers=peers,
        window=traffic.window,
        reply_every=traffic.batch if one_way else 1,
        asks=bool(targets),
        serves=bool(sources),
        request=[message.cut(message.nbytes - traffic.short) for message in request],
        reply=allocate(() if traffic.handler == "sink" else traffic.layout, slots),
        incoming=allocate(traffic.layout, slots),
        answer_nbytes=sum(traffic.layout),
        stop=ctx.rendezvous.stop,
    )


def _expect(got: int, want: int, what: str) -> None:
    if got != want:
        raise TransferError(f"{got} {what} instead of {want}")


# ---------------------------------------------------------------------- scenarios


def echo(ctx: Context) -> None:
    """Round trips of every layout: empty and zero-length buffers, beyond any socket buffer."""
    for layout in LAYOUTS:
        run(ctx, Traffic(layout, 20))


def shorter(ctx: Context) -> None:
    """A request may be shorter than the slot that it lands in."""
    for layout in ((4096,), (10, 10 * 1024, MiB)):
        run(ctx, Traffic(layout, 20, short=7))


def window(ctx: Context) -> None:
    """Several requests in flight; the window fills up."""
    run(ctx, Traffic((64,), 400, window=8))
    run(ctx, Traffic((100, 256 * 1024), 50, window=4))


def windows(ctx: Context) -> None:
    """One-way windows as bandwidth sends them, small and large."""
    run(ctx, Traffic((1,), 20, window=64, batch=64, handler="sink"))
    run(ctx, Traffic((10, 10 * 1024, MiB), 3, window=16, batch=16, handler="sink"))


def reverse(ctx: Context) -> None:
    """The server keeps eight requests and answers them last first."""
    run(ctx, Traffic((64,), 160, window=8, handler="reverse"))


def both_ways(ctx: Context) -> None:
    """Everyone sends windows to everyone at once, in one thread: neither end may block."""
    run(
        ctx,
        Traffic(
            (MiB,), 2 * (ctx.world.size - 1 or 1), window=8, batch=8, handler="sink", askers="all"
        ),
    )


def all_to_all(ctx: Context) -> None:
    """Everyone asks everyone and serves everyone, in one thread."""
    run(ctx, Traffic((64,), 300, window=4, askers="all"))
    run(ctx, Traffic((100, 300 * 1024), 24, window=2, askers="all"))


def stop(ctx: Context) -> None:
    """A server that nobody asks ends soon after the stop flag is set."""
    traffic = Traffic((64,), 1, window=2)
    targets, sources = _peers(ctx, traffic)
    loop = ctx.make(_exchange(ctx, traffic, targets, sources))
    ctx.rendezvous.barrier()
    if sources and not ctx.inside:
        flag = ctx.rendezvous.stop
        timer = threading.Timer(0.2, flag.set)
        timer.start()
        block = Block("serve", "echo", (), ctx.rank, 0, 1, request_nbytes=64, timeout_s=20.0)
        try:
            loop.run(block, Stamps(1))
            raise AssertionError("served a message that nobody sent")
        except Interrupted:
            pass
        finally:
            timer.join()
            flag.clear()
    ctx.end(loop)


def timeout(ctx: Context) -> None:
    """A server that nobody asks ends by itself when its time is up."""
    traffic = Traffic((64,), 1, window=2)
    targets, sources = _peers(ctx, traffic)
    loop = ctx.make(_exchange(ctx, traffic, targets, sources))
    if sources and not ctx.inside:
        block = Block("serve", "echo", (), ctx.rank, 0, 1, request_nbytes=64, timeout_s=0.3)
        try:
            loop.run(block, Stamps(1))
            raise AssertionError("served a message that nobody sent")
        except TransferError as error:
            if "within" not in str(error):
                raise
    ctx.end(loop)


def again(ctx: Context) -> None:
    """A case after a case, of another shape, finds nothing left over."""
    for layout, width in (((64,), 1), ((MiB,), 4), ((1,), 16), ((10, 20, 30), 1)):
        run(ctx, Traffic(layout, 16, window=width))


def describe(ctx: Context) -> None:
    """Plain values that a results file can hold."""
    described = ctx.channel.describe()
    json.dumps(described)
    for key, value in described.items():
        if not isinstance(value, str | int | float):
            raise AssertionError(f"describe()[{key!r}] is {value!r}")
    ctx.rendezvous.barrier()


SCENARIOS: tuple[Callable[[Context], None], ...] = (
    describe,
    echo,
    shorter,
    window,
    windows,
    reverse,
    both_ways,
    all_to_all,
    stop,
    timeout,
    again,
)
NAMES = tuple(scenario.__name__ for scenario in SCENARIOS)
