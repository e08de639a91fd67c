"""One rank that tries protocols: ``python -m tests.verbs_protocols`` under a launcher."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, closing
from time import sleep
from typing import Any

import click

from commbench.channels.base import Exchange
from commbench.channels.grpc_verbs import GrpcVerbsChannel
from commbench.errors import PeerLost
from commbench.harness.loops import Block, Loop, Stamps
from commbench.harness.rendezvous import join
from commbench.harness.softroce.loss import set_loss
from commbench.payloads.buffers import allocate
from commbench.testing import scenarios
from commbench.testing.scenarios import Context, MiB

SCENARIOS = (
    scenarios.reverse,
    scenarios.both_ways,
    scenarios.all_to_all,
    scenarios.describe,  # which proves the path
)


@click.command()
@click.option("--ib-dev", required=True)
@click.option("--count", type=int, required=True)
@click.option("--protocol", "protocols", multiple=True)
@click.option("--sizes", "layouts", multiple=True, help="Of the buffers: 10,20.")
def main(ib_dev: str, count: int, protocols: tuple[str, ...], layouts: tuple[str, ...]) -> None:
    """Of each protocol, in a channel of its own: echoes of each layout from rank 0 to rank 1, whose
    messages are counted, and if it is not v2 scenarios of the contract. At last a thread that looks
    all the time, and packets that all get lost. Rank 0 prints a line of JSON for each."""
    world, rendezvous = join()

    def channel(**options: str) -> AbstractContextManager[GrpcVerbsChannel]:
        checked = GrpcVerbsChannel.check_options({"ib_dev": ib_dev, **options})
        return closing(GrpcVerbsChannel.open(world, rendezvous, checked))

    for protocol in protocols:
        with channel(protocol=protocol) as opened:
            ctx = Context(world, rendezvous, opened, "native")
            for layout in layouts:
                counted = echoes(ctx, layout, count)
                say(ctx, {"protocol": protocol, "sizes": layout, **counted})
            for scenario in SCENARIOS if protocol != "v2" else ():
                scenario(ctx)
                say(ctx, {"protocol": protocol, "passed": scenario.__name__})
            rendezvous.barrier()
    with channel(wait="spin") as opened:
        ctx = Context(world, rendezvous, opened, "native")
        say(ctx, {"protocol": "spin", "sizes": layouts[0], **echoes(ctx, layouts[0], count)})
    with channel(retry_count="2") as opened:
        ctx = Context(world, rendezvous, opened, "native")
        say(ctx, {"protocol": "cut off", "error": cut_off(ctx)})
    rendezvous.barrier()
    rendezvous.close()


def say(ctx: Context, found: dict[str, Any]) -> None:
    if ctx.rank == 0:
        print(json.dumps(found), flush=True)


def make(ctx: Context, sizes: tuple[int, ...], count: int) -> tuple[Loop, Block]:
    """Rank 0 asks rank 1 for so many echoes."""
    asks, n = ctx.rank == 0, sum(sizes)
    loop = ctx.make(
        Exchange(
            peers=(1 - ctx.rank,),
            window=1,
            reply_every=1,
            asks=asks,
            serves=not asks,
            request=allocate(sizes, 1),
            reply=allocate(sizes, 1),
            incoming=allocate(sizes, 1),
            answer_nbytes=n,
            stop=ctx.rendezvous.stop,
        )
    )
    block = Block(
        kind="closed" if asks else "serve",
        handler=None if asks else "echo",
        targets=(1,) if asks else (),
        rank=ctx.rank,
        count=count if asks else 0,
        serve=0 if asks else count,
        request_nbytes=n,
        reply_nbytes=n if asks else 0,
        verify_every=True,
        timeout_s=60.0,
    )
    return loop, block


def echoes(ctx: Context, layout: str, count: int) -> dict[str, int]:
    """How many there were (few large ones), and messages of all kinds of both ranks."""
    sizes = tuple(map(int, layout.split(",")))
    count = count if sum(sizes) < MiB else 2
    before = counters(ctx)
    loop, block = make(ctx, sizes, count)
    loop.run(block, Stamps(count))
    ctx.channel.settle(block.targets or (0,), 60.0)
    after = counted_when_quiet(ctx)
    ctx.end(loop)
    return {"count": count, **{key: after[key] - before[key] for key in after}}


def counted_when_quiet(ctx: Context) -> dict[str, int]:
    """Once three looks in a row saw the same: what ends an exchange (its last ACK, the next request
    of a server) still goes when the loop is through."""
    seen = [counters(ctx)]
    for _ in range(200):
        sleep(0.1)
        seen.append(counters(ctx))
        if len(seen) > 2 and seen[-1] == seen[-2] == seen[-3]:
            return seen[-1]
    raise AssertionError(f"messages do not end: {seen[-3:]}")


def counters(ctx: Context) -> dict[str, int]:
    """Sums over the ranks."""
    assert isinstance(ctx.channel, GrpcVerbsChannel)
    every: Any = ctx.rendezvous.allgather(ctx.channel.counters())
    return {key: sum(each[key] for each in every) for key in every[0]}


def cut_off(ctx: Context) -> list[str]:
    """What the ranks say when all packets get lost: both have something to send. (A server that has
    said all learns from the rendezvous only.)"""
    said = "nothing"
    if ctx.rank == 0:
        set_loss(100.0)
    ctx.rendezvous.barrier()
    loop, block = make(ctx, (4096,), 10)
    try:
        loop.run(block, Stamps(10))
    except PeerLost as error:
        said = str(error)
    finally:
        every: Any = ctx.rendezvous.allgather(said)
        if ctx.rank == 0:
            set_loss(0.0)
    ctx.end(loop)
    return [str(each) for each in every]


if __name__ == "__main__":
    main()
