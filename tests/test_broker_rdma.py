"""The benchmark broker over the channels of RDMA: run in the Soft-RoCE machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from commbench import _native
from commbench.channels.base import Exchange
from commbench.harness import broker_wire as wire
from commbench.harness.broker import FETCH_WAIT_NS, design_bits, shape
from commbench.harness.broker_slots import exchange_of, slots
from commbench.harness.loops import prepare_native
from commbench.harness.softroce.layout import ENDS
from commbench.harness.softroce.loss import counters
from commbench.harness.stop import StopFlag
from commbench.results import read
from tests.broker_ranks import batch, case
from tests.command import COMMBENCH, Running, until
from tests.rdma_ends import FILLS, TIMEOUT_S, Verbs, together
from tests.rdma_pair import connected

pytestmark = [pytest.mark.rdma, pytest.mark.timeout(400)]

LONG_S = 300.0  # an emulated machine on a busy host
SMALL = 10  # records behind the large one
LARGE_NBYTES = 50_000
RECORDS = 200
CHANNELS = ("ar-grpc", "grpc+verbs", "rdma")
VALUES = [bytes(LARGE_NBYTES), *(b"%d" % each for each in range(1, SMALL + 1))]


@contextmanager
def prepared(engine: Any, exchange: Exchange) -> Iterator[Any]:
    made = prepare_native(Verbs(engine), exchange)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.finish()


def values_of(log: _native.Log) -> list[tuple[int, bytes]]:
    """(offset, value) of each record, in the order of the log."""
    found: list[tuple[int, bytes]] = []
    memory, offset = bytearray(2 * LARGE_NBYTES), 0
    while offset < log.next_offset:
        nbytes, offset = log.read(memory, offset)
        at = 0
        while at < nbytes:
            view = memoryview(memory)[at:nbytes]
            found += [(base, value or b"") for base, _, value in _native.batch_records(view)]
            at += _native.batch_info(view)["nbytes"]
    return found


def arrived() -> int:
    """Packets at the broker's device; each eager frame is one."""
    return counters(ENDS[0].device)["rcvd_pkts"]


class Producer:
    """Speaks in bytes, over the Python verbs of the engine, and posts as fast as it likes."""

    def __init__(self, engine: Any, window: int) -> None:
        self.engine = engine
        self.requests = slots(2 * LARGE_NBYTES, window)
        self.replies = slots(4096, window)
        engine.prepare(
            Exchange(
                peers=(0,),
                window=window,
                reply_every=1,
                asks=True,
                serves=False,
                request=self.requests,
                reply=self.replies,
                incoming=(),
                answer_nbytes=0,
                stop=StopFlag(),
            )
        )

    def post(self, ticket: int, api: int, correlation: int, body: bytes = b"") -> None:
        slot = self.requests[ticket]
        slot.views[0][wire.REQUEST.size : wire.REQUEST.size + len(body)] = body
        request = wire.put_request(slot, api, 1, correlation, 0, len(body))
        assert self.engine.post(0, ticket, request, self.replies[ticket])

    def answers(self, count: int) -> list[tuple[int, int, int]]:
        """(correlation, error, offset) of so many, as they come."""
        found = []
        while len(found) < count:
            done = self.engine.poll(TIMEOUT_S)
            assert done, found
            for each in done:
                answer = wire.read_answer(self.replies[each.ticket], each.reply_nbytes)
                assert answer is not None
                found.append((answer.correlation, answer.error, answer.offset))
        return found


@pytest.mark.parametrize("design", ["kafka", "frieda"])
def test_small_records_overtake_a_large_one_and_nothing_is_out_of_order(
    design: str, tmp_path: Path
) -> None:
    """Figure 4.5 of the thesis on Frieda: one record goes by rendezvous, ten behind it are eager.

    The broker's device has taken in all frames, the ten with their records, before it is said where
    the bytes of the large one may go. The engine hands them over as they were begun.
    """
    window = 1 + SMALL
    size, at_once = str(LARGE_NBYTES), str(window)
    wanted = case(record_size=size, max_in_flight=at_once, design=design, timeout="100s")
    spec = wanted.broker
    assert spec is not None and FILLS < LARGE_NBYTES  # FILLS is the engines' eager_max
    log, told = _native.Log(str(tmp_path / "log")), {}
    with connected(("native", "python"), "send", native={"spin": False}) as (broker, client):
        with prepared(broker, exchange_of(spec, 0, wanted.nbytes, StopFlag())) as made:
            server = _native.BrokerServer(
                made, [log], shape(spec), 0, design_bits(spec), 0, spec.channel_buffer,
                int(100e9), FETCH_WAIT_NS,
            )  # fmt: skip
            producer = Producer(client, window)
            before = arrived()
            for number, value in enumerate(VALUES):
                producer.post(number, wire.PRODUCE, number, batch([value], sequence=number))
            until(lambda: arrived() - before >= window, "the frames do not arrive", TIMEOUT_S)
            assert client.sent_bytes < LARGE_NBYTES  # of which nothing has left

            def serve() -> None:
                told["facts"] = server.serve()
                broker.settle([1], TIMEOUT_S)

            def produce() -> None:
                told["answers"] = producer.answers(window)
                producer.post(0, wire.END, window)
                producer.answers(1)
                client.settle([0], TIMEOUT_S)
                assert client.sent_bytes > LARGE_NBYTES

            together(serve, produce)
        client.finish()
    facts: Any = told["facts"]
    assert (facts["error"], facts["message"], facts["records"]) == (0, "", window)
    assert facts["overtook"] == 0
    assert told["answers"] == [(number, 0, number) for number in range(window)]
    assert values_of(log) == list(enumerate(VALUES))
    log.close()


def test_every_channel_of_rdma_carries_a_replicated_log(tmp_path: Path) -> None:
    """Every record is acknowledged by both replicas, read back and compared, in both passes."""
    output = tmp_path / "broker.jsonl"
    who = ("--brokers", 2, "--replication", 2)
    how = ("--acks", "all", "--records", RECORDS, "-x", 0, "-c", "--design-option", "overlapped=on")
    argv = ("run", "broker", "-C", ",".join(CHANNELS), *who, *how, "--bind", "none")
    running = Running(COMMBENCH, *argv, "--output", output, COMMBENCH_JOIN_TIMEOUT="100")
    running.end(LONG_S).ok()
    found = list(read(output).cases)
    assert sorted(each["case"]["channel"] for each in found) == sorted(CHANNELS)
    for each in found:
        assert (each["loop"], each["n"], each["validated"]) == ("native", RECORDS, True)
        assert each["validated_messages"] == 64 + RECORDS
        assert each["broker"]["log"]["records"] == 2 * RECORDS
