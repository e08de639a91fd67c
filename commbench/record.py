"""What one case says: its statistics, its record in the results file, its compare key.

Statistics of a run are computed here and nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from commbench.errors import UsageError
from commbench.histogram import Histogram, Int64Array

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)  # always in the file
KEY_FIELDS = (
    "case",  # benchmark, channel, mode, payload, nbytes, ranks, window, options
    "loop",
    "estimator",
    "delivery",
    "validation",
    "affinity",
    "channel_info",
)

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured case, all ranks together.

    ``histogram`` has the samples as they are reported: one round trip (already halved where the
    estimator is rtt/2), one window, one call. ``elapsed_ns`` is from the first start to the last
    end; ``operations``, ``messages`` and ``nbytes`` are the totals of that time, so that a rate is
    a total over a time and never a mean of rates.
    """

    histogram: Histogram
    elapsed_ns: int
    operations: int
    messages: int
    nbytes: int

    def statistics(self, percentiles: Sequence[float] = ()) -> Record:
        """The fields of a case record that are computed; ``percentiles`` come on top."""
        return {
            "n": self.histogram.n,
            "messages": self.messages,
            "elapsed_ns": self.elapsed_ns,
            "latency_ns": latency_ns(self.histogram, percentiles),
            "bytes_per_s": per_second(self.nbytes, self.elapsed_ns),
            "ops_per_s": per_second(self.operations, self.elapsed_ns),
            "nbytes_total": self.nbytes,
            "histogram": self.histogram.to_json(),
        }


def halved(rtt_ns: Int64Array) -> Int64Array:
    """Half of each round trip, to the nearest ns; ties go to even, so that no bias is added."""
    half = rtt_ns >> 1
    return half + (half & rtt_ns & 1)


def parse_percentiles(text: str, flag: str = "-z") -> tuple[float, ...]:
    """``50,99,99.9`` in ascending order. Raises UsageError naming ``flag``."""
    items = [item.strip() for item in text.split(",")]
    for item in items:
        if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,6})?", item) or float(item) == 0:
            raise UsageError(
                f"{flag} {text}: {item!r} is no percentile; "
                "allowed: numbers above 0 and below 100, such as 50,99,99.9"
            )
    return tuple(sorted({float(item) for item in items}))


def percentile_name(percentile: float) -> str:
    """``p99.9``, as the keys of ``latency_ns`` are spelt."""
    return f"p{percentile:.10g}"


def latency_ns(histogram: Histogram, percentiles: Sequence[float] = ()) -> Record:
    """Extremes, mean, percentiles and the interval of the median, in ns; None: not to be had."""
    values: Record = {"min": histogram.least, "mean": histogram.mean}
    for percentile in sorted({*PERCENTILES, *percentiles}):
        values[percentile_name(percentile)] = quantile(histogram, percentile)
    interval = histogram.median_interval()
    return {**values, "max": histogram.greatest, "p50_ci": interval and list(interval)}


def quantile(histogram: Histogram, percentile: float) -> int | None:
    """The percentile (0 to 100) in ns; None with fewer than 10 samples beyond it."""
    return histogram.quantile(float(f"{percentile / 100:.12g}"))


def per_second(total: int, elapsed_ns: int) -> float | None:
    return total * 1e9 / elapsed_ns if elapsed_ns > 0 else None


def make_case_record(
    case: Mapping[str, Any],
    measured: Measured,
    *,
    percentiles: Sequence[float] = (),
    **fields: Any,
) -> Record:
    """A case record: ``case`` names it, ``fields`` are the rest (loop, estimator, warnings, ...).

    The schema says which fields there must be.
    """
    statistics = measured.statistics(percentiles)
    return {"kind": "case", "case": dict(case), "unit": "ns", **fields, **statistics}


def compare_key(record: Record) -> dict[str, str]:
    """What must be equal for two cases to be compared: field -> its value as canonical JSON.

    Left out is what every launch has anew: addresses with drawn ports.
    """
    key = {}
    for field in KEY_FIELDS:
        value = _lasting(field, record.get(field))
        parts = value if field == "case" and isinstance(value, dict) else {"": value}
        for name, part in sorted(parts.items()):
            key[f"{field}.{name}".rstrip(".")] = json.dumps(part, sort_keys=True)
    return key


def _lasting(field: str, value: Any) -> Any:
    if field == "channel_info" and isinstance(value, dict):
        return {name: each for name, each in value.items() if name != "address"}
    return value
