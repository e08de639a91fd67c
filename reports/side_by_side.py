"""Channels beside each other: a row for each size, a column for each channel or variant of one."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from commbench.record import Record
from commbench.reports.labels import curve_labels, grouped, is_message_rate, panel_title
from commbench.reports.stats import (
    calls_per_s,
    is_exchange,
    is_rate,
    merge_launches,
    messages_per_s,
    percentile_ns,
)
from commbench.reports.tables import broker_words, digits, iovec, is_contiguous, ps_words, whole
from commbench.units import format_size


def side_by_side(records: Sequence[Record]) -> list[str]:
    """The lines of a table for each benchmark of which there is more than one column.

    Launches of a case are merged; latencies are medians. The lines are remarks: whoever reads the
    rows of a run finds one for each case.
    """
    panels = grouped((_panel(record), record) for record in merge_launches(records))
    return [line for members in panels.values() for line in _table(members)]


def _panel(record: Record) -> str:
    case = record["case"]
    return ", ".join(
        [panel_title(record), f"{case['ranks']} ranks", *ps_words(case), *broker_words(case)]
    )


def _table(records: Sequence[Record]) -> list[str]:
    names = _names(records)
    columns = sorted(set(names.values()))
    if len(columns) < 2:
        return []
    rows: dict[str, dict[str, str]] = {}
    for record in sorted(records, key=lambda each: each["case"]["nbytes"]):
        rows.setdefault(_row(record), {})[names[id(record)]] = _value(record)
    cells = [[row, *(values.get(name, "") for name in columns)] for row, values in rows.items()]
    body = tabulate(
        cells,
        ["size", *columns],
        "plain",
        disable_numparse=True,
        colalign=["right"] * (1 + len(columns)),
    )
    title = f"# {_panel(records[0])}: {_unit(records[0])}"
    return ["", title, *(f"# {line}" for line in body.splitlines())]


def _names(records: Sequence[Record]) -> dict[int, str]:
    """As in a picture; the loop and whether every message is answered only where they differ."""
    labels = curve_labels([("", record) for record in records])
    loops, deliveries = ({record[name] for record in records} for name in ("loop", "delivery"))
    for record in records:
        if len(loops) == 1:
            loop = f" ({record['loop']} loop)"
            labels[id(record)] = labels[id(record)].replace(loop, "")
        if len(deliveries) > 1 and record["delivery"] == "acked":
            labels[id(record)] += " acked"
    return labels


def _row(record: Record) -> str:
    size = format_size(record["case"]["nbytes"])
    if is_contiguous(record):
        return size
    return f"{record['case']['payload']['scheme']} {iovec(record)} {size}"


def _unit(record: Record) -> str:
    if is_message_rate(record):
        return "messages/s"
    if is_rate(record):
        return "MB/s"
    return "RPC/s" if is_exchange(record) else "p50 in us"


def _value(record: Record) -> str:
    if is_message_rate(record):
        return whole(messages_per_s(record))
    if is_rate(record):
        return digits(record["bytes_per_s"], 1e6)
    if is_exchange(record):
        return whole(calls_per_s(record))
    return digits(percentile_ns(record, 50), 1e3)
