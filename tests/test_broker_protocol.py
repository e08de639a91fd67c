"""What a broker does with requests that are wrong, late or out of order; over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commbench import _native
from commbench.errors import TransferError
from commbench.plan import Case
from tests.broker_ranks import END, OFFSETS, PRODUCE, Raw, Scene, batch, case, fetch, request
from tests.socket_ranks import together

pytestmark = pytest.mark.native

INVALID, CORRUPT, UNKNOWN, BAD_ACKS, UNSUPPORTED, RANGE = 42, 2, 3, 21, 35, 1
TOO_LARGE = 10
RECORDS = batch([b"a" * 100, b"b" * 100])


def meet(
    wanted: Case, folder: Path, client: Callable[[Raw], None], **options: int
) -> dict[str, Any]:
    """One broker, and rank 1 as a producer that does what ``client`` does and then ends."""
    with Scene(2) as scene:

        def one(rank: int) -> dict[str, Any]:
            if rank == 0:
                return scene.serve(0, wanted, folder, **options)
            client(scene.raw(1))
            return {}

        return together(2, one)[0]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


BAD = [
    (request(PRODUCE, 0, body=RECORDS, lie=1), INVALID),
    (request(PRODUCE, 0, body=RECORDS, lie=-1), INVALID),
    (request(PRODUCE, 0, body=RECORDS, lie=1 << 30), INVALID),
    (request(PRODUCE, 0, body=RECORDS, lie=-len(RECORDS) - 12), INVALID),
    (request(PRODUCE, 0, body=flipped(RECORDS, len(RECORDS) - 1)), CORRUPT),
    (request(PRODUCE, 0, body=flipped(RECORDS, 11)), CORRUPT),  # its batchLength
    (request(PRODUCE, 0, body=RECORDS + RECORDS), CORRUPT),  # one batch at a time
    (request(PRODUCE, 0, body=b""), CORRUPT),
    (request(PRODUCE, 0, 1, RECORDS), UNKNOWN),
    (request(PRODUCE, 0, -1, RECORDS), UNKNOWN),
    (request(PRODUCE, 0, body=RECORDS, acks=2), BAD_ACKS),
    (request(PRODUCE, 0, body=RECORDS, acks=-2), BAD_ACKS),
    (request(7, 0), UNSUPPORTED),
    (request(1, 0, body=b"short"), INVALID),  # a FETCH without all of its fields
    (fetch(0, 3), RANGE),
    (fetch(0, -1), RANGE),
]


@pytest.mark.parametrize(("data", "error"), BAD, ids=[str(at) for at in range(len(BAD))])
def test_a_wrong_request_is_refused_and_the_broker_goes_on(
    data: bytes, error: int, tmp_path: Path
) -> None:
    def client(raw: Raw) -> None:
        answer = raw.ask(data)
        assert (answer.error, answer.correlation) == (error, 0)
        good = raw.ask(request(PRODUCE, 1, body=RECORDS))
        assert (good.error, good.offset) == (0, 0)
        assert raw.ask(request(END, 2)).error == 0

    facts = meet(case(), tmp_path, client)
    assert (facts["refused"], facts["records"]) == (1, 2)


def test_handlers_refuse_and_answer_what_waits(tmp_path: Path) -> None:
    """Threads of their own: a FETCH that finds nothing waits while another partition appends."""

    def client(raw: Raw) -> None:
        raw.post(0, fetch(0, 0, partition=1))
        for at in range(1, 4):
            raw.post(at, request(PRODUCE, at, partition=at % 2 * 2, body=RECORDS))
        raw.post(4, request(PRODUCE, 4, 7, RECORDS))
        answers: dict[int, Any] = {}
        while len(answers) < 5:
            answers.update(raw.poll())
        assert [answers[at].error for at in range(5)] == [0, 0, 0, 0, UNKNOWN]
        assert [answers[at].offset for at in range(4)] == [0, 0, 0, 2]
        assert raw.ask(request(END, 5)).error == 0

    wanted = case(partitions="3", handlers="3", design="frieda")
    facts = meet(wanted, tmp_path, client)
    assert (facts["refused"], facts["produced"], facts["fetched"]) == (1, 3, 1)


@pytest.mark.parametrize("nbytes", [0, 1, 15])
def test_a_request_without_a_header_is_refused(nbytes: int, tmp_path: Path) -> None:
    def client(raw: Raw) -> None:
        answer = raw.ask(request(PRODUCE, 0, body=RECORDS)[:nbytes])
        assert (answer.error, answer.correlation) == (INVALID, -1)
        assert raw.ask(request(END, 0)).error == 0

    assert meet(case(), tmp_path, client)["refused"] == 1


def test_requests_are_taken_up_in_the_order_of_their_correlations(tmp_path: Path) -> None:
    first, second = batch([b"1"] * 3, sequence=0), batch([b"2"] * 2, sequence=3)

    def client(raw: Raw) -> None:
        raw.post(1, request(PRODUCE, 1, body=second))
        assert raw.poll(0.2) == []  # it waits for the one before
        raw.post(0, request(PRODUCE, 0, body=first))
        answers: dict[int, Any] = {}
        while len(answers) < 2:
            answers.update(raw.poll())
        assert [answers[at].offset for at in (0, 1)] == [0, 3]
        assert raw.ask(request(END, 2)).error == 0

    assert meet(case(), tmp_path, client)["overtook"] == 1


def test_a_correlation_out_of_the_window_ends_the_run(tmp_path: Path) -> None:
    def client(raw: Raw) -> None:
        raw.post(0, request(PRODUCE, 99, body=RECORDS))

    with pytest.raises(TransferError, match="rank 1 sent request 99 where 0 comes next"):
        meet(case(), tmp_path, client)


def test_offsets_are_those_of_the_beginning(tmp_path: Path) -> None:
    def client(raw: Raw) -> None:
        raw.ask(request(PRODUCE, 0, body=RECORDS))
        assert raw.ask(request(OFFSETS, 1)).offset == 0
        read = raw.ask(fetch(2, 0))
        assert (read.offset, read.high_watermark, len(read.body)) == (2, 2, len(RECORDS))
        assert [value for _, _, value in _native.batch_records(read.body)] == [
            b"a" * 100,
            b"b" * 100,
        ]
        raw.ask(request(END, 3))

    meet(case(), tmp_path, client)


def test_a_batch_above_the_limit_of_the_log_is_refused(tmp_path: Path) -> None:
    def client(raw: Raw) -> None:
        answer = raw.ask(request(PRODUCE, 0, body=batch([b"x" * 5000])))
        assert (answer.error, answer.offset) == (TOO_LARGE, -1)
        assert answer.body != b""  # why, for people
        assert raw.ask(request(PRODUCE, 1, body=RECORDS)).offset == 0
        assert raw.ask(request(END, 2)).error == 0

    meet(case(), tmp_path, client, max_batch_bytes=4096)


def test_without_acks_the_answer_is_empty(tmp_path: Path) -> None:
    def client(raw: Raw) -> None:
        raw.post(0, request(PRODUCE, 0, body=RECORDS, acks=0))
        assert [done.reply_nbytes for done in raw.channel.poll(10)] == [0]
        raw.ask(request(END, 1))

    assert meet(case(), tmp_path, client)["records"] == 2


@pytest.mark.parametrize(
    ("design_option", "buffer", "copied"),
    [("eager-flush=on", "1", 0), *(("eager-flush=off", size, 32) for size in ("1", "40", "64K"))],
)
def test_an_answer_is_copied_in_pieces_unless_it_leaves_at_once(
    design_option: str, buffer: str, copied: int, tmp_path: Path
) -> None:
    """A piece may be larger than the buffer; what was read for a FETCH is not copied again."""

    def client(raw: Raw) -> None:
        for at in range(3):
            raw.post(at, request(PRODUCE, at, body=RECORDS))
        answers: dict[int, Any] = {}
        while len(answers) < 3:
            answers.update(raw.poll())
        assert [answers[at].offset for at in range(3)] == [0, 2, 4]
        assert len(raw.ask(fetch(3, 0)).body) == 3 * len(RECORDS)
        assert raw.ask(request(END, 4)).error == 0

    parts = f"buffer-pool=on,{design_option}"
    facts = meet(case(design_option=parts, option=f"buffer={buffer}"), tmp_path, client)
    assert facts["copied"] == 5 * copied + 3 * len(RECORDS)


@pytest.mark.parametrize("polling", ["off", "on"])
def test_a_follower_that_does_not_ask_is_named(polling: str, tmp_path: Path) -> None:
    """acks=all: the leader waits for rank 1, which is there and silent, no longer than allowed."""
    wanted = case(
        brokers="2", replication="2", acks="all", timeout="500ms", partitions="1",
        design_option=f"polling={polling}",
    )  # fmt: skip

    def one(rank: int) -> None:
        if rank == 0:
            scene.serve(0, wanted, tmp_path)
        elif rank == 1:
            scene.raw(1)
        else:
            scene.raw(2).post(0, request(PRODUCE, 0, body=RECORDS, acks=-1))

    expected = pytest.raises(TransferError, match="follower rank 1 has not confirmed offset 1")
    with Scene(3) as scene, expected:
        together(3, one)


def test_a_follower_reads_confirms_and_hears_of_the_end(tmp_path: Path) -> None:
    wanted = case(brokers="2", replication="2", partitions="1", acks="all")

    def one(rank: int) -> None:
        if rank == 0:
            scene.serve(0, wanted, tmp_path)
        elif rank == 1:
            follower, correlation, offset = scene.raw(1), 0, 0
            while True:
                answer = follower.ask(fetch(correlation, offset))
                correlation += 1
                offset += 2 if answer.body else 0
                if answer.flags and offset == answer.offset:
                    return
        else:
            producer = scene.raw(2)
            answer = producer.ask(request(PRODUCE, 0, body=RECORDS, acks=-1))
            assert (answer.error, answer.offset, answer.high_watermark) == (0, 0, 2)
            assert producer.ask(request(END, 1)).error == 0

    with Scene(3) as scene:
        together(3, one)


def fill_log(folder: Path, batches: list[bytes]) -> None:
    log = _native.Log(str(folder / "0-0"))
    for each in batches:
        log.append(bytearray(each))
    log.close()


@pytest.mark.parametrize(
    "sequences", [(0, 2), (0, 0), (2, 0)], ids=["lost", "doubled", "reordered"]
)
def test_a_reader_sees_what_is_lost_doubled_or_reordered(
    sequences: tuple[int, ...], tmp_path: Path
) -> None:
    wanted = case(consumers="1", record_size="100")
    fill_log(tmp_path, [batch([b"x" * 100], sequence=each) for each in sequences])

    def one(rank: int) -> None:
        if rank == 0:
            scene.serve(0, wanted, tmp_path)
        elif rank == 1:
            scene.raw(1).ask(request(END, 0))
        else:
            run, prepared = scene.role(2, wanted)
            client = _native.BrokerClient(prepared, (1, 1, 1, 1, 1), 2, 5_000_000_000)
            facts = client.consume(
                partitions=[0], offsets=[0], own=False, record_nbytes=100, seed=0, verify=False,
                stamped=True, end_to_end=None,
            )  # fmt: skip
            run.check(client.end())
            run.check(facts)

    with Scene(3) as scene, pytest.raises(TransferError, match="lost, doubled or reordered"):
        together(3, one)
