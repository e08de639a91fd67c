"""Cases -> channel -> samples -> results: what every rank of a run does."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from commbench import _native
from commbench.benchmarks import PsSpec, benchmark
from commbench.channels.base import Capability, Channel
from commbench.channels.loopback import LoopbackChannel
from commbench.errors import ChannelUnavailable
from commbench.harness.binding import data_masks
from commbench.harness.hardware import peak_rss_bytes
from commbench.harness.loops import Stamps
from commbench.harness.measure import CaseRun, Share
from commbench.harness.rendezvous import Rendezvous
from commbench.harness.sysfs import Tree
from commbench.harness.world import World
from commbench.histogram import Histogram, Int64Array
from commbench.payloads.spec import PayloadSpec
from commbench.plan import Case
from commbench.record import Measured, Record, make_case_record, per_second
from commbench.registry import known, load_path

if TYPE_CHECKING:  # only a rank that measures them loads them: an import is a part of the start
    from commbench.channels.kafka import KafkaChannel
    from commbench.harness.broker import BrokerRun
    from commbench.harness.kafka.case import KafkaRun

CLOCK = "CLOCK_MONOTONIC"
_TIMER_SHARE = 0.05  # Hoefler & Belli, SC'15: reading the clock may cost 5 % of a sample


class Sink(Protocol):
    """Where rank 0 puts what was measured (a ResultWriter)."""

    def case(self, record: Mapping[str, Any]) -> None: ...
    def save_samples(
        self, case_index: int, start: Int64Array, end: Int64Array, intended: Int64Array | None
    ) -> None: ...


@cache
def clock_overhead_ns() -> float:
    """What one stamp costs: the median of two successive reads."""
    return float(np.median(_native.clock_pairs(10_001)))


class Runner:
    """Runs blocks of cases over all ranks. Rank 0 hands each record to ``sink`` and ``show``."""

    def __init__(
        self,
        world: World,
        rendezvous: Rendezvous,
        *,
        percentiles: Sequence[float] = (),
        launch: int = 0,
        sink: Sink | None = None,
        show: Callable[[Record], None] = lambda record: None,
        save_samples: bool = False,
        harness_threads: Container[int] = (),
    ) -> None:
        self.world = world
        self.rendezvous = rendezvous
        self.percentiles = percentiles
        self.launch = launch
        self.sink = sink
        self.show = show
        self.save_samples = save_samples
        self.harness_threads = harness_threads
        self.stamps = Stamps()
        self.cases = 0
        self.summed_ns = 0
        self.first_barrier_ns = 0
        self.last_row_ns = 0

    def run(self, blocks: Sequence[Sequence[Case]]) -> None:
        """All blocks in their order; a channel is opened once for each."""
        for block in blocks:
            self.run_block(block)

    def run_block(self, cases: Sequence[Case]) -> None:
        first = cases[0]
        kind = load_path(known()[first.channel], first.channel)
        self.rendezvous.barrier()
        self.first_barrier_ns = self.first_barrier_ns or _native.now_ns()
        before = _native.now_ns()
        channel = self.open(kind, first)
        about: dict[str, Any] = {"setup_ns": _native.now_ns() - before}
        try:
            for case in cases:
                self.run_case(case, channel, about)
        finally:
            channel.close()

    def open(self, kind: type[Channel], case: Case) -> Channel:
        try:
            return kind.open(self.world, self.rendezvous, open_options(kind, case))
        except ImportError as error:  # installed, but broken
            raise ChannelUnavailable(f"channel {case.channel} cannot run here: {error}") from None

    def run_case(self, case: Case, channel: Channel, about: dict[str, Any]) -> None:
        run = self.run_of(case, channel)
        share = run.run()
        if "affinity" not in about:  # once a block, when all threads have started
            about.update(
                affinity=data_masks(channel.threads, self.harness_threads),
                describe=channel.describe(),
            )
        mine = {**as_json(share), **about, "peak_rss_bytes": peak_rss_bytes(Tree())}
        shares: list[Any] = self.rendezvous.allgather(mine)
        if self.world.rank == 0:
            record = self.record(case, channel, run, shares)
            if self.sink is not None:
                self.sink.case(record)
            self.show(record)
            self.summed_ns += max(int(each["summed_ns"]) for each in shares)
        self.cases += 1
        self.last_row_ns = _native.now_ns()

    def run_of(self, case: Case, channel: Channel) -> CaseRun | BrokerRun | KafkaRun:
        """The passes of this case."""
        if case.broker is None:
            save = self._save if self.save_samples else None
            return CaseRun(case, channel, self.rendezvous, self.world.rank, self.stamps, save)
        if channel.name == "kafka":
            from commbench.harness.kafka.case import KafkaRun

            cluster = cast("KafkaChannel", channel)
            return KafkaRun(case, cluster, self.rendezvous, self.world.rank)
        from commbench.harness.broker import BrokerRun

        records = self._save_records if self.save_samples else None
        return BrokerRun(case, channel, self.rendezvous, self.world.rank, records)

    def record(
        self,
        case: Case,
        channel: Channel,
        run: CaseRun | BrokerRun | KafkaRun,
        shares: Sequence[Any],
    ) -> Record:
        """The case's line in the results file, from the shares of all ranks."""
        measured = combine(case, shares)
        kind = benchmark(case.benchmark)
        record = make_case_record(
            case.key(),
            measured,
            percentiles=self.most_percentiles(case),
            loop="native" if run.native else "python",
            estimator=kind.estimator(case.rtt),
            delivery=delivery(case, channel),
            validated=True,
            validated_messages=sum(each["validated"] for each in shares),
            validation=case.validation,
            launch=self.launch,
            order=case.order,
            setup_ns=max(each["setup_ns"] for each in shares),
            clock={"name": CLOCK, "resolution_ns": 1, "overhead_ns": clock_overhead_ns()},
            blocks=max(each["blocks"] for each in shares),
            channel_info=shares[0]["describe"],
            affinity=[each["affinity"] for each in shares],
            peak_rss_bytes=[each["peak_rss_bytes"] for each in shares],
            warnings=[],
        )
        if case.ps is not None:
            record["rpc"] = throughput(shares)
            if case.ps.mode != "echo":
                record["work"] = work(case.ps, shares)
        if case.broker is not None:
            from commbench.harness.broker_record import broker_fields, kafka_fields

            fields = kafka_fields if channel.name == "kafka" else broker_fields
            record |= fields(case.broker, record, shares, self.percentiles)
        record["warnings"] = [*record["warnings"], *warnings(record)]
        return record

    def most_percentiles(self, case: Case) -> tuple[float, ...]:
        if case.broker is None:
            return tuple(self.percentiles)
        from commbench.harness.broker_record import MOST_PERCENTILES

        return (*self.percentiles, *MOST_PERCENTILES)

    def _save(self, start: Int64Array, end: Int64Array) -> None:
        if self.sink is not None:
            self.sink.save_samples(self.cases, start, end, None)

    def _save_records(self, intended: Int64Array, start: Int64Array, end: Int64Array) -> None:
        if self.sink is not None:
            self.sink.save_samples(self.cases, start, end, intended)


def open_options(kind: type[Channel], case: Case) -> dict[str, str]:
    """All options of the channel for this case; its mode is one of them where there are two."""
    options = kind.check_options(case.options)
    if Capability.SERIALIZED in kind.capabilities:
        options["mode"] = case.mode
    return options


def delivery(case: Case, channel: Channel) -> str:
    """request | one-way | acked (a channel that answers each message of a window)."""
    if not benchmark(case.benchmark).windowed:
        return "request"
    return "one-way" if Capability.ONE_WAY in channel.capabilities else "acked"


def as_json(share: Share) -> dict[str, Any]:
    """As JSON, for the way to rank 0."""
    plain = {each.name: getattr(share, each.name) for each in fields(share)}
    return {**plain, "histogram": share.histogram.to_json()}


def combine(case: Case, shares: Sequence[Any]) -> Measured:
    """All ranks together: totals over the longest elapsed time, samples of every asker."""
    histogram = Histogram()
    for each in shares:
        histogram.merge(Histogram.from_json(each["histogram"]))
    messages = sum(each["messages"] for each in shares)
    return Measured(
        histogram=histogram,
        elapsed_ns=max(each["elapsed_ns"] for each in shares),
        operations=sum(each["operations"] for each in shares),
        messages=messages,
        nbytes=sum(each["nbytes"] for each in shares),
    )


def work(ps: PsSpec, shares: Sequence[Any]) -> Record:
    """What the servers did in the steps that count: per float32 one addition, 4 bytes of gradient
    read, 4 of the accumulator read and 4 written. Apart, what their channels and framing copied; an
    ``async`` answer is a copy of these 4, too."""
    elements = sum(each["elements"] for each in shares)
    copied = sum(each["copied"] for each in shares)
    copied += 4 * elements if ps.mode == "async" else 0
    return {"flops": elements, "bytes": 12 * elements, "copied_bytes": copied}


def throughput(shares: Sequence[Any]) -> Record:
    """Calls while every worker was issuing: all of them, and those of each worker by rank."""
    interval_ns = max(each["issuing_ns"] for each in shares)
    calls = [each["issued"] for each in shares if each["operations"]]
    return {
        "interval_ns": interval_ns,
        "calls": sum(calls),
        "per_s": per_second(sum(calls), interval_ns),
        "worker_per_s": [per_second(each, interval_ns) for each in calls],
        "bytes_per_s": per_second(sum(each["issued_nbytes"] for each in shares), interval_ns),
    }


def warnings(record: Record) -> list[str]:
    """What makes this case doubtful, and what to do."""
    found = []
    median = record["latency_ns"]["p50"]
    overhead = record["clock"]["overhead_ns"]
    if median is not None and overhead > _TIMER_SHARE * median:
        found.append(
            f"reading the clock costs {overhead:.0f} ns of a sample of {median:.0f} ns; "
            "take a larger message or read the rate of a whole run (bandwidth, message-rate)"
        )
    if "rpc" in record and not record["rpc"]["interval_ns"]:
        found.append(
            "the workers were never all issuing at once, so there is no RPC/s; "
            "take more iterations (-i) or a duration (-D)"
        )
    return found


def harness_floor_ns(loop: str) -> float:
    """Median of a 1 B request over loopback, ns: what the harness itself adds to a round trip."""
    case = Case(
        benchmark="latency",
        channel="loopback",
        mode="non-serialized",
        payload=PayloadSpec("contiguous", (1,)),
        ranks=1,
        window=1,
        options={},
        iterations=2000,
        warmup=100,
        loop=loop,
        rtt=True,
    )
    channel = LoopbackChannel(LoopbackChannel.check_options({}))
    share = CaseRun(case, channel, _Alone(), 0, Stamps(4096)).run()
    return float(share.histogram.quantile(0.5) or 0)


class _Alone:
    """The rendezvous of a single rank."""

    stop = _native.StopFlag()

    def barrier(self, timeout_s: float) -> None:
        """Nobody to wait for."""

    def allgather(self, value: int, timeout_s: float) -> list[object]:
        return [value]
