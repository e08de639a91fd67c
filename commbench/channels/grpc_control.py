"""A small gRPC server in every rank for the run's other ranks, and calls to theirs.

What TensorFlow's channels left on gRPC. A call's name leads to what answers it; ``CleanupGraph``,
which says that the caller's part of a step is done, is always there. Whoever does not carry the
run's token in its user agent is refused before anything of its request is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from time import monotonic
from typing import Any

import grpc

from commbench.channels.grpc_client import transfer_error
from commbench.channels.grpc_messages import USER_AGENT, credential_of
from commbench.errors import ChannelUnavailable, Interrupted, TransferError
from commbench.harness.stop import StopFlag

CLEANUP_GRAPH = "/commbench.Worker/CleanupGraph"
_LOOK_S = 0.05  # at the stop flag
_ARGUMENTS = [
    ("grpc.max_receive_message_length", 4096),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]

Answer = Callable[[int, bytes], bytes]  # (rank that calls, its request) -> response
Methods = dict[str, "grpc.RpcMethodHandler[bytes, bytes]"]


class StepControl:
    """The gRPC server of one rank and its calls to the others. ``name``: the channel's."""

    def __init__(
        self,
        name: str,
        address: str,
        token: str,
        rank: int,
        hosts: Sequence[str],
        answers: Mapping[str, Answer],
        stop: StopFlag,
    ) -> None:
        self._name, self._rank, self._hosts, self._stop = name, rank, hosts, stop
        self._credential = credential_of(token, rank)
        self._ended = threading.Condition()
        self._steps = [0] * len(hosts)  # that each rank has told us are over
        self._own_steps = [0] * len(hosts)  # of ours with each rank
        self._channels: dict[int, grpc.Channel] = {}
        self._threads = futures.ThreadPoolExecutor(4, thread_name_prefix="grpc-control")
        credentials = [credential_of(token, each) for each in range(len(hosts))]
        self._server = grpc.server(
            self._threads,
            handlers=[_Gate({CLEANUP_GRAPH: self._cleanup, **answers}, credentials)],
            options=[*_ARGUMENTS, ("grpc.so_reuseport", 0)],
        )
        self.address = self._listen(address)
        self._server.start()

    def _listen(self, address: str) -> str:
        host = f"[{address}]" if ":" in address else address
        try:
            return f"{host}:{self._server.add_insecure_port(f'{host}:0')}"
        except RuntimeError as error:
            raise ChannelUnavailable(f"{self._name}: cannot listen on {host}: {error}") from error

    def dial(self, addresses: Sequence[str]) -> None:
        """Make ready to call the workers at these addresses (by rank); ours is not called."""
        options = [*_ARGUMENTS, ("grpc.primary_user_agent", self._credential)]
        for rank, address in enumerate(addresses):
            if rank != self._rank:
                self._channels[rank] = grpc.insecure_channel(address, options=options)

    def call(
        self, method: str, requests: Mapping[int, bytes], timeout_s: float
    ) -> dict[int, bytes]:
        """This call to each rank at once, and their answers.

        Raises PeerLost, TransferError, Interrupted.
        """
        calls: dict[int, Any] = {}
        for peer, request in requests.items():
            multi: Any = self._channels[peer].unary_unary(method)
            calls[peer] = multi.future(request, timeout=timeout_s, wait_for_ready=True)
        return {peer: self._result(peer, call) for peer, call in calls.items()}

    def end_step(self, peers: Sequence[int], timeout_s: float) -> None:
        """Tell each of ``peers`` that our part is over, and wait until theirs is.

        Raises PeerLost, TransferError (late), Interrupted.
        """
        deadline = monotonic() + timeout_s
        for peer in peers:
            self._own_steps[peer] += 1
        self.call(CLEANUP_GRAPH, dict.fromkeys(peers, b""), timeout_s)
        with self._ended:
            while late := [p for p in peers if self._steps[p] < self._own_steps[p]]:
                self._check_stop()
                if monotonic() >= deadline:
                    ranks = ", ".join(map(str, late))
                    raise TransferError(
                        f"channel {self._name}: rank {ranks} did not end its block within "
                        f"{timeout_s:g} s"
                    )
                self._ended.wait(_LOOK_S)

    def close(self) -> None:
        while self._channels:
            self._channels.popitem()[1].close()
        self._server.stop(0).wait(5.0)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _result(self, peer: int, call: Any) -> bytes:
        while True:
            try:
                return bytes(call.result(timeout=_LOOK_S))
            except grpc.FutureTimeoutError:
                self._check_stop()
            except grpc.RpcError as error:
                self._check_stop()
                raise transfer_error(error, peer, self._hosts[peer]) from None

    def _check_stop(self) -> None:
        if self._stop.is_set:
            raise Interrupted(f"channel {self._name}: the run was stopped")

    def _cleanup(self, rank: int, request: bytes) -> bytes:
        """On a thread of gRPC's."""
        with self._ended:
            self._steps[rank] += 1
            self._ended.notify_all()
        return b""


class _Gate(grpc.GenericRpcHandler):
    """Finds the rank by its credential; of anyone else not even the request is read."""

    def __init__(self, answers: Mapping[str, Answer], credentials: Sequence[str]) -> None:
        self._methods = {each: _methods(answers, rank) for rank, each in enumerate(credentials)}
        self._refuse: Any = grpc.stream_stream_rpc_method_handler(_refuse)

    def service(self, details: Any) -> Any:
        for key, value in details.invocation_metadata:
            if key == USER_AGENT and (methods := self._methods.get(value.partition(" ")[0])):
                return methods.get(details.method)
        return self._refuse


def _methods(answers: Mapping[str, Answer], rank: int) -> Methods:
    return {
        method: grpc.unary_unary_rpc_method_handler(_handler(answer, rank))
        for method, answer in answers.items()
    }


def _handler(answer: Answer, rank: int) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    return lambda request, context: answer(rank, request)


def _refuse(requests: Any, context: grpc.ServicerContext) -> Any:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "this call does not carry the run's token")
