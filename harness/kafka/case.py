"""One case of the benchmark ``broker`` over the channel ``kafka`` on one rank.

Rank 0 makes the topic (and the mock cluster, where there is no other), producers produce into it,
the other brokers' ranks rest. The counterpart of ``harness/broker.py``, with its passes: what was
produced in the verified one is read back and compared byte by byte.
"""

from __future__ import annotations

import contextlib
import resource
from typing import Any

from commbench import _native
from commbench.benchmarks import BrokerSpec
from commbench.channels.kafka import KafkaChannel
from commbench.channels.kafka_producer import library_file, open_producer
from commbench.channels.kafka_settings import KafkaSettings
from commbench.channels.kafka_site import Site
from commbench.errors import TransferError, UsageError
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
            part = None
            if self.spec.is_producer(self.rank):
                part = stack.enter_context(contextlib.closing(self.producing(*told)))
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

    def timed(self, part: Producing | None) -> None:
        """Collective."""
        origin = _native.now_ns()
        before = resource.getrusage(resource.RUSAGE_SELF)
        if part is not None:
            part.timed()
            self.share = part.share
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        self.share.broker |= {"cpu_ns": round(1e9 * used), "clock": clock_identity()}
        span = part.span if part is not None else None
        if not any(self.rendezvous.allgather(span is not None, PATIENCE_S)):
            raise TransferError("no record was acknowledged after the warm-up; take a longer -D")
        self.share.elapsed_ns = gather_span(self.rendezvous, origin, span, PATIENCE_S).elapsed_ns
        self.share.blocks = 1


def settings_of(case: Case, spec: BrokerSpec, channel: KafkaChannel) -> KafkaSettings:
    """What the producers of this case are told. Raises UsageError for what a Kafka has not."""
    check_spec(case, spec)
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


def check_spec(case: Case, spec: BrokerSpec) -> None:
    """Raises UsageError for what commbench's own broker has and a Kafka has not."""
    for given, what in (
        (spec.consumers, "--consumers is not built for it"),
        (spec.window, "--records-in-flight is not built for it"),
        (spec.flush_every, "--flush is the cluster's own matter (log.flush.interval.messages)"),
        (spec.parts or spec.design != "kafka", "--design and its options are commbench's own"),
        (case.log_dir, "--log-dir is the cluster's own matter (log.dirs)"),
    ):
        if given:
            raise UsageError(f"-C kafka: {what}; allowed: without it")
