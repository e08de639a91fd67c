"""Frames of the ``rdma`` channel, in Python: the same bytes as ``native/rdma/wire.h`` defines.

That page says what they mean. Nothing here needs a device.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

REQUEST, ONE_WAY, REPLY = 1, 2, 3
RTS_REQUEST, RTS_ONE_WAY, RTS_REPLY = 4, 5, 6
CTS_REQUEST, CTS_REPLY = 7, 8
FIN_REQUEST, FIN_REPLY = 9, 10
CREDIT, SETTLE = 11, 12

RESERVE = 3  # entries of a ring that are for CREDIT alone
LIST_MAX = 256  # segments of one frame
TAIL_NBYTES = 32
SEGMENT_NBYTES = 24
SENDS = frozenset(("send", "read"))  # -o op= whose frames are SENDs

_MASK = (1 << 32) - 1
_TAIL = struct.Struct("<QIIIIII")
_WORD = struct.Struct("<I")
_LAST_BYTE = 0xFF << 24  # of a word
_SEGMENT = struct.Struct("<QQII")
_LEAST_STRIDE = 4096  # bytes of a frame, its tail included, are more than that
_ALIGNMENT = 64


class Tail(NamedTuple):
    """What ends every frame. ``nbytes``: of the message; ``payload``: bytes before the tail."""

    nbytes: int
    slot: int
    kind: int
    payload: int
    consumed: int
    more: int
    seq: int

    def followed(self, window: int) -> Tail:
        """What a bare frame says that comes behind this one. ``window``: slots of the case."""
        consumed = (self.consumed + (self.kind != ONE_WAY)) & _MASK
        slot = (self.slot + 1) % window
        return self._replace(slot=slot, consumed=consumed, seq=(self.seq + 1) & _MASK)

    def pack_into(self, buffer: memoryview, at: int) -> None:
        _TAIL.pack_into(buffer, at, *self)

    @classmethod
    def unpack_from(cls, buffer: memoryview, at: int) -> Tail:
        return cls._make(_TAIL.unpack_from(buffer, at))


class Segment(NamedTuple):
    """A piece of registered memory of the other end."""

    address: int
    nbytes: int
    rkey: int


def pack_segments(segments: Iterable[Segment]) -> bytes:
    return b"".join(_SEGMENT.pack(*each, 0) for each in segments)


def unpack_segments(payload: memoryview) -> Iterator[Segment]:
    """A rest that is no whole segment is ignored, as the engine does."""
    whole = len(payload) - len(payload) % SEGMENT_NBYTES
    for address, nbytes, rkey, _ in _SEGMENT.iter_unpack(payload[:whole]):
        yield Segment(address, nbytes, rkey)


def join_segments(pieces: Iterable[Segment]) -> list[Segment]:
    """Neighbours in memory become one; empty ones go."""
    joined: list[Segment] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if piece.nbytes == 0:
            continue
        if last and last.address + last.nbytes == piece.address and last.rkey == piece.rkey:
            joined[-1] = last._replace(nbytes=last.nbytes + piece.nbytes)
        else:
            joined.append(piece)
    return joined


def stride_for(eager_max: int) -> int:
    """Bytes of a ring's entry: the longest eager message or list of segments, and its tail."""
    longest = max(eager_max, _LEAST_STRIDE) + TAIL_NBYTES
    return -(-longest // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True, slots=True)
class Ring:
    """Where frames to one end go: what its queue pair's address record says of it."""

    address: int
    rkey: int
    depth: int
    stride: int

    def problem(self) -> bool:
        """Whether no end that speaks this protocol can have it."""
        fits = 16 <= self.depth <= 1 << 16 and not self.depth & (self.depth - 1)
        return not fits or self.stride < _LEAST_STRIDE + TAIL_NBYTES

    @property
    def most_payload(self) -> int:
        return self.stride - TAIL_NBYTES

    @property
    def most_segments(self) -> int:
        return min(LIST_MAX, self.most_payload // SEGMENT_NBYTES)

    def target(self, entry: int, nbytes: int) -> int:
        """Where a frame of so many bytes is written: it ends where the entry ends."""
        return self.address + (entry + 1) * self.stride - nbytes


class Credits:
    """How many frames went each way, modulo 2^32, for the life of the queue pair.

    ``ours``, ``theirs``: entries of the rings.
    """

    __slots__ = ("credited", "ours", "sent", "taken", "theirs", "told")

    def __init__(self, ours: int, theirs: int) -> None:
        self.ours = ours
        self.theirs = theirs
        self.sent = 0
        self.credited = 0  # of those sent, how many the peer has taken
        self.taken = 0
        self.told = 0  # how many were taken when the peer last heard of it

    def may_send(self, reserve: int = RESERVE) -> bool:
        return ((self.sent - self.credited) & _MASK) + reserve < self.theirs

    @property
    def owes(self) -> bool:
        """Half of our ring was taken, and nothing told the peer: it may wait for that."""
        return (self.taken - self.told) & _MASK >= self.ours // 2 and self.may_send(0)

    @property
    def next_out(self) -> int:
        """Entry of their ring that the next frame goes to."""
        return self.sent & (self.theirs - 1)

    @property
    def next_in(self) -> int:
        return self.taken & (self.ours - 1)

    @property
    def awaited(self) -> int:
        """``seq`` of the next frame to come."""
        return (self.taken + 1) & _MASK

    def stamp(self) -> tuple[int, int]:
        """``consumed`` and ``seq`` of the frame that is sent now."""
        self.sent = (self.sent + 1) & _MASK
        self.told = self.taken
        return self.taken, self.sent

    def hear(self, consumed: int) -> bool:
        """What a frame said; False when they cannot have taken so many."""
        if (self.sent - consumed) & _MASK > (self.sent - self.credited) & _MASK:
            return False
        self.credited = consumed
        return True

    def take(self) -> None:
        self.taken = (self.taken + 1) & _MASK


def mark_untouched(buffer: memoryview, end: int, seq: int) -> None:
    """The entry that ends at ``end`` waits for frame number ``seq``, which is written there."""
    _WORD.pack_into(buffer, end - _WORD.size, ~seq & _MASK)


def written(buffer: memoryview, end: int, seq: int) -> bool | None:
    """Whether frame number ``seq``, which ends at ``end``, is bare; None: it is not there yet."""
    (word,) = _WORD.unpack_from(buffer, end - _WORD.size)
    if word == seq:
        return False
    return None if (word ^ ~seq) & _LAST_BYTE == 0 else True


def pieces_of(
    buffers: Sequence[tuple[int, int]], start: int, end: int
) -> Iterator[tuple[int, int]]:
    """(address, bytes) of bytes ``start`` to ``end`` of a message of these buffers."""
    for address, nbytes in buffers:
        here, there = max(start, 0), min(end, nbytes)
        if here < there:
            yield address + here, there - here
        start, end = start - nbytes, end - nbytes
        if end <= 0:
            return
