"""Whole reports as text: the table, Markdown, CSV, JSON, and what reads OSU's output expects."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from tabulate import tabulate

from commbench.record import PERCENTILES, Record, percentile_name
from commbench.reports.kafka import closing_line
from commbench.reports.side_by_side import side_by_side
from commbench.reports.stats import percentile_ns
from commbench.reports.tables import StreamTable, block_of, meaning, title, where
from commbench.reports.tail import tail_lines
from commbench.results import ResultFile
from commbench.units import format_size


def table(files: Sequence[ResultFile], percentiles: Sequence[float]) -> str:
    """What the run printed, and under it its warnings and whether it is complete."""
    lines = []
    for file in files:
        if len(files) > 1:
            lines.append(f"# file {file.path}")
        stream = StreamTable(file.run, percentiles)
        for record in file.cases:
            lines += [line for line in (stream.header_for(record), stream.row(record)) if line]
            lines += [f"# {line}" for line in (closing_line(record),) if line]
        lines += [*side_by_side(file.cases), *tail_lines(file.cases)]
        remarks = (stream.footer(), *(f"# {remark}" for remark in _remarks(file)))
        lines += [line for line in remarks if line]
    return "\n".join(lines) + "\n"


def markdown(files: Sequence[ResultFile], percentiles: Sequence[float]) -> str:
    """A heading and a table per block; the same columns as ``table``."""
    parts = []
    for file in files:
        stream = StreamTable(file.run, percentiles)
        for records in _blocks(file):
            columns = stream.columns(records[0])
            rows = [[column.text(record) for column in columns] for record in records]
            heading = [column.title for column in columns]
            body = tabulate(
                rows, heading, "github", disable_numparse=True, colalign=["right"] * len(columns)
            )
            parts.append(f"**{title(records[0])}** ({where(file.run)})\n\n{body}")
            parts.append(f"{meaning(records[0], file.run)}.")
        parts += [f"> {remark}" for remark in _remarks(file)]
    return "\n\n".join(parts) + "\n"


def as_csv(files: Sequence[ResultFile], percentiles: Sequence[float]) -> str:
    """One line per case, every value in the unit that its column names; empty: not to be had."""
    rows = [row for file in files for row in _rows(file, percentiles)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def as_json(files: Sequence[ResultFile], percentiles: Sequence[float]) -> str:
    """The runs, and the rows of ``as_csv`` with their types."""
    runs = [{"file": file.path, "complete": file.complete, "run": file.run} for file in files]
    cases = [row for file in files for row in _rows(file, percentiles)]
    return json.dumps({"runs": runs, "cases": cases}, indent=1) + "\n"


def _rows(file: ResultFile, percentiles: Sequence[float]) -> Iterator[dict[str, Any]]:
    wanted = percentiles or PERCENTILES
    for record in file.cases:
        yield {"file": file.path, **_identity(record), **_values(record, wanted)} | {
            "warnings": record["warnings"],
            "run_complete": file.complete,
        }


def _identity(record: Record) -> dict[str, Any]:
    case = record["case"]
    payload = case["payload"]
    fields = {name: case[name] for name in ("benchmark", "channel", "mode")}
    fields |= {"scheme": payload["scheme"], "iovec": len(payload["sizes"]), "seed": payload["seed"]}
    fields |= {name: case[name] for name in ("nbytes", "ranks", "window", "options")}
    names = ("loop", "estimator", "delivery", "validation", "validated", "launch", "order")
    return fields | {name: record[name] for name in names}


def _values(record: Record, percentiles: Sequence[float]) -> dict[str, Any]:
    times = record["latency_ns"]
    names = ("n", "messages", "elapsed_ns", "setup_ns", "bytes_per_s", "ops_per_s")
    values = {name: record[name] for name in names}
    values |= {"min_ns": times["min"], "mean_ns": times["mean"]}
    values |= {f"{percentile_name(p)}_ns": percentile_ns(record, p) for p in percentiles}
    low, high = times["p50_ci"] or (None, None)
    return values | {"max_ns": times["max"], "p50_ci_low_ns": low, "p50_ci_high_ns": high}


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _blocks(file: ResultFile) -> Iterator[list[Record]]:
    for _, records in itertools.groupby(file.cases, block_of):
        yield list(records)


def _remarks(file: ResultFile) -> list[str]:
    """Warnings, each once with the first case that had it and how many did; then the run's end."""
    seen: dict[str, list[Record]] = {}
    for record in file.cases:
        for warning in record["warnings"]:
            seen.setdefault(warning, []).append(record)
    remarks = [f"warning: {warning} ({_named(records)})" for warning, records in seen.items()]
    return remarks + ([file.note] if file.note else [])


def _named(records: list[Record]) -> str:
    case = records[0]["case"]
    first = f"{case['channel']} {case['benchmark']} {format_size(case['nbytes'])}"
    return first if len(records) == 1 else f"{first} and {len(records) - 1} more"
