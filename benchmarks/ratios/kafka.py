"""Our kafka producer beside librdkafka driven as its own tool drives it, and Kafka's own tool.

All of them produce into one broker that is booted for it and warmed up, which is dropped. The first
two share this process and its librdkafka; Kafka's ``ProducerPerformance`` is a process of its own,
and its times are whole milliseconds. In the end our broker, design kafka over tcp, against that
broker: both by the benchmark ``broker``, whose stamps start at the call of produce.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ratios import tools
from benchmarks.ratios.pairs import Pairs
from benchmarks.ratios.references import c_compiler, compile_library
from benchmarks.ratios.result import Result
from benchmarks.ratios.statistics import HOLDS, Target
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
NBYTES = 128 << 20  # of a run of ours at most
TAIL_SHARE = 0.5  # of the rate that was reached
WARM_S = 10.0  # of the broker, dropped
JAVA_S = 3.0  # of a run of Kafka's tool; its JVM's own warm-up is a part of what it says
STEADY_S = 16.0  # of one run of it whose last window is beyond that
DESIGN_RATE, DESIGN_TAIL = Target(0.9, at_most=False), Target(1.1, at_most=True)
_KEPT = {  # of a topic; or the disk would be full of records that nobody reads
    "retention.bytes": str(1 << 30),
    "segment.bytes": str(256 << 20),
    "file.delete.delay.ms": "1000",
}


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[str]:
    """One broker; its bootstrap servers. It goes, also when this process is asked to."""
    with stoppable("parity"):
        try:
            yield cluster.up(cluster.Spec(folder=folder / "kafka")).client
        finally:
            cluster.down(folder / "kafka")


class Settings(KafkaSettings):
    """With a topic that forgets."""

    def topic_config(self) -> dict[str, str]:
        return {**KafkaSettings.topic_config(self), **_KEPT}


class Producers:
    """Ours and the reference, connected to one topic; each is told the same. ``servers`` "": the
    mock cluster, to see that both run."""

    def __init__(self, servers: str, nbytes: int, records: int, folder: Path) -> None:
        settings = Settings(record_nbytes=nbytes, bootstrap_servers=servers)
        self.site = Site(settings)
        self.values = Values.timed(nbytes, 0, 0, 0)
        self.records = self.java_records = records
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

    def warm_up(self, seconds: float) -> None:
        """The broker's JIT and page cache; then a run of Kafka's tool, which says how many records
        its runs need."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.ours()
        self.java_records = max(self.records, round(JAVA_S * self.java().records_per_s))

    def java_steady(self, seconds: float) -> float:
        """The rate of its last whole window, in a run that is longer than its JIT takes."""
        rate = self.java_records / JAVA_S
        windows = self.java(records=round(rate * seconds)).windows
        return windows[-1].records_per_s if windows else 0.0

    def java(self, throughput: float = -1, records: int = 0) -> perf.Performance:
        """Kafka's own tool with the same settings."""
        names = ("acks", "batch.size", "linger.ms", "max.in.flight.requests.per.connection")
        told = {name: self.told[name] for name in names} | {"enable.idempotence": "false"}
        return perf.run(
            self.told["bootstrap.servers"],
            self.site.topic,
            records or self.java_records,
            self.values.nbytes,
            properties=told,
            throughput=throughput,
        )

    def java_rate(self) -> float:
        return self.java().records_per_s

    def java_tail_ns(self, rate: float) -> float:
        """Its p99, in whole milliseconds and never 0: that is below its resolution."""
        return 1e6 * max(1, self.java(rate, round(rate * JAVA_S)).p99_ms)

    def close(self) -> None:
        self._ours.close()
        self._library.reference_close(self._reference)
        self.site.close()


def of_kafka(libraries: Path, cpus: tools.Cpus, shrink: int = 1) -> Pairs:
    """What pairs() takes; boots the broker, which the operating system places."""
    with broker(libraries) as servers:
        for nbytes in SIZES:
            records = max(1000, min(RECORDS, NBYTES // nbytes) // shrink)
            with contextlib.closing(Producers(servers, nbytes, records, libraries)) as both:
                both.warm_up(WARM_S / shrink)
                yield from _figures(both, format_size(nbytes), STEADY_S / shrink)
        yield from _design(servers, shrink)


def _figures(both: Producers, size: str, steady_s: float) -> Pairs:
    yield (
        Result(f"kafka rate {size}", "librdkafka, C", "1/s", RATE),
        both.ours,
        both.reference,
    )
    steady = both.java_steady(steady_s)
    if steady:
        print(f"# ProducerPerformance {size}, the last 5 s of {steady_s:g}: {steady:.0f} /s")
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


# ---------------------------------------------------------------------- our broker against Kafka's


@dataclass(frozen=True, slots=True)
class Launches:
    """``commbench run broker`` with these words; a launch gives its rate, then its tail."""

    words: tuple[str, ...]
    kept: deque[dict[str, Any]]

    def launch(self) -> dict[str, Any]:
        found = tools.commbench(["broker", *self.words], None)
        return next(each for each in found if each["kind"] == "case")

    def rate(self) -> float:
        self.kept.append(self.launch())
        return float(self.kept[-1]["ops_per_s"])

    def tail_ns(self) -> float:
        """p99.9 of the launch whose rate was told, or of a new one. Raises TransferError."""
        found = (self.kept.popleft() if self.kept else self.launch())["latency_ns"]["p99.9"]
        if found is None:
            raise TransferError("too few records for a p99.9")
        return float(found)


def _design(servers: str, shrink: int) -> Pairs:
    seconds = ("-D", f"{max(0.3, 3 / shrink):g}s", "--warmup-time", f"{max(0.3, 2 / shrink):g}s")
    ours = Launches(("-C", "tcp", "--design", "kafka", *seconds), deque())
    real = Launches(("-C", "kafka", "--bootstrap-servers", servers, *seconds), deque())
    rate = Result("design kafka over tcp, rate 100", "Kafka, channel kafka", "1/s", DESIGN_RATE)
    yield rate, ours.rate, real.rate
    tail = Result("design kafka over tcp, p99.9 100", "Kafka, channel kafka", "ns", DESIGN_TAIL)
    yield tail, ours.tail_ns, real.tail_ns
    if rate.ratios and tail.ratios:
        fair = {rate.verdict, tail.verdict} == {HOLDS}
        print(f"# design kafka and Kafka are {'' if fair else 'not '}comparable")
