"""Ratios to tools that are processes of their own: interleaved pairs, each side started anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.ratios import tools
from benchmarks.ratios.figures import LATENCY, TCP_RATE
from benchmarks.ratios.result import Result
from benchmarks.ratios.statistics import CLOSE, PS_CLOSE
from commbench.units import format_size

Measure = Callable[[], float]
Pairs = Iterator[tuple[Result, Measure, Measure]]
NBYTES, LARGE, PS_NBYTES = 64, 1 << 20, 1024
BUFFERS = ("system", "1M")


def pairs(result: Result, ours: Measure, reference: Measure, count: int) -> Result:
    """``count`` times ours and twice the reference, in an order that changes."""
    for index in range(count):
        order = ["ours", "reference", "again"]
        order = order[index % 3 :] + order[: index % 3]
        runs = {name: (ours if name == "ours" else reference)() for name in order}
        result.ratios.append(runs["ours"] / runs["reference"])
        result.against_itself.append(runs["again"] / runs["reference"])
        result.ours.append(runs["ours"])
        result.reference += [runs["reference"], runs["again"]]
    return result.finished()


def of_tcp(libraries: Path, cpus: tools.Cpus, shrink: int = 1) -> Pairs:
    """What pairs() takes, for the figures of the tcp channel that need sockperf and iperf3, and
    for what says whether our reference counts."""
    size = format_size(NBYTES)
    for spin in (True, False):
        wait = "spin" if spin else "block"
        yield (
            Result(f"tcp wait={wait} latency {size}", "sockperf", "ns", LATENCY if spin else None),
            partial(tools.our_latency_ns, ("-o", f"wait={wait}"), NBYTES, cpus),
            partial(tools.sockperf_ns, NBYTES, spin, cpus),
        )
    yield (
        Result(f"our C reference of tcp latency {size}", "sockperf", "ns", None, check=CLOSE),
        partial(tools.reference_alone, "tcp", libraries, cpus, shrink=shrink),
        partial(tools.sockperf_ns, NBYTES, False, cpus),
    )
    for buffer in BUFFERS:
        yield (
            Result(f"tcp buf={buffer} bandwidth 1M", "iperf3", "B/s", TCP_RATE),
            partial(tools.our_rate, ("-o", f"buf={buffer}"), LARGE, cpus),
            partial(tools.iperf3_rate, LARGE, buffer, cpus),
        )


def of_ps(libraries: Path, cpus: tools.Cpus, shrink: int = 1) -> Pairs:
    """Whether our C parameter server counts: with one worker it is a ping-pong."""
    swapped = cpus and (cpus[1], cpus[0])  # rank 0 is the server
    for spin in (True, False):
        wait = "spin" if spin else "block"
        name = f"our C reference of ps, one worker, wait={wait} {format_size(PS_NBYTES)}"
        yield (
            Result(name, "sockperf", "ns", None, check=PS_CLOSE),
            partial(
                tools.reference_alone, "ps-alone", libraries, swapped, shrink=shrink, only=wait
            ),
            partial(tools.sockperf_ns, PS_NBYTES, spin, cpus),
        )
