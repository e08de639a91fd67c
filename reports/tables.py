"""The table for people: one row per case, a header whenever what the rows have in common changes.

``StreamTable`` prints it while a run is going on and makes it again from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from commbench.record import PERCENTILES, Record, percentile_name
from commbench.reports.stats import (
    called_bytes_per_s,
    calls_per_s,
    is_broker,
    is_exchange,
    is_rate,
    median_halfwidth_ns,
    messages_per_s,
    percentile_ns,
)
from commbench.units import format_size, format_time

SAMPLE = {
    "rtt/2": "a sample is half a round trip",
    "rtt": "a sample is a round trip",
    "window": "a sample is a window of {window} messages",
    "record": "a sample is a record, from the call of produce to its acknowledgement",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, its width in the live table, its text for a record."""

    title: str
    width: int
    text: Callable[[Record], str]


def digits(value: float | None, scale: float = 1.0) -> str:
    """Four digits of ``value / scale``, at most three behind the point; ``-`` for None."""
    if value is None:
        return "-"
    scaled = value / scale
    places = next((n for n, limit in ((3, 9.9995), (2, 99.995), (1, 999.95)) if scaled < limit), 0)
    return f"{scaled:.{places}f}"


def columns(record: Record, percentiles: Sequence[float]) -> list[Column]:
    """The columns of the table that this record belongs to; times are in us, rates in MB/s."""
    rate = is_rate(record)
    return [
        Column("size", 8, lambda r: format_size(r["case"]["nbytes"])),
        *([] if is_contiguous(record) else _PAYLOAD_COLUMNS),
        Column("windows" if rate else "n", 8, lambda r: str(r["n"])),
        *(_rate_columns(record) if rate else _own_columns(record)),
        *_time_columns(percentiles),
    ]


def iovec(record: Record) -> str:
    """The buffers of a message by size, whatever their order: ``4x10+6x1M``."""
    sizes = record["case"]["payload"]["sizes"]
    text = "+".join(f"{sizes.count(size)}x{format_size(size)}" for size in sorted(set(sizes)))
    return text if len(text) <= _IOVEC_WIDTH else f"{len(sizes)} buffers"


_IOVEC_WIDTH = 18
_PAYLOAD_COLUMNS = [
    Column("payload", 8, lambda r: str(r["case"]["payload"]["scheme"])),
    Column("iovec", _IOVEC_WIDTH, iovec),
]


_CALL_COLUMNS = [
    Column("RPC/s", 11, lambda r: whole(calls_per_s(r))),
    Column("MB/s", 10, lambda r: digits(called_bytes_per_s(r), 1e6)),
]


_RECORD_COLUMNS = [
    Column("rec/s", 11, lambda r: whole(r["ops_per_s"])),
    Column("MB/s", 10, lambda r: digits(r["bytes_per_s"], 1e6)),
]


def _own_columns(record: Record) -> list[Column]:
    if is_broker(record):
        return _RECORD_COLUMNS
    return _CALL_COLUMNS if is_exchange(record) else []


def _rate_columns(record: Record) -> list[Column]:
    bandwidth = Column("MB/s", 10, lambda r: digits(r["bytes_per_s"], 1e6))
    messages = Column("msg/s", 11, lambda r: whole(messages_per_s(r)))
    is_message_rate = record["case"]["benchmark"] == "message-rate"
    return [messages, bandwidth] if is_message_rate else [bandwidth]


def _time_columns(percentiles: Sequence[float]) -> list[Column]:
    def at(percentile: float) -> Column:
        title = percentile_name(percentile)
        return Column(title, 9, lambda r: digits(percentile_ns(r, percentile), 1e3))

    spread = Column("±p50", 8, lambda r: digits(median_halfwidth_ns(r), 1e3))
    low = Column("min", 9, lambda r: digits(r["latency_ns"]["min"], 1e3))
    high = Column("max", 9, lambda r: digits(r["latency_ns"]["max"], 1e3))
    middle = [column for p in percentiles for column in ([at(p), spread] if p == 50 else [at(p)])]
    return [low, *middle, high]


class StreamTable:
    """Rows as the cases end. ``run``: the header record of the results file.

    For each record print ``header_for`` unless it is None, then ``row``; at the end ``footer``.
    """

    def __init__(self, run: Record, percentiles: Sequence[float] = ()) -> None:
        self._run = run
        self._percentiles = tuple(percentiles) or PERCENTILES
        self._block: tuple[str, ...] | None = None
        self._dashes = False

    def header_for(self, record: Record) -> str | None:
        """The header lines when this record starts a new block, else None. No line end."""
        block = block_of(record)
        if block == self._block:
            return None
        first, self._block = self._block is None, block
        lines = [] if first else [""]
        lines.append(f"# commbench {self._run['commbench']}  {title(record)}  {where(self._run)}")
        lines.append(f"# {meaning(record, self._run)}")
        lines.append("#" + self._line(record, lambda column: column.title)[1:])
        return "\n".join(lines)

    def row(self, record: Record) -> str:
        """The row of a case, aligned with its header. No line end."""
        line = self._line(record, lambda column: column.text(record))
        self._dashes |= " - " in line
        return line

    def footer(self) -> str | None:
        """What the dashes mean, when there were any."""
        return "# -: fewer than 10 samples beyond this percentile" if self._dashes else None

    def _line(self, record: Record, text: Callable[[Column], str]) -> str:
        cells = [text(column).rjust(column.width) for column in self.columns(record)]
        return " " + " ".join(cells)

    def columns(self, record: Record) -> list[Column]:
        return columns(record, self._percentiles)


def block_of(record: Record) -> tuple[str, ...]:
    """What the rows of one block have in common."""
    case = record["case"]
    common: list[Any] = [case[name] for name in ("benchmark", "channel", "mode", "ranks")]
    common += [_payload(record), case["window"], sorted(case["options"].items())]
    common += [case.get("ps"), case.get("broker")]
    common += [record[name] for name in ("loop", "estimator", "delivery", "validation", "launch")]
    return tuple(map(str, common))


def title(record: Record) -> str:
    """Which block this is: benchmark, channel, payload and what is not the default."""
    case = record["case"]
    parts = [case["benchmark"], f"channel={case['channel']}", f"mode={case['mode']}"]
    parts += [f"payload={_payload(record)}", f"loop={record['loop']}"]
    if record["delivery"] == "acked":
        parts.append("delivery=acked")
    parts += ps_words(case) + broker_words(case)
    parts += [f"{name}={value}" for name, value in sorted(case["options"].items())]
    if record["launch"]:
        parts.append(f"launch={record['launch']}")
    return "  ".join(parts)


def ps_words(case: Record) -> list[str]:
    """Servers, workers and what is not the default of a parameter server."""
    shown = {name: value for name, value in case.get("ps", {}).items() if value}
    if shown.get("mode") == "echo":
        del shown["mode"]
    return [name if value is True else f"{name}={value}" for name, value in shown.items()]


_BROKER_DEFAULTS = {
    "batch_size": 16384,
    "linger_ns": 0,
    "max_in_flight": 5,
    "buffer_memory": 0,
    "window": 0,
    "flush_every": 0,
    "rate": 0,
    "channel_buffer": 65536,
    "handlers": 0,
}


def broker_words(case: Record) -> list[str]:
    """Who is what and what is not the default of a broker."""
    spec = case.get("broker")
    if spec is None:
        return []
    who = ("brokers", "producers", "consumers", "partitions", "replication")
    shown = {name: spec[name] for name in who if spec[name] and (spec[name] > 1 or name in who[:2])}
    shown["acks"] = spec["acks"]
    shown |= {
        name: spec[name]
        for name, usual in _BROKER_DEFAULTS.items()
        if spec.get(name, usual) != usual
    }
    if spec["rate"]:
        shown["arrivals"] = spec["arrivals"]
    shown["design"] = "+".join([spec["design"], *spec["parts"]])
    if "overlapped" in spec["parts"]:
        shown["reorder"] = spec["reorder"]
    return [f"{name}={value}" for name, value in shown.items()]


def where(run: Record) -> str:
    """The hosts, each once: ``node01 <-> node02``."""
    names = list(dict.fromkeys(host["name"] for host in run["hosts"]))
    return " <-> ".join(names) if len(names) <= 2 else f"{len(names)} hosts"


def meaning(record: Record, run: Record) -> str:
    """What a sample is, the unit, how the content was checked, what the harness itself costs."""
    sample = SAMPLE[record["estimator"]].format(window=record["case"]["window"])
    checked = (
        "every message" if record["validation"] == "every" else "a pass before, the last after"
    )
    parts = [f"{sample} ({record['estimator']})", "times in us, ±p50: 95 % interval of the median"]
    parts.append(f"content checked: {checked}" if record["validated"] else "content not checked")
    floor = run.get("harness_floor_ns", {}).get(record["loop"])
    if floor is not None:
        parts.append(f"harness floor {format_time(floor)}")
    return "; ".join(parts)


def is_contiguous(record: Record) -> bool:
    """Whether it is a point of a plain size sweep and not of a payload scheme."""
    return bool(record["case"]["payload"]["scheme"] == "contiguous")


def _payload(record: Record) -> str:
    return "contiguous" if is_contiguous(record) else "schemes"


def whole(value: float | None) -> str:
    """Without a fraction; ``-`` for None."""
    return "-" if value is None else f"{value:.0f}"
