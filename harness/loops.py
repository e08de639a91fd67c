"""The loops: the only Python that reads the clock.

``NativeLoop`` hands a block to ``native/loops.c``; ``PythonLoop`` drives a channel's Python verbs.
Both take the same ``Block`` and write the same stamps, so that either can be the other's check.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from commbench import _native
from commbench.channels.base import Channel, Exchange
from commbench.errors import (
    CommbenchError,
    Interrupted,
    PayloadMismatch,
    PeerLost,
    TransferError,
)
from commbench.harness.asking import Asker
from commbench.harness.block import BLOCK_OPERATIONS, Block, Outcome, Stamps
from commbench.harness.handlers import handler_named
from commbench.harness.pipeline import Pipeline
from commbench.harness.serving import Server
from commbench.payloads.buffers import Message

__all__ = ["BLOCK_OPERATIONS", "Block", "Loop", "NativeLoop", "Outcome", "PythonLoop", "Stamps"]


class Loop(Protocol):
    """A channel made ready for one case; ``close`` ends the case."""

    name: str

    def run(self, block: Block, stamps: Stamps) -> Outcome: ...
    def copied(self) -> int:
        """Payload bytes that the channel has copied so far, see ``Channel.copied``."""

    def close(self) -> None: ...


def prepare_native(channel: Channel, exchange: Exchange) -> _native.Prepared:
    """The channel's engine made ready for a case. TransferError when it has none or refuses."""
    engine = channel.native()
    if engine is None:
        raise TransferError(f"channel {channel.name} has no native engine")
    try:
        return _native.Prepared(
            engine.capsule,
            exchange.peers,
            exchange.window,
            exchange.reply_every,
            exchange.asks,
            exchange.serves,
            native_slots(exchange.request),
            native_slots(exchange.reply),
            native_slots(exchange.incoming),
            exchange.answer_nbytes,
            exchange.stop,
            exchange.calls,
        )
    except OSError as error:
        raise failure(error.errno or 0, f"channel {channel.name}: {error.strerror}") from error


class NativeLoop:
    """``native/loops.c`` over the channel's engine, without the GIL."""

    name = "native"

    def __init__(self, channel: Channel, exchange: Exchange) -> None:
        self._channel = channel
        self._prepared = prepare_native(channel, exchange)

    def run(self, block: Block, stamps: Stamps) -> Outcome:
        outcome = _native.run_loop(
            block.kind,
            self._prepared,
            handler=block.handler,
            targets=block.targets,
            rank=block.rank,
            count=block.count,
            batch=block.batch,
            serve=block.serve,
            seed=block.seed,
            number=block.number,
            request_nbytes=block.request_nbytes,
            reply_nbytes=block.reply_nbytes,
            verify_every=block.verify_every,
            verify_last=block.verify_last,
            ordered=block.ordered,
            timeout_ns=int(block.timeout_s * 1e9),
            intended=stamps.intended.ctypes.data,
            start=stamps.start.ctypes.data,
            end=stamps.end.ctypes.data,
            call_nbytes=block.calls,
            parameters=None if block.parameters is None else block.parameters.native,
            stretch=block.stretch,
        )
        if outcome.error:
            named = outcome.peer < 0 or f"rank {outcome.peer} " in outcome.message
            peer = "" if named else f" (peer: rank {outcome.peer})"
            raise failure(outcome.error, f"channel {self._channel.name}: {outcome.message}{peer}")
        return Outcome(
            outcome.done, outcome.served, outcome.messages, outcome.validated, outcome.elements
        )

    def copied(self) -> int:
        return self._prepared.copied()

    def close(self) -> None:
        try:
            self._prepared.finish()
        except OSError as error:
            raise failure(
                error.errno or 0, f"channel {self._channel.name}: {error.strerror}"
            ) from error


def native_slots(messages: Sequence[Message]) -> _native.Slots:
    """Messages as C sees them; they are kept alive."""
    return _native.Slots([message.addresses for message in messages], tuple(messages))


_ERRORS: dict[int, type[CommbenchError]] = {
    errno.ECANCELED: Interrupted,
    errno.EBADMSG: PayloadMismatch,
    errno.ECONNRESET: PeerLost,
    errno.ECONNABORTED: PeerLost,
    errno.EPIPE: PeerLost,
}


def failure(code: int, message: str) -> CommbenchError:
    """The exception of an errno that native code gave."""
    return _ERRORS.get(code, TransferError)(message)


class PythonLoop:
    """The reference: the same loops over the channel's Python verbs. ``clock`` returns ns."""

    name = "python"

    def __init__(
        self,
        channel: Channel,
        exchange: Exchange,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._channel = channel
        self._exchange = exchange
        self._clock = clock
        channel.prepare(exchange)

    def copied(self) -> int:
        return self._channel.copied()

    def close(self) -> None:
        self._channel.finish()

    def run(self, block: Block, stamps: Stamps) -> Outcome:
        handler = handler_named(block.handler, block.parameters) if block.handler else None
        asker = Asker(self._channel, self._exchange, block, stamps, self._clock)
        if block.kind == "closed" and self._exchange.window == 1:
            return asker.pingpong()
        if block.kind == "windowed":
            return asker.windows()
        server = Server(self._channel, self._exchange, block, handler) if block.serve else None
        return Pipeline(asker, block.kind == "open").run(server)
