"""One rank that tries protocols: ``python -m tests.verbs_protocols`` under a launcher."""

from __future__ import annotations

import json
from contextlib import closing
from time import sleep
from typing import Any

import click

from commbench.channels.base import Exchange
from commbench.channels.grpc_verbs import GrpcVerbsChannel
from commbench.harness.loops import Block, NativeLoop, Stamps
from commbench.harness.rendezvous import Rendezvous, join
from commbench.harness.world import World
from commbench.payloads.buffers import allocate
from commbench.testing import scenarios

SCENARIOS = (scenarios.windows, scenarios.reverse, scenarios.both_ways, scenarios.all_to_all)


@click.command()
@click.option("--ib-dev", required=True)
@click.option("--count", type=int, required=True)
@click.option("--protocol", "protocols", multiple=True, help="Or v2,wait=spin: the first layout.")
@click.option("--sizes", "layouts", multiple=True, help="Of the buffers: 10,20.")
def main(ib_dev: str, count: int, protocols: tuple[str, ...], layouts: tuple[str, ...]) -> None:
    """Of each protocol, in a channel of its own: echoes of each layout from rank 0 to rank 1, whose
    messages are counted, and if it is not v2 scenarios of the contract. Rank 0 prints a line of
    JSON for each."""
    world, rendezvous = join()
    for given in protocols:
        protocol, *more = given.split(",")
        options = {"protocol": protocol, "ib_dev": ib_dev, **dict(e.split("=") for e in more)}
        opened = GrpcVerbsChannel.open(world, rendezvous, GrpcVerbsChannel.check_options(options))
        with closing(opened):
            for layout in layouts[:1] if more else layouts:
                sizes = tuple(map(int, layout.split(",")))
                times = count if sum(sizes) < scenarios.MiB else 2
                counted = echoes(opened, world, rendezvous, sizes, times)
                say(world, {"protocol": given, "sizes": layout, "count": times, **counted})
            for scenario in SCENARIOS if protocol != "v2" else ():
                scenario(scenarios.Context(world, rendezvous, opened, "native"))
                say(world, {"protocol": given, "passed": scenario.__name__})
            rendezvous.barrier()
    rendezvous.close()


def say(world: World, found: dict[str, Any]) -> None:
    if world.rank == 0:
        print(json.dumps(found), flush=True)


def echoes(
    opened: GrpcVerbsChannel,
    world: World,
    rendezvous: Rendezvous,
    sizes: tuple[int, ...],
    count: int,
) -> dict[str, int]:
    """Messages of all kinds of both ranks."""
    before = opened.counters()
    asks, peer, n = world.rank == 0, 1 - world.rank, sum(sizes)
    exchange = Exchange(
        peers=(peer,),
        window=1,
        reply_every=1,
        asks=asks,
        serves=not asks,
        request=allocate(sizes, 1),
        reply=allocate(sizes, 1),
        incoming=allocate(sizes, 1),
        answer_nbytes=n,
        stop=rendezvous.stop,
    )
    loop = NativeLoop(opened, exchange)
    rendezvous.barrier()
    if asks:
        block = Block("closed", None, (peer,), 0, count, 0, request_nbytes=n, reply_nbytes=n,
                      timeout_s=60.0, verify_every=True)  # fmt: skip
    else:
        block = Block("serve", "echo", (), 1, 0, count, request_nbytes=n, timeout_s=60.0,
                      verify_every=True)  # fmt: skip
    loop.run(block, Stamps(count))
    opened.settle((peer,), 60.0)
    counters = counted_when_quiet(opened, before, rendezvous)
    loop.close()
    rendezvous.barrier()
    return counters


def counted_when_quiet(
    opened: GrpcVerbsChannel, before: dict[str, int], rendezvous: Rendezvous
) -> dict[str, int]:
    """Sums over the ranks, once three looks in a row saw the same: what ends an exchange (its last
    ACK, the next request of a server) still goes when the loop is through."""
    seen: list[dict[str, int]] = []
    for _ in range(200):
        ours = {key: value - before[key] for key, value in opened.counters().items()}
        every: Any = rendezvous.allgather(ours)
        seen.append({key: sum(each[key] for each in every) for key in ours})
        if len(seen) > 2 and seen[-1] == seen[-2] == seen[-3]:
            return seen[-1]
        sleep(0.1)
    raise AssertionError(f"messages do not end: {seen[-3:]}")


if __name__ == "__main__":
    main()
