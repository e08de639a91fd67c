"""Consumers of the kafka channel: partitions read by offset, in a native loop or in Python.

They begin at the beginning of their partitions and see every offset once and in order, or they say
that they did not. A record begins with the time at which it was produced, so its age is known.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from commbench import _native
from commbench.channels.kafka_producer import library_file
from commbench.channels.kafka_records import STAMP_NBYTES
from commbench.errors import Interrupted, PayloadMismatch, TransferError, UsageError
from commbench.harness.stop import StopFlag

_LOOK_S = 0.05  # a wait is no longer before the stop flag is looked at
_PATIENCE_S = 10.0  # for the end of a partition


class Consumer(Protocol):
    """Reads partitions of one topic. ``loop``: native or python."""

    loop: str

    def read(
        self,
        until: Sequence[int],
        marks: int,
        record_nbytes: int,
        timeout_s: float,
        stop: StopFlag,
        end_to_end: _native.Times,
    ) -> int:
        """Go on to the offset ``until`` of each partition, or without any until ``marks`` records
        without a value have come in each; how many with one. Their ages go into ``end_to_end``.

        Raises PayloadMismatch, TransferError, Interrupted.
        """

    def close(self) -> None:
        """Let go of all connections; may be called twice."""


def open_consumer(
    settings: Mapping[str, str], topic: str, partitions: Sequence[int], native: bool
) -> Consumer:
    """``settings``: librdkafka's, of a connection. Raises UsageError for one that it refuses."""
    conf = {**settings, "group.id": topic, "log_level": "0", "enable.auto.commit": "false"}
    conf["auto.offset.reset"] = "error"
    file = library_file()
    if native and file is not None:
        return NativeConsumer(file, conf, topic, partitions)
    return PythonConsumer(conf, topic, partitions)


class NativeConsumer:
    """The loop of ``native/kafka/consumer.c``."""

    loop = "native"

    def __init__(
        self, file: str, settings: Mapping[str, str], topic: str, partitions: Sequence[int]
    ) -> None:
        try:
            self._consumer = _native.KafkaConsumer(file, list(settings.items()), topic, partitions)
        except ValueError as error:
            raise UsageError(f"kafka: {error}") from None

    def read(
        self,
        until: Sequence[int],
        marks: int,
        record_nbytes: int,
        timeout_s: float,
        stop: StopFlag,
        end_to_end: _native.Times,
    ) -> int:
        code, records, message = self._consumer.read(
            until=until,
            marks=marks,
            record_nbytes=record_nbytes,
            timeout_ns=round(timeout_s * 1e9),
            stop=stop.address,
            end_to_end=end_to_end,
        )
        if code:
            raise _KINDS.get(code, TransferError)(f"kafka: {message}")
        return records

    def close(self) -> None:
        self._consumer.close()


_KINDS = {errno.ECANCELED: Interrupted, errno.EBADMSG: PayloadMismatch}


class PythonConsumer:
    """confluent_kafka's consumer, as a Python program uses it."""

    loop = "python"

    def __init__(self, settings: Mapping[str, str], topic: str, partitions: Sequence[int]) -> None:
        from confluent_kafka import Consumer as Library
        from confluent_kafka import KafkaException, TopicPartition

        conf: dict[str, Any] = dict(settings)
        try:
            self._consumer = Library(conf)
        except KafkaException as error:
            raise UsageError(f"kafka: {error.args[0].str()}") from None
        self._consumer.assign([TopicPartition(topic, each, 0) for each in partitions])
        self._next = dict.fromkeys(partitions, 0)
        self._closed = False

    def read(
        self,
        until: Sequence[int],
        marks: int,
        record_nbytes: int,
        timeout_s: float,
        stop: StopFlag,
        end_to_end: _native.Times,
    ) -> int:
        ends = dict(zip(self._next, until, strict=True)) if until else {}
        left = dict.fromkeys(self._next, marks)
        records, quiet_since = 0, _native.now_ns()
        while not all(
            self._next[each] >= ends[each] if ends else left[each] == 0 for each in self._next
        ):
            message = self._consumer.poll(_LOOK_S)
            now = _native.now_ns()
            if stop.is_set:
                raise Interrupted("kafka: the run was stopped")
            if message is None:
                if now - quiet_since > timeout_s * 1e9:
                    raise TransferError(f"kafka: no record came within {timeout_s:g} s")
                continue
            quiet_since = now
            partition, value = self._place(message), message.value()
            if value is None:
                left[partition] -= 1
                continue
            start = _start(partition, self._next[partition] - 1, value, record_nbytes)
            if start:
                end_to_end.add(now - start)
            records += 1
        return records

    def _place(self, message: Any) -> int:
        """Its partition, when it is the next one there."""
        if (error := message.error()) is not None:
            raise TransferError(f"kafka: reading failed: {error.str()}")
        partition, offset = int(message.partition()), message.offset()
        if offset != self._next[partition]:
            raise PayloadMismatch(
                f"kafka: partition {partition}: after offset {self._next[partition] - 1} came "
                f"{offset}: records were lost, doubled or reordered"
            )
        self._next[partition] += 1
        return partition

    def close(self) -> None:
        if not self._closed:
            self._consumer.close()
        self._closed = True


def _start(partition: int, offset: int, value: bytes, record_nbytes: int) -> int:
    if len(value) != record_nbytes:
        raise PayloadMismatch(
            f"kafka: partition {partition}: the record at offset {offset} has {len(value)} bytes "
            f"instead of {record_nbytes}"
        )
    return int.from_bytes(value[:STAMP_NBYTES], "little")


def ends(settings: Mapping[str, str], topic: str, partitions: Sequence[int]) -> list[int]:
    """Where these partitions end now. Raises TransferError."""
    from confluent_kafka import Consumer as Library
    from confluent_kafka import KafkaException, TopicPartition

    conf: dict[str, Any] = {**settings, "group.id": topic, "log_level": "0"}
    asked = Library(conf)
    try:
        places = [TopicPartition(topic, each) for each in partitions]
        found = [asked.get_watermark_offsets(each, timeout=_PATIENCE_S) for each in places]
    except KafkaException as error:
        raise TransferError(f"kafka: the end of a partition: {error.args[0].str()}") from None
    finally:
        asked.close()
    return [high for _, high in found]
