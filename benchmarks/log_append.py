"""What an append to a broker's log costs: ``python benchmarks/log_append.py [FOLDER [MIB]]``.

Batches of 16 KiB of records of 100 B go into a log in FOLDER (default: a temporary one), without
flushing. Below it the CRC and memcpy over as many bytes, and over 1 MiB where the call from Python
no longer counts. Medians of 7 rounds of MIB each (default: 64).
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from commbench._native import Log, RecordBatch, crc32c, crc32c_kind

BATCH_BYTES, RECORD_BYTES = 16 << 10, 100
ROUNDS = 7


def make_batch() -> tuple[bytearray, int]:
    """A full batch, and how many records it has."""
    buffer = bytearray(BATCH_BYTES)
    batch = RecordBatch(buffer)
    while batch.add(0, bytes(RECORD_BYTES)):
        pass
    records, nbytes = batch.records, batch.seal()
    del batch  # it holds the buffer
    del buffer[nbytes:]
    return buffer, records


def median_s(call: Callable[[], object], calls: int) -> float:
    """Seconds of one call: the median of the rounds, after one that is not counted."""
    rounds = []
    for _ in range(ROUNDS + 1):
        began = time.monotonic()
        for _ in range(calls):
            call()
        rounds.append((time.monotonic() - began) / calls)
    return statistics.median(rounds[1:])


def append_s(folder: Path, batch: bytearray, calls: int) -> float:
    """Seconds of an append to a new log, which is removed again or the page cache would fill."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="log-append-") as where:
        log = Log(where)
        began = time.monotonic()
        for _ in range(calls):
            log.append(batch)
        seconds = time.monotonic() - began
        log.close()
    return seconds / calls


def show_appends(folder: Path | None, round_nbytes: int) -> None:
    batch, records = make_batch()
    calls = round_nbytes // len(batch)
    with tempfile.TemporaryDirectory() as temporary:
        where = folder or Path(temporary)
        each = statistics.median([append_s(where, batch, calls) for _ in range(ROUNDS + 1)][1:])
    print(f"# batches of {len(batch)} bytes, {records} records of {RECORD_BYTES} B each")
    print(f"append a batch      {each * 1e6:12.2f} us")
    print(f"records             {records / each:12,.0f} /s")
    print(f"their values        {records * RECORD_BYTES / each / 1e6:12,.0f} MB/s")


def show_passes(nbytes: int, round_nbytes: int) -> None:
    """The CRC by the instruction and by tables, and memcpy, over the same memory."""
    source, target = bytearray(nbytes), bytearray(nbytes)
    to, from_ = ((ctypes.c_char * nbytes).from_buffer(each) for each in (target, source))
    calls: dict[str, Callable[[], object]] = {
        f"crc32c ({crc32c_kind()})": lambda: crc32c(source),
        "crc32c (table)": lambda: crc32c(source, 0, True),
        "memcpy": lambda: ctypes.memmove(to, from_, nbytes),
    }
    for name, call in calls.items():
        each = median_s(call, round_nbytes // nbytes)
        print(f"{name:<20}{nbytes:>10} bytes{nbytes / each / 1e9:10.2f} GB/s")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    round_nbytes = (int(sys.argv[2]) if len(sys.argv) > 2 else 64) << 20
    show_appends(folder, round_nbytes)
    for nbytes in (BATCH_BYTES, 1 << 20):
        show_passes(nbytes, round_nbytes)


if __name__ == "__main__":
    main()
