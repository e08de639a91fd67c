"""``--format osu``: what scripts that read the output of osu_latency, osu_bw, ... expect.

Such scripts read rows by a pattern: the size in bytes at the start of a line, then the average (or
the rate), ``Pass`` at the end under ``-c``; some look for a title such as ``MPI Latency Test``.
Headers differ between OSU's versions; these are those of 7.x before its 7.2. Percentiles
stand behind the first value, as its ``-z`` prints them; those of a bandwidth are the rate that so
many percent of the windows reached, so that P99 is a bad case and not the best one. Latency is half
of a round trip, as OSU's, of runs with ``--rtt``, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from commbench.errors import UsageError
from commbench.record import Record
from commbench.reports.stats import (
    is_broker,
    is_exchange,
    is_rate,
    messages_per_s,
    percentile_ns,
    rate_reached,
)
from commbench.reports.tables import block_of
from commbench.results import ResultFile

TITLES = {
    "latency": "Latency Test",
    "bandwidth": "Bandwidth Test",
    "bibw": "Bi-Directional Bandwidth Test",
    "message-rate": "Multiple Bandwidth / Message Rate Test",
}
_SIZE_WIDTH, _WIDTH = 10, 18


def osu(files: Sequence[ResultFile], percentiles: Sequence[float]) -> str:
    """Percentile columns only for those in ``percentiles``, as OSU prints none without ``-z``.

    Raises UsageError for ps, alltoall and broker: OSU has no such benchmark, and its osu_alltoall
    is the collective operation.
    """
    others = (r for file in files for r in file.cases if is_exchange(r) or is_broker(r))
    for record in others:
        raise UsageError(
            f"--format osu: {record['case']['benchmark']} has no counterpart among OSU's "
            f"benchmarks; allowed for it: table, csv, json, markdown"
        )
    lines: list[str] = []
    for file in files:
        block: tuple[str, ...] | None = None
        for record in file.cases:
            if (now := (*block_of(record), record["case"]["payload"]["scheme"])) != block:
                block = now
                lines += _header(file.run, record, percentiles)
            lines.append(_row(record, percentiles))
        if file.note:
            lines.append(f"# {file.note}")
    return "\n".join(lines) + "\n"


def _header(run: Record, record: Record, percentiles: Sequence[float]) -> list[str]:
    case = record["case"]
    name = TITLES.get(case["benchmark"], case["benchmark"])
    scheme = case["payload"]["scheme"]
    first = f"# commbench {case['channel'].upper()} {name} v{run['commbench']}"
    second = f"# Payload: {scheme}. Mode: {case['mode']}. Loop: {record['loop']}."
    if is_rate(record):
        second += f" Window: {case['window']}. Delivery: {record['delivery']}."
    return [first, second, _cells("# Size", _titles(record, percentiles))]


def _titles(record: Record, percentiles: Sequence[float]) -> list[str]:
    kind = "BW(MB/s)" if is_rate(record) else "Lat(us)"
    tails = [f"P{percentile:g} Tail {kind}" for percentile in percentiles]
    checked = ["Validation"] if record["validation"] == "every" else []
    if record["case"]["benchmark"] == "message-rate":
        return ["MB/s", "Messages/s", *tails, *checked]
    return ["Bandwidth (MB/s)" if is_rate(record) else "Latency (us)", *tails, *checked]


def _row(record: Record, percentiles: Sequence[float]) -> str:
    if is_rate(record):
        values = [_number(record["bytes_per_s"], 1e6)]
        tails = [_number(rate_reached(record, p), 1e6) for p in percentiles]
    else:
        scale = 2e3 if record["estimator"] == "rtt" else 1e3  # OSU's is half of a round trip
        values = [_number(record["latency_ns"]["mean"], scale)]
        tails = [_number(percentile_ns(record, p), scale) for p in percentiles]
    if record["case"]["benchmark"] == "message-rate":
        values.append(_number(messages_per_s(record), 1.0))
    checked = ["Pass" if record["validated"] else "Fail"] if record["validation"] == "every" else []
    return _cells(str(record["case"]["nbytes"]), [*values, *tails, *checked])


def _cells(first: str, others: Sequence[str]) -> str:
    return first.ljust(_SIZE_WIDTH) + "".join(
        cell.rjust(max(_WIDTH, len(cell) + 2)) for cell in others
    )


def _number(value: float | None, scale: float) -> str:
    return "-" if value is None else f"{value / scale:.2f}"
