"""Reading records back: that what was acknowledged is there, byte for byte."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from commbench.channels.kafka_records import STAMP_NBYTES, Places, Values
from commbench.errors import Interrupted, TransferError
from commbench.harness.stop import StopFlag

PATIENCE_S = 20.0  # longest wait for the next record
_LOOK_S = 0.2


def read_back(
    settings: Mapping[str, str],
    topic: str,
    values: Values,
    places: Places,
    stop: StopFlag,
    stamped: bool = False,
) -> int:
    """Read the records of a block and compare every byte (``stamped``: but the stamp); how many.

    Where the broker did not say their offsets (acks=0), they are looked for in the whole of their
    partitions. Raises PayloadMismatch, TransferError, Interrupted.
    """
    partitions, offsets = places.partition.tolist(), places.offset.tolist()
    told = min(offsets, default=0) >= 0
    first: dict[int, int] = {}
    for partition, offset in zip(partitions, offsets, strict=True):
        first[partition] = min(first.get(partition, offset), offset) if told else 0
    with _Reader(settings, topic, first, stop) as reader:
        if told:
            wanted = enumerate(zip(partitions, offsets, strict=True))
            _by_offset(reader, values, {place: index for index, place in wanted}, stamped)
        else:
            _by_content(reader, values, len(offsets), STAMP_NBYTES if stamped else 0)
    return len(offsets)


def _by_offset(
    reader: _Reader, values: Values, left: dict[tuple[int, int], int], stamped: bool
) -> None:
    while left:
        partition, offset, value = reader.next()
        index = left.pop((partition, offset), None)
        if index is not None:
            values.verify(index, value, stamped)


def _by_content(reader: _Reader, values: Values, count: int, skip: int) -> None:
    left = Counter(bytes(values.view(index)[skip:]) for index in range(count))
    while left:
        value = reader.next()[2][skip:]
        if value in left:
            left[value] -= 1
            left += Counter()  # those that are 0 go


class _Reader:
    """Reads partitions, each from its own offset."""

    def __init__(
        self, settings: Mapping[str, str], topic: str, first: Mapping[int, int], stop: StopFlag
    ) -> None:
        from confluent_kafka import Consumer, TopicPartition

        conf: dict[str, Any] = {**settings, "group.id": topic, "log_level": "0"}
        conf |= {"enable.auto.commit": "false", "auto.offset.reset": "earliest"}
        self._consumer = Consumer(conf)
        self._consumer.assign([TopicPartition(topic, each, first[each]) for each in first])
        self._stop = stop

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._consumer.close()

    def next(self) -> tuple[int, int, bytes]:
        """Partition, offset and value of the next record. Raises TransferError when none comes."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            message = self._consumer.poll(_LOOK_S)
            if self._stop.is_set:
                raise Interrupted("the run was stopped")
            if message is None:
                continue
            if (error := message.error()) is not None:
                raise TransferError(f"kafka: reading back failed: {error.str()}")
            partition, offset = message.partition(), message.offset()
            assert partition is not None and offset is not None
            return partition, offset, message.value() or b""
        raise TransferError(
            f"kafka: a record that was acknowledged could not be read back within {PATIENCE_S:g} s"
        )
