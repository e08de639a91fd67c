"""Our kafka producer beside librdkafka driven as its own tool drives it, and Kafka's own tool.

All of them produce into one broker that is booted for it. The first two share this process and its
librdkafka; Kafka's ``ProducerPerformance`` is a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.ratios import tools
from benchmarks.ratios.pairs import Pairs
from benchmarks.ratios.references import c_compiler, compile_library
from benchmarks.ratios.result import Result
from benchmarks.ratios.statistics import Target
from commbench.channels.kafka_producer import NativeProducer, library_file
from commbench.channels.kafka_records import RecordBlock, Values
from commbench.channels.kafka_settings import KafkaSettings
from commbench.channels.kafka_site import Site
from commbench.errors import ChannelUnavailable, TransferError
from commbench.harness.block import Stamps
from commbench.harness.kafka import cluster, perf
from commbench.harness.stop import StopFlag
from commbench.harness.stoppable import stoppable
from commbench.units import format_size

RATE, ABOVE, TAIL = (
    Target(0.9, at_most=False),
    Target(1.0, at_most=False),
    Target(1.0, at_most=True),
)
SIZES = (100, 1024)
RECORDS = 400_000
TAIL_SHARE = 0.5  # of the rate that was reached


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[str]:
    """One broker; its bootstrap servers. It goes, also when this process is asked to."""
    with stoppable("parity"):
        try:
            yield cluster.up(cluster.Spec(folder=folder / "kafka")).client
        finally:
            cluster.down(folder / "kafka")


class Producers:
    """Ours and the reference, connected to one topic; each is told the same. ``servers`` "": the
    mock cluster, to see that both run."""

    def __init__(self, servers: str, nbytes: int, records: int, folder: Path) -> None:
        settings = KafkaSettings(record_nbytes=nbytes, bootstrap_servers=servers)
        self.site = Site(settings)
        self.values = Values.timed(nbytes, 0, 0, 0)
        self.records = records
        self.stamps = Stamps(records)
        self.told = settings.producer(self.site.servers)
        file = library_file()
        if file is None:
            raise ChannelUnavailable("kafka: librdkafka is linked into confluent-kafka")
        self._ours = NativeProducer(file, self.told, self.site.topic)
        self._library = ctypes.CDLL(str(compile_library("kafka_produce.c", c_compiler(), folder)))
        self._library.reference_open.restype = ctypes.c_void_p
        self._library.reference_produce.restype = ctypes.c_int64
        self._reference = self._open(file, self.told)

    def _open(self, file: str, told: Mapping[str, str]) -> ctypes.c_void_p:
        words = [word.encode() for pair in told.items() for word in pair]
        array = (ctypes.c_char_p * (len(words) + 1))(*words, None)
        opened = self._library.reference_open(file.encode(), array, self.site.topic.encode())
        if not opened:
            raise TransferError("the reference of kafka cannot be opened")
        return ctypes.c_void_p(opened)

    def ours(self) -> float:
        """Records per second, as fast as it can."""
        self._produce(RecordBlock(self.records, self.values, partitions=1))
        return self.records * 1e9 / float(self.stamps.end.max() - self.stamps.start.min())

    def reference(self) -> float:
        """As ``ours``."""
        values = self.values
        spent_ns = self._library.reference_produce(
            self._reference,
            ctypes.c_uint64(self.records),
            ctypes.c_void_p(values.address),
            ctypes.c_uint64(values.count),
            ctypes.c_uint64(values.stride),
            ctypes.c_uint64(values.nbytes),
        )
        if spent_ns <= 0:
            raise TransferError("the reference of kafka did not get all acknowledgements")
        return self.records * 1e9 / spent_ns

    def our_tail_ns(self, rate: float) -> float:
        """p99 of the service time at ``rate`` records per second, in an open loop."""
        self.stamps.intended[:] = (np.arange(self.records) * (1e9 / rate)).astype(np.int64)
        self._produce(RecordBlock(self.records, self.values, partitions=1, open=True))
        return float(np.quantile(self.stamps.end - self.stamps.start, 0.99))

    def _produce(self, block: RecordBlock) -> None:
        self._ours.run(block, self.stamps, StopFlag()).check()

    def java(self, throughput: float = -1) -> perf.Performance:
        """Kafka's own tool with the same settings."""
        names = ("acks", "batch.size", "linger.ms", "max.in.flight.requests.per.connection")
        told = {name: self.told[name] for name in names} | {"enable.idempotence": "false"}
        return perf.run(
            self.told["bootstrap.servers"],
            self.site.topic,
            self.records,
            self.values.nbytes,
            properties=told,
            throughput=throughput,
        )

    def java_rate(self) -> float:
        return self.java().records_per_s

    def java_tail_ns(self, rate: float) -> float:
        """Its p99, in whole milliseconds and never 0: that is below its resolution."""
        return 1e6 * max(1, self.java(rate).p99_ms)

    def close(self) -> None:
        self._ours.close()
        self._library.reference_close(self._reference)
        self.site.close()


def of_kafka(libraries: Path, cpus: tools.Cpus, shrink: int = 1) -> Pairs:
    """What pairs() takes; boots the broker, which the operating system places."""
    with broker(libraries) as servers:
        for nbytes in SIZES:
            records = max(1000, RECORDS // shrink)
            with contextlib.closing(Producers(servers, nbytes, records, libraries)) as both:
                yield from _figures(both, format_size(nbytes))


def _figures(both: Producers, size: str) -> Pairs:
    yield (
        Result(f"kafka rate {size}", "librdkafka, C", "1/s", RATE),
        both.ours,
        both.reference,
    )
    yield (
        Result(f"kafka rate {size}, Kafka's tool", "ProducerPerformance", "1/s", ABOVE),
        both.ours,
        both.java_rate,
    )
    rate = TAIL_SHARE * both.java_rate()
    yield (
        Result(f"kafka p99 at {TAIL_SHARE:.0%} {size}", "ProducerPerformance", "ns", TAIL),
        partial(both.our_tail_ns, rate),
        partial(both.java_tail_ns, rate),
    )
