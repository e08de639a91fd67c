"""What was measured of one figure, its row in the table and its record in the JSON file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.ratios.statistics import Spread, Target, close_enough, verdict

HEADER = (
    f"# {'figure':<38} {'target':>7} {'ratio':>7} {'95 % interval':>15} {'A/A':>6}  "
    f"{'verdict':<15} {'ours':>12} {'reference':>12} {'n':>4}  load"
)


@dataclass(slots=True)
class Result:
    """``ratios``: ours to the reference's, ``against_itself``: the reference's to its own, one of
    each quad or pair; ``ours`` and ``reference``: medians of blocks in ``unit``.

    ``beside``: other loops to the reference; ``ours_to``: ours to them, of the same quads.
    ``check``: the figure says whether a reference that we wrote counts, which may differ by so much
    from an independent tool; then "ours" is it, and the tool is the reference.
    """

    name: str
    against: str
    unit: str  # "ns" of a round trip, "B/s", or "1/s" of calls
    target: Target | None
    check: float = 0.0
    ratios: list[float] = field(default_factory=list)
    against_itself: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    beside: dict[str, list[float]] = field(default_factory=dict)
    ours_to: dict[str, list[float]] = field(default_factory=dict)
    load: float = 0.0

    @property
    def verdict(self) -> str:
        ratio, itself = Spread.of(self.ratios), Spread.of(self.against_itself)
        return (
            close_enough(ratio, itself, self.check)
            if self.check
            else verdict(self.target, ratio, itself)
        )

    def finished(self) -> Result:
        """Notes how busy the machine was."""
        self.load = os.getloadavg()[0]
        return self

    def lines(self) -> list[str]:
        """The row, and a line for each loop that stands beside."""
        ratio, itself = Spread.of(self.ratios), Spread.of(self.against_itself)
        target = (
            f"{1 - self.check:.2f}..{1 + self.check:.2f}"
            if self.check
            else str(self.target)
            if self.target
            else "-"
        )
        row = (
            f"{self.name:<40} {target:>7} {ratio.median:>7.3f} {_interval(ratio):>15} "
            f"{itself.median:>6.3f}  {self.verdict:<15} {_value(self.ours, self.unit):>12} "
            f"{_value(self.reference, self.unit):>12} {len(self.ratios):>4}  {self.load:.2f}"
        )
        return [row, *(self._line(name) for name in self.beside)]

    def _line(self, name: str) -> str:
        """Of a loop that stands beside."""
        theirs, ours = Spread.of(self.beside[name]), Spread.of(self.ours_to[name])
        return (
            f"#   beside: {name}: {theirs.median:.3f} ({_interval(theirs)}) of the reference; "
            f"ours {ours.median:.3f} ({_interval(ours)}) of it"
        )

    def record(self) -> dict[str, Any]:
        ratio, itself = Spread.of(self.ratios), Spread.of(self.against_itself)
        summary = {"ratio": asdict(ratio), "a_a": asdict(itself), "verdict": self.verdict}
        return {**asdict(self), **summary}


def _interval(spread: Spread) -> str:
    if spread.low is None or spread.high is None:
        return "-"
    return f"{spread.low:.3f} .. {spread.high:.3f}"


def _value(values: Sequence[float], unit: str) -> str:
    value = median(values)
    if unit == "1/s":
        return f"{value:.0f} /s"
    return f"{value / 1e6:.1f} MB/s" if unit == "B/s" else f"{value / 1e3:.3f} us"
