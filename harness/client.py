"""Barrier, gather and bad news between the ranks, over a TCP connection of our own.

Never the channel under test. Each process keeps one connection to the hub (``hub.py``) and a
thread blocked on it: when a rank is lost the thread sets the stop flag, and after ``GRACE_S`` ends
the process, since a rank inside MPI_Recv sees neither flag nor signal.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from commbench.errors import (
    ChannelUnavailable,
    CommbenchError,
    Interrupted,
    NotComparable,
    PeerLost,
    TransferError,
    UsageError,
)
from commbench.harness.hub import Hub
from commbench.harness.stop import StopFlag
from commbench.harness.wire import FRAME_LIMIT, JSON, Frames, Message, encode

GRACE_S = 3.0
_HUB_PATIENCE_S = 5.0
_LOOK_S = 0.2  # how often a waiting rank looks at the stop flag
_ERRORS = (TransferError, UsageError, NotComparable, ChannelUnavailable)


class Rendezvous:
    """This rank's end of the star. Made by ``join``; used by one thread."""

    def __init__(
        self,
        connection: socket.socket,
        frames: Frames,
        rank: int,
        welcome: Message,
        token: str,
        hub: Hub | None,
        heard: Sequence[Message] = (),
    ) -> None:
        hosts, hub_rank = welcome["hosts"], welcome["hub"]
        assert isinstance(hosts, list) and isinstance(hub_rank, int)
        self.rank, self.size = rank, len(hosts)
        self.token = token
        self.hosts = tuple(map(str, hosts))
        self.stop = StopFlag()
        here = welcome["reached"] if hub is not None else connection.getsockname()[0]
        self.local_address = str(here)
        self._hub, self._hub_rank = hub, hub_rank
        self._connection, self._frames = connection, frames
        self._news = threading.Condition()
        self._gathered: list[list[JSON]] = []
        self._failure: CommbenchError | None = None
        self._failed = False  # here or elsewhere
        self._closed = threading.Event()
        _keep_alive(connection)
        for message in heard:  # came together with the welcome
            self._hear(message)
        self._watcher = threading.Thread(target=self._watch, name="rendezvous-watch", daemon=True)
        self._watcher.start()

    # ------------------------------------------------------------------ meeting

    def allgather(self, value: JSON, timeout_s: float = 60.0) -> list[JSON]:
        """``value`` of each rank, by rank; every rank must call it.

        Raises PeerLost, Interrupted, TransferError (late, or another rank failed).
        """
        return self._gather("allgather", value, timeout_s)

    def barrier(self, timeout_s: float = 60.0) -> None:
        """Returns when every rank has called it."""
        self._gather("barrier", None, timeout_s)

    def broadcast(self, value: JSON, root: int = 0, timeout_s: float = 60.0) -> JSON:
        """``value`` of rank ``root``; the others' is not sent."""
        return self._gather("broadcast", value if self.rank == root else None, timeout_s)[root]

    def _gather(self, kind: str, value: JSON, timeout_s: float) -> list[JSON]:
        self.check()
        try:  # the answer holds the values of all ranks
            frame = encode(
                {"op": "gather", "kind": kind, "value": value}, FRAME_LIMIT // self.size - 64
            )
        except ValueError as error:
            raise TransferError(f"{kind} of {self.size} ranks: {error}") from None
        self._send(frame)
        deadline = time.monotonic() + timeout_s
        with self._news:
            while not self._gathered:
                self.check()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TransferError(
                        f"rank {self.rank} on {self.hosts[self.rank]} waited "
                        f"{timeout_s:g} s at {kind} for the other ranks"
                    )
                self._news.wait(min(left, _LOOK_S))
            return self._gathered.pop()

    # ------------------------------------------------------------------ failing

    def fail(self, message: str, exit_code: int = 5) -> None:
        """Tell the other ranks why this one ends; they raise it with our rank and host."""
        self._failed = True
        with contextlib.suppress(TransferError):
            self._send(encode({"op": "fail", "message": message, "exit_code": exit_code}))

    def check(self) -> None:
        """Raise what ended the run: PeerLost, another rank's failure, or Interrupted."""
        if self._failure is not None:
            raise self._failure
        if self.stop.is_set:
            raise Interrupted(f"rank {self.rank} on {self.hosts[self.rank]} was told to stop")

    def cause(self, error: CommbenchError, wait_s: float = 0.5) -> CommbenchError:
        """What is behind ``error`` of a channel: news of a lost rank may be on its way."""
        with self._news:
            self._news.wait_for(lambda: self._failure is not None, wait_s)
        return self._failure or error

    def close(self) -> None:
        """Leave in order. Rank 0 stays until the others have left, at most 5 s.

        After a failure all stay for each other as long: a launcher kills the rest when one exits,
        so each says its line, and all come to the same exit code, before the first one goes.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        with contextlib.suppress(TransferError):
            self._send(encode({"op": "bye", "together": self._failed}))
        if self._hub is not None:
            self._hub.close(_HUB_PATIENCE_S)
        self._watcher.join(_HUB_PATIENCE_S)
        self._shut(socket.SHUT_RDWR)
        self._connection.close()

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):  # the other end may be gone
            self._connection.shutdown(how)

    def _send(self, frame: bytes) -> None:
        try:
            self._connection.sendall(frame)
        except OSError:
            raise self.cause(self._lost(self._hub_rank)) from None

    # ------------------------------------------------------------------ the watching thread

    def _watch(self) -> None:
        self._listen()
        if self._failure is None and not self._closed.is_set():
            self._end(self._lost(self._hub_rank))
        if self._failure is not None:
            if not self._closed.wait(GRACE_S):
                tell(self._failure)
                leave(self._failure.exit_code)
            self._listen()  # until the hub hangs up

    def _listen(self) -> None:
        """Until there is bad news; after ``close`` until the hub hangs up."""
        with contextlib.suppress(OSError, ValueError):
            while (self._failure is None or self._closed.is_set()) and (
                data := self._connection.recv(1 << 16)
            ):
                for message in self._frames.feed(data):
                    self._hear(message)

    def _hear(self, message: Message) -> None:
        if message["op"] == "gathered":
            with self._news:
                values = message["values"]
                assert isinstance(values, list)
                self._gathered.append(values)
                self._news.notify_all()
        elif message["op"] == "lost":
            rank = message["rank"]
            assert isinstance(rank, int)
            self._end(self._lost(rank))
        elif message["op"] == "failed":
            self._end(failure(message))
        elif message["op"] == "end" and not self._closed.is_set():
            hub = self._hub_rank
            self._end(
                failure(
                    {
                        "rank": hub,
                        "host": self.hosts[hub],
                        "exit_code": 5,
                        "message": "left the run before the others",
                    }
                )
            )

    def _lost(self, rank: int) -> PeerLost:
        error = PeerLost(f"rank {rank} on {self.hosts[rank]} is gone")
        error.remote = True
        return error

    def _end(self, error: CommbenchError) -> None:
        with self._news:
            self._failure = self._failure or error
            self._failed = True
            self.stop.set()
            self._news.notify_all()


def failure(message: Message) -> CommbenchError:
    """The error another rank (or, with rank null, the hub) told of, with its exit code."""
    rank, host, text = message["rank"], message["host"], message["message"]
    line = str(text) if rank is None else f"rank {rank} on {host}: {text}"
    kind = next((one for one in _ERRORS if one.exit_code == message["exit_code"]), TransferError)
    error = kind(line)
    error.remote = True
    return error


def tell(error: CommbenchError) -> None:
    """Print the one line for people on stderr.

    Under our own launcher what came from elsewhere is left to the launcher: it knows the signal
    that killed a rank, and one line is enough.
    """
    folder = os.environ.get("COMMBENCH_LAUNCH_DIR")
    if folder and (error.remote or isinstance(error, Interrupted)):
        with contextlib.suppress(OSError):
            Path(folder, f"told.{os.getpid()}").write_text(str(error))
    elif not folder or _first_to_say(Path(folder), str(error)):
        sys.stderr.write(f"commbench: {error}\n")


def _first_to_say(folder: Path, line: str) -> bool:
    """Whether no other rank of this launch has said the same, such as a flag that is wrong."""
    name = "said." + hashlib.sha256(line.encode(errors="replace")).hexdigest()
    try:
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    except OSError:  # the launcher is gone
        return True
    return True


def leave(exit_code: int) -> None:
    """End this process now: after a failure MPI_Finalize would wait for the lost rank."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


def _keep_alive(connection: socket.socket) -> None:
    """Notice a host that vanished (25 s), and never block for ever in send."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    seconds = struct.pack("ll", 10, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
