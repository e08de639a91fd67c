"""The asking half of the grpc channel: calls to one rank, unary or on a stream."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import grpc

from commbench.channels.grpc_messages import Codec, Posted, Result, Wire
from commbench.channels.grpc_options import Arguments
from commbench.errors import CommbenchError, PeerLost, TransferError

ASK, SEND, HELLO = "/commbench/Ask", "/commbench/Send", "/commbench/Hello"
POST_DEADLINE_S = 600.0  # the loops give up much earlier


class Peer(Protocol):
    """Calls to one rank."""

    def connect(self, timeout_s: float) -> None: ...

    exchange: Callable[[Wire], Wire]

    def post(self, request: Wire, posted: Posted) -> None: ...
    def interrupt(self) -> None:
        """Called from another thread: end what is in flight."""

    def finish(self) -> None: ...
    def close(self) -> None: ...


class UnaryPeer:
    """One call for each message.

    A post is a future: its completion is handed over by the one thread that grpcio runs for a
    channel. A pool of blocking callers was measured: 64 B messages are no faster with 64 of them
    and slower with fewer; 1 MiB messages are a sixth faster with two.
    """

    exchange: Callable[[Wire], Wire]

    def __init__(
        self,
        address: str,
        arguments: Arguments,
        codec: Codec,
        credential: str,
        done: Callable[[Posted], None],
    ) -> None:
        self._address, self._codec = address, codec
        self._arguments = [*arguments, ("grpc.primary_user_agent", credential)]
        self._done = done
        self._inflight: set[Any] = set()
        self._open()

    def _open(self) -> None:
        self._channel = grpc.insecure_channel(
            self._address, options=self._arguments, compression=grpc.Compression.NoCompression
        )
        self._ask, self._send, self._hello = (
            self._channel.unary_unary(method, self._codec.serialize, self._codec.deserialize)
            for method in (ASK, SEND, HELLO)
        )
        # As it is: a method in between would be part of every round trip. The call has no deadline
        # of its own, which would cost up to two per cent; the channel sees to it.
        self.exchange = self._ask

    def connect(self, timeout_s: float) -> None:
        self._hello(self._codec.empty, timeout=timeout_s, wait_for_ready=True)

    def post(self, request: Wire, posted: Posted) -> None:
        call = self._send if posted.reply is None else self._ask
        future = call.future(request, timeout=POST_DEADLINE_S)
        posted.outcome = future
        self._inflight.add(future)
        future.add_done_callback(lambda _: self._ended(posted, future))

    def _ended(self, posted: Posted, future: Any) -> None:
        self._inflight.discard(future)
        self._done(posted)

    def interrupt(self) -> None:
        # A blocking call has no handle: only its channel can end it.
        closing = self._channel
        self._open()
        closing.close()

    def finish(self) -> None:
        for future in tuple(self._inflight):
            future.cancel()

    def close(self) -> None:
        self._channel.close()


class StreamPeer(UnaryPeer):
    """One bidirectional stream for requests and one for one-way messages, while a case lasts.

    Replies come in the order of the requests, whatever the order of the answers.
    """

    def _open(self) -> None:
        super()._open()
        self.exchange = self._exchange
        self._streams: dict[str, _Stream] = {}

    def _stream(self, method: str) -> _Stream:
        stream = self._streams.get(method)
        if stream is None:
            call = self._channel.stream_stream(
                method, self._codec.serialize, self._codec.deserialize
            )
            stream = self._streams[method] = _Stream(call, self._done)
        return stream

    def _exchange(self, request: Wire) -> Wire:
        return self._stream(ASK).exchange(request)

    def post(self, request: Wire, posted: Posted) -> None:
        self._stream(SEND if posted.reply is None else ASK).post(request, posted)

    def interrupt(self) -> None:
        for stream in tuple(self._streams.values()):
            stream.cancel()

    def finish(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams = {}


class _Stream:
    """An open bidirectional call. A reader thread takes the replies from the first post on."""

    def __init__(self, method: Any, done: Callable[[Posted], None]) -> None:
        self._requests: SimpleQueue[Wire | None] = SimpleQueue()
        self._ended = threading.Event()
        self._call = method(iter(self._requests.get, None))
        self._call.add_done_callback(lambda _: self._ended.set())
        self._done = done
        self._pending: deque[Posted] = deque()
        self._awaited: SimpleQueue[Posted] = SimpleQueue()  # of exchange, by the reader
        self._reader: threading.Thread | None = None

    def exchange(self, request: Wire) -> Wire:
        if self._reader is None:
            self._requests.put(request)
            return next(self._call)
        posted = Posted(-1, 0, None)
        self._pending.append(posted)
        self._requests.put(request)
        outcome = self._awaited.get(timeout=POST_DEADLINE_S).outcome
        assert outcome is not None
        return outcome.result()

    def post(self, request: Wire, posted: Posted) -> None:
        self._pending.append(posted)
        self._requests.put(request)
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name="grpc-replies", daemon=True)
            self._reader.start()

    def _read(self) -> None:
        try:
            for reply in self._call:
                self._hand_over(_Reply(reply))
            error: Exception = StopIteration()
        except grpc.RpcError as failed:
            error = failed
        while self._pending:
            self._hand_over(_Failed(error))

    def _hand_over(self, outcome: Result) -> None:
        posted = self._pending.popleft()
        posted.outcome = outcome
        (self._awaited.put if posted.peer < 0 else self._done)(posted)

    def cancel(self) -> None:
        self._call.cancel()

    def close(self) -> None:
        """Close this side and wait for the other; cancel what does not end."""
        self._requests.put(None)
        if self._pending or not self._ended.wait(2.0):
            self._call.cancel()
        if self._reader is not None:
            self._reader.join(2.0)


@dataclass(frozen=True, slots=True)
class _Reply:
    reply: Wire

    def result(self) -> Wire:
        return self.reply


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception

    def result(self) -> Wire:
        raise self.error


def transfer_error(error: Exception, peer: int, host: str) -> CommbenchError:
    """The one place where an error of grpcio becomes one of ours."""
    rank = f"grpc: rank {peer} on {host}"
    if not isinstance(error, grpc.RpcError):
        return TransferError(f"{rank}: {str(error) or 'it ended the stream'}")
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        return PeerLost(f"{rank} is gone: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TransferError(f"{rank} did not answer within the time given")
    return TransferError(f"{rank}: {code.name}: {details}")
