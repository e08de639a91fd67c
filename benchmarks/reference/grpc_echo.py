"""The bare grpcio echo loop that the ``grpc`` channel is compared with, in the ranks that run it.

One end makes an ``EchoServer``, the other an ``EchoClient`` for its address; neither uses any code
of the channel. Both write ``start`` and ``end`` for every call, as every reference does.

Two references, since grpcio hands over bytes of its own and every channel of commbench delivers
into the application's buffers:

``delivers=True``: the one that counts: either end copies what arrives into a buffer that it keeps.
``delivers=False``: the smallest program, which looks at nothing that arrives; it stands beside.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

Arguments = Sequence[tuple[str, str | int]]
UNLIMITED: Arguments = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)
_METHOD = "/reference/Echo"
_WAIT_S = 60.0


class EchoServer:
    """Answers with the request on ``address`` (host:port; port 0: any free one)."""

    def __init__(
        self, address: str, nbytes: int, delivers: bool, arguments: Arguments = UNLIMITED
    ) -> None:
        self._threads = futures.ThreadPoolExecutor(4)
        self._server = grpc.server(self._threads, options=list(arguments))
        echo = _delivering(nbytes) if delivers else _bare
        handler = grpc.unary_unary_rpc_method_handler(echo)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("reference", {"Echo": handler}),)
        )
        port = self._server.add_insecure_port(address)
        self.address = f"{address.rpartition(':')[0]}:{port}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait(5.0)
        self._threads.shutdown()


class EchoClient:
    """Calls an EchoServer with ``nbytes`` bytes; connects before it returns."""

    def __init__(
        self, address: str, nbytes: int, delivers: bool, arguments: Arguments = UNLIMITED
    ) -> None:
        self._channel = grpc.insecure_channel(address, options=list(arguments))
        self._echo = self._channel.unary_unary(_METHOD)
        self._request = np.random.default_rng(1).bytes(nbytes)
        self._reply = memoryview(bytearray(nbytes)) if delivers else None
        answer = self._echo(self._request, timeout=_WAIT_S, wait_for_ready=True)
        if answer != self._request:
            raise RuntimeError("the reference server does not echo")

    def pingpong(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> None:
        """``len(start)`` round trips; writes their stamps in ns (CLOCK_MONOTONIC)."""
        echo, request, reply, clock = self._echo, self._request, self._reply, time.monotonic_ns
        for i in range(len(start)):
            before = clock()
            answer = echo(request)
            if reply is not None:
                reply[:] = answer
            end[i] = clock()
            start[i] = before

    def close(self) -> None:
        self._channel.close()


def _bare(request: bytes, context: Any) -> bytes:
    return request


def _delivering(nbytes: int) -> Any:
    slot = memoryview(bytearray(nbytes))

    def echo(request: bytes, context: Any) -> bytes:
        slot[:] = request
        return request

    return echo
