"""The middle of the rendezvous: one thread that all ranks are connected to.

It sleeps in ``select`` and costs nothing while a case runs. A connection is a stranger until its
first bytes were the run's token; strangers are few, short-lived and cannot hurt the run. When all
ranks are there the listeners close.
"""

from __future__ import annotations

import contextlib
import hmac
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from commbench.harness.wire import JSON, TOKEN_NBYTES, Frames, Message, encode

_AUTH_TIMEOUT_S = 3.0
_STRANGERS = 64  # beyond that the oldest is dropped
_FLUSH_S = 1.0
_CHUNK = 1 << 16


@dataclass(slots=True, eq=False)
class _Link:
    """One connection; ``rank`` is None until it joined."""

    socket: socket.socket
    deadline: float
    frames: Frames = field(default_factory=Frames)
    token: bytes = b""
    out: bytearray = field(default_factory=bytearray)
    rank: int | None = None
    host: str = ""
    orderly: bool = False  # said goodbye or why it failed: its end is no loss
    waiting: bool = False  # said goodbye after a failure: stays until all have
    closing: bool = False  # to be closed once ``out`` is sent


class Hub:
    """Serves ``size`` ranks on ``listeners``. Owned by the process of rank ``rank``."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        token: str,
        size: int,
        rank: int = 0,
        join_timeout_s: float = 30.0,
    ) -> None:
        self._listeners, self._token = list(listeners), token.encode()
        self._size, self._rank = size, rank
        self._join_timeout_s = join_timeout_s
        self._join_deadline: float | None = time.monotonic() + join_timeout_s
        self._selector = selectors.DefaultSelector()
        self._links: list[_Link] = []
        self._ranks: dict[int, _Link] = {}
        self._round: dict[int, JSON] = {}
        self._kind = ""
        self._over = False
        self._failed = False  # a rank has said why it ends
        self._wake, wake = socket.socketpair()
        self._selector.register(wake, selectors.EVENT_READ, None)
        self._woken = wake
        for listener in self._listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, listener)
        self._thread = threading.Thread(target=self._run, name="rendezvous-hub", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Wait until every rank has left; after ``timeout_s`` end the run for those that stay."""
        self._thread.join(timeout_s)
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        self._thread.join(2 * _FLUSH_S)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while not self._over and not self._all_left():
                for key, mask in self._selector.select(self._patience()):
                    self._serve(key.data, mask)
                self._expire()
            self._flush()
        finally:
            for link in list(self._links):
                self._close(link)
            self._stop_listening()
            self._selector.close()
            self._woken.close()
            self._wake.close()

    def _serve(self, target: _Link | socket.socket | None, mask: int) -> None:
        if target is None:
            self._tell({"op": "end"})
            self._over = True
        elif isinstance(target, socket.socket):
            self._accept(target)
        elif target in self._links:  # an earlier event of this round may have closed it
            if mask & selectors.EVENT_READ:
                self._read(target)
            if mask & selectors.EVENT_WRITE:
                self._write(target)

    def _all_left(self) -> bool:
        return self._join_deadline is None and all(r.waiting for r in self._ranks.values())

    def _patience(self) -> float | None:
        deadlines = [link.deadline for link in self._links if link.rank is None]
        if self._join_deadline is not None:
            deadlines.append(self._join_deadline)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _expire(self) -> None:
        now = time.monotonic()
        for link in [one for one in self._links if one.rank is None and one.deadline <= now]:
            self._close(link)
        if self._join_deadline is not None and self._join_deadline <= now:
            missing = [rank for rank in range(self._size) if rank not in self._ranks]
            names = ", ".join(map(str, missing))
            self._refuse_all(
                f"rank{'s' if len(missing) > 1 else ''} {names} of {self._size} "
                f"did not connect within {self._join_timeout_s:g} s"
            )

    def _refuse_all(self, message: str) -> None:
        self._tell({"op": "failed", "rank": None, "host": "", "message": message, "exit_code": 5})
        self._over = True

    def _flush(self) -> None:
        deadline = time.monotonic() + _FLUSH_S
        for link in self._links:
            if not link.out:
                continue
            link.socket.settimeout(max(0.01, deadline - time.monotonic()))
            with contextlib.suppress(OSError):
                link.socket.sendall(link.out)

    # ------------------------------------------------------------------ connections

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # it was gone before we looked, or we are out of descriptors
            return
        connection.setblocking(False)
        link = _Link(connection, time.monotonic() + _AUTH_TIMEOUT_S)
        strangers = [one for one in self._links if one.rank is None]
        if len(strangers) >= max(_STRANGERS, self._size):
            self._close(strangers[0])
        self._links.append(link)
        self._selector.register(connection, selectors.EVENT_READ, link)

    def _read(self, link: _Link) -> None:
        try:
            data = link.socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone(link)
            return
        try:
            for message in link.frames.feed(self._past_token(link, data)):
                self._handle(link, message)
        except (ValueError, KeyError, TypeError):
            self._gone(link)

    def _past_token(self, link: _Link, data: bytes) -> bytes:
        """What follows the token in ``data``; ValueError when it is another token."""
        rest = TOKEN_NBYTES - len(link.token)
        link.token += data[:rest]
        if len(link.token) < TOKEN_NBYTES:
            return b""
        if rest and not hmac.compare_digest(link.token, self._token):
            raise ValueError("wrong token")
        return data[rest:]

    def _send(self, link: _Link, frame: bytes) -> None:
        link.out += frame
        self._write(link)

    def _write(self, link: _Link) -> None:
        try:
            sent = link.socket.send(link.out) if link.out else 0
        except BlockingIOError:
            sent = 0
        except OSError:  # its read side reports the loss
            sent = len(link.out)
        del link.out[:sent]
        if link.closing and not link.out:
            self._gone(link)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.out else 0)
        self._selector.modify(link.socket, events, link)

    def _close(self, link: _Link) -> None:
        self._links.remove(link)
        self._selector.unregister(link.socket)
        link.socket.close()

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            self._selector.unregister(listener)
            listener.close()
        self._listeners.clear()

    # ------------------------------------------------------------------ the protocol

    def _tell(self, message: Message, but: int | None = None) -> None:
        frame = encode(message)
        for rank, link in list(self._ranks.items()):
            if rank != but:
                self._send(link, frame)

    def _gone(self, link: _Link) -> None:
        if link not in self._links:
            return
        self._close(link)
        if link.rank is None or self._ranks.get(link.rank) is not link:
            return
        del self._ranks[link.rank]
        if not link.orderly:
            self._tell({"op": "lost", "rank": link.rank, "host": link.host})
        elif self._round:
            self._left_behind(link)

    def _left_behind(self, link: _Link) -> None:
        message = f"left the run while others wait at {self._kind}"
        self._tell(
            {
                "op": "failed",
                "rank": link.rank,
                "host": link.host,
                "message": message,
                "exit_code": 5,
            }
        )

    def _handle(self, link: _Link, message: Message) -> None:
        op = message["op"]
        if link.rank is None:
            self._join(link, message)
        elif op == "gather":
            self._gather(link.rank, str(message["kind"]), message["value"])
        elif op == "fail":
            link.orderly = True
            if not self._failed:  # the first one is why the run ends, for all
                self._failed = True
                self._tell(
                    {
                        "op": "failed",
                        "rank": link.rank,
                        "host": link.host,
                        "message": message["message"],
                        "exit_code": message["exit_code"],
                    },
                    but=link.rank,
                )
        elif op == "bye":
            link.orderly = True
            link.waiting = bool(message["together"])
            if not link.waiting:
                link.closing = True
                self._write(link)
        else:
            raise ValueError(f"unknown op {op!r}")

    def _join(self, link: _Link, message: Message) -> None:
        rank, size = message["rank"], message["size"]
        if message["op"] != "join" or not isinstance(rank, int):
            raise ValueError("not a join")
        problem = None
        if size != self._size:
            problem = f"rank {rank} was told of {size} ranks, the rendezvous of {self._size}"
        elif not 0 <= rank < self._size or rank in self._ranks:
            problem = f"rank {rank} joined twice, or is not one of {self._size} ranks"
        if problem is not None:
            link.closing = True
            self._send(link, encode({"op": "refused", "message": problem}))
            return
        link.rank, link.host = rank, str(message["host"])
        self._ranks[rank] = link
        if len(self._ranks) == self._size:
            self._welcome()

    def _welcome(self) -> None:
        self._join_deadline = None
        self._stop_listening()
        for link in [one for one in self._links if one.rank is None]:
            self._close(link)
        reached = {rank: link.socket.getsockname()[0] for rank, link in self._ranks.items()}
        first = next((reached[r] for r in sorted(reached) if r != self._rank), reached[self._rank])
        self._tell(
            {
                "op": "welcome",
                "hosts": [self._ranks[r].host for r in range(self._size)],
                "hub": self._rank,
                "reached": first,
            }
        )

    def _gather(self, rank: int, kind: str, value: JSON) -> None:
        if (self._round and kind != self._kind) or rank in self._round:
            self._refuse_all(f"rank {rank} is at {kind} while others are at {self._kind}")
            return
        self._kind = kind
        self._round[rank] = value
        absent = [r for r in range(self._size) if r not in self._ranks]
        if absent:
            message = f"rank {absent[0]} has left the run; rank {rank} waits at {kind}"
            self._tell(
                {"op": "failed", "rank": None, "host": "", "message": message, "exit_code": 5}
            )
        elif len(self._round) == self._size:
            values = [self._round[r] for r in range(self._size)]
            self._round.clear()
            self._tell({"op": "gathered", "values": values})
