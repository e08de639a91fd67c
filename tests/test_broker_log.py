"""The log of a partition: what was appended is read, in the same order, after any reopening."""

from __future__ import annotations

import errno
import random
import re
import shutil
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from commbench._native import Log, batch_info, batch_records
from tests.record_batches import (
    LENGTH_AT,
    Record,
    batch_of,
    batches_from,
    drawn_values,
    records_from,
    with_field,
)

pytestmark = pytest.mark.native


def open_log(folder: Path, segment_bytes: int = 1 << 20, **options: int) -> Log:
    return Log(str(folder), segment_bytes=segment_bytes, **options)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def fill(folder: Path, count: int, segment_bytes: int = 1 << 20, seed: int = 0) -> list[bytes]:
    """A log of so many batches, closed; the batches as they are in it."""
    rng = random.Random(seed)
    log = open_log(folder, segment_bytes)
    for k in range(count):
        log.append(batch_of(drawn_values(rng), 1000 * k))
    made = list(batches_from(log, 0))
    log.close()
    assert len(made) == count
    return made


# ---------------------------------------------------------------------- any order of calls


class Model:
    """What the log must hold, and the same calls to both."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.flush_every = self.rng.choice([0, 1, 7])
        self.batches: list[list[Record]] = []
        self.log = self.opened()

    def opened(self) -> Log:
        return open_log(self.folder, 2000, flush_every=self.flush_every)

    @property
    def next_offset(self) -> int:
        return sum(map(len, self.batches))

    def append(self) -> None:
        values, base = drawn_values(self.rng, 6), self.next_offset
        assert self.log.append(batch_of(values, base)) == base
        self.batches.append([(base + k, base + k, value) for k, value in enumerate(values)])

    def read(self) -> None:
        """From anywhere to anywhere, into a buffer that has room for at least one batch."""
        offset = self.rng.randint(0, self.next_offset)
        limit = self.rng.randint(0, self.next_offset + 3)
        buffer = bytearray(self.rng.randint(2000, 9000))
        nbytes, after = self.log.read(buffer, offset, limit)
        found = self.in_bytes(buffer[:nbytes])
        wanted = [b for b in self.batches if b[-1][0] >= offset and b[-1][0] < limit]
        assert found == wanted[: len(found)]
        assert after == (found[-1][-1][0] + 1 if found else offset)
        assert bool(found) == bool(wanted and offset < limit)

    def in_bytes(self, data: bytearray) -> list[list[Record]]:
        found = []
        while data:
            length = batch_info(data)["nbytes"]
            found.append(batch_records(data[:length]))
            del data[:length]
        return found

    def truncate(self) -> None:
        offset = self.rng.randint(self.log.high_watermark, self.next_offset + 2)
        self.batches = [batch for batch in self.batches if batch[-1][0] < offset]
        assert self.log.truncate(offset) == self.next_offset

    def reopen(self) -> None:
        self.log.close()
        self.log = self.opened()
        recovery = self.log.recovery
        assert (recovery.batches, recovery.records) == (len(self.batches), self.next_offset)
        assert (recovery.reason, recovery.cut_nbytes) == ("", 0)

    def check(self) -> None:
        assert self.log.next_offset == self.next_offset
        everything = [record for batch in self.batches for record in batch]
        assert records_from(self.log, 0, capacity=2000) == everything


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_calls(tmp_path: Path, seed: int) -> None:
    model = Model(tmp_path / "log", seed)
    calls = {model.append: 60, model.read: 30, model.truncate: 4, model.reopen: 4}
    for call in model.rng.choices(list(calls), list(calls.values()), k=250):
        call()
    model.check()
    model.reopen()
    model.check()


# ---------------------------------------------------------------------- files


def test_segments_are_named_by_their_first_offset(tmp_path: Path) -> None:
    batches = fill(tmp_path / "log", 40, segment_bytes=8000)
    files = segments(tmp_path / "log")
    assert files[0].name == "0" * 20 + ".log"
    assert len(files) > 3
    assert b"".join(file.read_bytes() for file in files) == b"".join(batches)
    for file in files:
        data = file.read_bytes()
        assert batch_info(data)["base_offset"] == int(file.stem)
        assert len(file.stem) == 20
        assert len(data) <= 8000
    for file, following in pairwise(files):
        assert file.stat().st_size + batch_info(following.read_bytes())["nbytes"] > 8000


def test_only_the_base_offset_is_changed_by_the_broker(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    log.append(batch_of([b"first"] * 3))
    sent = batch_of([b"second"])
    struct.pack_into(">i", sent, 12, -1)  # as a producer of Kafka's sets the leader's epoch
    stored = sent[:]
    log.append(stored)
    struct.pack_into(">qii", sent, 0, 3, len(sent) - 12, 0)
    assert stored == sent == segments(tmp_path / "log")[0].read_bytes()[-len(sent) :]


def test_one_has_it_open_at_a_time(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    with pytest.raises(BlockingIOError, match="another has the log open"):
        open_log(tmp_path)
    log.close()
    open_log(tmp_path).close()


def test_segments_of_someone_else_are_left_alone(tmp_path: Path) -> None:
    """Recovery cuts and removes files: it must not do so to a real Kafka's."""
    fill(tmp_path, 3)
    (tmp_path / "commbench.lock").unlink()
    (before,) = segments(tmp_path)
    before.write_bytes(b"theirs")
    with pytest.raises(FileExistsError, match="not commbench's"):
        open_log(tmp_path)
    assert before.read_bytes() == b"theirs"


def test_a_file_that_cannot_be_a_segment_is_refused_and_not_cut(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    with open(segments(tmp_path)[0], "r+b") as file:
        file.truncate(1 << 31)
    with pytest.raises(OSError, match="more than a segment may have") as caught:
        open_log(tmp_path)
    assert caught.value.errno == errno.EFBIG
    assert segments(tmp_path)[0].stat().st_size == 1 << 31


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    fill(tmp_path / "log", 3)
    (file,) = segments(tmp_path / "log")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError) as caught:
        open_log(tmp_path / "log")
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("nbytes", [1, 255, 1 << 31])
def test_segment_sizes_that_are_not_allowed(tmp_path: Path, nbytes: int) -> None:
    with pytest.raises(OSError, match=f"segment bytes: {nbytes}; allowed: 256 to 2147483647"):
        open_log(tmp_path / "log", nbytes)
    assert not (tmp_path / "log").exists()


def test_a_folder_whose_parent_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no/log"):
        open_log(tmp_path / "no" / "log")


# ---------------------------------------------------------------------- recovery


def cut_and_open(folder: Path, copy: Path, change: int, flip: bool) -> Log:
    """A copy of the log, its last file cut at, or with a byte flipped at, this place."""
    shutil.copytree(folder, copy)
    file = segments(copy)[-1]
    data = bytearray(file.read_bytes())
    if flip:
        data[change] ^= 0xFF
    else:
        del data[change:]
    file.write_bytes(data)
    return open_log(copy, 3000)


@pytest.mark.parametrize("flip", [False, True], ids=["cut", "flipped"])
def test_every_byte_of_the_last_batch(tmp_path: Path, flip: bool) -> None:
    """Whichever of its bytes is missing or wrong: the log ends with the batch before."""
    fill(tmp_path / "log", 5, segment_bytes=3000)
    log = open_log(tmp_path / "log", 3000)
    before = log.append(batch_of([b"last but one"]))
    last = log.append(batch_of([b"one", b"two"]))
    wanted = records_from(log, 0)[:-2]
    log.close()
    file = segments(tmp_path / "log")[-1]
    nbytes = file.stat().st_size
    begin = file.read_bytes().rindex(struct.pack(">q", last))
    for change in range(begin, nbytes):
        log = cut_and_open(tmp_path / "log", tmp_path / f"{change}", change, flip)
        kept = (nbytes if flip else change) - begin
        assert log.next_offset == last == before + 1
        assert log.recovery.cut_nbytes == kept
        assert (log.recovery.reason != "") == (kept > 0)
        assert (log.recovery.lost_batches, log.recovery.removed_segments) == (0, 0)
        assert records_from(log, 0) == wanted
        assert log.append(batch_of([b"new"])) == last
        log.close()
        shutil.rmtree(tmp_path / f"{change}")


def test_a_corrupt_batch_in_an_older_segment(tmp_path: Path) -> None:
    """A log has no gaps: what lies behind the bad batch is lost, and it is said how much."""
    batches = fill(tmp_path, 60, segment_bytes=8000)
    files = segments(tmp_path)
    data = bytearray(files[1].read_bytes())
    bad = batch_info(data)["nbytes"]  # the second batch of the second segment
    number = batches.index(bytes(data[bad : bad + batch_info(data[bad:])["nbytes"]]))
    data[bad + 70] ^= 1
    files[1].write_bytes(data)
    total = sum(file.stat().st_size for file in files)

    log = open_log(tmp_path, 8000)
    found = log.recovery
    offset = batch_info(batches[number])["base_offset"]
    assert found.reason == f"{files[1].name} at byte {bad}, offset {offset}: wrong CRC"
    assert found.removed_segments == len(files) - 2
    assert found.cut_nbytes == total - sum(map(len, batches[:number])) == total - found.nbytes
    assert found.lost_batches == len(batches) - number - 1
    lost = sum(batch_info(batch)["records"] for batch in batches[number + 1 :])
    assert found.lost_records == lost
    assert segments(tmp_path) == files[:2]
    assert list(batches_from(log, 0)) == batches[:number]
    assert log.append(batch_of([b"goes on"])) == offset
    log.close()
    assert open_log(tmp_path, 8000).recovery.reason == ""


def test_a_batch_whose_length_lies_is_the_end(tmp_path: Path) -> None:
    """What is behind it cannot be found, and the length asks for no memory."""
    batches = fill(tmp_path, 10)
    (file,) = segments(tmp_path)
    data = bytearray(file.read_bytes())
    struct.pack_into(">i", data, len(b"".join(batches[:4])) + LENGTH_AT, 2**31 - 1)
    file.write_bytes(data)
    log = open_log(tmp_path)
    assert "not whole" in log.recovery.reason
    assert log.recovery.lost_batches == 0
    assert list(batches_from(log, 0)) == batches[:4]


def test_zeros_at_the_end_are_cut(tmp_path: Path) -> None:
    """As a file system may leave them after a loss of power: the length came, the data did not."""
    batches = fill(tmp_path, 10)
    with open(segments(tmp_path)[0], "ab") as file:
        file.write(bytes(5000))
    log = open_log(tmp_path)
    assert log.recovery.cut_nbytes == 5000
    assert list(batches_from(log, 0)) == batches


def test_a_segment_that_is_missing(tmp_path: Path) -> None:
    batches = fill(tmp_path, 60, segment_bytes=8000)
    files = segments(tmp_path)
    files[2].unlink()
    log = open_log(tmp_path, 8000)
    offset = int(files[2].stem)
    assert log.recovery.reason == f"{files[3].name} does not go on from offset {offset}"
    assert log.recovery.removed_segments == len(files) - 3
    assert log.next_offset == offset
    whole = [batch for batch in batches if batch_info(batch)["base_offset"] < offset]
    assert list(batches_from(log, 0)) == whole


def test_a_whole_batch_with_another_offset_is_not_taken(tmp_path: Path) -> None:
    """The offset is not under the CRC."""
    fill(tmp_path, 4)
    (file,) = segments(tmp_path)
    stray = batch_of([b"stray"])
    with open(file, "ab") as appended:
        appended.write(stray)
    log = open_log(tmp_path)
    assert "its offset does not go on" in log.recovery.reason
    assert (log.recovery.cut_nbytes, log.recovery.lost_batches) == (len(stray), 0)


def test_a_batch_larger_than_what_recovery_reads_at_once(tmp_path: Path) -> None:
    log = Log(str(tmp_path), max_batch_bytes=8 << 20)
    value = random.Random(6).randbytes(3 << 20)
    log.append(batch_of([value, b"small"]))
    log.append(batch_of([b"small"]))
    log.close()
    log = Log(str(tmp_path))
    assert log.recovery.records == 3
    assert [r[2] for r in records_from(log, 0, 4 << 20)] == [value, b"small", b"small"]


# ---------------------------------------------------------------------- what is refused


def refused(log: Log, batch: bytearray, code: int, why: str) -> None:
    """Nothing of it comes into the log."""
    before = log.next_offset, log.counters["nbytes"]
    with pytest.raises(OSError, match=why) as caught:
        log.append(batch)
    assert caught.value.errno == code
    assert (log.next_offset, log.counters["nbytes"]) == before


def test_bad_batches_are_refused(tmp_path: Path) -> None:
    log = open_log(tmp_path, max_batch_bytes=500)
    log.append(batch_of([b"good"]))
    good = batch_of([b"value"] * 3)
    wrong = good[:]
    wrong[-1] ^= 1
    refused(log, wrong, errno.EBADMSG, "wrong CRC")
    refused(log, good + b"more", errno.EBADMSG, f"says that it has {len(good)}")
    refused(log, good[:-1], errno.EBADMSG, "not whole")
    refused(log, bytearray(), errno.EBADMSG, "not whole")
    refused(log, with_field(good, LENGTH_AT, ">i", 2**31 - 1), errno.EBADMSG, "not whole")
    refused(log, with_field(good, LENGTH_AT, ">i", 60), errno.EBADMSG, "wrong CRC|number of rec")
    refused(log, batch_of([bytes(500)]), errno.EMSGSIZE, "allowed: 500")
    assert log.append(good) == 1
    assert [record[2] for record in records_from(log, 0)] == [b"good", *[b"value"] * 3]


def test_a_batch_larger_than_a_segment_is_refused(tmp_path: Path) -> None:
    log = open_log(tmp_path, 300)
    refused(log, batch_of([bytes(300)]), errno.EMSGSIZE, "allowed: 300")
    log.append(batch_of([bytes(300 - 61 - 9)]))
    assert segments(tmp_path)[0].stat().st_size == 300


def test_reading_where_there_is_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.append(batch_of([b"x" * 100] * 4))
    buffer = bytearray(1000)
    assert log.read(buffer, 4) == (0, 4)
    assert log.read(buffer, 1, limit=1) == (0, 1)
    assert log.read(buffer, 1, limit=3) == (0, 1)  # the batch has a record behind the limit
    for offset in (-1, 5):
        with pytest.raises(OSError, match="there are 0 to 4") as caught:
            log.read(buffer, offset)
        assert caught.value.errno == errno.ERANGE
    for nbytes in (0, 60, 61, 400):
        with pytest.raises(OSError, match="does not fit") as caught:
            log.read(bytearray(nbytes), 0)
        assert caught.value.errno == errno.EMSGSIZE


def test_a_file_that_changed_under_the_log_is_said(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.append(batch_of([b"x"]))
    segments(tmp_path)[0].write_bytes(b"")
    with pytest.raises(OSError, match=r"0\.log") as caught:
        log.read(bytearray(1000), 0)
    assert caught.value.errno == errno.EBADMSG


def test_a_closed_log(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.append(batch_of([b"x"]))


# ---------------------------------------------------------------------- flushing, counters


def test_every_record_is_flushed_before_it_is_acknowledged(tmp_path: Path) -> None:
    """Over segments, too: one fdatasync for each batch, and one for each folder entry."""
    log = open_log(tmp_path, 2000, flush_every=1)
    for k in range(30):
        log.append(batch_of([bytes(200)] * 3))
        assert log.counters["fdatasyncs"] == k + 1
        assert log.flushed_offset == log.next_offset == 3 * (k + 1)
    assert log.counters["rolls"] == log.counters["directory_syncs"] == len(segments(tmp_path)) - 1


@pytest.mark.parametrize(("every", "calls"), [(0, 0), (10, 9), (90, 1), (91, 0)])
def test_flushing_now_and_then(tmp_path: Path, every: int, calls: int) -> None:
    log = open_log(tmp_path, flush_every=every)
    for _ in range(90):
        log.append(batch_of([b"value"]))
        assert every == 0 or log.next_offset - log.flushed_offset < every
    assert log.counters["fdatasyncs"] == calls
    log.flush()
    log.flush()
    assert log.counters["fdatasyncs"] == calls + (every not in (10, 90))
    assert log.flushed_offset == 90


def test_a_flush_takes_all_segments_that_are_not_on_the_disk(tmp_path: Path) -> None:
    log = open_log(tmp_path, 2000)
    for _ in range(30):
        log.append(batch_of([bytes(600)]))
    log.flush()
    assert log.counters["fdatasyncs"] == len(segments(tmp_path)) == 15
    log.append(batch_of([bytes(600)]))
    log.flush()
    assert log.counters["fdatasyncs"] == len(segments(tmp_path)) == 16


def test_what_is_counted(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    batches = [batch_of([b"value"] * k) for k in (1, 2, 3)]
    for batch in batches:
        log.append(batch)
    nbytes = sum(map(len, batches))
    log.read(bytearray(1000), 0)
    counted = log.counters
    assert (counted["batches"], counted["records"], counted["nbytes"]) == (3, 6, nbytes)
    assert counted["crc_nbytes"] == nbytes - 3 * 21
    assert counted["read_nbytes"] == nbytes


def test_a_clock_that_goes_back(tmp_path: Path) -> None:
    """A producer's clock was set: its records are taken, found by offset, and it is counted."""
    log = open_log(tmp_path)
    for timestamp in (5000, 3000, 4000, 5000, 6000, 10):
        log.append(batch_of([b"value"], timestamp))
    assert log.counters["clock_went_back"] == 3
    assert log.latest_timestamp == 6000
    assert [record[1] for record in records_from(log, 0)] == [5000, 3000, 4000, 5000, 6000, 10]
    log.close()
    log = open_log(tmp_path)
    assert (log.latest_timestamp, log.counters["clock_went_back"]) == (6000, 0)
    log.append(batch_of([b"value"], 5999))
    assert log.counters["clock_went_back"] == 1


def test_what_an_append_costs_is_printed(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "log_append.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^records +[\d,]+ /s$", done.stdout, re.MULTILINE)
    assert len(re.findall(r" GB/s$", done.stdout, re.MULTILINE)) == 6
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- replicas


def copy_all(leader: Log, follower: Log, capacity: int) -> None:
    buffer = bytearray(capacity)
    while follower.next_offset < leader.next_offset:
        nbytes, after = leader.read(buffer, follower.next_offset)
        assert follower.append_replica(buffer[:nbytes]) == after


@pytest.mark.parametrize("segment_bytes", [2500, 8000, 1 << 20])
def test_a_follower_has_the_same_log(tmp_path: Path, segment_bytes: int) -> None:
    """Whatever the sizes of its segments; one flush for what came at once."""
    rng = random.Random(7)
    leader = open_log(tmp_path / "leader", 8000)
    follower = open_log(tmp_path / "follower", segment_bytes, flush_every=1)
    for _ in range(40):
        leader.append(batch_of(drawn_values(rng, 7)))
    copy_all(leader, follower, 6000)
    assert list(batches_from(follower, 0)) == list(batches_from(leader, 0))
    assert follower.flushed_offset == leader.next_offset
    follower.close()
    follower = open_log(tmp_path / "follower", segment_bytes)
    assert follower.recovery.reason == ""
    assert records_from(follower, 0) == records_from(leader, 0)
    assert all(file.stat().st_size <= segment_bytes for file in segments(tmp_path / "follower"))


def test_a_follower_takes_nothing_that_does_not_fit(tmp_path: Path) -> None:
    leader, follower = open_log(tmp_path / "leader"), open_log(tmp_path / "follower")
    for k in range(3):
        leader.append(batch_of([b"value %d" % k]))
    first, second, third = batches_from(leader, 0)
    for given, code in [
        (second, errno.ERANGE),
        (first + third, errno.ERANGE),
        (first + second[:-1], errno.EBADMSG),
        (first + second[:-1] + b"?", errno.EBADMSG),
    ]:
        with pytest.raises(OSError) as caught:
            follower.append_replica(given)
        assert caught.value.errno == code
        assert follower.next_offset == 0
    assert follower.append_replica(first + second) == 2
    assert follower.append_replica(b"") == 2
    with pytest.raises(OSError, match="goes on with 2"):
        follower.append_replica(first)


def test_the_high_watermark(tmp_path: Path) -> None:
    """It goes forward, not beyond the log, and nothing before it can be truncated."""
    log = open_log(tmp_path)
    for _ in range(4):
        log.append(batch_of([b"value"] * 2))
    assert log.high_watermark == 0
    log.high_watermark = 6
    for offset in (5, 9):
        with pytest.raises(OSError, match="allowed: 6 to 8"):
            log.high_watermark = offset
    with pytest.raises(OSError, match="are on every replica"):
        log.truncate(5)
    assert log.truncate(7) == 6
    log.close()
    assert open_log(tmp_path).high_watermark == 0
