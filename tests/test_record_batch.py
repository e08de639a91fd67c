"""Record batches: CRC-32C, our own builder and reader, and an independent implementation."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commbench._native import RecordBatch, batch_info, batch_records, crc32c, crc32c_kind
from tests.record_batches import CRC_AT, LENGTH_AT, batch_of, drawn_values, sealed, with_field

pytestmark = pytest.mark.native

# ---------------------------------------------------------------------- CRC-32C


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the next three: RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_checksums(data: bytes, crc: int, table: bool) -> None:
    assert crc32c(data, table=table) == crc


def test_instruction_and_tables_agree_on_every_length_and_alignment() -> None:
    rng = random.Random(1)
    data = rng.randbytes(8192)
    lengths = [*range(80), *range(1520, 1560), *(rng.randint(0, 8000) for _ in range(200))]
    for nbytes in lengths:
        at = rng.randint(0, 64)
        part = memoryview(data)[at : at + nbytes]
        assert crc32c(part) == crc32c(part, table=True), (at, nbytes)


def test_a_checksum_in_pieces_is_that_of_the_whole() -> None:
    rng = random.Random(2)
    data = rng.randbytes(5000)
    for _ in range(50):
        cut = rng.randint(0, len(data))
        assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_the_instruction_is_used_where_there_is_one() -> None:
    with open("/proc/cpuinfo") as file:
        flags = file.read()
    assert (crc32c_kind() == "sse4.2") == (" sse4_2 " in flags)


# ---------------------------------------------------------------------- own batches


@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=30),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=30, max_size=30),
)
def test_what_is_built_is_read(values: list[bytes], timestamps: list[int]) -> None:
    """With timestamps that go anywhere, too."""
    buffer = bytearray(16 << 10)
    batch = RecordBatch(buffer)
    for value, timestamp in zip(values, timestamps, strict=False):
        assert batch.add(timestamp, value)
    nbytes = batch.seal(7, 3, 11)
    assert nbytes == batch.nbytes
    info = batch_info(buffer)
    used = timestamps[: len(values)]
    assert info == {
        "nbytes": nbytes,
        "records": len(values),
        "base_offset": 0,
        "base_timestamp": used[0],
        "max_timestamp": max(used),
        "producer_id": 7,
        "producer_epoch": 3,
        "base_sequence": 11,
    }
    assert batch_records(buffer) == list(zip(range(len(values)), used, values, strict=True))


def test_a_full_batch_takes_no_more_and_stays_right() -> None:
    buffer = bytearray(200)
    batch = RecordBatch(buffer)
    assert not batch.add(0, bytes(200))
    count = 0
    while batch.add(count, b"v" * 10):
        count += 1
    assert count == (200 - 61) // 17  # a record of 10 bytes takes 7 more
    assert batch_info(buffer[: batch.seal()])["records"] == count


def test_a_batch_is_filled_to_its_last_byte() -> None:
    batch = RecordBatch(bytearray(61 + 17))
    assert batch.add(0, b"v" * 10)
    assert batch.nbytes == 61 + 17
    assert not batch.add(0, b"")


def test_a_batch_begins_again() -> None:
    buffer = bytearray(300)
    batch = RecordBatch(buffer)
    assert batch.seal() == 0
    batch.add(5, b"first")
    batch.seal()
    batch.begin()
    batch.add(9, b"second")
    assert batch_records(buffer[: batch.seal()]) == [(0, 9, b"second")]


# ---------------------------------------------------------------------- what is no batch


def refused(batch: bytes | bytearray, code: int, why: str) -> None:
    with pytest.raises(OSError, match=why) as caught:
        batch_info(batch)
    assert caught.value.errno == code


def test_each_flipped_bit_under_the_checksum_is_found() -> None:
    batch = batch_of([b"one", b"two"])
    for k in range(CRC_AT, len(batch)):
        for bit in range(8):
            changed = bytearray(batch)
            changed[k] ^= 1 << bit
            with pytest.raises(OSError):
                batch_info(changed)


@pytest.mark.parametrize("nbytes", [0, 1, 12, 60, 61, 70])
def test_a_batch_that_is_not_whole(nbytes: int) -> None:
    refused(batch_of([b"value"] * 3)[:nbytes], errno.ENODATA, "not whole")


@pytest.mark.parametrize(
    ("at", "format", "value", "code", "why"),
    [
        (LENGTH_AT, ">i", 48, errno.EBADMSG, "length is none"),
        (LENGTH_AT, ">i", 0, errno.EBADMSG, "length is none"),
        (LENGTH_AT, ">i", -1, errno.EBADMSG, "length is none"),
        (LENGTH_AT, ">i", -(2**31), errno.EBADMSG, "length is none"),
        (LENGTH_AT, ">i", 2**31 - 1, errno.ENODATA, "not whole"),
        (16, ">b", 1, errno.EBADMSG, "magic is not 2"),
        (21, ">h", 1, errno.EBADMSG, "attributes"),
        (23, ">i", 7, errno.EBADMSG, "last offset"),
        (57, ">i", 0, errno.EBADMSG, "number of records"),
        (57, ">i", -1, errno.EBADMSG, "number of records"),
        (57, ">i", 2**31 - 1, errno.EBADMSG, "number of records"),
    ],
)
def test_a_header_that_lies(at: int, format: str, value: int, code: int, why: str) -> None:
    refused(with_field(batch_of([b"value"] * 3), at, format, value), code, why)


def test_records_that_lie_never_lead_outside_of_the_batch() -> None:
    """The CRC is right: whoever sent it computed it over nonsense."""
    rng = random.Random(3)
    batch = batch_of([b"value"] * 4)
    outcomes = set()
    for _ in range(3000):
        changed = bytearray(batch)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(61, len(changed))] = rng.choice([0, 1, 127, 128, 255])
        changed = sealed(changed)
        batch_info(changed)
        try:
            outcomes.add(len(batch_records(changed)))
        except OSError as problem:
            assert problem.errno == errno.EBADMSG
            outcomes.add(-1)
    assert outcomes == {4, -1}


def test_fewer_records_than_there_are_bytes_for() -> None:
    batch = with_field(with_field(batch_of([b"value"] * 3), 57, ">i", 2), 23, ">i", 1)
    assert batch_info(batch)["records"] == 2
    with pytest.raises(OSError, match="bytes behind its last record"):
        batch_records(batch)


# ---------------------------------------------------------------------- kafka-python's batches


def test_an_independent_implementation_reads_ours() -> None:
    theirs = pytest.importorskip("kafka.record.default_records")
    rng = random.Random(4)
    for _ in range(100):
        values, timestamp = drawn_values(rng), rng.randint(0, 2**42)
        read = theirs.DefaultRecordBatch(bytes(batch_of(values, timestamp)))
        assert read.validate_crc()
        found = [(each.offset, each.timestamp, each.key, each.value, each.headers) for each in read]
        assert found == [(k, timestamp + k, None, v, []) for k, v in enumerate(values)]


def test_ours_reads_an_independent_implementation() -> None:
    """With keys and headers, which are passed over."""
    theirs = pytest.importorskip("kafka.record.default_records")
    rng = random.Random(5)
    for _ in range(100):
        values, timestamp = drawn_values(rng), rng.randint(0, 2**42)
        builder = theirs.DefaultRecordBatchBuilder(2, 0, False, 9, 1, 5, 1 << 20)
        for k, value in enumerate(values):
            key = rng.choice([None, b"", b"key"])
            headers = rng.choice([[], [("name", b"v"), ("none", None)]])
            builder.append(k, timestamp + k, key, value, headers)
        batch = bytes(builder.build())
        assert batch_info(batch)["max_timestamp"] == timestamp + len(values) - 1
        assert batch_info(batch)["base_sequence"] == 5
        assert batch_records(batch) == [(k, timestamp + k, v) for k, v in enumerate(values)]
