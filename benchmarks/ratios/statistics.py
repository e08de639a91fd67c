"""Ratios of a quad, their interval, and what they show. Source: docs/parity.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from commbench.histogram import median_ranks

HOLDS, MISSED, NOT_SHOWN, PRINTED = "holds", "missed", "not shown", "-"
COUNTS, COUNTS_NOT = "counts", "does not count"
CLOSE = 0.03  # what a reference that we wrote may differ from an independent tool
PS_CLOSE = 0.05  # and the parameter server


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio (ours to the reference's) must be: at most or at least ``limit``."""

    limit: float
    at_most: bool

    @property
    def margin(self) -> float:
        """What the reference may be off, twice; that of 1.05 where the limit itself leaves none."""
        return abs(self.limit - 1.0) or 0.05

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:.2f}"


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and its 95 % interval by ranks: exact for any distribution. None below 6 values."""

    median: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        ordered, ranks = sorted(values), median_ranks(len(values))
        low, high = (ordered[rank - 1] for rank in ranks) if ranks else (None, None)
        return cls(median(ordered), low, high)

    def far_end(self, target: Target) -> float | None:
        """The end of the interval that is farther from meeting the target."""
        return self.high if target.at_most else self.low


def median_of_ties(values: NDArray[np.int64]) -> float:
    """The median of stamps whose clock steps by more than their differences (10 ns on some CPUs).

    The mid-distribution quantile: ties count half below and half above; without ties the ordinary
    median. Ma, Genton, Parzen, Annals of the Institute of Statistical Mathematics 63, 2011.
    """
    distinct, counts = np.unique(values, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2) / len(values)
    return float(np.interp(0.5, middle, distinct))


def quad_ratio(outer: tuple[float, float], inner: tuple[float, float]) -> float:
    """B to A of a quad A B B A: what changes steadily from block to block cancels out."""
    return sum(inner) / sum(outer)


def verdict(target: Target | None, ratio: Spread, against_itself: Spread) -> str:
    """What the ratio shows, given the same ratio of the reference against itself (A/A)."""
    if target is None:
        return PRINTED
    far_end = ratio.far_end(target)
    if far_end is None or abs(against_itself.median - 1.0) > target.margin / 2:
        return NOT_SHOWN
    return HOLDS if target.met(far_end) else MISSED


def close_enough(ratio: Spread, against_itself: Spread, limit: float) -> str:
    """Does a reference of ours count, given its ratio to an independent tool?"""
    if ratio.low is None or abs(against_itself.median - 1.0) > limit / 2:
        return NOT_SHOWN
    return COUNTS if abs(ratio.median - 1.0) <= limit else COUNTS_NOT
