"""The serving half of the grpc channel.

A request comes on one of gRPC's own threads and waits there for its answer. An inline handler
answers it on that thread; otherwise it goes to the thread that calls ``accept`` and ``answer``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from commbench.channels.base import Answer, Exchange, Handler, Incoming
from commbench.channels.grpc_client import ASK, HELLO, POST_DEADLINE_S, SEND
from commbench.channels.grpc_messages import USER_AGENT, Arguments, Codec, Wire
from commbench.errors import ChannelUnavailable, TransferError
from commbench.payloads.buffers import Message

_HANDLER_S = 10.0  # the longest that a handler may be at one request when its block is over


@dataclass(frozen=True, slots=True)
class Refusal:
    """Ends a call with an error instead of an answer."""

    code: grpc.StatusCode
    details: str


@dataclass(eq=False, slots=True)
class Call:
    """A request that arrived; ``answer`` gets the one thing that ends it."""

    peer: int
    wants_reply: bool
    request: Wire
    answer: SimpleQueue[Wire | Refusal] = field(default_factory=SimpleQueue)
    slot: int = -1


class Desk:
    """All requests of one case, in the slots that they were given."""

    def __init__(self, codec: Codec, exchange: Exchange, arrived: Callable[[Call], None]) -> None:
        self._codec = codec
        self._slots = exchange.incoming
        self._free = deque(range(len(exchange.incoming)))
        self._lent: list[int] = []  # slots of one-way messages that accept() handed out
        self._over: Refusal | None = None
        self._calls: set[Call] = set()  # all that gRPC's threads wait for
        self._waiting: dict[int, Call] = {}  # by ticket, which is the slot
        self._arrived = arrived
        self._handler: Handler | None = None
        self._switch = threading.Lock()  # between a change of handler and what arrives
        self._handling = 0  # requests that a handler is at
        self._idle = threading.Condition(self._switch)  # that number went down

    # -- on gRPC's threads

    def arrive(self, call: Call) -> None:
        """Let the handler answer, or pass the request on to ``accept``."""
        refused: Handler | None = None
        self._calls.add(call)
        if self._over:
            self._end(call, self._over)
            return
        while True:
            with self._switch:
                handler = self._handler
                if handler is None or handler is refused:
                    self._arrived(call)
                    return
                self._handling += 1
            try:
                if self.handled(call, handler):
                    return
            finally:
                with self._switch:
                    self._handling -= 1
                    if self._handler is None:
                        self._idle.notify_all()
            refused = handler

    def handled(self, call: Call, handler: Handler) -> bool:
        """Was it this handler's to answer, now or later?"""
        try:
            answer = handler.on_request(self._deliver(call))
        except Exception as error:
            self._release(call.slot)
            self._end(call, Refusal(grpc.StatusCode.FAILED_PRECONDITION, str(error)))
            return True
        if answer is Answer.LATER:
            self._release(call.slot)
            return False
        if isinstance(answer, Message):
            self.answer(call.slot, answer)
        return True

    # -- on the application's thread

    def handle(self, handler: Handler | None) -> None:
        """From now on; None waits until the last one is through and its answer is given."""
        with self._switch:
            self._handler = handler
            if handler is None:
                self._idle.wait_for(lambda: self._handling == 0, _HANDLER_S)

    def accept(self, call: Call) -> Incoming:
        """Into a slot. A one-way message is acknowledged at once, with an empty answer."""
        incoming = self._deliver(call)
        if not call.wants_reply:
            del self._waiting[call.slot]
            self._lent.append(call.slot)
            self._end(call, self._codec.empty)
        return incoming

    def room(self) -> int:
        """How many requests accept() can take; those of the last accept() make room."""
        self._free.extend(self._lent)
        self._lent.clear()
        return len(self._free)

    def answer(self, ticket: int, answer: Message) -> None:
        call = self._waiting.get(ticket)
        if call is None:
            raise TransferError(f"grpc: no ticket {ticket} to answer")
        wire = self._codec.encode(answer) if call.wants_reply else self._codec.empty
        self._release(ticket)
        self._end(call, wire)

    def dismiss(self, why: str) -> None:
        """Nobody will answer what is still waiting, accepted or not."""
        self._over = Refusal(grpc.StatusCode.CANCELLED, why)
        for call in tuple(self._calls):
            self._end(call, self._over)

    def _end(self, call: Call, answer: Wire | Refusal) -> None:
        self._calls.discard(call)
        call.answer.put(answer)

    # -- slots

    def _deliver(self, call: Call) -> Incoming:
        if not self._free:
            raise TransferError(f"grpc: rank {call.peer} has more in flight than the window")
        call.slot = self._free.popleft()
        slot = self._slots[call.slot]
        self._waiting[call.slot] = call
        nbytes = self._codec.decode(call.request, slot)
        return Incoming(call.slot, call.peer, call.wants_reply, slot.cut(nbytes))

    def _release(self, slot: int) -> None:
        if self._waiting.pop(slot, None) is not None:
            self._free.append(slot)


class Listener:
    """The gRPC server of one rank; credential number r is rank r's."""

    def __init__(
        self,
        address: str,
        arguments: Arguments,
        workers: int,
        codec: Codec,
        credentials: Sequence[str],
        stream: bool,
    ) -> None:
        self.desk: Desk | None = None
        self._empty = codec.empty
        self._threads = futures.ThreadPoolExecutor(workers, thread_name_prefix="grpc-server")
        self._server = grpc.server(
            self._threads,
            handlers=[_Gate(self, codec, credentials, stream)],
            options=[*arguments, ("grpc.so_reuseport", 0)],
            compression=grpc.Compression.NoCompression,
        )
        host = f"[{address}]" if ":" in address else address
        try:
            port = self._server.add_insecure_port(f"{host}:0")
        except RuntimeError as error:
            raise ChannelUnavailable(f"grpc: cannot listen on {host}: {error}") from error
        self.address = f"{host}:{port}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait(5.0)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def unary(self, peer: int, wants_reply: bool) -> Callable[[Wire, grpc.ServicerContext], Wire]:
        """The behaviour of one unary call of this rank."""

        def behaviour(request: Wire, context: grpc.ServicerContext) -> Wire:
            return _answer_of(self._arrive(peer, wants_reply, request), context)

        return behaviour

    def hello(self, request: Wire, context: grpc.ServicerContext) -> Wire:
        return self._empty

    def stream(
        self, peer: int, wants_reply: bool
    ) -> Callable[[Iterator[Wire], grpc.ServicerContext], Iterator[Wire]]:
        """The behaviour of one stream of this rank: answers go back in the order of requests.

        While requests are answered as they come, one thread reads and answers. As soon as one has
        to wait, a second thread reads on, until nothing waits again.
        """

        def behaviour(requests: Iterator[Wire], context: grpc.ServicerContext) -> Iterator[Wire]:
            for request in requests:
                call = self._arrive(peer, wants_reply, request)
                if call.answer.empty():
                    yield from aside(call, requests, context)
                else:
                    yield _answer_of(call, context)

        def aside(
            first: Call, requests: Iterator[Wire], context: grpc.ServicerContext
        ) -> Iterator[Wire]:
            calls: SimpleQueue[Call | None] = SimpleQueue()
            calls.put(first)
            reader = threading.Thread(target=read, args=(requests, calls), daemon=True)
            reader.start()
            while (call := calls.get()) is not None:
                yield _answer_of(call, context)

        def read(requests: Iterator[Wire], calls: SimpleQueue[Call | None]) -> None:
            try:
                for request in requests:
                    call = self._arrive(peer, wants_reply, request)
                    calls.put(call)
                    if not call.answer.empty():
                        break
            except Exception:
                pass  # grpcio raises a bare Exception when a call is cancelled
            finally:
                calls.put(None)

        return behaviour

    def _arrive(self, peer: int, wants_reply: bool, request: Wire) -> Call:
        call = Call(peer, wants_reply, request)
        if self.desk is None:
            call.answer.put(Refusal(grpc.StatusCode.FAILED_PRECONDITION, "between two cases"))
        else:
            self.desk.arrive(call)
        return call


class _Gate(grpc.GenericRpcHandler):
    """Finds the rank by its credential; of anyone else not even the request is read."""

    def __init__(
        self, listener: Listener, codec: Codec, credentials: Sequence[str], stream: bool
    ) -> None:
        self._by_credential = {
            credential: _methods(listener, codec, rank, stream)
            for rank, credential in enumerate(credentials)
        }
        self._refuse: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            _refuse
        )

    def service(self, details: Any) -> grpc.RpcMethodHandler[Any, Any] | None:
        for key, value in details.invocation_metadata:
            if key == USER_AGENT:
                methods = self._by_credential.get(value.partition(" ")[0])
                return self._refuse if methods is None else methods.get(details.method)
        return self._refuse


def _methods(
    listener: Listener, codec: Codec, rank: int, stream: bool
) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    coding = (codec.deserialize, codec.serialize)
    methods = {HELLO: grpc.unary_unary_rpc_method_handler(listener.hello, *coding)}
    for method, wants_reply in ((ASK, True), (SEND, False)):
        methods[method] = (
            grpc.stream_stream_rpc_method_handler(listener.stream(rank, wants_reply), *coding)
            if stream
            else grpc.unary_unary_rpc_method_handler(listener.unary(rank, wants_reply), *coding)
        )
    return methods


def _refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "this call does not carry the run's token")


def _answer_of(call: Call, context: grpc.ServicerContext) -> Wire:
    try:
        answer = call.answer.get(timeout=POST_DEADLINE_S)
    except Empty:
        answer = Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "nobody answered")
    if isinstance(answer, Refusal):
        context.abort(answer.code, answer.details)
    return answer
