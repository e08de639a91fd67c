"""A producer in Python, as ``native/broker/producer.c``."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from commbench import _native
from commbench.benchmarks import BrokerSpec
from commbench.errors import PayloadMismatch, TransferError
from commbench.harness import broker_wire as wire
from commbench.harness.broker_samples import Kept
from commbench.harness.broker_wire import Answer
from commbench.histogram import Int64Array
from commbench.payloads.buffers import Message

if TYPE_CHECKING:
    from commbench.harness.broker_client import PythonClient

FILL, STAMP, ANY_ORDER = 1, 2, 4
STAMP_NBYTES = 8
SEQUENCES = 1 << 31  # then they begin again
_SPIN_S = 100e-6  # an open loop does not sleep closer than this to its next record


@dataclass(slots=True, eq=False)
class Batch:
    """By request slot."""

    at: int
    slot: Message
    built: _native.RecordBatch
    partition: int = 0
    nbytes: int = 0
    first: int = 0  # number of its first record
    since_ns: int = 0
    posted_ns: int = 0
    correlation: int = 0
    starts: list[int] = field(default_factory=list)
    answer: int | None = None  # bytes that came


@dataclass(slots=True)
class Lane:
    """To a broker: batches that may leave, and those in flight by correlation."""

    queue: deque[Batch] = field(default_factory=deque)
    flying: deque[Batch] = field(default_factory=deque)


class Producer:
    """Records into batches, batches to leaders, answers into stamps."""

    def __init__(
        self, client: PythonClient, *, batches: int, acks: int, record_nbytes: int,
        batch_nbytes: int, linger_ns: int, max_in_flight: int, count: int, warmup: int,
        duration_ns: int, warmup_ns: int, schedule: Int64Array | None, seed: int, flags: int,
        latency: _native.Times, delay: _native.Times, response: _native.Times, window: int,
        windows: _native.Times, stamps: Kept, keep: int,
    ) -> None:  # fmt: skip
        self.client, self.spec, self.exchange = client, client.spec, client.exchange
        self.acks, self.linger_ns, self.max_in_flight = acks, linger_ns, max_in_flight
        self.count, self.warmup = count, warmup
        self.duration_ns, self.warmup_ns = duration_ns, warmup_ns
        self.schedule, self.seed, self.flags = schedule, seed, flags
        self.latency, self.delay, self.response = latency, delay, response
        self.window, self.windows, self.greatest = window, windows, 0
        self.stamps = stamps
        self.value = Message([memoryview(bytearray(record_nbytes))])
        self.value.fill(seed, client.rank, 0)
        self.record_nbytes = record_nbytes
        self.batches = [self.batch(at, batch_nbytes) for at in range(batches)]
        self.free = self.batches[::-1]
        self.lanes = [Lane() for _ in range(self.spec.brokers)]
        self.filling: Batch | None = None
        self.partition = client.rank % self.spec.partitions
        self.ends: dict[int, int] = {}
        self.over = False
        self.called_ns = 0
        self.refusal = ""
        names = (
            "records", "acked", "refused", "counted", "batches", "nbytes", "counted_nbytes",
            "copied", "reordered", "blocked", "first_ns", "last_ns",
        )  # fmt: skip
        self.facts = dict.fromkeys(names, 0)

    def batch(self, at: int, nbytes: int) -> Batch:
        slot = self.exchange.request[at]
        view = slot.views[0][wire.REQUEST.size : wire.REQUEST.size + nbytes]
        return Batch(at, slot, _native.RecordBatch(view))

    def run(self) -> dict[str, Any]:
        self.origin = _native.now_ns()
        while not (self.over and len(self.free) == len(self.batches)):
            self.client.case.check_stop()
            if not self.over:
                self.produce_some()
            self.close_lingering()
            self.send_all()
            if any(lane.flying for lane in self.lanes):
                self.reap(self.patience_s())
        code = errno.EREMOTEIO if self.refusal else 0
        return {**self.facts, "error": code, "peer": -1, "message": self.refusal}

    # -- records

    def produce_some(self) -> None:
        """Closed loop: until a batch is full. Open loop: what is due."""
        begun = self.filling
        while True:
            now = _native.now_ns()
            if self.all_produced(now):
                self.over = True
                return
            if self.schedule is None:
                if not self.produce_one(now, now):
                    return
                begun = begun or self.filling
                if self.filling is not begun:
                    return
            elif not self.produce_due(now, self.schedule):
                return

    def produce_due(self, now: int, schedule: Int64Array) -> bool:
        if now - self.origin < schedule[self.facts["records"]]:
            return False
        if self.produce_one(self.called_ns or now, now):
            self.called_ns = 0
            return True
        self.facts["blocked"] += self.called_ns == 0
        self.called_ns = self.called_ns or now
        return False

    def all_produced(self, now: int) -> bool:
        if self.refusal:
            return True
        if self.count:
            return bool(self.facts["records"] == self.count)
        return now - self.origin >= self.warmup_ns + self.duration_ns

    def produce_one(self, start: int, now: int) -> bool:
        while True:
            batch = self.filling or self.open_batch(now)
            if batch is None:
                return False
            value = self.content(batch, start)
            if batch.built.add(start // 1_000_000, value):
                break
            if not batch.starts:
                raise TransferError(f"a record of {self.record_nbytes} bytes does not fit a batch")
            self.close_batch()
        batch.starts.append(start)
        self.client.sent[batch.partition] += 1
        self.facts["records"] += 1
        return True

    def content(self, batch: Batch, start: int) -> memoryview:
        view = self.value.views[0]
        skip = STAMP_NBYTES if self.flags & STAMP else 0
        if self.flags & FILL:
            fill(view[skip:], self.seed, self.client.rank, self.spec, batch.partition,
                 self.client.sent[batch.partition])  # fmt: skip
        if skip:
            view[:skip] = start.to_bytes(skip, "little")
        return view

    def open_batch(self, now: int) -> Batch | None:
        if not self.free:
            return None
        batch = self.filling = self.free.pop()
        batch.built.begin()
        batch.partition, batch.first = self.partition, self.facts["records"]
        batch.since_ns, batch.starts, batch.answer = now, [], None
        return batch

    def close_batch(self) -> None:
        batch, self.filling = self.filling, None
        assert batch is not None
        sequence = self.client.sent[batch.partition] - len(batch.starts)
        batch.nbytes = batch.built.seal(self.client.rank, 0, sequence % SEQUENCES)
        self.lane(batch).queue.append(batch)
        self.partition = (self.partition + 1) % self.spec.partitions

    def close_lingering(self) -> None:
        batch = self.filling
        if batch is None:
            return
        lane = self.lane(batch)
        may = not lane.queue and len(lane.flying) < self.max_in_flight
        due = _native.now_ns() - batch.since_ns >= self.linger_ns
        if self.over or (due and may):
            self.close_batch()

    def lane(self, batch: Batch) -> Lane:
        return self.lanes[self.spec.leader(batch.partition)]

    # -- requests and answers

    def send_all(self) -> None:
        for broker, lane in enumerate(self.lanes):
            while lane.queue and len(lane.flying) < self.max_in_flight:
                batch = lane.queue[0]
                batch.correlation = self.client.correlations[broker]
                request = wire.put_request(
                    batch.slot, wire.PRODUCE, self.acks, batch.correlation, batch.partition,
                    batch.nbytes,
                )  # fmt: skip
                if not self.client.post(broker, batch.at, request):
                    break
                batch.posted_ns = _native.now_ns()
                lane.flying.append(lane.queue.popleft())
                self.facts["batches"] += 1
                self.facts["nbytes"] += batch.nbytes
                if self.acks == 0:
                    self.acknowledged(batch, batch.posted_ns)

    def reap(self, wait_s: float) -> None:
        arrived = self.client.channel.poll(wait_s)
        now = _native.now_ns()
        for done in arrived:
            batch = self.batches[done.ticket]
            lane = self.lane(batch)
            self.facts["reordered"] += lane.flying[0] is not batch
            batch.answer = done.reply_nbytes
            if not self.flags & ANY_ORDER:
                lane.flying.remove(batch)
                self.deliver(batch, now)
            while lane.flying and lane.flying[0].answer is not None:
                self.deliver(lane.flying.popleft(), now)
        for broker, lane in enumerate(self.lanes):
            if lane.flying and now - lane.flying[0].posted_ns > self.client.timeout_ns:
                raise self.client.late(broker)

    def deliver(self, batch: Batch, now: int) -> None:
        assert batch.answer is not None
        leader = self.spec.leader(batch.partition)
        if self.acks:
            answer = self.client.answer(leader, batch.at, batch.answer, batch.correlation)
            if answer.error:
                self.refused(batch, answer, leader)
            else:
                self.check_offset(batch, answer.offset)
                self.acknowledged(batch, now)
        self.free.append(batch)

    def refused(self, batch: Batch, answer: Answer, leader: int) -> None:
        self.facts["refused"] += len(batch.starts)
        name = wire.NAMES.get(answer.error, str(answer.error))
        why = bytes(answer.body).decode(errors="replace")
        self.refusal = self.refusal or (
            f"rank {leader} refused records of partition {batch.partition}: {name}: {why}"
        )

    def check_offset(self, batch: Batch, base: int) -> None:
        end = self.ends.get(batch.partition, base)
        if base != end if self.spec.producers == 1 else base < end:
            raise PayloadMismatch(
                f"partition {batch.partition}: records were given offset {base} after {end - 1}"
            )
        self.ends[batch.partition] = base + len(batch.starts)

    def acknowledged(self, batch: Batch, now: int) -> None:
        facts = self.facts
        facts["acked"] += len(batch.starts)
        for at, start in enumerate(batch.starts):
            number = batch.first + at
            if number < self.warmup or start - self.origin < self.warmup_ns:
                continue
            self.latency.add(now - start)
            if self.window:
                self.in_window(now - start)
            intended = start
            if self.schedule is not None:
                intended = self.origin + int(self.schedule[number])
                self.delay.add(start - intended)
                self.response.add(now - intended)
            self.stamps.note(facts["counted"], intended, start, now)
            facts["first_ns"] = facts["first_ns"] if facts["counted"] else start
            facts["counted"] += 1
            facts["counted_nbytes"] += self.record_nbytes
            facts["last_ns"] = now

    def in_window(self, spent_ns: int) -> None:
        """The greatest latency of each so many records in a row."""
        self.greatest = max(self.greatest, spent_ns)
        if self.facts["counted"] % self.window == self.window - 1:
            self.windows.add(self.greatest)
            self.greatest = 0

    def patience_s(self) -> float:
        """How long nothing has to be done unless an answer comes."""
        now, wait_ns = _native.now_ns(), round(wire.TICK_S * 1e9)
        room = self.filling is not None or bool(self.free)
        if not self.over and room:
            if self.schedule is None:
                return 0.0
            due = int(self.schedule[self.facts["records"]])
            wait_ns = min(wait_ns, self.origin + due - now)
        if self.filling is not None and len(self.lane(self.filling).flying) < self.max_in_flight:
            wait_ns = min(wait_ns, self.filling.since_ns + self.linger_ns - now)
        return max(0.0, wait_ns / 1e9 - _SPIN_S)


def fill(
    view: memoryview, seed: int, producer: int, spec: BrokerSpec, partition: int, number: int
) -> None:
    """``cb_record_fill``."""
    Message([view]).fill(seed, producer, number * spec.partitions + partition)
