"""A channel of a third party in one file: named pipes between the ranks of one host.

Each rank has one pipe from every other rank. To use it, put this file into a package and name its
class in the entry-point group ``commbench.channels``::

    # pyproject.toml
    [project]
    name = "commbench-pipe"
    version = "0.1"
    dependencies = ["commbench"]

    [project.entry-points."commbench.channels"]
    pipe = "pipe_channel:PipeChannel"

    [tool.setuptools]
    py-modules = ["pipe_channel"]

After ``pip install`` it is a channel as any other: ``commbench run latency -C pipe``. Its test file
is ``tests/test_example_channel.py``.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import struct
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from commbench.channels.base import Capability, Channel, Done, Exchange, Incoming, Option
from commbench.errors import ChannelUnavailable, Interrupted, PeerLost, TransferError, UsageError
from commbench.payloads.buffers import Message
from commbench.units import parse_size

if TYPE_CHECKING:
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.stop import StopFlag
    from commbench.harness.world import World

_HEADER = struct.Struct("!BQQ")  # kind, number of the request, bytes that follow
_ONE_WAY, _REQUEST, _REPLY = range(3)
_LOOK_S = 0.05  # how often a wait looks at the stop flag
_FINISH_S = 5.0
_MOST_VIEWS = 512  # buffers of one readv or writev; the kernel takes 1024


@dataclass(slots=True)
class _Pipe:
    """Both directions to one peer, and what is under way in them."""

    rank: int
    inward: int  # file descriptors
    outward: int
    out: deque[tuple[list[memoryview], Callable[[], None]]] = field(default_factory=deque)
    header: bytearray = field(default_factory=lambda: bytearray(_HEADER.size))
    missing: list[memoryview] = field(default_factory=list)  # what the next bytes go to
    arrived: Callable[[], None] | None = None  # once nothing is missing; None: no slot is free
    free: deque[Message] = field(default_factory=deque)  # incoming slots
    asked: dict[int, tuple[int, Message]] = field(default_factory=dict)  # number -> ticket, reply
    number: int = 0
    in_flight: int = 0


class PipeChannel(Channel):
    """Non-blocking pipes; a message is its header and its buffers, gathered by writev."""

    name = "pipe"
    capabilities = Capability.REQUEST | Capability.ONE_WAY | Capability.WINDOW | Capability.IOVEC
    options: ClassVar[Mapping[str, Option]] = {
        "buf": Option("1M", "bytes that a pipe holds (F_SETPIPE_SZ)")
    }

    def __init__(self, world: World, stop: StopFlag, buf: int) -> None:
        self._world, self._stop, self._buf = world, stop, buf
        self._pipes: dict[int, _Pipe] = {}
        self._done: deque[tuple[int, Done]] = deque()  # peer, what poll() will return
        self._arrived: deque[Incoming] = deque()
        self._held: dict[int, tuple[_Pipe, int, Message]] = {}  # ticket -> pipe, number, slot
        self._read: list[tuple[_Pipe, Message]] = []  # one-way, handed out by the last accept()
        self._tickets = 0

    # -- life

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        if len(set(world.hosts)) > 1:
            raise ChannelUnavailable("channel pipe: all ranks must be on one host")
        channel = cls(world, rendezvous.stop, parse_size(options["buf"], "-o buf"))
        folder = tempfile.mkdtemp(prefix="commbench-pipe-") if world.rank == 0 else None
        try:
            channel._connect(Path(str(rendezvous.broadcast(folder))), rendezvous)
        except BaseException:
            channel.close()
            raise
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        return channel

    def _connect(self, folder: Path, rendezvous: Rendezvous) -> None:
        """All ranks open for reading first: opening for writing needs a reader."""
        me, peers = self._world.rank, [r for r in range(self._world.size) if r != self._world.rank]
        try:
            for rank in peers:
                path = folder / f"{rank}-{me}"
                os.mkfifo(path, 0o600)
                self._pipes[rank] = _Pipe(rank, os.open(path, os.O_RDONLY | os.O_NONBLOCK), -1)
            rendezvous.barrier()
            for rank, pipe in self._pipes.items():
                pipe.outward = os.open(folder / f"{me}-{rank}", os.O_WRONLY | os.O_NONBLOCK)
                fcntl.fcntl(pipe.outward, fcntl.F_SETPIPE_SZ, self._buf)
        except OSError as error:
            raise UsageError(f"-o buf={self._buf}: channel pipe: {error.strerror}") from None
        rendezvous.barrier()

    def close(self) -> None:
        while self._pipes:
            _, pipe = self._pipes.popitem()
            for fd in (pipe.inward, pipe.outward):
                if fd >= 0:
                    os.close(fd)

    def describe(self) -> dict[str, str | int | float]:
        sizes = {fcntl.fcntl(p.outward, fcntl.F_GETPIPE_SZ) for p in self._pipes.values()}
        return {"transport": "named pipe", "buf": max(sizes, default=0)}

    # -- a case

    def prepare(self, exchange: Exchange) -> None:
        self._window, self._stop = exchange.window, exchange.stop
        slots: Sequence[Message] = exchange.incoming if exchange.serves else ()
        for index, rank in enumerate(exchange.peers):
            pipe = self._pipes[rank]
            pipe.free = deque(slots[index * self._window : (index + 1) * self._window])
            pipe.asked, pipe.number, pipe.in_flight = {}, 0, 0
            self._expect_header(pipe)

    def finish(self) -> None:
        self._wait(lambda: not any(pipe.out for pipe in self._pipes.values()), _FINISH_S)
        self._done.clear()
        self._arrived.clear()
        self._held.clear()
        self._read.clear()

    # -- asking

    def post(self, peer: int, ticket: int, request: Message, reply: Message | None) -> bool:
        pipe = self._pipes[peer]
        if pipe.in_flight == self._window:
            return False
        pipe.in_flight += 1
        number, pipe.number = pipe.number, pipe.number + 1
        if reply is None:
            self._send(pipe, _ONE_WAY, number, request, lambda: self._complete(peer, ticket, 0))
        else:
            pipe.asked[number] = ticket, reply
            self._send(pipe, _REQUEST, number, request, lambda: None)
        return True

    def poll(self, timeout_s: float) -> Sequence[Done]:
        self._wait(lambda: bool(self._done), timeout_s)
        done = list(self._done)
        self._done.clear()
        for peer, _ in done:
            self._pipes[peer].in_flight -= 1
        return [each for _, each in done]

    def exchange(self, peer: int, request: Message, reply: Message, timeout_s: float) -> int:
        self.post(peer, 0, request, reply)
        for done in self.poll(timeout_s):
            return done.reply_nbytes
        raise TransferError(f"channel pipe: no reply of rank {peer} within {timeout_s:g} s")

    def _complete(self, peer: int, ticket: int, nbytes: int) -> None:
        self._done.append((peer, Done(ticket, nbytes)))

    # -- serving

    def accept(self, limit: int, timeout_s: float) -> Sequence[Incoming]:
        self._release_read()
        self._wait(lambda: bool(self._arrived), timeout_s)
        accepted = [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]
        for each in accepted:
            if not each.wants_reply:
                pipe, _, slot = self._held.pop(each.ticket)
                self._read.append((pipe, slot))
        return accepted

    def answer(self, ticket: int, answer: Message) -> None:
        pipe, number, slot = self._held.pop(ticket)
        self._send(pipe, _REPLY, number, answer, lambda: self._release(pipe, slot))

    def progress(self, timeout_s: float) -> bool:
        self._release_read()  # or nothing could arrive where all slots have been read
        self._wait(lambda: bool(self._done or self._arrived), timeout_s)
        return bool(self._done or self._arrived)

    def _release_read(self) -> None:
        for pipe, slot in self._read:
            self._release(pipe, slot)
        self._read.clear()

    def _release(self, pipe: _Pipe, slot: Message) -> None:
        pipe.free.append(slot)
        if pipe.arrived is None:  # a request has been waiting for a slot
            self._expect_body(pipe)
            self._settle(pipe)

    # -- waiting, writing, reading

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._stop.is_set:
                raise Interrupted("the run was stopped")
            left = deadline - time.monotonic()
            self._pump(max(0.0, min(left, _LOOK_S)))
            if left <= 0:
                return

    def _pump(self, timeout_s: float) -> None:
        """Write and read what can be at once, after waiting for the first of it."""
        poller = select.poll()
        work: dict[int, tuple[Callable[[_Pipe], None], _Pipe]] = {}
        for pipe in self._pipes.values():
            if pipe.out:
                poller.register(pipe.outward, select.POLLOUT)
                work[pipe.outward] = self._write, pipe
            if pipe.arrived is not None:
                poller.register(pipe.inward, select.POLLIN)
                work[pipe.inward] = self._take, pipe
        for fd, _ in poller.poll(timeout_s * 1000):
            act, pipe = work[fd]
            act(pipe)

    def _send(
        self, pipe: _Pipe, kind: int, number: int, message: Message, sent: Callable[[], None]
    ) -> None:
        header = memoryview(_HEADER.pack(kind, number, message.nbytes))
        pipe.out.append(([header, *filter(len, message.views)], sent))
        self._write(pipe)

    def _write(self, pipe: _Pipe) -> None:
        while pipe.out:
            views, sent = pipe.out[0]
            try:
                _advance(views, os.writev(pipe.outward, views[:_MOST_VIEWS]))
            except BlockingIOError:
                return
            except BrokenPipeError:
                raise self._lost(pipe) from None
            if not views:
                pipe.out.popleft()
                sent()

    def _take(self, pipe: _Pipe) -> None:
        while pipe.arrived is not None:
            try:
                got = os.readv(pipe.inward, pipe.missing[:_MOST_VIEWS])
            except BlockingIOError:
                return
            if got == 0:
                raise self._lost(pipe)
            _advance(pipe.missing, got)
            self._settle(pipe)

    def _lost(self, pipe: _Pipe) -> PeerLost:
        return PeerLost(f"channel pipe: rank {pipe.rank} has closed its pipe")

    # -- what arrives

    def _settle(self, pipe: _Pipe) -> None:
        while not pipe.missing and pipe.arrived is not None:
            pipe.arrived()

    def _expect_header(self, pipe: _Pipe) -> None:
        pipe.missing = [memoryview(pipe.header)]
        pipe.arrived = lambda: self._expect_body(pipe)

    def _expect_body(self, pipe: _Pipe) -> None:
        kind, number, nbytes = _HEADER.unpack(pipe.header)
        if kind == _REPLY:
            ticket, slot = pipe.asked.pop(number)
            pipe.arrived = lambda: self._replied(pipe, ticket, nbytes)
        elif pipe.free:
            slot = pipe.free.popleft()
            pipe.arrived = lambda: self._requested(pipe, kind == _REQUEST, number, slot, nbytes)
        else:
            pipe.arrived = None
            return
        if nbytes > slot.nbytes:  # never write beyond the slot, whatever the header says
            raise TransferError(f"channel pipe: rank {pipe.rank} sends {nbytes} bytes")
        pipe.missing = [view for view in slot.cut(nbytes).views if view.nbytes]

    def _replied(self, pipe: _Pipe, ticket: int, nbytes: int) -> None:
        self._complete(pipe.rank, ticket, nbytes)
        self._expect_header(pipe)

    def _requested(
        self, pipe: _Pipe, replied: bool, number: int, slot: Message, nbytes: int
    ) -> None:
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._held[ticket] = pipe, number, slot
        self._arrived.append(Incoming(ticket, pipe.rank, replied, slot.cut(nbytes)))
        self._expect_header(pipe)


def _advance(views: list[memoryview], nbytes: int) -> None:
    """Drop the first ``nbytes`` bytes of these views."""
    while views and nbytes >= views[0].nbytes:
        nbytes -= views.pop(0).nbytes
    if nbytes:
        views[0] = views[0][nbytes:]
