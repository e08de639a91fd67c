"""``commbench report --png``: percentile latency and rates against message size.

One panel per benchmark; a size sweep is a log-log plot, payload schemes are categories side by
side. Medians carry their 95 % interval; a p99 that cannot be had is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commbench.errors import UsageError
from commbench.record import Record
from commbench.reports.labels import (
    MESSAGES,
    acked,
    category,
    curve_labels,
    grouped,
    heading,
    is_message_rate,
    panel_title,
    tick,
    y_label,
)
from commbench.reports.stats import (
    is_rate,
    merge_launches,
    messages_per_s,
    percentile_ns,
    rate_reached,
)
from commbench.reports.tables import is_contiguous
from commbench.results import ResultFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
MARKERS = "osD^vP*X"
NAN = float("nan")
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """What is drawn of one case: ``y`` with its interval, and ``tail``, the bad 1 %."""

    record: Record
    y: float
    interval: Interval
    tail: float


def save_png(files: Sequence[ResultFile], path: Path) -> None:
    """Draw all cases of these files into ``path`` (.png, .svg or .pdf); launches are merged.

    Raises UsageError when matplotlib is missing, nothing can be drawn or the path is impossible.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--png {path}: allowed: a name that ends in {', '.join(SUFFIXES)}")
    figure_class = _figure_class()
    merged = [(file.path, record) for file in files for record in merge_launches(file.cases)]
    if not merged:
        raise UsageError(f"--png {path}: {', '.join(f.path for f in files)}: no finished case")
    records = [record for _, record in merged]
    figure = draw(figure_class, records, curve_labels(merged))
    figure.suptitle(heading(files), fontsize=10)
    try:
        figure.savefig(path, dpi=150)
    except OSError as problem:
        raise UsageError(f"--png {path}: cannot be written: {problem.strerror}") from problem


def _figure_class() -> type[Figure]:
    """Of the object interface: without pyplot there is no display and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise UsageError("--png: needs matplotlib: pip install 'commbench[plot]'") from problem
    return Figure


def draw(figure_class: type[Figure], records: Sequence[Record], labels: dict[int, str]) -> Figure:
    """One panel per benchmark and kind of payload, a colour per label, one legend below.

    ``labels``: the name of each record's curve, by ``id``.
    """
    panels = grouped((panel_title(record), record) for record in records)
    order = {label: index for index, label in enumerate(dict.fromkeys(labels.values()))}
    ncols = min(len(panels), 2)
    nrows = -(-len(panels) // ncols)
    figure = figure_class(figsize=(1.2 + 5.6 * ncols, 1.3 + 4.1 * nrows), layout="constrained")
    for index, (title, members) in enumerate(panels.items()):
        axes = figure.add_subplot(nrows, ncols, index + 1)
        series = grouped((labels[id(record)], record) for record in members)
        _panel(axes, title + acked(members), series, order)
    handles = _handles(order)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
    return figure


def _panel(axes: Axes, title: str, series: dict[str, list[Record]], order: dict[str, int]) -> None:
    first = next(iter(series.values()))[0]
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_yscale("log")
    axes.set_ylabel(y_label(first))
    axes.grid(True, which="major", color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)
    if is_contiguous(first):
        _sweep(axes, series, order)
    else:
        _categories(axes, series, order)
    if all(isnan(_point(record).y) for records in series.values() for record in records):
        axes.text(0.5, 0.5, "too few samples for a median", ha="center", transform=axes.transAxes)
    _plain_ticks(axes)


def _sweep(axes: Axes, series: dict[str, list[Record]], order: dict[str, int]) -> None:
    """Lines over sizes. The band reaches from the median (or the rate) to the bad 1 %."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    for label, records in series.items():
        points = [_point(r) for r in sorted(records, key=lambda r: int(r["case"]["nbytes"]))]
        x = [_x(point.record["case"]["nbytes"]) for point in points]
        style = _style(order[label])
        y, tails = [point.y for point in points], [point.tail for point in points]
        axes.errorbar(x, y, yerr=_errors(points), linewidth=1.6, markersize=4, **style)
        axes.plot(x, tails, color=style["color"], linewidth=0.9, linestyle="--", marker="_")
        axes.fill_between(x, y, tails, color=style["color"], alpha=0.13, linewidth=0)
    sizes = sorted({r["case"]["nbytes"] for records in series.values() for r in records})
    shown = sizes[:: -(-len(sizes) // 9)]
    axes.set_xticks([_x(size) for size in shown], [tick(size) for size in shown], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    if len(sizes) == 1:
        axes.set_xlim(_x(sizes[0]) / 2, _x(sizes[0]) * 2)
    axes.set_xlabel("message size")


def _categories(axes: Axes, series: dict[str, list[Record]], order: dict[str, int]) -> None:
    """A point per scheme and size, a whisker to the bad 1 %, channels beside each other."""
    everything = [record for records in series.values() for record in records]
    everything.sort(key=lambda r: (r["case"]["payload"]["scheme"], r["case"]["nbytes"]))
    names = list(dict.fromkeys(map(category, everything)))
    for at, (label, records) in enumerate(series.items()):
        shift = (at + 0.5) / len(series) - 0.5
        points = [_point(record) for record in records]
        x = [names.index(category(point.record)) + 0.7 * shift for point in points]
        style = _style(order[label])
        y, tails = [point.y for point in points], [point.tail for point in points]
        axes.vlines(x, y, tails, color=style["color"], linewidth=1.0, linestyle="--")
        axes.plot(x, tails, color=style["color"], linestyle="none", marker="_", markersize=8)
        axes.errorbar(x, y, yerr=_errors(points), markersize=5, **style | {"linestyle": "none"})
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xlabel("payload scheme and message size")


def _point(record: Record) -> Point:
    """Latency in us, a rate in MB/s, a message rate in messages/s."""
    times = record["latency_ns"]
    if not is_rate(record):
        return Point(
            record,
            _or_nan(times["p50"], 1e3),
            _interval(times, 1e3),
            _or_nan(percentile_ns(record, 99), 1e3),
        )
    y, worst = record["bytes_per_s"], rate_reached(record, 99)
    scale = 1.0 if is_message_rate(record) else 1e6
    if is_message_rate(record):
        messages = messages_per_s(record)
        worst = worst * messages / y if y and worst and messages else None
        y = messages
    value = _or_nan(y, scale)
    return Point(record, value, (value, value), _or_nan(worst, scale))


def _interval(times: dict[str, Any], scale: float) -> Interval:
    low, high = times["p50_ci"] or (NAN, NAN)
    return low / scale, high / scale


def _errors(points: Sequence[Point]) -> list[list[float]]:
    below = [max(0.0, point.y - point.interval[0]) for point in points]
    return [below, [max(0.0, point.interval[1] - point.y) for point in points]]


def _or_nan(value: float | None, scale: float) -> float:
    return NAN if value is None else value / scale


# ---------------------------------------------------------------- style


def _x(nbytes: int) -> float:
    """A message of 0 bytes stands at the left of 1: a log axis has no 0."""
    return nbytes or 0.5


def _style(index: int) -> dict[str, Any]:
    from matplotlib import colormaps

    color = colormaps["tab10"](index % 10)
    return {"color": color, "marker": MARKERS[index % len(MARKERS)], "capsize": 2.0}


def _handles(order: dict[str, int]) -> list[Any]:
    from matplotlib.lines import Line2D

    def line(label: str, **style: Any) -> Line2D:
        style.pop("capsize", None)
        return Line2D([], [], label=label, **style)

    channels = [line(label, **_style(index)) for label, index in order.items()]
    median = line("median; total rate", color="0.3")
    return [*channels, median, line("p99; rate that 99 % of windows reach", color="0.3", ls="--")]


def _plain_ticks(axes: Axes) -> None:
    """1, 10, 100 (M for messages) and not powers of ten; 2 and 5 too where the axis is short."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    in_messages = axes.get_ylabel() == MESSAGES
    axes.yaxis.set_major_formatter(EngFormatter() if in_messages else StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
