"""The closing line of Kafka's producer benchmark, in its words; microseconds where it has ms."""

from __future__ import annotations

from commbench.record import Record
from commbench.reports.stats import is_broker, percentile_ns

_PERCENTILES = (50.0, 95.0, 99.0, 99.9)
_MIB = 1 << 20  # what Kafka calls an MB


def closing_line(record: Record) -> str | None:
    """``N records sent, ... records/sec (... MB/sec), ... us avg latency, ...``; None for other
    benchmarks. A percentile with fewer than 10 samples beyond it is ``-``."""
    if not is_broker(record):
        return None
    times = record["latency_ns"]
    rates = (record["ops_per_s"] or 0.0, (record["bytes_per_s"] or 0.0) / _MIB)
    tails = ", ".join(f"{_us(percentile_ns(record, p), 0)} us {_name(p)}" for p in _PERCENTILES)
    return (
        f"{record['n']} records sent, {rates[0]:.6f} records/sec ({rates[1]:.2f} MB/sec), "
        f"{_us(times['mean'], 2)} us avg latency, {_us(times['max'], 2)} us max latency, {tails}."
    )


def _us(ns: float | None, places: int) -> str:
    return "-" if ns is None else f"{ns / 1e3:.{places}f}"


def _name(percentile: float) -> str:
    return f"{percentile:g}th"
