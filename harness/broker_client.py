"""What a producer or consumer says to brokers in Python, and a consumer as ``consumer.c``."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from commbench import _native
from commbench.benchmarks import BrokerSpec
from commbench.errors import PayloadMismatch, TransferError
from commbench.harness import broker_wire as wire
from commbench.harness.broker_producer import SEQUENCES, STAMP_NBYTES, Producer, fill
from commbench.harness.broker_wire import Answer, PythonCase
from commbench.payloads.buffers import Message


class PythonClient:
    """A producer or consumer of one pass; the counterpart of ``_native.BrokerClient``."""

    def __init__(self, case: PythonCase, spec: BrokerSpec, rank: int, timeout_ns: int) -> None:
        self.case, self.channel, self.exchange = case, case.channel, case.exchange
        self.spec, self.rank, self.timeout_ns = spec, rank, timeout_ns
        self.correlations = [0] * spec.brokers
        self.sent = [0] * spec.partitions

    def offsets(self, partitions: Sequence[int]) -> list[int]:
        """Where the partitions ended when the pass began."""
        return [self.ask(self.spec.leader(each), wire.OFFSETS, each).offset for each in partitions]

    def end(self) -> dict[str, Any]:
        """Tell every broker that this rank is through."""
        for broker in range(self.spec.brokers):
            self.ask(broker, wire.END, -1)
        return {"error": 0}

    def round_trips(self, count: int, times: _native.Times) -> dict[str, Any]:
        """Of requests without a body to the first broker, one after the other."""
        for _ in range(count):
            start = _native.now_ns()
            self.ask(0, wire.OFFSETS, 0)
            times.add(_native.now_ns() - start)
        return {"error": 0}

    def ask(self, broker: int, api: int, partition: int) -> Answer:
        correlation = self.correlations[broker]
        slot = self.exchange.request[0]
        self.post(broker, 0, wire.put_request(slot, api, 0, correlation, partition, 0))
        deadline = _native.now_ns() + self.timeout_ns
        while not (done := self.channel.poll(wire.TICK_S)):
            self.case.check_stop()
            if _native.now_ns() > deadline:
                raise self.late(broker)
        answer = self.answer(broker, 0, done[0].reply_nbytes, correlation)
        if answer.error:
            name = wire.NAMES.get(answer.error, str(answer.error))
            raise TransferError(f"rank {broker} refused a request: {name}")
        return answer

    def post(self, broker: int, at: int, request: Message) -> bool:
        if not self.channel.post(broker, at, request, self.exchange.reply[at]):
            return False
        self.correlations[broker] += 1
        return True

    def answer(self, broker: int, at: int, nbytes: int, correlation: int) -> Answer:
        found = wire.read_answer(self.exchange.reply[at], nbytes)
        if found is None or found.correlation != correlation:
            raise TransferError(f"rank {broker} answered with {nbytes} bytes that are no answer")
        return found

    def late(self, broker: int) -> TransferError:
        return TransferError(f"rank {broker} has not answered within {self.timeout_ns / 1e9:g} s")

    # -- producing

    def produce(self, **settings: Any) -> dict[str, Any]:
        """As ``_native.BrokerClient.produce``, but ``schedule`` is an array or None."""
        return Producer(self, **settings).run()

    # -- consuming

    def consume(
        self, *, partitions: Sequence[int], offsets: Sequence[int], own: bool, record_nbytes: int,
        seed: int, verify: bool, stamped: bool, end_to_end: _native.Times | None,
    ) -> dict[str, Any]:  # fmt: skip
        reader = Reader(self, record_nbytes, seed, verify, stamped, own, end_to_end)
        return reader.run(partitions, offsets)


class Reader:
    """Reads partitions by offset and checks what it reads."""

    def __init__(
        self, client: PythonClient, record_nbytes: int, seed: int, verify: bool, stamped: bool,
        own: bool, end_to_end: _native.Times | None,
    ) -> None:  # fmt: skip
        self.client, self.spec = client, client.spec
        self.record_nbytes, self.seed, self.verify = record_nbytes, seed, verify
        self.stamped, self.own, self.end_to_end = stamped, own, end_to_end
        self.expected = bytearray(record_nbytes)
        self.next: dict[tuple[int, int], int] = {}  # by partition and producer
        names = ("fetches", "records", "nbytes", "validated", "first_ns", "last_ns")
        self.facts = dict.fromkeys(names, 0)

    def run(self, partitions: Sequence[int], offsets: Sequence[int]) -> dict[str, Any]:
        """One FETCH in flight for each partition, until there is no more to come."""
        client, reply = self.client, self.client.exchange.reply
        at_offset = dict(zip(partitions, offsets, strict=True))
        asked: dict[int, tuple[int, int, int]] = {}  # slot -> partition, correlation, when
        left = deque((at, p) for at, p in enumerate(partitions) if not self.has_all(p))
        self.facts["first_ns"] = _native.now_ns()
        while left or asked:
            client.case.check_stop()
            for _ in range(len(left)):
                at, partition = left.popleft()
                leader = self.spec.leader(partition)
                correlation = client.correlations[leader]
                request = wire.put_fetch(
                    client.exchange.request[at], correlation, partition, at_offset[partition],
                    reply[at].nbytes - wire.ANSWER.size,
                )  # fmt: skip
                if client.post(leader, at, request):
                    asked[at] = (partition, correlation, _native.now_ns())
                    self.facts["fetches"] += 1
                else:
                    left.append((at, partition))
            for done in client.channel.poll(wire.TICK_S):
                partition, correlation, _ = asked.pop(done.ticket)
                leader = self.spec.leader(partition)
                answer = client.answer(leader, done.ticket, done.reply_nbytes, correlation)
                at_offset[partition] = self.read(partition, at_offset[partition], answer)
                if not self.is_over(partition, at_offset[partition], answer):
                    left.append((done.ticket, partition))
            now = _native.now_ns()
            for partition, _, since in asked.values():
                if now - since > client.timeout_ns:
                    raise client.late(self.spec.leader(partition))
        return {**self.facts, "error": 0}

    def has_all(self, partition: int) -> bool:
        rank = self.client.rank
        return self.own and self.next.get((partition, rank), 0) >= self.client.sent[partition]

    def is_over(self, partition: int, offset: int, answer: Answer) -> bool:
        if not self.own:
            return bool(answer.flags & wire.ENDED) and offset >= answer.offset
        if self.has_all(partition):
            return True
        if not answer.body.nbytes and answer.offset <= min(offset, answer.high_watermark):
            raise PayloadMismatch(
                f"partition {partition} ends at offset {answer.offset} and records of rank "
                f"{self.client.rank} are not in it"
            )
        return False

    def read(self, partition: int, offset: int, answer: Answer) -> int:
        if answer.error:
            name = wire.NAMES.get(answer.error, str(answer.error))
            raise TransferError(f"a FETCH of partition {partition} at {offset} was refused: {name}")
        now, rest = _native.now_ns(), answer.body
        while rest.nbytes:
            try:
                info = _native.batch_info(rest)
            except OSError:
                raise PayloadMismatch(
                    f"partition {partition}: at offset {offset} came no whole batch"
                ) from None
            self.read_batch(partition, info, rest, now)
            offset = info["base_offset"] + info["records"]
            rest = rest[info["nbytes"] :]
        return offset

    def read_batch(self, partition: int, info: dict[str, int], batch: memoryview, now: int) -> None:
        producer = info["producer_id"]
        if self.own and producer != self.client.rank:
            return
        number = self.next.get((partition, producer), 0)
        if info["base_sequence"] != number % SEQUENCES:
            raise PayloadMismatch(
                f"partition {partition}: after record {number - 1} of rank {producer} came record "
                f"{info['base_sequence']}: records were lost, doubled or reordered"
            )
        for _, _, value in _native.batch_records(batch):
            self.check(partition, producer, number, value or b"", now)
            number += 1
        self.next[partition, producer] = number
        self.facts["records"] += info["records"]
        self.facts["nbytes"] += info["records"] * self.record_nbytes
        self.facts["last_ns"] = now

    def check(self, partition: int, producer: int, number: int, value: bytes, now: int) -> None:
        skip = STAMP_NBYTES if self.stamped else 0
        if skip and self.end_to_end is not None:
            self.end_to_end.add(now - int.from_bytes(value[:skip], "little"))
        if not self.verify:
            return
        view = memoryview(self.expected)[skip:]
        fill(view, self.seed, producer, self.spec, partition, number)
        if value[skip:] != view:
            raise PayloadMismatch(
                f"partition {partition}: record {number} of rank {producer} differs from what was "
                f"produced"
            )
        self.facts["validated"] += 1
