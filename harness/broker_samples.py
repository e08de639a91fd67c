"""The stamps of each record of a case of ``broker`` on their way to rank 0: ``--save-samples``."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from commbench.harness.measure import PATIENCE_S, Meeting
from commbench.histogram import Int64Array

MOST = 1 << 20  # records of a producer; arrays are written to once before the clock starts
_CHUNK = 1 << 16  # records; all ranks get each chunk, in a frame of the rendezvous

SaveRecords: TypeAlias = Callable[
    [Int64Array, Int64Array, Int64Array], None
]  # intended, start, end


class Kept:
    """Of the first ``most`` records that count: when they were due, began and were acknowledged."""

    def __init__(self, most: int) -> None:
        self.arrays = np.full((3, most), -1, np.int64)

    @property
    def most(self) -> int:
        return int(self.arrays.shape[1])

    @property
    def addresses(self) -> tuple[int, int, int]:
        intended, start, end = (each.ctypes.data for each in self.arrays)
        return intended, start, end

    def first(self, counted: int) -> Int64Array:
        """The rows of so many records, or of as many as there is room for."""
        return self.arrays[:, :counted]

    def note(self, at: int, intended: int, start: int, end: int) -> None:
        """The record that counted as number ``at``."""
        if at < self.most:
            self.arrays[:, at] = intended, start, end


def hand_in(rendezvous: Meeting, rank: int, mine: Int64Array) -> Iterator[Int64Array]:
    """Collective: the three rows of every rank that has any, by rank, a part at a time."""
    counts = [int(str(each)) for each in rendezvous.allgather(mine.shape[1], PATIENCE_S)]
    for owner, count in enumerate(counts):
        for at in range(0, count, _CHUNK):
            part = mine[:, at : at + _CHUNK].tobytes() if owner == rank else b""
            text = base64.b64encode(part).decode()
            found = "".join(str(each) for each in rendezvous.allgather(text, PATIENCE_S))
            yield np.frombuffer(base64.b64decode(found), np.int64).reshape(3, -1)
