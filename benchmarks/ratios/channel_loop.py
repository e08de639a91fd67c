"""Another channel of ours, or another loop of the same one, as a reference."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.ratios.references import Place
from commbench.harness.loops import Stamps
from commbench.harness.measure import CaseRun
from commbench.harness.runner import open_options
from commbench.registry import usable


class ChannelLoop:
    """The same case over ``channel`` with ``loop``; ``keeps``: with the options of the figure."""

    def __init__(self, place: Place, channel: str, loop: str, keeps: bool = False) -> None:
        options = place.case.options if keeps else {}
        case = replace(place.case, channel=channel, loop=loop, options=options)
        kind = usable(channel)
        rendezvous = place.rendezvous
        self.channel = kind.open(place.world, rendezvous, open_options(kind, case))
        self.run = CaseRun(case, self.channel, rendezvous, place.rank, Stamps())
        self.channel.begin(loop)
        self.loop = self.run.prepare(case.window, distinct=False)
        for request in self.run.requests:
            request.fill(case.payload.seed, place.rank, self.run.number)

    def block(self, count: int, stamps: Stamps) -> None:
        run = self.run
        run.stamps = stamps
        run.go(self.loop, run.block(count, run.batch, run.number, every=False, last=True))

    def close(self) -> None:
        self.run.end(self.loop)
        self.channel.close()
