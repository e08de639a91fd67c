"""A mergeable log-linear histogram of times in nanoseconds.

A value below 256 has a bin of its own; above, each power of two is cut into 128 bins, so that no
two values of a bin differ by more than 0.8 %. Extremes, sum and count are kept exactly. Adding two
histograms gives the histogram of both samples, so ranks and blocks can be merged.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SUB_BITS = 7
BEYOND = 10  # a percentile with fewer samples beyond it is not reported
CONFIDENCE_Z = 1.96  # 95 %, two-sided, of the normal distribution
_BINS = (63 - SUB_BITS + 1) << SUB_BITS

Int64Array = NDArray[np.int64]


def bin_index(values: Int64Array) -> Int64Array:
    """The bin of each value: ``(e << 7) + (v >> e)``, where ``v >> e`` keeps 8 leading bits."""
    exponent = np.frexp(values.astype(np.float64))[1].astype(np.int64) - (SUB_BITS + 1)
    np.maximum(exponent, 0, out=exponent)
    # Above 2^53 the conversion may round up to the next power of two. Then e is one too large and
    # v >> e is 127, which is the same bin as 255 at the smaller e: no correction is needed.
    return (exponent << SUB_BITS) + (values >> exponent)


def bin_bounds(index: int) -> tuple[int, int]:
    """Least and greatest value that ``bin_index`` puts into this bin."""
    exponent = max((index >> SUB_BITS) - 1, 0)
    low = (index - (exponent << SUB_BITS)) << exponent
    return low, low + (1 << exponent) - 1


def rank_of(q: float, n: int) -> int:
    """The nearest rank (1 to n) of quantile ``q``; exact where ``q * n`` in floats is not."""
    return max(1, math.ceil(Fraction(str(q)) * n))


def median_ranks(n: int) -> tuple[int, int] | None:
    """Ranks between which the median lies with 95 % confidence; None for fewer than 6 samples.

    No distribution is assumed, but independent samples are. Le Boudec, Performance Evaluation of
    Computer and Communication Systems, 2010, theorem 2.1 and its normal approximation.
    """
    if n < 6:
        return None
    spread = CONFIDENCE_Z * math.sqrt(n)
    return max(1, math.floor((n - spread) / 2)), min(n, math.ceil(1 + (n + spread) / 2))


class Histogram:
    """Counts of int64 nanoseconds, 0 or more. ``n``, ``total``, ``least``, ``greatest``: exact."""

    __slots__ = ("_counts", "greatest", "least", "n", "total")

    def __init__(self) -> None:
        self._counts: Int64Array = np.zeros(_BINS, np.int64)
        self.n = 0
        self.total = 0
        self.least: int | None = None
        self.greatest: int | None = None

    def add(self, values: Int64Array) -> None:
        """Count every value of a one-dimensional array. Raises ValueError for a negative one."""
        if values.size == 0:
            return
        least, greatest = int(values.min()), int(values.max())
        if least < 0:
            raise ValueError(f"a time of {least} ns: the clock went backwards")
        self._counts += np.bincount(bin_index(values), minlength=_BINS)
        fits = greatest * values.size < 1 << 63
        total = int(values.sum()) if fits else sum(values.tolist())
        self._extend(values.size, total, least, greatest)

    def merge(self, other: Histogram) -> None:
        """Count everything that ``other`` has counted."""
        if other.least is None or other.greatest is None:
            return
        self._counts += other._counts
        self._extend(other.n, other.total, other.least, other.greatest)

    def _extend(self, n: int, total: int, least: int, greatest: int) -> None:
        self.n += n
        self.total += total
        self.least = least if self.least is None else min(self.least, least)
        self.greatest = greatest if self.greatest is None else max(self.greatest, greatest)

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None

    def quantile(self, q: float) -> int | None:
        """The sample of nearest rank (numpy's ``inverted_cdf``), to within 0.8 %.

        None where fewer than ``BEYOND`` samples lie beyond it: such a number is mostly chance.
        """
        rank = rank_of(q, self.n)
        beyond = self.n - rank if q >= 0.5 else rank - 1
        return self.at_rank(rank) if beyond >= BEYOND else None

    def at_rank(self, rank: int) -> int:
        """The sample of this rank (1 to n), to within 0.8 %; the first and the last are exact.

        The samples of a bin are taken to lie evenly in it, so the error is mostly far less.
        """
        low, high, share = self._place(rank)
        if rank == 1:
            return low
        return high if rank == self.n else low + round(share * (high - low))

    def median_interval(self) -> tuple[int, int] | None:
        """95 % confidence interval of the median, widened to whole bins; None below 6 samples."""
        ranks = median_ranks(self.n)
        return None if ranks is None else (self._place(ranks[0])[0], self._place(ranks[1])[1])

    def _place(self, rank: int) -> tuple[int, int, float]:
        """What the sample of this rank lies between, and where among those of its bin (0 to 1)."""
        if self.least is None or self.greatest is None or not 1 <= rank <= self.n:
            raise ValueError(f"rank {rank} of {self.n} samples")
        below = np.cumsum(self._counts)
        index = int(np.searchsorted(below, rank))
        low, high = bin_bounds(index)
        count = int(self._counts[index])
        share = (rank - int(below[index]) + count - 0.5) / count
        return max(low, self.least), min(high, self.greatest), share

    def to_json(self) -> dict[str, Any]:
        """Sparse: the bins that are not empty, in ascending order."""
        index = np.flatnonzero(self._counts)
        return {
            "sub_bits": SUB_BITS,
            "index": index.tolist(),
            "count": self._counts[index].tolist(),
            "n": self.n,
            "sum": self.total,
            "min": self.least,
            "max": self.greatest,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """The inverse of ``to_json``. Raises ValueError when the record contradicts itself."""
        new = cls()
        try:
            index = np.array(record["index"], np.int64)
            count = np.array(record["count"], np.int64)
            new.n, new.total = int(record["n"]), int(record["sum"])
            new.least, new.greatest = record["min"], record["max"]
            new._counts[index] = count
            new._check(record["sub_bits"], index, count)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as problem:
            raise ValueError(f"not a histogram: {problem}") from problem
        return new

    def _check(self, sub_bits: object, index: Int64Array, count: Int64Array) -> None:
        if sub_bits != SUB_BITS:
            raise ValueError(f"it has {sub_bits} sub-bits; this commbench reads {SUB_BITS}")
        ascending = index.size == 0 or (index[0] >= 0 and bool(np.all(np.diff(index) > 0)))
        if index.shape != count.shape or not ascending or bool(np.any(count <= 0)):
            raise ValueError("bins and counts do not match")
        edges = [] if self.least is None else [self.least, self.greatest]
        expected = bin_index(np.array(edges, np.int64)).tolist()
        if int(count.sum()) != self.n or index[[0, -1] if self.n else []].tolist() != expected:
            raise ValueError("n, min or max contradict the bins")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]
