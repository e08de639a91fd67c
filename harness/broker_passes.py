"""The passes of a case of ``broker``: how many records or how long, and what is checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commbench.benchmarks import BrokerSpec
from commbench.plan import Case

PINGS = 1_000
VERIFIED_RECORDS = 64  # of each producer in the verified pass
VERIFIED_NBYTES = 16 << 20  # fewer where they are large, 16 at least


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: how many records of each producer, or how long, and what is checked.

    ``count`` 0: by duration. The first ``warmup`` records, or those of ``warmup_ns``, do not count.
    """

    count: int
    warmup: int
    duration_ns: int
    warmup_ns: int
    verify: bool
    pings: int = 0  # no records, but so many empty requests of the first producer
    schedule: NDArray[np.int64] | None = None


def verified_pass(case: Case) -> Pass:
    fit = VERIFIED_NBYTES // max(1, case.nbytes)
    return Pass(max(16, min(VERIFIED_RECORDS, fit)), 0, 0, 0, verify=True)


def timed_pass(case: Case, spec: BrokerSpec, rank: int) -> Pass:
    every = case.validation == "every"
    schedule = None
    if case.duration_s:
        seconds = case.warmup_s + case.duration_s
        count = round(spec.rate * seconds / spec.producers) if spec.rate else 0
        warmup, warmup_ns = 0, round(case.warmup_s * 1e9)
    else:
        count, warmup, warmup_ns = case.warmup + case.iterations, case.warmup, 0
    if spec.rate and spec.is_producer(rank):
        schedule = schedule_ns(spec, rank, count, case.payload.seed)
    duration_ns = round(case.duration_s * 1e9)
    return Pass(count, warmup, duration_ns, warmup_ns, every, schedule=schedule)


def schedule_ns(spec: BrokerSpec, rank: int, count: int, seed: int) -> NDArray[np.int64]:
    """When each record of this producer is due, in ns from its start.

    ``constant``: the producers take turns. ``poisson``: a Poisson process of which it is known that
    ``count`` arrivals fall into count / rate seconds (so the rate offered is the rate asked for).
    """
    period_ns = 1e9 * spec.producers / spec.rate
    if spec.arrivals == "constant":
        offset = (rank - spec.brokers) / spec.producers
        due = (np.arange(count) + offset) * period_ns
    else:
        draw = np.random.default_rng([seed, rank])
        due = np.sort(draw.random(count)) * (count * period_ns)
    return due.astype(np.int64)
