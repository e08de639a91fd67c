"""Who talks to whom, and what one operation is. A benchmark is a row of the table below.

``latency``: ping-pong, the server echoes (OSU's osu_latency). ``bandwidth``: windows of one-way
messages, the last with an empty reply (osu_bw). ``bibw``: both ends do so at once (osu_bibw, with
that reply). ``message-rate``: bandwidth between pairs of ranks i and i + n/2 (osu_mbw_mr).
``alltoall``: every rank asks and serves every other at once, echoes (the fully connected
architecture of TF-gRPC-Bench). ``ps``: workers call all parameter servers (``ps.py``). ``broker``:
producers send records to brokers, which append them to a replicated log (``broker.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from commbench.benchmarks.broker import RECORDS, WARMUP, BrokerSpec
from commbench.benchmarks.broker_settings import BrokerSettings
from commbench.benchmarks.ps import PS_MODES, PsSettings, PsSpec, parse_straggler
from commbench.benchmarks.role import Role
from commbench.errors import UsageError

__all__ = [
    "BENCHMARKS",
    "LARGE",
    "PS_MODES",
    "Benchmark",
    "BrokerSettings",
    "BrokerSpec",
    "PsSettings",
    "PsSpec",
    "Role",
    "benchmark",
    "parse_straggler",
]

LARGE = 8192  # OSU: fewer iterations for messages above this many bytes


@dataclass(frozen=True, slots=True)
class Benchmark:
    """``windowed``: an operation is a window of messages. ``iterations``: defaults as (iterations,
    warm-up) up to ``LARGE`` bytes and above, OSU's where it has the benchmark; counted for each
    target. ``many``: ranks with several peers ask at the same time, so that each block begins at
    a barrier, its time is that of all ranks together and a sample is a whole round trip."""

    name: str
    roles: Callable[[int, int], Role] | None  # rank, ranks; None: by the case's own spec
    windowed: bool
    handler: str
    iterations: tuple[tuple[int, int], tuple[int, int]]
    window: int
    many: bool = False

    def counts(self, nbytes: int) -> tuple[int, int]:
        """(iterations, warm-up) for a message of this size."""
        return self.iterations[nbytes > LARGE]

    def role(self, rank: int, ranks: int, spec: PsSpec | BrokerSpec | None = None) -> Role:
        """The part of this rank; ``spec`` is that of the case."""
        if self.roles is not None:
            return self.roles(rank, ranks)
        assert spec is not None, f"a case of {self.name} has one"
        return spec.role(rank)

    def estimator(self, rtt: bool) -> str:
        """What one sample is: half a round trip, a round trip, a window, or a record."""
        if self.name == "broker":
            return "record"
        if self.windowed:
            return "window"
        return "rtt" if rtt or self.many else "rtt/2"


def first_pair(rank: int, size: int) -> Role:
    """Rank 0 asks rank 1; others rest."""
    return Role(targets=(1,)) if rank == 0 else Role(sources=(0,)) if rank == 1 else Role()


def both(rank: int, size: int) -> Role:
    """Ranks 0 and 1 ask each other."""
    return Role((1 - rank,), (1 - rank,)) if rank < 2 else Role()


def pairs(rank: int, size: int) -> Role:
    """Rank i asks rank i + n/2; with an odd number the last one rests."""
    half = size // 2
    if rank < half:
        return Role(targets=(rank + half,))
    return Role(sources=(rank - half,)) if rank < 2 * half else Role()


def everyone(rank: int, size: int) -> Role:
    """Every rank asks every other, the next one first, so that nobody is asked by all at first."""
    others = tuple((rank + step) % size for step in range(1, size))
    return Role(others, others)


_PING = ((10_000, 100), (1_000, 10))
_FLOOD = ((100, 10), (20, 2))
_MANY = ((1_000, 100), (100, 10))

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        each.name: each
        for each in (
            Benchmark("latency", first_pair, False, "echo", _PING, 1),
            Benchmark("bandwidth", first_pair, True, "sink", _FLOOD, 64),
            Benchmark("bibw", both, True, "sink", _FLOOD, 64),
            Benchmark("message-rate", pairs, True, "sink", _FLOOD, 64),
            Benchmark("alltoall", everyone, False, "echo", _MANY, 1, many=True),
            Benchmark("ps", None, False, "echo", _MANY, 1, many=True),
            Benchmark("broker", None, False, "append", ((RECORDS, WARMUP),) * 2, 1, many=True),
        )
    }
)


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name; UsageError lists those that are."""
    if name not in BENCHMARKS:
        raise UsageError(f"benchmark {name}: no such benchmark; there are: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
