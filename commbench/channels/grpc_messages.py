"""What the grpc channel hands to grpcio for a message, and what it takes back.

``non-serialized``: the buffers joined into one bytes object (grpcio has no iovec), with no
serializer on either end. ``serialized``: a protobuf message ``repeated bytes buffers = 1``, which
grpcio runs through protobuf on both ends of every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from commbench.errors import TransferError
from commbench.payloads.buffers import Message, scatter

Wire = Any  # what grpcio takes and gives: bytes, or a protobuf message
Serializer = Callable[[Wire], bytes] | None
Deserializer = Callable[[bytes], Wire] | None
USER_AGENT = "user-agent"  # the metadata key that carries credential_of()


def credential_of(token: str, rank: int) -> str:
    """Who calls, and that it belongs to this run: the first word of the call's user agent.

    gRPC sends that piece of metadata anyway, so the check costs nothing; a key of its own was
    measured to cost 10 us of 330 us for each call.
    """
    return f"{token}:{rank}"


class Result(Protocol):
    """A call that ended."""

    def result(self) -> Wire:
        """What came back; raises grpc.RpcError."""


@dataclass(eq=False, slots=True)
class Posted:
    """A ``post`` on its way, and its result when it is back."""

    peer: int
    ticket: int
    reply: Message | None
    outcome: Result | None = None


class Codec(Protocol):
    """``serialize`` and ``deserialize`` are for grpcio, on both ends of a call."""

    serialize: Serializer
    deserialize: Deserializer
    empty: Wire
    copied: int  # payload bytes in all, see Channel.copied()

    def keep(self, requests: Sequence[Message], incoming: Sequence[Message] = ()) -> None:
        """Requests are sent again and again from now on, what came may be sent back as it is: what
        they are made of or into may be kept."""

    def encode(self, message: Message) -> Wire:
        """A copy of the content; the message may be written again at once."""

    def answer(self, message: Message) -> Wire:
        """The same of an answer, which is often the request that came."""

    def decode(self, wire: Wire, slot: Message) -> int:
        """Copy into the slot; bytes copied. Raises TransferError when it does not fit."""


_NOTHING = (-1, b"")  # revision and content of a message that was never made


class RawCodec:
    """Bytes as they are.

    An application that has one buffer has it as bytes already: those of a single-buffer request are
    kept until it is filled anew, those that came until the answer. Joining several buffers is part
    of every send.
    """

    serialize: Serializer = None
    deserialize: Deserializer = None
    empty: Wire = b""

    def __init__(self) -> None:
        self._kept: dict[Message, tuple[int, bytes]] = {}
        self._came: dict[Message, tuple[int, bytes]] = {}
        self.copied = 0

    def keep(self, requests: Sequence[Message], incoming: Sequence[Message] = ()) -> None:
        self._kept = {each: _NOTHING for each in requests if len(each.views) == 1}
        self._came = {each: _NOTHING for each in incoming if len(each.views) == 1}

    def encode(self, message: Message) -> bytes:
        kept = self._kept.get(message)
        if kept is None:
            self.copied += message.nbytes
            return b"".join(message.views)
        if kept[0] != message.revision:
            self.copied += message.nbytes
            kept = self._kept[message] = (message.revision, message.views[0].tobytes())
        return kept[1]

    def answer(self, message: Message) -> bytes:
        came = self._came.get(message)
        if came is None or came[0] != message.revision:
            return self.encode(message)
        # Not for longer: memory that is not given back at once, malloc takes from the kernel anew.
        self._came[message] = _NOTHING
        return came[1]

    def decode(self, wire: bytes, slot: Message) -> int:
        nbytes = len(wire)
        if nbytes == slot.nbytes and len(slot.views) == 1:  # first: every byte code counts here
            slot.views[0][:] = wire
            self.copied += nbytes
            if slot in self._came:
                self._came[slot] = (slot.revision, wire)
            return nbytes
        if nbytes > slot.nbytes:
            raise _no_room(nbytes, slot)
        scatter(slot, wire)
        self.copied += nbytes
        return nbytes


class ProtobufCodec:
    """One ``bytes`` field for each buffer.

    Three copies each way: ours into or out of a bytes object, and those of protobuf between it, its
    message and the wire.
    """

    def __init__(self) -> None:
        self._type = payload_type()
        self.empty: Wire = self._type()
        self.serialize: Serializer = self._type.SerializeToString
        self.deserialize: Deserializer = self._type.FromString
        self.copied = 0

    def keep(self, requests: Sequence[Message], incoming: Sequence[Message] = ()) -> None:
        """Nothing is kept: making the protobuf message is what serializing costs."""

    def encode(self, message: Message) -> Wire:
        self.copied += 3 * message.nbytes
        return self._type(buffers=[view.tobytes() for view in message.views])

    answer = encode

    def decode(self, wire: Wire, slot: Message) -> int:
        buffers: Sequence[bytes] = wire.buffers
        nbytes = sum(map(len, buffers))
        if nbytes > slot.nbytes:
            raise _no_room(nbytes, slot)
        if [len(buffer) for buffer in buffers] == [view.nbytes for view in slot.views]:
            for buffer, view in zip(buffers, slot.views, strict=True):
                view[:] = buffer
        else:
            scatter(slot, b"".join(buffers))
        self.copied += 3 * nbytes
        return nbytes


def codec_named(mode: str) -> Codec:
    """The codec of ``non-serialized`` or ``serialized``."""
    return ProtobufCodec() if mode == "serialized" else RawCodec()


@cache
def payload_type() -> Any:
    """The class of ``message Payload { repeated bytes buffers = 1; }``, made at run time."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto(
        name="buffers",
        number=1,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    )
    file = descriptor_pb2.FileDescriptorProto(
        name="commbench/payload.proto",
        package="commbench",
        syntax="proto3",
        message_type=[descriptor_pb2.DescriptorProto(name="Payload", field=[field])],
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("commbench.Payload"))


def _no_room(nbytes: int, slot: Message) -> TransferError:
    return TransferError(f"a message of {nbytes} bytes came for a slot of {slot.nbytes}")
