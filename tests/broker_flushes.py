"""What is flushed before each answer: ``-m tests.broker_flushes FOLDER DESIGN FLIGHT FLUSH``.

Runs with ``broker_flushes.c`` preloaded. A leader, its follower and a producer, acks=all, over real
TCP. Prints a line of JSON for each acknowledged batch when its answer was about to be sent: its
number, and how often fdatasync had returned for the leader's log, for the follower's, and for the
follower's since the leader's that made this batch durable.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from commbench import _native
from tests.broker_ranks import END, PRODUCE, WAIT_S, Scene, batch, case, request
from tests.socket_ranks import together

BATCHES = 40
RECORDS = 3  # of each
_REQUEST, _REPLY = 0x63623101, 0x63623103  # native/tcp_wire.h
_HEADER = struct.Struct("<QII")  # bytes, slot, kind
_BODY = struct.Struct(">iihh")  # an answer's length, correlation, error
_API = struct.Struct(">ih")


class Raw(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_int32),
        ("flush", ctypes.c_uint32),
        ("nbytes", ctypes.c_uint32),
        ("head", ctypes.c_uint8 * 64),
    )


@dataclass(frozen=True, slots=True)
class Event:
    fd: int
    flush: bool
    head: bytes

    def is_kind(self, kind: int) -> bool:
        return not self.flush and len(self.head) >= 28 and _HEADER.unpack_from(self.head)[2] == kind

    def is_flush_of(self, rank: int) -> bool:
        return self.flush and f"/{rank}-0/".encode() in self.head


def events() -> list[Event]:
    preloaded = ctypes.CDLL(None)
    count = ctypes.c_uint32.in_dll(preloaded, "flushes_count").value
    memory = (Raw * 65536).in_dll(preloaded, "flushes_events")
    assert count <= len(memory)
    return [
        Event(each.fd, bool(each.flush), bytes(each.head[: each.nbytes])) for each in memory[:count]
    ]


def far_end(fd: int, candidates: set[int]) -> int:
    """The socket of this process that this one is connected with."""
    names = {}
    for each in {fd, *candidates}:
        with socket.socket(fileno=os.dup(each)) as copy:
            names[each] = copy.getsockname(), copy.getpeername()
    (found,) = (each for each in candidates if names[each] == names[fd][::-1])
    return found


def produce(scene: Scene, in_flight: int) -> None:
    raw, sent = scene.raw(2, (0, 1)), 0
    waiting: set[int] = set()
    for ticket in range(in_flight):
        raw.post(ticket, body_of(sent))
        waiting.add(ticket)
        sent += 1
    while waiting:
        for ticket, answer in raw.poll(WAIT_S):
            assert answer.error == 0
            waiting.remove(ticket)
            if sent < BATCHES:
                raw.post(ticket, body_of(sent))
                waiting.add(ticket)
                sent += 1
    for broker in (0, 1):
        assert raw.ask(request(END, BATCHES if broker == 0 else 0), broker).error == 0


def body_of(number: int) -> bytes:
    values = [b"%d" % each for each in range(RECORDS)]
    return request(PRODUCE, number, 0, batch(values, 2, RECORDS * number), -1)


def opening(folder: Path, flush: int) -> dict[int, int]:
    """How often fdatasync is called when the log of a rank is opened."""
    counted = {}
    for rank in (0, 1):
        for _ in range(2):  # the first time it is made
            before = len(events())
            _native.Log(str(folder / f"{rank}-0"), flush_every=flush).close()
        counted[rank] = len(events()) - before
    return counted


def found(began: int, opened: Mapping[int, int]) -> Iterator[dict[str, int]]:
    """At each answer to a PRODUCE, of the events from ``began`` on."""
    seen = events()[began:]
    asking = {
        each.fd
        for each in seen
        if each.is_kind(_REQUEST) and _API.unpack_from(each.head, 16)[1] == PRODUCE
    }
    answering = {each.fd for each in seen if each.is_kind(_REPLY)}
    (producer,) = asking
    to_producer = far_end(producer, answering)
    calls: dict[int, list[int]] = {0: [], 1: []}
    for at, each in enumerate(seen):
        for rank in (0, 1):
            if each.is_flush_of(rank):
                calls[rank].append(at)
        if each.fd == to_producer and each.is_kind(_REPLY):
            _, number, error, _ = _BODY.unpack_from(each.head, 16)
            if number < BATCHES:
                assert error == 0
                flushed = {rank: calls[rank][opened[rank] :] for rank in (0, 1)}
                durable = flushed[0][number] if number < len(flushed[0]) else at
                since = sum(when > durable for when in flushed[1])
                yield {
                    "number": number,
                    "leader": len(flushed[0]),
                    "follower": len(flushed[1]),
                    "follower_since": since,
                }


def main() -> None:
    folder, design, in_flight, flush = sys.argv[1:]
    wanted = case(
        brokers="2", replication="2", partitions="1", acks="all", design=design, timeout="20s"
    )

    def one(rank: int) -> None:
        if rank < 2:
            scene.serve(rank, wanted, Path(folder), flush_every=int(flush))
        else:
            produce(scene, int(in_flight))

    opened = opening(Path(folder), int(flush))
    began = len(events())
    with Scene(3) as scene:
        together(3, one)
        for each in found(began, opened):
            print(json.dumps(each), flush=True)


if __name__ == "__main__":
    main()
