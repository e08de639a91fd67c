"""Numbers of a report that are not in a record as they are: other percentiles, rates, merges."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from commbench.histogram import Histogram
from commbench.record import (
    PERCENTILES,
    Record,
    compare_key,
    latency_ns,
    per_second,
    percentile_name,
    quantile,
)


def percentile_ns(record: Record, percentile: float) -> float | None:
    """A percentile of the times in ns; None where it cannot be had from so few samples."""
    if percentile in PERCENTILES:
        value: float | None = record["latency_ns"][percentile_name(percentile)]
        return value
    return quantile(Histogram.from_json(record["histogram"]), percentile)


def rate_reached(record: Record, percentile: float) -> float | None:
    """Bytes per second that this percentage of the windows reached or exceeded.

    It comes from the slow end of the window times, so the 99th is near the worst window. (Sorting
    the rates and taking the 99th of them would be near the best one.)
    """
    time_ns = percentile_ns(record, percentile)
    if not time_ns or not record["n"]:
        return None
    return float(record["nbytes_total"] / record["n"] / time_ns * 1e9)


def messages_per_s(record: Record) -> float | None:
    """Messages, not operations: an operation of a rate is a window of them."""
    return per_second(record["messages"], record["elapsed_ns"])


def is_rate(record: Record) -> bool:
    """Whether its samples are windows, so that its result is a rate."""
    return bool(record["estimator"] == "window")


def is_exchange(record: Record) -> bool:
    """Whether several ranks called each other at once: there a rate stands beside the times."""
    return bool(record["case"]["benchmark"] in ("ps", "alltoall"))


def is_broker(record: Record) -> bool:
    """Whether its samples are records that a broker acknowledged."""
    return bool(record["estimator"] == "record")


def calls_per_s(record: Record) -> float | None:
    """Calls per second of all: of ps while every worker was issuing, else over the whole time."""
    rate: float | None = record["rpc"]["per_s"] if "rpc" in record else record["ops_per_s"]
    return rate


def called_bytes_per_s(record: Record) -> float | None:
    """The payload bytes of these calls, replies not counted, per second."""
    rate: float | None = record.get("rpc", record)["bytes_per_s"]
    return rate


def median_halfwidth_ns(record: Record) -> float | None:
    """The farther end of the median's 95 % interval, seen from the median."""
    median, interval = record["latency_ns"]["p50"], record["latency_ns"]["p50_ci"]
    if median is None or interval is None:
        return None
    return float(max(median - interval[0], interval[1] - median))


_OF_ONE_LAUNCH = ("delay_ns", "response_ns", "broker")  # without a histogram to be merged


def merge_launches(records: Iterable[Record]) -> list[Record]:
    """One record for all launches of the same case, in the order of their first.

    Its histogram holds the samples of all, its rates are totals over the sum of the times.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(compare_key(record).items()), []).append(record)
    return [_merged(group) if len(group) > 1 else group[0] for group in groups.values()]


def _merged(group: list[Record]) -> Record:
    histogram = Histogram()
    for record in group:
        histogram.merge(Histogram.from_json(record["histogram"]))
    totals = {name: _total(group, name) for name in ("n", "messages", "elapsed_ns", "nbytes_total")}
    first = {name: value for name, value in group[0].items() if name not in _OF_ONE_LAUNCH}
    return {
        **first,
        **totals,
        "histogram": histogram.to_json(),
        "latency_ns": latency_ns(histogram),
        "bytes_per_s": _rate(group, "bytes_per_s"),
        "ops_per_s": _rate(group, "ops_per_s"),
        **({"rpc": _merged_rpc([record["rpc"] for record in group])} if "rpc" in group[0] else {}),
    }


def _merged_rpc(group: list[Record]) -> Record:
    """Totals over the sum of the intervals, as of one long launch."""
    interval_ns, calls = _total(group, "interval_ns"), _total(group, "calls")
    weights = [each["interval_ns"] / interval_ns if interval_ns else 0.0 for each in group]
    workers = zip(*(each["worker_per_s"] for each in group), strict=True)

    def mean(rates: Iterable[float | None]) -> float | None:
        total = sum((rate or 0.0) * weight for rate, weight in zip(rates, weights, strict=True))
        return total if interval_ns else None

    return {
        "interval_ns": interval_ns,
        "calls": calls,
        "per_s": per_second(calls, interval_ns),
        "worker_per_s": [mean(rates) for rates in workers],
        "bytes_per_s": mean(each["bytes_per_s"] for each in group),
    }


def _total(group: list[Record], name: str) -> Any:
    return sum(record[name] for record in group)


def _rate(group: list[Record], name: str) -> float | None:
    elapsed = _total(group, "elapsed_ns")
    done = sum((record[name] or 0.0) * record["elapsed_ns"] for record in group)
    return done / elapsed if elapsed else None
