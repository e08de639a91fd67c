"""Values of records, what a block of them is and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commbench.errors import TransferError
from commbench.payloads.buffers import Message, allocate

_LINE = 64  # bytes of a cache line: two values never share one
MOST_VALUES = 1024
STAMP_NBYTES = 8  # of a record for consumers: when it was produced
MOST_MEMORY = 64 << 20


class Values:
    """``count`` different values of ``nbytes`` each.

    Value i is the content (``cb_fill``) of message ``first`` + i of rank ``sender``.
    """

    def __init__(self, nbytes: int, count: int, seed: int, sender: int, first: int) -> None:
        self.nbytes, self.count = nbytes, count
        self.seed, self.sender, self.first = seed, sender, first
        self.stride = max(_LINE, -(-nbytes // _LINE) * _LINE)
        self._arena = allocate((self.stride * count,), 1)[0]
        for index in range(count):
            Message((self.view(index),)).fill(seed, sender, first + index)

    @classmethod
    def timed(cls, nbytes: int, seed: int, sender: int, first: int) -> Values:
        """As many as fit into a bounded memory."""
        count = max(1, min(MOST_VALUES, MOST_MEMORY // max(_LINE, nbytes)))
        return cls(nbytes, count, seed, sender, first)

    @property
    def address(self) -> int:
        return self._arena.addresses[0][0]

    def view(self, index: int) -> memoryview:
        """The bytes of value ``index``."""
        at = index % self.count * self.stride
        return self._arena.views[0][at : at + self.nbytes]

    def verify(self, index: int, value: bytes, stamped: bool = False) -> None:
        """Raises PayloadMismatch or TransferError unless this is value ``index``; ``stamped``: but
        for its stamp."""
        number = self.first + index % self.count
        if len(value) != self.nbytes:
            raise TransferError(
                f"record {number} of rank {self.sender} has {len(value)} bytes instead of "
                f"{self.nbytes}"
            )
        if stamped:
            value = self._first_bytes(number) + value[STAMP_NBYTES:]
        Message((memoryview(value),)).verify(self.seed, self.sender, number)

    def _first_bytes(self, number: int) -> bytes:
        """Of a value before it was stamped."""
        whole = memoryview(bytearray(self.nbytes))
        Message((whole,)).fill(self.seed, self.sender, number)
        return bytes(whole[:STAMP_NBYTES])


class Places:
    """Where each record of a block was put: partition and offset (-1: the broker did not say)."""

    def __init__(self, count: int) -> None:
        self.partition: NDArray[np.int32] = np.full(count, -1, np.int32)
        self.offset: NDArray[np.int64] = np.full(count, -1, np.int64)

    def cut(self, count: int) -> Places:
        """The first ``count``."""
        new = Places(0)
        new.partition, new.offset = self.partition[:count], self.offset[:count]
        return new


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """``count`` records, value i mod ``values.count``; without ``values`` they have none: the marks
    at which consumers end.

    ``window``: most records in flight, 0: as many as the producer's queue takes. ``partitions``:
    record i goes to i mod that, 0: the library chooses. ``open``: record i not before
    ``stamps.intended[i]``, ns from the start of the block. ``duration_s``: nothing is produced
    later than that, 0: no limit; only the first ``Delivered.produced`` of the count are then.
    ``stamped``: for consumers a value's first 8 bytes are its start, 0 in the first ``warmup``.
    """

    count: int
    values: Values | None
    window: int = 0
    partitions: int = 0
    open: bool = False
    duration_s: float = 0.0
    timeout_s: float = 60.0
    places: Places | None = None
    stamped: bool = False
    warmup: int = 0


@dataclass(frozen=True, slots=True)
class Delivered:
    """Records by their delivery reports. ``full``: those that had to wait for room in the
    producer's queue. ``reason``: why the first failed, in the library's words."""

    produced: int
    acked: int
    failed: int
    full: int
    reason: str = ""

    def check(self) -> None:
        """Raises TransferError when a record was not acknowledged."""
        if self.failed:
            raise TransferError(
                f"kafka: {self.failed} of {self.produced} records were not acknowledged: "
                f"{self.reason}"
            )
