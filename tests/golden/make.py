"""Makes ``run.jsonl`` (invented numbers) and every golden text from it.

Run it after a change that is meant, and read the difference: ``python -m tests.golden.make``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from commbench.histogram import Histogram, Int64Array
from commbench.reports.report import FORMATS, report
from commbench.results import Measured, Record, ResultWriter, halved, make_case_record

HERE = Path(__file__).parent
RUN = HERE / "run.jsonl"
SUFFIX = {"table": "txt", "csv": "csv", "json": "json", "markdown": "md", "osu": "osu.txt"}
PERCENTILES = {"osu": (50.0, 90.0, 99.0), "markdown": (50.0, 99.0)}
SWEEP = (0, 1, 64, 1024, 16384, 262144, 1048576)
CHANNELS = {"tcp": (9_000, 1.5), "mpi": (600, 8.0), "grpc": (130_000, 0.8)}  # ns, bytes per ns


def header() -> Record:
    return {
        "run_id": "golden",
        "started": "2026-01-02T03:04:05Z",
        "argv": ["commbench", "run"],
        "plan": {"seed": 1},
        "commbench": "0.1.0",
        "hosts": [{"name": "node01"}, {"name": "node02"}],
        "harness_floor_ns": {"native": 61, "python": 900},
    }


def times(rng: np.random.Generator, base: float, n: int) -> Int64Array:
    """Invented round trips: a floor, a skewed body and a few slow ones."""
    slow = rng.random(n) < 0.004
    return (base * (1 + rng.gamma(2.0, 0.04, n) + slow * rng.gamma(2.0, 2.0, n))).astype(np.int64)


def fields(**changes: Any) -> Record:
    return {
        "loop": "native",
        "estimator": "rtt/2",
        "delivery": "request",
        "validated": True,
        "validated_messages": 32,
        "validation": "pass",
        "warnings": [],
        "launch": 0,
        "order": 0,
        "setup_ns": 1_500_000,
        "clock": {"name": "CLOCK_MONOTONIC", "resolution_ns": 1, "overhead_ns": 21},
        "blocks": 1,
        "channel_info": {"device": "eth0", "mtu": 1500},
        "affinity": ["0", "1"],
        **changes,
    }


def name(benchmark: str, channel: str, sizes: list[int], scheme: str, window: int) -> Record:
    return {
        "benchmark": benchmark,
        "channel": channel,
        "mode": "non-serialized",
        "payload": {"scheme": scheme, "sizes": sizes, "seed": 1},
        "nbytes": sum(sizes),
        "ranks": 2,
        "window": window,
        "options": {},
    }


def latency(
    channel: str = "tcp",
    sizes: tuple[int, ...] = (64,),
    scheme: str = "contiguous",
    n: int = 10_000,
    **changes: Any,
) -> Record:
    """An invented latency case."""
    rng = np.random.default_rng(sum(sizes) + n)
    base, speed = CHANNELS[channel]
    rtt = times(rng, 2 * (base + sum(sizes) / speed), n)
    histogram = Histogram()
    histogram.add(halved(rtt))
    measured = Measured(histogram, int(rtt.sum()), n, 2 * n, 2 * n * sum(sizes))
    case = name("latency", channel, list(sizes), scheme, 1)
    return make_case_record(case, measured, **fields(**changes))


def bandwidth(
    channel: str = "tcp",
    sizes: tuple[int, ...] = (65536,),
    benchmark: str = "bandwidth",
    n: int = 1_000,
    **changes: Any,
) -> Record:
    """An invented case with windows of 64 messages."""
    rng = np.random.default_rng(sum(sizes) + n)
    base, speed = CHANNELS[channel]
    windows = times(rng, base + 64 * (40 + sum(sizes) / speed), n)
    histogram = Histogram()
    histogram.add(windows)
    measured = Measured(histogram, int(windows.sum()), 64 * n, 64 * n, 64 * n * sum(sizes))
    case = name(benchmark, channel, list(sizes), "contiguous", 64)
    one_way = {"estimator": "window", "delivery": "one-way", **changes}
    return make_case_record(case, measured, **fields(**one_way))


def records() -> list[Record]:
    """Sweeps, schemes, rates; few samples at the large sizes, as OSU's defaults have it."""
    cases = [
        latency(channel, (size,), n=10_000 if size <= 8192 else 1_000, **changes)
        for channel, changes in (("tcp", {}), ("mpi", {}), ("grpc", {"loop": "python"}))
        for size in SWEEP
    ]
    cases += [
        latency(channel, sizes, scheme, n=500)
        for channel in ("tcp", "mpi")
        for scheme, sizes in (
            ("random", (10, 1048576, 10240, 10)),
            ("skew", (10, 1048576, 1048576, 10240)),
            ("uniform", (10, 10240)),
        )
    ]
    governor = ["CPU governor is powersave: set performance"]
    cases += [
        bandwidth(channel, (size,), n=100 if size <= 8192 else 20, warnings=governor, **changes)
        for channel, changes in (("tcp", {}), ("grpc", {"delivery": "acked", "loop": "python"}))
        for size in SWEEP[1:]
    ]
    cases.append(bandwidth("mpi", (8,), "message-rate", n=1_200))
    cases += [latency(sizes=(size,), validation="every", launch=1) for size in (8, 4096)]
    return [{**case, "order": order} for order, case in enumerate(cases)]


def make_run() -> None:
    RUN.unlink(missing_ok=True)
    with ResultWriter(RUN) as writer:
        writer.run(header())
        for record in records():
            writer.case(record)
        writer.end({"measured_share": 0.93})


def golden(format: str) -> Path:
    return HERE / f"report.{SUFFIX[format]}"


def text(format: str) -> str:
    """The report on ``run.jsonl``, whatever folder the tests run in."""
    return report([RUN], format, percentiles=PERCENTILES.get(format, ())).replace(
        str(RUN), RUN.name
    )


if __name__ == "__main__":
    if "--texts" not in sys.argv:
        make_run()
    for each in FORMATS:
        golden(each).write_text(text(each))
