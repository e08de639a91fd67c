"""What TensorFlow's gRPC+MPI left on gRPC: who the workers are, and that a step is over.

Every rank runs a small gRPC server for the run's other ranks. The calls are named after
TensorFlow's: ``GetStatus`` returns the worker's name, ``CleanupGraph`` says that the caller's part
of a step is done. Whoever does not carry the run's token in its user agent is refused before
anything of its request is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from time import monotonic
from typing import Any

import grpc

from commbench.channels.grpc_client import transfer_error
from commbench.channels.grpc_messages import USER_AGENT, credential_of
from commbench.errors import ChannelUnavailable, Interrupted, TransferError
from commbench.harness.stop import StopFlag

GET_STATUS, CLEANUP_GRAPH = "/commbench.Worker/GetStatus", "/commbench.Worker/CleanupGraph"
_LOOK_S = 0.05  # at the stop flag
_ARGUMENTS = [
    ("grpc.max_receive_message_length", 4096),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]

Methods = dict[str, "grpc.RpcMethodHandler[bytes, bytes]"]


class Control:
    """The gRPC server of one rank and its calls to the others. ``name``: this worker's."""

    def __init__(
        self, address: str, token: str, rank: int, hosts: Sequence[str], name: str, stop: StopFlag
    ) -> None:
        self._rank, self._hosts, self._stop = rank, hosts, stop
        self._name = name.encode()
        self._credential = credential_of(token, rank)
        self._ended = threading.Condition()
        self._steps = [0] * len(hosts)  # that each rank has told us are over
        self._own_steps = [0] * len(hosts)  # of ours with each rank
        self._channels: dict[int, grpc.Channel] = {}
        self._threads = futures.ThreadPoolExecutor(4, thread_name_prefix="grpc-control")
        self._server = grpc.server(
            self._threads,
            handlers=[_Gate(self, [credential_of(token, each) for each in range(len(hosts))])],
            options=[*_ARGUMENTS, ("grpc.so_reuseport", 0)],
        )
        self.address = self._listen(address)
        self._server.start()

    def _listen(self, address: str) -> str:
        host = f"[{address}]" if ":" in address else address
        try:
            return f"{host}:{self._server.add_insecure_port(f'{host}:0')}"
        except RuntimeError as error:
            raise ChannelUnavailable(f"grpc+mpi: cannot listen on {host}: {error}") from error

    def connect(self, addresses: Sequence[str], timeout_s: float) -> dict[int, str]:
        """The names that the workers at these addresses (by rank) give; ours is not asked.

        Raises PeerLost, TransferError, Interrupted.
        """
        options = [*_ARGUMENTS, ("grpc.primary_user_agent", self._credential)]
        for rank, address in enumerate(addresses):
            if rank != self._rank:
                self._channels[rank] = grpc.insecure_channel(address, options=options)
        answers = self._call(GET_STATUS, tuple(self._channels), timeout_s)
        return {rank: answer.decode() for rank, answer in answers.items()}

    def end_step(self, peers: Sequence[int], timeout_s: float) -> None:
        """Tell each of ``peers`` that our part is over, and wait until theirs is.

        Raises PeerLost, TransferError (late), Interrupted.
        """
        deadline = monotonic() + timeout_s
        for peer in peers:
            self._own_steps[peer] += 1
        self._call(CLEANUP_GRAPH, peers, timeout_s)
        with self._ended:
            while late := [p for p in peers if self._steps[p] < self._own_steps[p]]:
                self._check_stop()
                if monotonic() >= deadline:
                    ranks = ", ".join(map(str, late))
                    raise TransferError(
                        f"channel grpc+mpi: rank {ranks} did not end its block within "
                        f"{timeout_s:g} s"
                    )
                self._ended.wait(_LOOK_S)

    def close(self) -> None:
        while self._channels:
            self._channels.popitem()[1].close()
        self._server.stop(0).wait(5.0)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _call(self, method: str, peers: Sequence[int], timeout_s: float) -> dict[int, bytes]:
        """This call to each peer at once, and their answers."""
        calls: dict[int, Any] = {}
        for peer in peers:
            multi: Any = self._channels[peer].unary_unary(method)
            calls[peer] = multi.future(b"", timeout=timeout_s, wait_for_ready=True)
        return {peer: self._result(peer, call) for peer, call in calls.items()}

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
            raise Interrupted("channel grpc+mpi: the run was stopped")

    # -- on gRPC's threads

    def status(self, rank: int) -> bytes:
        return self._name

    def cleanup(self, rank: int) -> bytes:
        with self._ended:
            self._steps[rank] += 1
            self._ended.notify_all()
        return b""


class _Gate(grpc.GenericRpcHandler):
    """Finds the rank by its credential; of anyone else not even the request is read."""

    def __init__(self, control: Control, credentials: Sequence[str]) -> None:
        self._methods = {each: _methods(control, rank) for rank, each in enumerate(credentials)}
        self._refuse: Any = grpc.stream_stream_rpc_method_handler(_refuse)

    def service(self, details: Any) -> Any:
        for key, value in details.invocation_metadata:
            if key == USER_AGENT and (methods := self._methods.get(value.partition(" ")[0])):
                return methods.get(details.method)
        return self._refuse


def _methods(control: Control, rank: int) -> Methods:
    return {
        GET_STATUS: grpc.unary_unary_rpc_method_handler(_answer(control.status, rank)),
        CLEANUP_GRAPH: grpc.unary_unary_rpc_method_handler(_answer(control.cleanup, rank)),
    }


def _answer(
    answer: Callable[[int], bytes], rank: int
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    return lambda request, context: answer(rank)


def _refuse(requests: Any, context: grpc.ServicerContext) -> Any:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "this call does not carry the run's token")
