"""One case of the benchmark ``broker`` over the channel ``kafka`` on one rank.

Rank 0 makes the topic (and the mock cluster, where there is no other), producers produce into it,
consumers read it, the other brokers' ranks rest. The counterpart of ``harness/broker.py``, with its
passes: what was produced in the verified one is read back and compared byte by byte.
"""

from __future__ import annotations

import contextlib
import resource
from typing import Any

from commbench import _native
from commbench.benchmarks import BrokerSpec
from commbench.channels.kafka import KafkaChannel
from commbench.channels.kafka_consumer import open_consumer
from commbench.channels.kafka_producer import library_file, open_producer
from commbench.channels.kafka_settings import KafkaSettings
from commbench.channels.kafka_site import Site
from commbench.errors import TransferError
from commbench.harness.kafka.consuming import Consuming
from commbench.harness.kafka.producing import Producing
from commbench.harness.measure import PATIENCE_S, Meeting, Share
from commbench.harness.timeline import clock_identity, gather_span
from commbench.plan import Case


class KafkaRun:
    """Runs one case on one rank; all ranks must do so together."""

    def __init__(self, case: Case, channel: KafkaChannel, rendezvous: Meeting, rank: int) -> None:
        assert case.broker is not None, "a case of broker has a spec"
        self.case, self.spec = case, case.broker
        self.channel, self.rendezvous, self.rank = channel, rendezvous, rank
        self.native = case.loop != "python" and library_file() is not None
        self.settings = settings_of(case, self.spec, channel)
        self.share = Share()

    def run(self) -> Share:
        """Collective. Raises ChannelUnavailable, PayloadMismatch, TransferError, Interrupted,
        UsageError."""
        with contextlib.ExitStack() as stack:
            where: list[str] = []
            if self.rank == 0:
                site = stack.enter_context(contextlib.closing(self.make_site()))
                where = [site.servers, site.topic]
            told: Any = next(iter(self.rendezvous.allgather(where, PATIENCE_S)))
            part: Producing | Consuming | None = None
            if self.spec.is_producer(self.rank):
                part = stack.enter_context(contextlib.closing(self.producing(*told)))
                part.verified()
            self.rendezvous.barrier(PATIENCE_S)
            if self.spec.is_consumer(self.rank):
                part = stack.enter_context(contextlib.closing(self.consuming(*told)))
                part.verified()
            self.rendezvous.barrier(PATIENCE_S)
            self.timed(part)
            self.rendezvous.barrier(PATIENCE_S)
        return self.share

    def make_site(self) -> Site:
        site = Site(self.settings, self.rendezvous.stop)
        self.channel.about = site.describe()
        return site

    def producing(self, servers: str, topic: str) -> Producing:
        loop = "native" if self.native else "python"
        producer = open_producer(self.settings.producer(servers), topic, loop)[0]
        connection = self.settings.connection(servers)
        return Producing(
            self.case, self.spec, self.rank, self.rendezvous.stop, producer, connection, topic
        )

    def consuming(self, servers: str, topic: str) -> Consuming:
        connection = self.settings.connection(servers)
        partitions = self.spec.consumed(self.rank)
        consumer = open_consumer(connection, topic, partitions, self.native)
        stop, mock = self.rendezvous.stop, self.settings.mock
        return Consuming(self.case, self.spec, self.rank, stop, consumer, connection, topic, mock)

    def timed(self, part: Producing | Consuming | None) -> None:
        """Collective."""
        origin = _native.now_ns()
        before = resource.getrusage(resource.RUSAGE_SELF)
        if part is not None:
            part.timed()
            self.share = part.share
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        self.share.broker |= {"cpu_ns": round(1e9 * used), "clock": clock_identity()}
        span = part.span if isinstance(part, Producing) else None
        if not any(self.rendezvous.allgather(span is not None, PATIENCE_S)):
            raise TransferError("no record was acknowledged after the warm-up; take a longer -D")
        self.share.elapsed_ns = gather_span(self.rendezvous, origin, span, PATIENCE_S).elapsed_ns
        self.share.blocks = 1
        if self.spec.consumers:
            self.count_records()

    def count_records(self) -> None:
        """Collective: consumers have read what was acknowledged, no more and no less. With acks=0
        nobody has said that a broker took it."""
        mine = [self.share.broker.get(name, 0) for name in ("acked", "consumed")]
        everyone: Any = list(self.rendezvous.allgather(mine, PATIENCE_S))
        produced, consumed = (sum(each[at] for each in everyone) for at in (0, 1))
        if produced != consumed:
            raise TransferError(
                f"kafka: {produced} records were produced and consumers read {consumed} of them"
            )


def settings_of(case: Case, spec: BrokerSpec, channel: KafkaChannel) -> KafkaSettings:
    """What the clients of this case are told."""
    return KafkaSettings(
        record_nbytes=case.nbytes,
        bootstrap_servers=channel.servers,
        acks=spec.acks,
        batch_nbytes=spec.batch_size,
        linger_ms=spec.linger_ns / 1e6,
        max_in_flight=spec.max_in_flight,
        partitions=spec.partitions,
        replication=spec.replication,
        brokers=spec.brokers,
        timeout_s=case.timeout_s,
        given=channel.given,
    )
