"""One rank of a launch that measures ratios: blocks of ours and of the reference in turn.

``python -m benchmarks.ratios.worker`` under a launcher; rank 0 prints the rows and appends them
to a file. Our blocks go through CaseRun, as those of ``commbench run`` do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from benchmarks.ratios.figures import Figure, chosen
from benchmarks.ratios.references import Place, Reference, loop_named
from benchmarks.ratios.result import Result
from benchmarks.ratios.statistics import median_of_ties, quad_ratio
from commbench.channels.base import Channel
from commbench.errors import CommbenchError
from commbench.harness.binding import bind
from commbench.harness.loops import Loop, Stamps
from commbench.harness.measure import CaseRun
from commbench.harness.rendezvous import join
from commbench.harness.runner import open_options
from commbench.registry import usable

Block = Callable[[], float]  # runs one; what rank 0 measured: median round trip in ns, or B/s


class Timing:
    """Blocks of one case: warm-up and iterations without a pause, as the runner has them."""

    def __init__(self, place: Place, stamps: Stamps) -> None:
        self.place, self.stamps = place, stamps
        self.skip = place.case.warmup
        self.count = place.case.warmup + place.case.iterations

    def of(self, run: Callable[[int], float | None]) -> Block:
        def block() -> float:
            self.place.rendezvous.barrier()
            said = run(self.count)
            if said is not None:
                return said
            if self.place.case.benchmark == "ps":
                return self.of_workers()
            return self.value() if self.place.asks else 0.0

        return block

    def of_reference(
        self, reference: Reference, settle: Callable[[], None] = lambda: None
    ) -> Block:
        def run(count: int) -> float | None:
            said = reference.block(count, self.stamps)
            settle()
            return said

        return self.of(run)

    def value(self) -> float:
        case = self.place.case
        start, end = self.stamps.start[self.skip : self.count], self.stamps.end[: self.count]
        if not self.place.windowed:
            return median_of_ties(end[self.skip :] - start)
        return len(start) * case.window * case.nbytes * 1e9 / float(end[-1] - start[0])

    def of_workers(self) -> float:
        """Collective. Of one worker the median round trip in ns; of several the calls per second
        inside the interval in which all of them were at it, by the one clock of this host; where
        blocks are so short that there is none, over the whole time."""
        start, end = self.stamps.start[self.skip : self.count], self.stamps.end[: self.count]
        end, asks, tell = end[self.skip :], self.place.asks, self.place.rendezvous.allgather
        if self.place.case.ranks == 2:
            values = tell(median_of_ties(end - start) if asks else 0.0)
            return float(max(values))
        spans = [each for each in tell([int(start[0]), int(end[-1])] if asks else None) if each]
        first, last = max(each[0] for each in spans), min(each[1] for each in spans)
        if first >= last:
            first, last = min(each[0] for each in spans), max(each[1] for each in spans)
        inside = int(((start >= first) & (end <= last)).sum()) if asks else 0
        return float(sum(tell(inside))) * 1e9 / (last - first)


class Alternation(CaseRun):
    """A case whose timed part alternates with references: A B B A, then A A A A.

    ``references``: the one that counts, then those that stand beside it.
    """

    def __init__(
        self,
        place: Place,
        channel: Channel,
        references: dict[str, Reference],
        quads: int,
        beside_every: int,
    ) -> None:
        super().__init__(place.case, channel, place.rendezvous, place.rank, Stamps())
        self.timing = Timing(place, self.stamps)
        blocks = {
            name: self.timing.of_reference(
                each, lambda: channel.settle(self.role.peers, place.case.timeout_s)
            )
            for name, each in references.items()
        }
        (_, self.theirs), *others = blocks.items()
        self.others = dict(others)
        self.quads = quads
        self.beside_every = beside_every
        self.result: Result

    def timed(self, loop: Loop | None) -> None:
        for request in self.requests:
            request.fill(self.case.payload.seed, self.rank, self.number)
        ours = self.timing.of(lambda count: self.ours(loop, count))
        for block in (self.theirs, ours):  # neither is the first to run
            block()
        for number in range(self.quads):
            self.quad(ours, number % self.beside_every == 0)

    def ours(self, loop: Loop | None, count: int) -> None:
        self.go(loop, self.block(count, self.batch, self.number, every=False, last=True))

    def quad(self, ours: Block, beside: bool) -> None:
        a, b, c, d = self.theirs(), ours(), ours(), self.theirs()
        others = {name: other() for name, other in self.others.items() if beside}
        w, x, y, z = (self.theirs() for _ in range(4))
        if self.rank != 0:
            return
        self.result.ratios.append(quad_ratio((a, d), (b, c)))
        self.result.against_itself.append(quad_ratio((w, z), (x, y)))
        self.result.ours += [b, c]
        self.result.reference += [a, d]
        for name, value in others.items():
            self.result.beside.setdefault(name, []).append(2 * value / (a + d))
            self.result.ours_to.setdefault(name, []).append((b + c) / (2 * value))


def measure(figure: Figure, channel: Channel, place: Place, quads: int) -> Result:
    """One figure, on both ranks; what rank 0 returns is filled."""
    names = (figure.reference, *figure.beside)
    references = {name: loop_named(name)(place) for name in names}
    run = Alternation(place, channel, references, quads, figure.beside_every)
    run.result = Result(figure.name, figure.reference, figure.unit, figure.target)
    try:
        run.run()
    finally:
        for each in references.values():
            each.close()
    return run.result.finished()


def alone(figure: Figure, place: Place, blocks: int) -> float:
    """The reference by itself, as a tool of its own: the median of its blocks."""
    reference = loop_named(figure.reference)(place)
    block = Timing(place, Stamps()).of_reference(reference)
    values = [block() for _ in range(blocks + 1)][1:]
    reference.close()
    return float(np.median(values))


def run_figure(figure: Figure, place: Place, quads: int, prefix: str) -> str:
    """Print its rows; its record as a line of JSON."""
    kind = usable(figure.channel)
    channel = kind.open(place.world, place.rendezvous, open_options(kind, place.case))
    try:
        result = measure(figure, channel, place, quads)
    finally:
        channel.close()
    if place.rank != 0:
        return ""
    result.name = f"{prefix}{result.name}"
    print("\n".join(result.lines()), flush=True)
    return json.dumps(result.record())


@click.command()
@click.option("--figures", required=True, help="One group of FIGURES.")
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--libraries", required=True, type=click.Path(path_type=Path))
@click.option("--quads", type=int, default=0)
@click.option("--alone", "blocks", type=int, default=0, help="So many blocks of the reference.")
@click.option("--shrink", type=int, default=1, help="Divides iterations, for a try.")
@click.option("--only", default="", help="Figures whose name contains it.")
@click.option("--bind", "cpus", default="core")
@click.option("--prefix", default="", help="Before each name.")
def main(
    figures: str,
    out: Path,
    libraries: Path,
    quads: int,
    blocks: int,
    shrink: int,
    only: str,
    cpus: str,
    prefix: str,
) -> None:
    """Measure the figures of a group; rank 0 writes a line of JSON for each to OUT."""
    world, rendezvous = join()
    try:
        bind(cpus, world, rendezvous)
        for figure in chosen(figures, only)[: 1 if blocks else None]:
            place = Place(figure.case(shrink), world, rendezvous, libraries)
            if blocks:
                line = json.dumps(alone(figure, place, blocks))
            else:
                line = run_figure(figure, place, quads, prefix)
            rendezvous.barrier()
            if world.rank == 0:
                with out.open("a") as file:
                    print(line, file=file)
    except CommbenchError as error:
        rendezvous.fail(f"{figures}: {type(error).__name__}: {error}")
        raise
    rendezvous.barrier()
    rendezvous.close()


if __name__ == "__main__":
    main()
