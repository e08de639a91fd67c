"""What is said to a broker and what it answers, as ``native/broker/protocol.h`` has it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from commbench.channels.base import Channel, Exchange
from commbench.errors import Interrupted
from commbench.payloads.buffers import Message

PRODUCE, FETCH, OFFSETS, END = range(4)
REQUEST = struct.Struct(">ihhii")  # length, api, acks, correlation, partition
FETCH_BODY = struct.Struct(">qii")  # offset, most bytes, reserved
ANSWER = struct.Struct(">iihhiqq")  # length, correlation, error, flags, partition, offset, mark
ENDED = 1
TICK_S = 0.1  # no wait is longer, so that the stop flag is seen

OK, OUT_OF_RANGE, CORRUPT, UNKNOWN_PARTITION, NOT_LEADER = 0, 1, 2, 3, 6
TOO_LARGE, INVALID_ACKS, UNSUPPORTED, INVALID, STORAGE = 10, 21, 35, 42, 56
NAMES = {
    OUT_OF_RANGE: "OFFSET_OUT_OF_RANGE",
    CORRUPT: "CORRUPT_MESSAGE",
    UNKNOWN_PARTITION: "UNKNOWN_TOPIC_OR_PARTITION",
    NOT_LEADER: "NOT_LEADER_OR_FOLLOWER",
    TOO_LARGE: "MESSAGE_TOO_LARGE",
    INVALID_ACKS: "INVALID_REQUIRED_ACKS",
    UNSUPPORTED: "UNSUPPORTED_VERSION",
    INVALID: "INVALID_REQUEST",
    STORAGE: "KAFKA_STORAGE_ERROR",
}


@dataclass(slots=True)
class Request:
    """What arrived; ``error`` when its length lies. ``body`` is in its slot."""

    api: int
    acks: int
    correlation: int
    partition: int
    body: memoryview
    error: int = OK
    offset: int = -1
    most: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    correlation: int
    error: int
    flags: int
    partition: int
    offset: int
    high_watermark: int
    body: memoryview


class PythonCase:
    """A channel made ready for one pass by its Python verbs, as _native.Prepared is by C."""

    def __init__(self, channel: Channel, exchange: Exchange) -> None:
        self.channel = channel
        self.exchange = exchange
        channel.prepare(exchange)

    def copied(self) -> int:
        return self.channel.copied()

    def finish(self) -> None:
        self.channel.finish()

    def check_stop(self) -> None:
        if self.exchange.stop.is_set:
            raise Interrupted("the run was stopped")


def read_request(message: Message) -> Request | None:
    """None when it has no header."""
    if message.nbytes < REQUEST.size:
        return None
    view = message.views[0]
    length, api, acks, correlation, partition = REQUEST.unpack_from(view)
    found = Request(api, acks, correlation, partition, view[REQUEST.size : message.nbytes])
    short = api == FETCH and found.body.nbytes != FETCH_BODY.size
    if length + 4 != message.nbytes or short:
        found.error = INVALID
    elif api == FETCH:
        found.offset, found.most, _ = FETCH_BODY.unpack(found.body)
    return found


def put_request(
    slot: Message, api: int, acks: int, correlation: int, partition: int, nbody: int
) -> Message:
    """The header of a request whose body stands behind it; the message."""
    length = REQUEST.size - 4 + nbody
    REQUEST.pack_into(slot.views[0], 0, length, api, acks, correlation, partition)
    return _first(slot, REQUEST.size + nbody)


def put_fetch(slot: Message, correlation: int, partition: int, offset: int, most: int) -> Message:
    FETCH_BODY.pack_into(slot.views[0], REQUEST.size, offset, most, 0)
    return put_request(slot, FETCH, 0, correlation, partition, FETCH_BODY.size)


def read_answer(slot: Message, nbytes: int) -> Answer | None:
    """None when these bytes are no answer."""
    view = slot.views[0]
    if nbytes < ANSWER.size or ANSWER.unpack_from(view)[0] + 4 != nbytes:
        return None
    _, correlation, error, flags, partition, offset, mark = ANSWER.unpack_from(view)
    body = view[ANSWER.size : nbytes]
    return Answer(correlation, error, flags, partition, offset, mark, body)


def put_answer(
    slot: Message, correlation: int, error: int, flags: int, partition: int, offset: int,
    high_watermark: int, nbody: int,
) -> Message:  # fmt: skip
    length = ANSWER.size - 4 + nbody
    ANSWER.pack_into(
        slot.views[0], 0, length, correlation, error, flags, partition, offset, high_watermark
    )
    return _first(slot, ANSWER.size + nbody)


def _first(slot: Message, nbytes: int) -> Message:
    message = slot.cut(nbytes)
    message.revision += 1
    return message
