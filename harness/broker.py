"""One case of the benchmark ``broker`` on one rank: a verified pass, then the timed one.

Both passes run the same C code (``native/broker``). In a pass a rank is a broker until every
producer and consumer has ended, a producer for its records, or a consumer until the producers have
ended and it has read everything. Producers read back what they produced in the verified pass, under
``-c`` in both, and check it record by record.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from commbench import _native
from commbench.benchmarks import BrokerSpec
from commbench.channels.base import Capability, Channel
from commbench.errors import CommbenchError, TransferError, UsageError
from commbench.harness.broker_client import PythonClient
from commbench.harness.broker_logs import LogFolders
from commbench.harness.broker_passes import PINGS, Pass, timed_pass, verified_pass
from commbench.harness.broker_python import PythonServer
from commbench.harness.broker_samples import MOST, Kept, SaveRecords, hand_in
from commbench.harness.broker_slots import exchange_of
from commbench.harness.broker_wire import PythonCase
from commbench.harness.loops import failure, prepare_native
from commbench.harness.measure import PATIENCE_S, Meeting, Share, uses_native
from commbench.harness.timeline import clock_identity, gather_span
from commbench.histogram import Histogram
from commbench.plan import Case

FETCH_WAIT_NS = 10_000_000
EXTRA_S = 2.0  # clients wait longer than brokers, whose reason is the better one
FILL, STAMP, ANY_ORDER, UNORDERED, EAGER = 1, 2, 4, 8, 16  # CB_PRODUCE_...
DESIGN = {"eager-flush": 1, "buffer-pool": 2, "overlapped": 4, "polling": 16}  # CB_EAGER_FLUSH, ...
REORDER_BROKER = 8
ACKS = {"0": 0, "1": 1, "all": -1}

Prepared: TypeAlias = _native.Prepared | PythonCase
Client: TypeAlias = _native.BrokerClient | PythonClient
Server: TypeAlias = _native.BrokerServer | PythonServer


class BrokerRun:
    """Runs one case on one rank; all ranks must do so together. The counterpart of ``CaseRun``."""

    def __init__(
        self,
        case: Case,
        channel: Channel,
        rendezvous: Meeting,
        rank: int,
        save: SaveRecords | None = None,
    ) -> None:
        assert case.broker is not None, "a case of broker has a spec"
        self.case = case
        self.spec: BrokerSpec = case.broker
        self.channel = channel
        self.rendezvous = rendezvous
        self.rank = rank
        self.role = self.spec.role(rank)
        self.native = uses_native(case, channel)
        if not self.native and "polling" in self.spec.parts:
            raise UsageError(
                f"--design-option polling=on: the loop over {channel.name} is Python, which has no "
                f"polling thread; allowed: polling=off"
            )
        self.share = Share()
        self.request_ns = 0
        self.refusal = ""  # records of this producer were refused: why
        self.save = save
        self.stamps = Kept(0)  # of the records of the timed pass, where they are wanted
        self.kept: object = None  # what the engine may look at until the case is finished

    def run(self) -> Share:
        """Collective. Raises PayloadMismatch, PeerLost, TransferError, Interrupted, UsageError."""
        self.channel.begin("native" if self.native else "python")
        with LogFolders(self.spec, self.rank, self.case.log_dir) as folders:
            self.one_pass(verified_pass(self.case), folders)
            if self.spec.window:
                self.one_pass(Pass(0, 0, 0, 0, verify=False, pings=PINGS), folders)
            self.share = Share(validated=self.share.validated)
            each = timed_pass(self.case, self.spec, self.rank)
            if self.save is not None and self.spec.is_producer(self.rank):
                self.stamps = Kept(min(each.count - each.warmup, MOST) if each.count else MOST)
            self.one_pass(each, folders)
            self.share.blocks = 1
        self.save_records()
        return self.share

    # -- passes

    def one_pass(self, each: Pass, folders: LogFolders) -> None:
        """Collective."""
        logs = folders.open()
        prepared = self.prepare()
        self.rendezvous.barrier(PATIENCE_S)
        origin = _native.now_ns()
        before = resource.getrusage(resource.RUSAGE_SELF)
        copied = prepared.copied() if prepared is not None else 0
        if prepared is not None:
            self.take_part(each, prepared, logs)
            self.share.copied = prepared.copied() - copied
        self.channel.settle(self.role.peers, self.case.timeout_s)
        self.count_cpu(before, resource.getrusage(resource.RUSAGE_SELF))
        if not each.pings:
            self.count_time(origin)
        folders.close(self.share.broker)
        if prepared is not None:
            prepared.finish()
        self.rendezvous.barrier(PATIENCE_S)

    def take_part(self, each: Pass, prepared: Prepared, logs: Sequence[_native.Log | None]) -> None:
        spec = self.spec
        if spec.is_broker(self.rank):
            self.serve(prepared, logs)
            return
        client = self.client(prepared)
        self.kept = client
        if spec.is_producer(self.rank):
            self.produce(each, client)
        else:
            self.consume(each, client)
        self.check(client.end())

    def patience_ns(self, extra_s: float = 0.0) -> int:
        return int((self.case.timeout_s + extra_s) * 1e9)

    # -- getting ready

    def client(self, prepared: Prepared) -> Client:
        patience_ns = self.patience_ns(EXTRA_S)
        if isinstance(prepared, PythonCase):
            return PythonClient(prepared, self.spec, self.rank, patience_ns)
        return _native.BrokerClient(prepared, shape(self.spec), self.rank, patience_ns)

    def prepare(self) -> Prepared | None:
        """The slots of this rank, made known to the channel; None on a rank that takes no part."""
        if not self.role.peers:
            return None
        exchange = exchange_of(self.spec, self.rank, self.case.nbytes, self.rendezvous.stop)
        if not self.native:
            return PythonCase(self.channel, exchange)
        return prepare_native(self.channel, exchange)

    # -- roles

    def server(self, prepared: Prepared, logs: Sequence[_native.Log | None]) -> Server:
        spec, patience_ns = self.spec, self.patience_ns()
        if isinstance(prepared, PythonCase):
            return PythonServer(prepared, logs, spec, self.rank, patience_ns, FETCH_WAIT_NS)
        return _native.BrokerServer(
            prepared,
            logs,
            shape(spec),
            self.rank,
            design_bits(spec),
            spec.handler_threads(self.rank, len(os.sched_getaffinity(0))),
            spec.channel_buffer,
            patience_ns,
            FETCH_WAIT_NS,
        )

    def serve(self, prepared: Prepared, logs: Sequence[_native.Log | None]) -> None:
        spec = self.spec
        server = self.server(prepared, logs)
        self.kept = server
        facts = server.serve()
        self.check(facts)
        if facts["refused"] and spec.acks == "0":
            raise TransferError(
                f"{facts['refused']} requests with acks=0 were refused by this broker"
            )
        cpus = len(os.sched_getaffinity(0))
        threads = spec.handler_threads(self.rank, cpus)
        self.share.broker.update(role="broker", cpus=cpus, handlers=threads, **numbers(facts))

    def produce(self, each: Pass, client: Client) -> None:
        spec, size = self.spec, self.case.nbytes
        partitions = list(range(spec.partitions))
        offsets = client.offsets(partitions) if each.verify else []
        if each.pings:
            self.ping(each, client)
            return
        times = [_native.Times() for _ in range(4)]
        schedule: Any = address(each.schedule) if self.native else each.schedule
        stamps: Any = self.stamps.addresses if self.native else self.stamps
        facts = client.produce(
            batches=spec.batches(size),
            acks=ACKS[spec.acks],
            record_nbytes=size,
            batch_nbytes=spec.batch_nbytes(size),
            linger_ns=spec.linger_ns,
            max_in_flight=spec.in_flight,
            count=each.count,
            warmup=each.warmup,
            duration_ns=each.duration_ns,
            warmup_ns=each.warmup_ns,
            schedule=schedule,
            seed=self.case.payload.seed,
            flags=self.flags(each),
            latency=times[0],
            delay=times[1],
            response=times[2],
            window=spec.window,
            windows=times[3],
            stamps=stamps,
            keep=self.stamps.most,
        )
        if facts["error"] == errno.EREMOTEIO:
            self.refusal = str(facts["message"])  # raised when all have heard of it
            return
        self.check(facts)
        self.fold(facts, times, each.schedule is not None)
        if each.verify:
            self.read_back(client, partitions, offsets)

    def flags(self, each: Pass) -> int:
        """What the producer's loop is told, see ``native/broker/broker.h``."""
        spec = self.spec
        ordered = Capability.UNORDERED not in self.channel.capabilities
        client_order = "overlapped" in spec.parts and spec.reorder == "client"
        flags = FILL if each.verify else 0
        flags |= STAMP if spec.consumers else 0
        flags |= 0 if ordered and not client_order else ANY_ORDER
        return flags | (EAGER if "eager-flush" in spec.parts else 0)

    def fold(self, facts: Mapping[str, Any], times: Sequence[_native.Times], planned: bool) -> None:
        """What a producer's pass gave, into this rank's share."""
        latency, delay, response, windows = (Histogram.from_json(one.to_json()) for one in times)
        share = self.share
        share.histogram = latency
        share.operations = share.messages = facts["counted"]
        share.nbytes = facts["counted_nbytes"]
        share.summed_ns = max(0, facts["last_ns"] - facts["first_ns"])
        share.broker.update(role="producer", **numbers(facts))
        if planned:
            share.broker.update(delay=delay.to_json(), response=response.to_json())
        if self.spec.window:
            share.broker.update(windows=windows.to_json(), request_ns=self.request_ns)

    def save_records(self) -> None:
        """Collective, when they are wanted: the stamps of all producers."""
        if self.save is None:
            return
        counted = self.share.operations if self.spec.is_producer(self.rank) else 0
        mine = self.stamps.first(counted)
        self.share.broker["unsaved"] = counted - mine.shape[1]
        for intended, start, end in hand_in(self.rendezvous, self.rank, mine):
            self.save(intended, start, end)

    def ping(self, each: Pass, client: Client) -> None:
        """The first producer alone: L of the tail model."""
        if self.rank == self.spec.brokers:
            times = _native.Times()
            self.check(client.round_trips(each.pings, times))
            self.request_ns = Histogram.from_json(times.to_json()).at_rank(each.pings // 2)

    def read_back(self, client: Client, partitions: Sequence[int], offsets: Sequence[int]) -> None:
        """Each record of this producer is there once, in order, with its content."""
        for partition, offset in zip(partitions, offsets, strict=True):
            facts = client.consume(
                partitions=[partition],
                offsets=[offset],
                own=True,
                record_nbytes=self.case.nbytes,
                seed=self.case.payload.seed,
                verify=True,
                stamped=self.spec.consumers > 0,
                end_to_end=None,
            )
            self.check(facts)
            self.share.validated += facts["validated"]

    def consume(self, each: Pass, client: Client) -> None:
        partitions = self.spec.consumed(self.rank)
        times = _native.Times()
        facts = client.consume(
            partitions=partitions,
            offsets=client.offsets(partitions),
            own=False,
            record_nbytes=self.case.nbytes,
            seed=self.case.payload.seed,
            verify=each.verify,
            stamped=True,
            end_to_end=times,
        )
        self.check(facts)
        self.share.validated += facts["validated"]
        self.share.broker.update(role="consumer", end_to_end=times.to_json(), **numbers(facts))

    def check(self, facts: Mapping[str, Any]) -> None:
        """Raise what went wrong in native code."""
        if facts["error"]:
            raise told(facts, self.channel.name)

    # -- sums

    def count_cpu(self, before: Any, after: Any) -> None:
        self.share.broker["cpu_ns"] = round(
            1e9 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        )

    def hear_of_refusals(self) -> None:
        """Collective: nobody leaves before all know, or others would only see it gone."""
        lines = [str(line) for line in self.rendezvous.allgather(self.refusal, PATIENCE_S)]
        first = next((rank for rank, line in enumerate(lines) if line), None)
        if first is not None:
            error = TransferError(lines[first])
            error.remote = first != self.rank
            raise error

    def count_time(self, origin: int) -> None:
        """Collective: from the first start of all producers that counts to the last end."""
        facts = self.share.broker
        mine = (facts["first_ns"], facts["last_ns"]) if facts.get("counted") else None
        asked = self.rendezvous.allgather(mine is not None, PATIENCE_S)
        self.hear_of_refusals()
        self.share.broker["clock"] = clock_identity()
        if any(asked):
            self.share.elapsed_ns = gather_span(
                self.rendezvous, origin, mine, PATIENCE_S
            ).elapsed_ns
        elif self.spec.is_producer(self.rank):
            raise TransferError("no record was acknowledged after the warm-up; take a longer -D")


def address(schedule: NDArray[np.int64] | None) -> int:
    return 0 if schedule is None else int(schedule.ctypes.data)


def design_bits(spec: BrokerSpec) -> int:
    """As ``native/broker/broker.h`` has them."""
    parts = sum(DESIGN[name] for name in spec.parts)
    return parts | (REORDER_BROKER if spec.reorder == "broker" else 0)


def shape(spec: BrokerSpec) -> tuple[int, int, int, int, int]:
    """As ``cb_cluster`` has it."""
    return (spec.brokers, spec.producers, spec.consumers, spec.partitions, spec.replication)


def numbers(facts: Mapping[str, Any]) -> dict[str, int]:
    """What was counted, without how it ended."""
    return {name: each for name, each in facts.items() if isinstance(each, int)}


def told(facts: Mapping[str, Any], channel: str) -> CommbenchError:
    """The exception of what native code said; its line names the rank that it is about."""
    code, peer, line = facts["error"], facts["peer"], facts["message"]
    if code == errno.EREMOTEIO:
        return TransferError(line)
    named = peer < 0 or f"rank {peer} " in line
    return failure(code, f"channel {channel}: {line}" + ("" if named else f" (peer: rank {peer})"))
