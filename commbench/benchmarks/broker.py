"""The message broker: ranks 0 to B - 1 are brokers, the next P produce, the next C consume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Self

from commbench.benchmarks.role import Role

ACKS = ("0", "1", "all")
ARRIVALS = ("constant", "poisson")
PARTS = ("eager-flush", "polling", "buffer-pool", "overlapped")  # each a switch; off is Kafka's
REORDER = ("client", "broker")
DESIGNS: Mapping[str, bool] = MappingProxyType({"kafka": False, "frieda": True})
RECORDS, WARMUP = 100_000, 1_000  # of each producer
RECORD_SIZE = 100
CHANNEL_BUFFER = 1 << 16
FETCH_NBYTES = 1 << 16  # of a follower's or consumer's request, at most
LARGEST_BATCH = 1 << 30
_RECORD_OVERHEAD = 7 + 5 * 5  # of a record with a value, at most (varints)
_BATCH_HEADER = 61


@dataclass(frozen=True, slots=True)
class BrokerSpec:
    """Who is what in a case of ``broker`` and what is done; part of the compare key.

    Sizes are bytes, ``linger_ns`` is in ns, ``rate`` in records per second of all producers
    together, 0: as fast as they can. ``flush_every``: records between two calls of fdatasync, 0:
    none. ``buffer_memory`` 0: a batch for each partition and each request in flight. ``window``
    W > 0: each record is a request and a producer has W in flight, for the tail model. ``parts``:
    those of ``PARTS`` that are on. ``channel_buffer``: it is for what is sent without eager-flush.
    ``handlers``: threads of a broker with polling, 0: by its processors.
    """

    brokers: int = 1
    producers: int = 1
    consumers: int = 0
    partitions: int = 1
    replication: int = 1
    acks: str = "1"
    batch_size: int = 16384
    linger_ns: int = 0
    max_in_flight: int = 5
    buffer_memory: int = 0
    window: int = 0
    flush_every: int = 0
    rate: float = 0.0
    arrivals: str = "constant"
    design: str = "kafka"
    parts: tuple[str, ...] = ()
    reorder: str = "client"
    channel_buffer: int = CHANNEL_BUFFER
    handlers: int = 0

    # -- who is who

    @property
    def ranks(self) -> int:
        return self.brokers + self.producers + self.consumers

    @property
    def first_consumer(self) -> int:
        return self.brokers + self.producers

    def is_broker(self, rank: int) -> bool:
        return rank < self.brokers

    def is_producer(self, rank: int) -> bool:
        return self.brokers <= rank < self.first_consumer

    def is_consumer(self, rank: int) -> bool:
        return self.first_consumer <= rank < self.ranks

    def leader(self, partition: int) -> int:
        return partition % self.brokers

    def replicas(self, partition: int) -> tuple[int, ...]:
        """Its brokers, the leader first."""
        first = self.leader(partition)
        return tuple((first + step) % self.brokers for step in range(self.replication))

    def followed(self, broker: int) -> tuple[int, ...]:
        """The partitions that this broker follows."""
        return tuple(p for p in range(self.partitions) if broker in self.replicas(p)[1:])

    def consumed(self, rank: int) -> tuple[int, ...]:
        """The partitions that this consumer reads."""
        return tuple(range(rank - self.first_consumer, self.partitions, self.consumers))

    def handler_threads(self, broker: int, cpus: int) -> int:
        """Threads in which this broker handles requests, apart from the one that polls; 0: that one
        does all. Not more than partitions, and by default half of its share of ``cpus``."""
        if "polling" not in self.parts:
            return 0
        led = sum(self.leader(p) == broker for p in range(self.partitions))
        return max(1, min(led, self.handlers or cpus // (2 * self.brokers)))

    def role(self, rank: int) -> Role:
        """Ranks beyond brokers, producers and consumers rest."""
        brokers = tuple(range(self.brokers))
        if rank >= self.ranks:
            return Role()
        if rank >= self.brokers:
            return Role(targets=brokers)
        leaders = {self.leader(p) for p in self.followed(rank)}
        followers = {
            each
            for p in range(self.partitions)
            if self.leader(p) == rank
            for each in self.replicas(p)[1:]
        }
        clients = range(self.brokers, self.ranks)
        return Role(tuple(sorted(leaders)), (*sorted(followers), *clients))

    # -- sizes

    def batch_nbytes(self, record_size: int) -> int:
        """The most bytes of a batch: it takes one record at least."""
        one = _BATCH_HEADER + _RECORD_OVERHEAD + record_size
        return one if self.window else max(self.batch_size, one)

    def batches(self, record_size: int) -> int:
        """How many a producer has in memory at once."""
        if self.window:
            return self.window
        if self.buffer_memory:
            return max(1, self.buffer_memory // self.batch_nbytes(record_size))
        return self.partitions + self.max_in_flight * self.brokers

    def request_nbytes(self, record_size: int) -> int:
        """Room for any request, and for any answer with what it fetches."""
        fetched = FETCH_NBYTES if self.replication > 1 or self.consumers else 0
        return 64 + max(self.batch_nbytes(record_size), 1024, fetched)

    @property
    def in_flight(self) -> int:
        """Most requests of a producer to a broker."""
        return self.window or self.max_in_flight

    @property
    def channel_window(self) -> int:
        """Most requests in flight to one broker, of any rank."""
        led = -(-self.partitions // self.brokers)
        fetching = led if self.replication > 1 or self.consumers else 1
        return max(self.in_flight, fetching)

    def memory_nbytes(self, record_size: int) -> int:
        """What the buffers of all ranks take at least."""
        incoming = self.channel_window * self.request_nbytes(record_size)
        serving = sum(len(self.role(broker).peers) for broker in range(self.brokers))
        sending = self.batches(record_size) * self.batch_nbytes(record_size)
        return serving * incoming + self.producers * sending

    # -- as JSON

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "parts": list(self.parts)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(**{**record, "parts": tuple(record["parts"])})


def flush_word(every: int) -> str:
    """As ``--flush`` takes it."""
    return "none" if every == 0 else "every-record" if every == 1 else f"every-{every}"
