"""What a producer's rank does in a case of the channel ``kafka``: passes, blocks, sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from commbench import _native
from commbench.benchmarks import BrokerSpec
from commbench.channels.kafka_producer import Producer
from commbench.channels.kafka_read import read_back
from commbench.channels.kafka_records import MOST_MEMORY, Places, RecordBlock, Values
from commbench.harness.block import Stamps
from commbench.harness.broker_passes import (
    VERIFIED_NBYTES,
    VERIFIED_RECORDS,
    schedule_ns,
)
from commbench.harness.measure import FIRST_VERIFIED, TIMED_NUMBER, Share
from commbench.harness.stop import StopFlag
from commbench.histogram import Histogram, Int64Array
from commbench.plan import Case

BLOCK_RECORDS = 1 << 20  # whose stamps are kept at once; a longer run is several blocks
CHECKED_RECORDS = 1 << 13  # of a block under -c: each is filled and compared in Python
_RECORD_OVERHEAD = 12  # bytes around a value in a batch, about


class Producing:
    """One producer of one case; ``span`` and ``share`` are there after ``timed``."""

    def __init__(
        self,
        case: Case,
        spec: BrokerSpec,
        rank: int,
        stop: StopFlag,
        producer: Producer,
        connection: Mapping[str, str],
        topic: str,
    ) -> None:
        self.case, self.spec, self.rank, self.stop = case, spec, rank, stop
        self.producer, self.connection, self.topic = producer, connection, topic
        self.share = Share()
        self.span: tuple[int, int] | None = None
        self.delay, self.response = Histogram(), Histogram()
        self.acked = self.blocked = 0  # of the timed pass, warm-up included
        self.number = TIMED_NUMBER

    @property
    def every(self) -> bool:
        return self.case.validation == "every"

    def close(self) -> None:
        self.producer.close()

    # -- passes

    def verified(self) -> None:
        """Untimed, through the same loop; each record has content of its own."""
        fit = VERIFIED_NBYTES // max(1, self.case.nbytes)
        count = max(16, min(VERIFIED_RECORDS, fit))
        self.checked(self.block(count, self.values(count, FIRST_VERIFIED)), Stamps(count))

    def timed(self) -> None:
        """Blocks until there are as many records as asked for, or the time is up."""
        self.acked = self.blocked = 0
        stamps = Stamps(min(BLOCK_RECORDS, self.most()))
        schedule = self.schedule()
        if self.case.duration_s:
            if self.case.warmup_s:
                self.for_so_long(stamps, schedule, self.case.warmup_s, warm=True)
            self.for_so_long(stamps, schedule, self.case.duration_s, warm=False)
        else:
            self.so_many(stamps, schedule)
        self.mark_the_end()
        self.share.operations = self.share.messages
        self.share.broker = {
            "role": "producer",
            "acked": self.acked,
            "blocked": self.blocked,
        }
        if schedule is not None:
            self.share.broker |= {
                "delay": self.delay.to_json(),
                "response": self.response.to_json(),
            }

    def mark_the_end(self) -> None:
        """Behind the records of this producer in every partition, for consumers."""
        if self.spec.consumers:
            marks = RecordBlock(self.spec.partitions, None, partitions=self.spec.partitions)
            marks = replace(marks, timeout_s=self.case.timeout_s)
            self.producer.run(marks, Stamps(marks.count), self.stop).check()

    def most(self) -> int:
        """Records of the timed pass at most, as far as that is known."""
        if not self.case.duration_s:
            return self.case.warmup + self.case.iterations
        return BLOCK_RECORDS

    def schedule(self) -> Int64Array | None:
        """When each record of an open loop is due, ns from the start; for a run by duration as many
        as are due in its longer part."""
        spec, case = self.spec, self.case
        if not spec.rate:
            return None
        seconds = max(case.warmup_s, case.duration_s)
        count = round(spec.rate * seconds / spec.producers) if case.duration_s else self.most()
        return schedule_ns(spec, self.rank, count, case.payload.seed)

    def so_many(self, stamps: Stamps, schedule: Int64Array | None) -> None:
        done, skip = 0, self.case.warmup
        while done < self.most():
            count = min(stamps.capacity, self.most() - done)
            done += self.one_block(stamps, schedule, done, count, skip=max(0, skip - done))

    def for_so_long(
        self, stamps: Stamps, schedule: Int64Array | None, seconds: float, warm: bool
    ) -> None:
        done, until = 0, _native.now_ns() + round(seconds * 1e9)
        while (left_ns := until - _native.now_ns()) > 0:
            count = stamps.capacity
            if schedule is not None:
                count = min(count, len(schedule) - done)
            if not count:
                return
            skip = count if warm else 0
            done += self.one_block(stamps, schedule, done, count, skip, left_ns / 1e9)

    # -- blocks

    def values(self, count: int, first: int) -> Values:
        return Values(self.case.nbytes, count, self.case.payload.seed, self.rank, first)

    def block(
        self, count: int, values: Values, planned: bool = False, duration_s: float = 0.0
    ) -> RecordBlock:
        """``planned``: an open loop, which nothing but the library's queue holds back. The library
        chooses partitions as our own broker's producers do: one until its batch leaves."""
        return RecordBlock(
            count=count,
            values=values,
            window=0 if planned else window_of(self.spec, self.case.nbytes),
            open=planned,
            duration_s=duration_s,
            timeout_s=self.case.timeout_s,
            stamped=self.spec.consumers > 0,
        )

    def one_block(
        self,
        stamps: Stamps,
        schedule: Int64Array | None,
        done: int,
        count: int,
        skip: int,
        duration_s: float = 0.0,
    ) -> int:
        """Produce up to ``count`` records, the first ``skip`` of which are warm-up; how many."""
        planned = schedule is not None
        if schedule is not None:
            due = schedule[done : done + count]
            stamps.intended[:count] = due - (due[0] if done else 0)
        if self.every:
            count = min(count, CHECKED_RECORDS, max(1, MOST_MEMORY // max(1, self.case.nbytes)))
            values = self.values(count, self.number)
            block = replace(self.block(count, values, planned, duration_s), warmup=skip)
            produced = self.checked(block, stamps)
            self.number += produced
        else:
            block = self.block(count, self.timed_values, planned, duration_s)
            produced = self.produce(replace(block, warmup=skip), stamps)
        self.fold(stamps, skip, produced)
        return produced

    @cached_property
    def timed_values(self) -> Values:
        return Values.timed(self.case.nbytes, self.case.payload.seed, self.rank, TIMED_NUMBER)

    def produce(self, block: RecordBlock, stamps: Stamps) -> int:
        told = self.producer.run(block, stamps, self.stop)
        told.check()
        self.acked += told.acked
        self.blocked += told.full
        return told.produced

    def checked(self, block: RecordBlock, stamps: Stamps) -> int:
        """Produce, then read everything back and compare it."""
        assert block.values is not None
        places = Places(block.count)
        produced = self.produce(replace(block, places=places), stamps)
        self.share.validated += read_back(
            self.connection,
            self.topic,
            block.values,
            places.cut(produced),
            self.stop,
            block.stamped,
        )
        return produced

    def fold(self, stamps: Stamps, skip: int, produced: int) -> None:
        """What counts of a block, into the sums."""
        which = slice(skip, produced)
        start, end, intended = stamps.start[which], stamps.end[which], stamps.intended[which]
        if not len(start):
            return
        share = self.share
        share.histogram.add(end - start)
        share.messages += len(start)
        share.nbytes += len(start) * self.case.nbytes
        share.summed_ns += int(end.max() - start.min())
        if self.spec.rate:
            self.delay.add(start - intended)
            self.response.add(end - intended)
        first, last = int(start.min()), int(end.max())
        self.span = (self.span[0] if self.span else first, last)


def window_of(spec: BrokerSpec, record_nbytes: int) -> int:
    """Records that fit into the batches which a producer of commbench's own broker has in memory at
    once: the two are bounded alike."""
    whole = spec.batches(record_nbytes) * spec.batch_nbytes(record_nbytes)
    return max(1, whole // (record_nbytes + _RECORD_OVERHEAD))
