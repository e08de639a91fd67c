"""The tail model of Frieda over the cases of a run: what of a tail is the network's.

L is the p50 round trip of an empty request, B the greatest bandwidth of the same channel in the
same run, M the bytes of a record. See ``commbench.tail_model`` for the equations.
"""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from commbench.record import Record
from commbench.tail_model import Network, Overhead, why_no_fit
from commbench.units import format_size, format_time

_TITLES = ("W", "producers", "L+M/B", "T'avg amortized", "T'tail", "O", "queueing", "residual")


def tail_lines(records: Sequence[Record]) -> list[str]:
    """A table for each channel and record size measured with so many records in flight; remarks."""
    tails = [record for record in records if "tail" in record]
    keys = dict.fromkeys((r["case"]["channel"], r["case"]["nbytes"]) for r in tails)
    lines: list[str] = []
    for channel, nbytes in keys:
        mine = [
            r for r in tails if (r["case"]["channel"], r["case"]["nbytes"]) == (channel, nbytes)
        ]
        lines += ["", f"# tail model over {channel}, records of {format_size(nbytes)}"]
        lines += [f"# {line}" for line in _table(mine, bandwidth(records, channel), nbytes)]
    return lines


def bandwidth(records: Sequence[Record], channel: str) -> float | None:
    """Bytes per second: the greatest of the channel's bandwidth cases; None without one."""
    found = [
        record["bytes_per_s"]
        for record in records
        if record["case"]["benchmark"] == "bandwidth" and record["case"]["channel"] == channel
    ]
    return max((each for each in found if each), default=None)


def _table(records: Sequence[Record], bytes_per_s: float | None, nbytes: int) -> list[str]:
    if bytes_per_s is None:
        return ["no B: run the benchmark bandwidth in the same run (bandwidth,broker)"]
    alone = [r for r in records if who(r) == (1, 1)]
    if not alone:
        return ["no fit: one record of one producer in flight was not measured"]
    network = Network(alone[0]["tail"]["request_ns"], bytes_per_s)
    given = f"L {format_time(network.latency_ns)}, B {bytes_per_s / 1e6:.0f} MB/s"
    if (why := why_no_fit(overhead(alone[0], network, nbytes))) is not None:
        return [given, why]
    rows = [_row(each, network, nbytes) for each in sorted(records, key=who)]
    body = tabulate(rows, _TITLES, "plain", disable_numparse=True, colalign=["right"] * 8)
    return [f"{given}; in us", *body.splitlines()]


def who(record: Record) -> tuple[int, int]:
    """W and the number of producers."""
    return record["tail"]["window"], record["case"]["broker"]["producers"]


def overhead(record: Record, network: Network, nbytes: int) -> Overhead:
    """Equation 5 solved for O."""
    window, producers = who(record)
    return Overhead(
        window,
        producers,
        network.message_ns(nbytes),
        record["tail"]["in_window_ns"] or 0.0,
        (window - 1) * network.transfer_ns(nbytes),
    )


def _row(record: Record, network: Network, nbytes: int) -> list[str]:
    found = overhead(record, network, nbytes)
    amortized = network.message_ns(found.window * nbytes) / found.window
    times = (
        found.message_ns,
        amortized,
        record["tail"]["tail_ns"] or 0.0,
        found.overhead_ns,
        found.queueing_ns,
        found.residual_ns,
    )
    return [str(found.window), str(found.producers), *(f"{each / 1e3:.2f}" for each in times)]
