"""Producers of the kafka channel: a native loop over librdkafka, and one in Python.

The native one finds librdkafka where confluent_kafka has loaded it, as the mpi channel finds MPI:
no header and no compiler are needed. Both take the same block and write the same stamps.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from commbench import _native
from commbench.channels.kafka_records import STAMP_NBYTES, Delivered, RecordBlock
from commbench.errors import ChannelUnavailable, Interrupted, TransferError, UsageError
from commbench.harness.block import Stamps
from commbench.harness.stop import StopFlag

_LOOK_S = 0.05  # a wait is no longer before the stop flag is looked at
MESSAGE_TIMED_OUT = -192  # RD_KAFKA_RESP_ERR__MSG_TIMED_OUT
_SPIN_NS = 100_000  # an open loop does not sleep closer than this to its next record


class Producer(Protocol):
    """Produces blocks of records into one topic. ``loop``: native or python."""

    loop: str

    def run(self, block: RecordBlock, stamps: Stamps, stop: StopFlag) -> Delivered:
        """Until every record has its delivery report. After one failed no more are produced.

        ``start`` is the call of produce and ``end`` the report; 0 for a record that failed.
        ``intended`` is absolute afterwards, in a closed loop the same as ``start``. Raises
        ChannelUnavailable (credentials), Interrupted, TransferError (nothing came in time).
        """

    def close(self) -> None:
        """Let go of what is in flight and of all connections; may be called twice."""


def library_file() -> str | None:
    """The librdkafka that confluent_kafka has loaded; None when it is linked into it."""
    import confluent_kafka  # noqa: F401 - loads it

    with open("/proc/self/maps", encoding="utf-8") as maps:
        files = {line.split(maxsplit=5)[-1].strip() for line in maps if "librdkafka" in line}
    return min(files, default=None)


def library_version() -> str:
    """The version of librdkafka."""
    import confluent_kafka

    return str(confluent_kafka.libversion()[0])


def open_producer(
    settings: Mapping[str, str], topic: str, loop: str = "auto"
) -> tuple[Producer, str]:
    """A producer for ``loop`` (auto, native, python), and why it is not native where it is not.

    Raises UsageError for a property that librdkafka refuses, and for native where it cannot be.
    """
    if loop == "python":
        return PythonProducer(settings, topic), "--loop python"
    file = library_file()
    reason = "librdkafka is linked into confluent_kafka's module"
    if file is not None:
        try:
            return NativeProducer(file, settings, topic), ""
        except RuntimeError as error:  # a librdkafka without one of the functions
            reason = str(error)
    if loop == "native":
        raise UsageError(f"--loop native: channel kafka has no native loop here: {reason}")
    return PythonProducer(settings, topic), reason


class NativeProducer:
    """The loop of ``native/kafka/producer.c``."""

    loop = "native"

    def __init__(self, file: str, settings: Mapping[str, str], topic: str) -> None:
        try:
            self._producer = _native.KafkaProducer(file, list(settings.items()), topic)
        except ValueError as error:
            raise UsageError(f"kafka: {error}") from None
        self._values: object = None  # librdkafka may refer to them until it is closed

    def run(self, block: RecordBlock, stamps: Stamps, stop: StopFlag) -> Delivered:
        self._values = block.values or self._values
        values, places = block.values, block.places
        outcome = self._producer.run(
            count=block.count,
            records=values.address if values else 0,
            nrecords=values.count if values else 1,
            record_nbytes=values.nbytes if values else 0,
            stride=values.stride if values else 0,
            stamped=block.stamped,
            warmup=block.warmup,
            window=block.window,
            partitions=block.partitions,
            open=block.open,
            duration_ns=round(block.duration_s * 1e9),
            timeout_ns=round(block.timeout_s * 1e9),
            stop=stop.address,
            intended=stamps.intended.ctypes.data,
            start=stamps.start.ctypes.data,
            end=stamps.end.ctypes.data,
            offset=places.offset.ctypes.data if places else 0,
            partition=places.partition.ctypes.data if places else 0,
        )
        _check(outcome.error, outcome.message)
        return Delivered(
            outcome.produced, outcome.acked, outcome.failed, outcome.full, outcome.message
        )

    def close(self) -> None:
        self._producer.close()
        self._values = None


def _check(error: int, message: str) -> None:
    if error == 0:
        return
    if error == errno.EACCES:
        raise ChannelUnavailable(f"kafka: the cluster refuses the credentials: {message}")
    raise (Interrupted if error == errno.ECANCELED else TransferError)(f"kafka: {message}")


class PythonProducer:
    """confluent_kafka's producer, as a Python program uses it."""

    loop = "python"

    def __init__(self, settings: Mapping[str, str], topic: str) -> None:
        from confluent_kafka import KafkaException, Producer

        self._topic = topic
        self._trouble, self._refused = "", False
        conf: dict[str, Any] = {**settings, "error_cb": self._on_error}
        try:
            self._producer = Producer(conf)
        except KafkaException as error:
            raise UsageError(f"kafka: {error.args[0].str()}") from None

    def _on_error(self, error: Any) -> None:
        from confluent_kafka import KafkaError

        self._refused = self._refused or error.code() == KafkaError._AUTHENTICATION
        if error.code() != KafkaError._ALL_BROKERS_DOWN or not self._trouble:
            self._trouble = error.str()

    def run(self, block: RecordBlock, stamps: Stamps, stop: StopFlag) -> Delivered:
        one = _PythonBlock(block, stamps, lambda: self._trouble)
        quiet_since = _native.now_ns()
        while one.done < one.count:
            before, idle = one.acked, one.next == one.done and not one.waiting
            self._produce(one)
            one.look_at_the_time()
            self._producer.poll(one.wait_s())
            if one.acked != before or idle:
                quiet_since = _native.now_ns()
            self._check(one, stop, quiet_since)
        one.finish()
        return Delivered(one.next, one.acked, one.failed, one.full, one.reason)

    def _produce(self, one: _PythonBlock) -> None:
        """One record at most, so that reports are taken as they come."""
        from confluent_kafka import KafkaException

        if not one.may_produce() or one.due_ns() > 0:
            return
        index, block = one.next, one.block
        if not one.waiting:
            one.stamps.start[index] = _native.now_ns()
            one.stamp(index)
        try:
            self._producer.produce(
                self._topic,
                bytes(block.values.view(index)) if block.values else None,
                partition=index % block.partitions if block.partitions else -1,
                on_delivery=partial(one.delivered, index),
            )
        except BufferError:  # the library's queue is full
            one.full += not one.waiting
            one.waiting = True
            return
        except KafkaException as error:
            one.delivered(index, error.args[0], None)
        one.waiting = False
        one.next += 1

    def _check(self, one: _PythonBlock, stop: StopFlag, quiet_since: int) -> None:
        code, what = 0, ""
        if stop.is_set:
            code, what = errno.ECANCELED, "the run was stopped"
        elif self._refused:
            code = errno.EACCES
        elif _native.now_ns() - quiet_since > one.block.timeout_s * 1e9:
            code, what = errno.ETIMEDOUT, f"no acknowledgement within {one.block.timeout_s:g} s"
        if code:
            one.over = True
            self._producer.purge()
            why = self._trouble or one.reason
            _check(code, ": ".join(filter(None, (what, why))))

    def close(self) -> None:
        if hasattr(self, "_producer"):
            self._producer.purge()
            self._producer.poll(0)
            del self._producer


class _PythonBlock:
    """Where a block of the Python loop stands."""

    def __init__(self, block: RecordBlock, stamps: Stamps, trouble: Callable[[], str]) -> None:
        self.block, self.stamps, self.trouble = block, stamps, trouble
        self.next = self.done = self.acked = self.failed = self.full = 0
        self.waiting = self.over = False
        self.reason = ""
        self.count = block.count
        stamps.start[: block.count] = stamps.end[: block.count] = 0
        origin = _native.now_ns()
        self.until = origin + round(block.duration_s * 1e9) if block.duration_s else 0
        if block.open:
            stamps.intended[: block.count] += origin

    def may_produce(self) -> bool:
        flying = self.next - self.done
        return self.next < self.count and not 0 < self.block.window <= flying

    def stamp(self, index: int) -> None:
        """Its start, for consumers."""
        if self.block.stamped and self.block.values:
            start = 0 if index < self.block.warmup else int(self.stamps.start[index])
            self.block.values.view(index)[:STAMP_NBYTES] = start.to_bytes(STAMP_NBYTES, "little")

    def look_at_the_time(self) -> None:
        """When it is up, or a record failed, nothing more is produced."""
        if self.failed or (self.until and _native.now_ns() >= self.until):
            self.count, self.waiting = self.next, False

    def due_ns(self) -> int:
        """ns until the next record is due."""
        return int(self.stamps.intended[self.next]) - _native.now_ns() if self.block.open else 0

    def wait_s(self) -> float:
        if not self.may_produce() or self.waiting:
            return _LOOK_S
        return min(_LOOK_S, max(0, self.due_ns() - _SPIN_NS) / 1e9)

    def delivered(self, index: int, error: Any, message: Any) -> None:
        """The delivery report of record ``index``."""
        now = _native.now_ns()
        if self.over:
            return
        self.done += 1
        if error is not None:
            self.failed += 1
            why = self.trouble() if error.code() == MESSAGE_TIMED_OUT else ""
            self.reason = self.reason or ": ".join(filter(None, (str(error.str()), why)))
            return
        self.acked += 1
        self.stamps.end[index] = now
        if self.block.places is not None:
            self.block.places.partition[index] = message.partition()
            offset = message.offset()
            self.block.places.offset[index] = -1 if offset is None else offset

    def finish(self) -> None:
        if not self.block.open:
            count = self.block.count
            self.stamps.intended[:count] = self.stamps.start[:count]
