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
from commbench.channels.grpc_messages import USER_AGENT, Codec, Wire
from commbench.channels.grpc_options import Arguments
from commbench.errors import ChannelUnavailable, TransferError
from commbench.payloads.buffers import Message


@dataclass(frozen=True, slots=True)
class Refusal:
    """Ends a call with an error instead of an answer."""

    code: grpc.StatusCode
    details: str


@dataclass(eq=False, slots=True)
class Call:
    """A request that waits on gRPC's thread; ``answer`` gets the one thing that ends it."""

    peer: int
    wants_reply: bool
    request: Wire
    answer: SimpleQueue[Wire | Refusal] = field(default_factory=SimpleQueue)


Methods = dict[str, "grpc.RpcMethodHandler[Any, Any]"]  # no generic class at run time
Outcome = Wire | Refusal | Call  # the answer, an error, or what will have the answer


_NOT_YET = (Call, Refusal)
_BETWEEN = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "between two cases")


class Desk:
    """All requests of one case, in the slots that they were given. A ticket is a slot's number."""

    def __init__(self, codec: Codec, exchange: Exchange, arrived: Callable[[Call], None]) -> None:
        self._wire_of, self._decode, self._empty = codec.answer, codec.decode, codec.empty
        self._slots = exchange.incoming
        self._free = deque(range(len(exchange.incoming)))
        self._lent: list[int] = []  # slots of one-way messages that accept() handed out
        self._over: Refusal | None = None
        self._calls: set[Call] = set()  # all that gRPC's threads wait for
        self._waiting: dict[int, Call] = {}  # those that were accepted, by ticket
        self._arrived = arrived
        self._handler: Handler | None = None
        self._lock = threading.Lock()

    # -- on gRPC's threads

    def arrive(self, peer: int, wants_reply: bool, request: Wire) -> Outcome:
        """What the handler answers at once, or a call that has to wait for its answer.

        The handler runs under the lock: when it is taken away none of its requests is still at
        work, and the next one finds every request that it did not want.
        """
        with self._lock:
            if self._over is not None:
                return self._over
            handler = self._handler
            if handler is not None:
                outcome = self._handled(handler, peer, wants_reply, request)
                if outcome is not None:
                    return outcome
            call = Call(peer, wants_reply, request)
            self._calls.add(call)
            self._arrived(call)
            return call

    def _handled(
        self,
        handler: Handler,
        peer: int,
        wants_reply: bool,
        request: Wire,
        call: Call | None = None,
    ) -> Outcome | None:
        """None: it is not this handler's to answer. ``call``: of a request that waits already."""
        free = self._free
        if not free:
            return self._crowded(peer)
        slot = free.popleft()
        try:
            message = self._slots[slot]
            if (nbytes := self._decode(request, message)) != message.nbytes:
                message = message.cut(nbytes)
            answer = handler.on_request(Incoming(slot, peer, wants_reply, message))
        except Exception as error:
            self._free.append(slot)
            return Refusal(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        if isinstance(answer, Message):
            free.append(slot)
            return self._wire_of(answer) if wants_reply else self._empty
        if answer is Answer.LATER:
            self._free.append(slot)
            return None
        call = call or Call(peer, wants_reply, request)
        self._calls.add(call)
        self._waiting[slot] = call
        while (ready := handler.next_ready()) is not None:
            self._give(*ready)
        return call

    def _crowded(self, peer: int) -> Refusal:
        said = f"grpc: rank {peer} has more in flight than the window"
        return Refusal(grpc.StatusCode.FAILED_PRECONDITION, said)

    # -- on the application's thread

    def handle(self, handler: Handler | None) -> None:
        """From now on; the last one is through when this returns."""
        with self._lock:
            self._handler = handler

    def offer(self, call: Call) -> bool:
        """To the handler, a request that waits; False: it is not its to answer."""
        with self._lock:
            if self._handler is None:
                return False
            outcome = self._handled(self._handler, call.peer, call.wants_reply, call.request, call)
            if outcome is not None and outcome is not call:
                self._end(call, outcome)
        return outcome is not None

    def accept(self, call: Call) -> Incoming:
        """Into a slot. A one-way message is acknowledged at once, with an empty answer."""
        with self._lock:
            if not self._free:
                raise TransferError(self._crowded(call.peer).details)
            slot = self._free.popleft()
            message = self._slots[slot]
            message = message.cut(self._decode(call.request, message))
            if call.wants_reply:
                self._waiting[slot] = call
            else:
                self._lent.append(slot)
                self._end(call, self._empty)
        return Incoming(slot, call.peer, call.wants_reply, message)

    def room(self) -> int:
        """How many requests accept() can take; those of the last accept() make room."""
        with self._lock:
            self._free.extend(self._lent)
            self._lent.clear()
            return len(self._free)

    def answer(self, ticket: int, answer: Message) -> None:
        with self._lock:
            self._give(ticket, answer)

    def dismiss(self, why: str) -> None:
        """Nobody will answer what is still waiting, accepted or not."""
        with self._lock:
            self._over = Refusal(grpc.StatusCode.CANCELLED, why)
            for call in tuple(self._calls):
                self._end(call, self._over)

    def _give(self, ticket: int, answer: Message) -> None:
        call = self._waiting.pop(ticket, None)
        if call is None:
            raise TransferError(f"grpc: no ticket {ticket} to answer")
        wire = self._wire_of(answer) if call.wants_reply else self._empty
        self._free.append(ticket)
        self._end(call, wire)

    def _end(self, call: Call, outcome: Wire | Refusal) -> None:
        self._calls.discard(call)
        call.answer.put(outcome)


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
        self.came: list[tuple[int, str]] = []  # (rank, its address) of each connection
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
            # One call fewer than through _arrive(): this is part of every round trip.
            desk = self.desk
            outcome = _BETWEEN if desk is None else desk.arrive(peer, wants_reply, request)
            if isinstance(outcome, _NOT_YET):
                return _answer_of(outcome, context)
            return outcome

        return behaviour

    def hello(self, peer: int) -> Callable[[Wire, grpc.ServicerContext], Wire]:
        """The behaviour of the first call of a connection."""

        def behaviour(request: Wire, context: grpc.ServicerContext) -> Wire:
            self.came.append((peer, context.peer()))
            return self._empty

        return behaviour

    def stream(
        self, peer: int, wants_reply: bool
    ) -> Callable[[Iterator[Wire], grpc.ServicerContext], Iterator[Wire]]:
        """The behaviour of one stream of this rank: answers go back in the order of requests.

        While requests are answered as they come, one thread reads and answers. As soon as one has
        to wait, a second thread reads on, until nothing waits again.
        """

        def behaviour(requests: Iterator[Wire], context: grpc.ServicerContext) -> Iterator[Wire]:
            for request in requests:
                outcome = self._arrive(peer, wants_reply, request)
                if _waits(outcome):
                    yield from aside(outcome, requests, context)
                else:
                    yield _answer_of(outcome, context)

        def aside(
            first: Outcome, requests: Iterator[Wire], context: grpc.ServicerContext
        ) -> Iterator[Wire]:
            outcomes: SimpleQueue[Outcome | None] = SimpleQueue()
            outcomes.put(first)
            reader = threading.Thread(target=read, args=(requests, outcomes), daemon=True)
            reader.start()
            while (outcome := outcomes.get()) is not None:
                yield _answer_of(outcome, context)

        def read(requests: Iterator[Wire], outcomes: SimpleQueue[Outcome | None]) -> None:
            try:
                for request in requests:
                    outcome = self._arrive(peer, wants_reply, request)
                    outcomes.put(outcome)
                    if not _waits(outcome):
                        break
            except Exception:
                pass  # grpcio raises a bare Exception when a call is cancelled
            finally:
                outcomes.put(None)

        return behaviour

    def _arrive(self, peer: int, wants_reply: bool, request: Wire) -> Outcome:
        desk = self.desk
        return _BETWEEN if desk is None else desk.arrive(peer, wants_reply, request)


class _Gate(grpc.GenericRpcHandler):
    """Finds the rank by its credential; of anyone else not even the request is read."""

    def __init__(
        self, listener: Listener, codec: Codec, credentials: Sequence[str], stream: bool
    ) -> None:
        self._by_agent: dict[str, Methods] = {}  # whole user agents that were found good
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
                methods = self._by_agent.get(value) or self._identified(value)
                return self._refuse if methods is None else methods.get(details.method)
        return self._refuse

    def _identified(self, agent: str) -> Methods | None:
        methods = self._by_credential.get(agent.partition(" ")[0])
        if methods is not None and len(self._by_agent) < len(self._by_credential):
            self._by_agent[agent] = methods
        return methods


def _methods(listener: Listener, codec: Codec, rank: int, stream: bool) -> Methods:
    coding = (codec.deserialize, codec.serialize)
    methods = {HELLO: grpc.unary_unary_rpc_method_handler(listener.hello(rank), *coding)}
    for method, wants_reply in ((ASK, True), (SEND, False)):
        methods[method] = (
            grpc.stream_stream_rpc_method_handler(listener.stream(rank, wants_reply), *coding)
            if stream
            else grpc.unary_unary_rpc_method_handler(listener.unary(rank, wants_reply), *coding)
        )
    return methods


def _refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "this call does not carry the run's token")


def _waits(outcome: Outcome) -> bool:
    return isinstance(outcome, Call) and outcome.answer.empty()


def _answer_of(outcome: Outcome, context: grpc.ServicerContext) -> Wire:
    if isinstance(outcome, Call):
        try:
            outcome = outcome.answer.get(timeout=POST_DEADLINE_S)
        except Empty:
            outcome = Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "nobody answered")
    if isinstance(outcome, Refusal):
        context.abort(outcome.code, outcome.details)
    return outcome
