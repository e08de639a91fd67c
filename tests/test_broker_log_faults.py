"""The log when the disk is full, when a call fails, and when its process is killed."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from commbench._native import Log
from tests.log_writer import SEGMENT_BYTES, Writers, values_at
from tests.record_batches import batch_of, records_from

BLOCK = 16 << 10
KILLS, SEED = 50, 20260

# ---------------------------------------------------------------------- a full disk


@pytest.fixture
def half_full(small_disk: Path) -> Path:
    """A small disk of which half is taken by ``filler``."""
    (small_disk / "filler").write_bytes(bytes(1 << 19))
    return small_disk


def append_until_it_fails(log: Log) -> OSError:
    while True:
        before = log.next_offset, log.counters["batches"], log.counters["nbytes"]
        try:
            log.append(batch_of([bytes([log.next_offset % 251]) * BLOCK]))
        except OSError as problem:
            counted = log.counters
            assert (log.next_offset, counted["batches"], counted["nbytes"]) == before
            return problem


def check_content(log: Log, records: int) -> None:
    found = records_from(log, 0)
    assert [(at, value) for at, _, value in found] == [
        (k, bytes([k % 251]) * BLOCK) for k in range(records)
    ]


@pytest.mark.native
@pytest.mark.parametrize("flush_every", [0, 1])
def test_a_full_disk(half_full: Path, flush_every: int) -> None:
    """The record is refused, the log is as before, and goes on when there is room again."""
    log = Log(str(half_full / "log"), flush_every=flush_every)
    for _ in range(3):
        assert append_until_it_fails(log).errno == errno.ENOSPC
    full = log.next_offset
    assert 25 <= full <= 31
    (file,) = (half_full / "log").glob("*.log")
    assert file.stat().st_size == log.counters["nbytes"]
    check_content(log, full)

    (half_full / "filler").unlink()
    assert append_until_it_fails(log).errno == errno.ENOSPC
    assert log.next_offset >= 2 * full
    log.close()
    log = Log(str(half_full / "log"))
    assert log.recovery.reason == ""
    check_content(log, log.next_offset)
    log.close()


@pytest.mark.native
def test_no_room_for_another_segment(half_full: Path) -> None:
    """Of 8 files: the root, the filler, the folder, its lock, and four segments of a batch each."""
    log = Log(str(half_full / "log"), segment_bytes=2 * BLOCK)
    assert append_until_it_fails(log).errno == errno.ENOSPC
    assert log.next_offset == 4
    (half_full / "filler").unlink()
    assert log.append(batch_of([bytes([4]) * BLOCK])) == 4
    check_content(log, 5)
    log.close()


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    """Longer files cannot be written by this process (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.native
def test_a_write_that_comes_up_short_is_undone(tmp_path: Path) -> None:
    """The limit is inside of a batch: the kernel writes the part before it."""
    log = Log(str(tmp_path / "log"))
    with files_of_at_most(5 * BLOCK):
        assert append_until_it_fails(log).errno == errno.EFBIG
    assert log.next_offset == 4
    (file,) = (tmp_path / "log").glob("*.log")
    assert file.stat().st_size == log.counters["nbytes"]
    log.append(batch_of([bytes([4]) * BLOCK]))
    check_content(log, 5)
    log.close()


# ---------------------------------------------------------------------- calls that fail


def file_descriptor(folder: Path) -> int:
    """That of the open segment."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them is gone again
            to = link.readlink()
            if to.parent == folder and to.suffix == ".log":
                return int(link.name)
    raise AssertionError("no segment is open")


@contextmanager
def instead_of(fd: int, path: str, flags: int) -> Iterator[None]:
    """Another file under this number, so that calls on it fail as the kernel makes them fail."""
    kept, other = os.dup(fd), os.open(path, flags)
    os.dup2(other, fd, inheritable=False)
    try:
        yield
    finally:
        os.dup2(kept, fd, inheritable=False)
        os.close(kept)
        os.close(other)


@pytest.mark.native
def test_a_write_that_fails_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = Log(str(tmp_path))
    log.append(batch_of([b"first"]))
    with instead_of(file_descriptor(tmp_path), "/dev/null", os.O_RDONLY):
        with pytest.raises(OSError, match=r"0\.log: write: ") as caught:
            log.append(batch_of([b"second"]))
        assert caught.value.errno == errno.EBADF
    assert log.append(batch_of([b"second"])) == 1
    assert [record[2] for record in records_from(log, 0)] == [b"first", b"second"]


@pytest.mark.native
def test_after_a_flush_that_failed_nothing_is_appended(tmp_path: Path) -> None:
    """The kernel may have dropped what it could not write, and says so once (fsync(2))."""
    log = Log(str(tmp_path))
    log.append(batch_of([b"first"]))
    failed = pytest.raises(OSError, match=r"0\.log: fdatasync: ")
    with instead_of(file_descriptor(tmp_path), "/dev/full", os.O_RDWR), failed:
        log.flush()
    for append in (log.append, log.append_replica):
        with pytest.raises(OSError, match="the log takes no more") as caught:
            append(batch_of([b"second"]))
        assert caught.value.errno == errno.EIO
    assert log.flushed_offset == 0
    assert [record[2] for record in records_from(log, 0)] == [b"first"]
    log.close()
    log = Log(str(tmp_path), flush_every=1)
    assert log.flushed_offset == 1
    assert log.append(batch_of([b"second"])) == 1


# ---------------------------------------------------------------------- kill -9


def kill_at_a_moment(writers: Writers, folder: Path, rng: random.Random) -> tuple[list[int], int]:
    """Starts a writer and kills it; the offsets that it had acknowledged, and its longest value."""
    flush_every, longest = rng.choice([0, 0, 1, 10]), rng.choice([50, 2000, 60_000])
    writers.start(str(folder), flush_every, longest)
    pid = int(writers.line().removeprefix("pid "))
    acknowledged = [int(writers.line()) for _ in range(rng.randint(0, 40))]
    time.sleep(rng.random() * 2e-3)
    os.kill(pid, signal.SIGKILL)
    while (line := writers.line()) != "gone":
        acknowledged.append(int(line))
    return acknowledged, longest


def check_recovered(folder: Path, acknowledged: list[int], longest: int) -> bool:
    """All batches have their content, acknowledged ones are there; was something cut off?"""
    log = Log(str(folder), segment_bytes=SEGMENT_BYTES)
    recovery = log.recovery
    assert (recovery.lost_batches, recovery.removed_segments) == (0, 0)
    records = records_from(log, 0)
    offset, found = 0, []
    while offset < log.next_offset:
        values = values_at(offset, longest)
        there = [value for _, _, value in records[offset : offset + len(values)]]
        assert there == values, f"the batch at {offset}"
        found.append(offset)
        offset += len(values)
    assert offset == log.next_offset == len(records)
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) <= len(acknowledged) + 1  # one may be in the log and not acknowledged yet
    assert log.append(batch_of(values_at(offset, longest))) == offset
    log.close()
    return recovery.reason != ""


@pytest.mark.timeout(300)
def test_killed_while_appending(tmp_path: Path) -> None:
    """The page cache survives: this shows order and wholeness, and no durability."""
    rng = random.Random(SEED)
    torn = written = 0
    with Writers() as writers:
        for k in range(KILLS):
            folder = tmp_path / f"{k}"
            acknowledged, longest = kill_at_a_moment(writers, folder, rng)
            torn += check_recovered(folder, acknowledged, longest)
            written += len(acknowledged)
    print(f"# {KILLS} kills (seed {SEED}): {written} batches acknowledged, {torn} torn ends cut")
    assert written > 10 * KILLS
