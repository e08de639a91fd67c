"""Record batches and logs of them, for tests."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence

from commbench._native import Log, RecordBatch, batch_info, batch_records, crc32c

Record = tuple[int, int, bytes | None]  # offset, timestamp, value
CAPACITY = 1 << 20
LENGTH_AT, CRC_AT, CRC_FROM = 8, 17, 21  # where the fields are in a batch


def batch_of(values: Sequence[bytes], timestamp: int = 1000) -> bytearray:
    """A sealed batch; its records' timestamps count up from ``timestamp``."""
    buffer = bytearray(61 + sum(len(value) + 40 for value in values))
    batch = RecordBatch(buffer)
    for k, value in enumerate(values):
        assert batch.add(timestamp + k, value)
    nbytes = batch.seal()
    del batch  # it holds the buffer
    return buffer[:nbytes]


def drawn_values(rng: random.Random, most: int = 8, longest: int = 300) -> list[bytes]:
    return [rng.randbytes(rng.randint(0, longest)) for _ in range(rng.randint(1, most))]


def sealed(batch: bytes | bytearray) -> bytearray:
    """The batch with the CRC that is right for what it holds now."""
    new = bytearray(batch)
    struct.pack_into(">I", new, CRC_AT, crc32c(new[CRC_FROM:]))
    return new


def with_field(batch: bytes | bytearray, at: int, format: str, value: int) -> bytearray:
    """The batch with one field of its header changed, and the CRC right for it."""
    changed = bytearray(batch)
    struct.pack_into(format, changed, at, value)
    return sealed(changed)


def batches_from(log: Log, offset: int, capacity: int = CAPACITY) -> Iterator[bytes]:
    """Every whole batch from the one on that holds ``offset``, its CRC checked."""
    buffer = bytearray(capacity)
    while True:
        nbytes, offset = log.read(buffer, offset)
        if nbytes == 0:
            return
        at = 0
        while at < nbytes:
            length = batch_info(memoryview(buffer)[at:nbytes])["nbytes"]
            yield bytes(buffer[at : at + length])
            at += length


def records_from(log: Log, offset: int, capacity: int = CAPACITY) -> list[Record]:
    """Every record from ``offset`` on."""
    return [
        record
        for batch in batches_from(log, offset, capacity)
        for record in batch_records(batch)
        if record[0] >= offset
    ]
