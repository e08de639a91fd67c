"""Which engine has the queue pairs of the ``rdma`` channel: the native one or the Python one.

A queue pair belongs to the library that made it, and has one peer. So the ranks agree before each
case which loop each of them runs, and when that has changed they open the device and connect anew.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from commbench.channels import rdma_pyverbs
from commbench.channels.base import Channel, Done, Exchange, Incoming, NativeEngine
from commbench.channels.rdma_python import PythonEngine
from commbench.errors import TransferError
from commbench.payloads.buffers import Message

if TYPE_CHECKING:
    from commbench._rdma_core import Engine
    from commbench.harness.rendezvous import Rendezvous

_MODULE = "commbench._rdma_core"


def native_missing() -> str | None:
    """None when the native engine can be used, else why not."""
    if find_spec(_MODULE) is None:
        return "it was built without libibverbs"
    try:
        import_module(_MODULE)
    except ImportError as error:  # built where the library was, run where it is not
        return str(error)
    return None


def python_missing() -> str | None:
    return rdma_pyverbs.missing()


class _Native:
    """Where a native loop finds the engine once ``begin`` has opened it."""

    def __init__(self, channel: RdmaLoops) -> None:
        self._channel = channel

    @property
    def capsule(self) -> object:
        if isinstance(self._channel._engine, PythonEngine):
            raise TransferError("channel rdma: begin() did not hear of a native loop")
        return self._channel._engine.capsule


class RdmaLoops(Channel):
    """The verbs over the engine of the loop in use."""

    _engine: Engine | PythonEngine

    def __init__(self, rendezvous: Rendezvous) -> None:
        self._rendezvous = rendezvous
        self._loops: Sequence[object] = ()  # of all ranks

    @abstractmethod
    def _open_engine(self, loop: str) -> Engine | PythonEngine:
        """ChannelUnavailable, UsageError."""

    @abstractmethod
    def _connect(self) -> None:
        """The queue pairs of ``_engine``. Collective."""

    @abstractmethod
    def _closed(self, engine: Engine | PythonEngine) -> None:
        """It makes room for another one."""

    def begin(self, loop: str) -> None:
        loops = self._rendezvous.allgather(loop)
        if loops == self._loops:
            return
        if self._loops:
            self._closed(self._engine)
        self._engine = self._open_engine(loop)
        try:
            self._connect()
        except BaseException:
            self._engine.close()
            raise
        self._loops = loops

    def close(self) -> None:
        if self._loops:
            self._engine.close()

    def native(self) -> NativeEngine | None:
        return _Native(self) if native_missing() is None else None

    @property
    def _python(self) -> PythonEngine:
        if not isinstance(self._engine, PythonEngine):
            raise TransferError("channel rdma: begin() did not hear of a Python loop")
        return self._engine

    def prepare(self, exchange: Exchange) -> None:
        self._python.prepare(exchange)

    def finish(self) -> None:
        if isinstance(self._engine, PythonEngine):
            self._engine.finish()

    def post(self, peer: int, ticket: int, request: Message, reply: Message | None) -> bool:
        return self._python.post(peer, ticket, request, reply)

    def poll(self, timeout_s: float) -> Sequence[Done]:
        return self._python.poll(timeout_s)

    def exchange(self, peer: int, request: Message, reply: Message, timeout_s: float) -> int:
        return self._python.exchange(peer, request, reply, timeout_s)

    def accept(self, limit: int, timeout_s: float) -> Sequence[Incoming]:
        return self._python.accept(limit, timeout_s)

    def answer(self, ticket: int, answer: Message) -> None:
        self._python.answer(ticket, answer)

    def progress(self, timeout_s: float) -> bool:
        return self._python.progress(timeout_s)

    def copied(self) -> int:
        return self._python.copied()
