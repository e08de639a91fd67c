"""A broker in a thread of this process, real sockets, and clients that say what they like."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from commbench import _native
from commbench.channels.base import Done, Exchange
from commbench.channels.tcp import SocketChannel
from commbench.harness.broker import BrokerRun
from commbench.jobs import make_plan
from commbench.payloads.buffers import Message
from commbench.plan import Case
from commbench.registry import load
from tests.socket_ranks import Hall, Meeting, open_rank

PRODUCE, FETCH, OFFSETS, END = range(4)
_REQUEST, _ANSWER = struct.Struct(">ihhii"), struct.Struct(">iihhiqq")
WAIT_S = 10.0
WINDOW = 5


def case(**flags: str) -> Case:
    """A case of the broker from long flag names with _ for -."""
    given = {name.replace("_", "-"): text for name, text in flags.items()}
    plan = make_plan({"benchmark": "broker", **given}, order="in-order")
    ((found,),) = plan.blocks(load, plan.ranks())
    return found


@dataclass(frozen=True)
class Answer:
    length: int
    correlation: int
    error: int
    flags: int
    partition: int
    offset: int
    high_watermark: int
    body: bytes


def batch(values: list[bytes], producer: int = 1, sequence: int = 0) -> bytes:
    memory = bytearray(1 << 16)
    made = _native.RecordBatch(memory)
    for value in values:
        assert made.add(1_700_000_000_000, value)
    return bytes(memory[: made.seal(producer, 0, sequence)])


def request(
    api: int, correlation: int, partition: int = 0, body: bytes = b"", acks: int = 1, lie: int = 0
) -> bytes:
    """``lie`` is added to the length that it has."""
    length = _REQUEST.size - 4 + len(body) + lie
    return _REQUEST.pack(length, api, acks, correlation, partition) + body


def fetch(correlation: int, offset: int, partition: int = 0) -> bytes:
    return request(FETCH, correlation, partition, struct.pack(">qii", offset, 1 << 16, 0), 0)


class Raw:
    """A client that speaks in bytes, over the channel's Python verbs."""

    def __init__(
        self, channel: SocketChannel, meeting: Meeting, peers: tuple[int, ...], window: int
    ) -> None:
        self.channel = channel
        self.replies = [Message([memoryview(bytearray(1 << 17))]) for _ in range(window)]
        self.channel.prepare(
            Exchange(
                peers=peers,
                window=window,
                reply_every=1,
                asks=True,
                serves=False,
                request=[Message([memoryview(bytearray(1 << 17))])] * window,
                reply=self.replies,
                incoming=(),
                answer_nbytes=0,
                stop=meeting.stop,
            )
        )

    def post(self, ticket: int, data: bytes, peer: int = 0) -> None:
        message = Message([memoryview(bytearray(data))])
        assert self.channel.post(peer, ticket, message, self.replies[ticket])

    def poll(self, timeout_s: float = WAIT_S) -> list[tuple[int, Answer]]:
        return [(done.ticket, self.answer(done)) for done in self.channel.poll(timeout_s)]

    def answer(self, done: Done) -> Answer:
        data = bytes(self.replies[done.ticket].views[0][: done.reply_nbytes])
        return Answer(*_ANSWER.unpack(data[: _ANSWER.size]), body=data[_ANSWER.size :])

    def ask(self, data: bytes, peer: int = 0) -> Answer:
        self.post(0, data, peer)
        ((_, answer),) = self.poll()
        return answer


class Scene:
    """Ranks as threads of this process; their sockets stay open until the scene is over."""

    def __init__(self, size: int) -> None:
        self.hall = Hall(size)
        self.channels: list[SocketChannel] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for channel in self.channels:
            channel.close()

    def enter(self, rank: int) -> tuple[SocketChannel, Meeting]:
        channel, meeting = open_rank(self.hall, rank)
        self.channels.append(channel)
        return channel, meeting

    def raw(self, rank: int, peers: tuple[int, ...] = (0,)) -> Raw:
        return Raw(*self.enter(rank), peers, WINDOW)

    def role(self, rank: int, wanted: Case) -> tuple[BrokerRun, _native.Prepared]:
        """A rank of ours, ready for one pass."""
        run = BrokerRun(wanted, *self.enter(rank), rank)  # type: ignore[arg-type]
        prepared = run.prepare()
        assert prepared is not None
        return run, prepared

    def serve(self, rank: int, wanted: Case, folder: Path, **options: int) -> dict[str, Any]:
        """Be a broker for one pass; what it counted. Raises what a rank would."""
        run, prepared = self.role(rank, wanted)
        logs = [
            _native.Log(str(folder / f"{rank}-{p}"), **options)
            if rank in run.spec.replicas(p)
            else None
            for p in range(run.spec.partitions)
        ]
        try:
            run.serve(prepared, logs)
            return run.share.broker
        finally:
            prepared.finish()
            for log in logs:
                if log is not None:
                    log.close()
