"""Two ends of the ``rdma`` channel in one process: each runs a verified loop in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from commbench.channels.base import Exchange
from commbench.channels.rdma_pyverbs import Options
from commbench.harness.loops import Block, NativeLoop, PythonLoop, Stamps
from commbench.harness.stop import StopFlag
from commbench.payloads.buffers import allocate

OPS = ("send", "write", "write-imm", "read")
FILLS = 1024  # bytes of the path's packets, and of the longest eager message
LAYOUTS = ((1,), (0,), (700, 300), (600, FILLS - 600), (5, 0, 120_000, 7), (40,) * 40)
TIMEOUT_S = 30.0  # without any progress


def options(device: str, rank: int, op: str, **more: int) -> Options:
    given = {"eager_max": FILLS, "inline_max": 128, "tx_depth": 8, "rx_depth": 16} | more
    return Options(device=device, port=1, rank=rank, size=2, op=op, signal_every=4, **given)


def exchange(rank: int, layout: tuple[int, ...], window: int, batch: int, both: bool) -> Exchange:
    asks, serves = both or rank == 0, both or rank == 1
    return Exchange(
        peers=(1 - rank,),
        window=window,
        reply_every=batch,
        asks=asks,
        serves=serves,
        request=allocate(layout, window if asks else 0),
        reply=allocate(layout if batch == 1 else (), window if asks else 0),
        incoming=allocate(layout, window if serves else 0),
        answer_nbytes=sum(layout),
        stop=StopFlag(),
    )


class Verbs:
    """As a channel hands them on."""

    name = "rdma"

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def native(self) -> Any:
        return self._engine

    def serve_inline(self, handler: object) -> bool:
        return False


def together(*parts: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def guarded(part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(part,), daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT_S)
        assert not thread.is_alive()
    for error in errors:
        raise error


def start(
    engine: Any,
    rank: int,
    layout: tuple[int, ...],
    window: int = 1,
    batch: int = 1,
    both: bool = False,
    count: int = 40,
) -> tuple[Any, Block]:
    """A prepared loop, native where there is a capsule, and a block of verified operations."""
    case = exchange(rank, layout, window, batch, both)
    kind_of = NativeLoop if hasattr(engine, "capsule") else PythonLoop
    loop: Any = kind_of(Verbs(engine), case)  # type: ignore[arg-type]
    nbytes = sum(layout)
    kind = "ask-and-serve" if both else "serve" if rank else "windowed" if batch > 1 else "closed"
    return loop, Block(
        kind=kind,
        handler=("echo" if batch == 1 else "sink") if case.serves else None,
        targets=(1 - rank,) if case.asks else (),
        rank=rank,
        count=count if case.asks else 0,
        serve=count * batch if case.serves else 0,
        batch=batch,
        seed=3,
        number=1,
        request_nbytes=nbytes,
        reply_nbytes=nbytes if batch == 1 else 0,
        verify_every=True,
        ordered=True,
        timeout_s=TIMEOUT_S,
    )


def run(
    engine: Any,
    rank: int,
    layout: tuple[int, ...],
    window: int = 1,
    batch: int = 1,
    both: bool = False,
    count: int = 40,
) -> None:
    """Every message is verified, by the loop that any run has."""
    loop, block = start(engine, rank, layout, window, batch, both, count)
    outcome = loop.run(block, Stamps(count))
    engine.settle([1 - rank], TIMEOUT_S)
    loop.close()
    assert outcome.done == block.count and outcome.served == block.serve


def exercise(one: Any, two: Any) -> None:
    """Requests and replies of every way: inline, gathered, packed, by rendezvous; then windows that
    are larger than the ring, and both ends asking at once."""

    def both(*given: Any, **named: Any) -> None:
        together(lambda: run(one, 0, *given, **named), lambda: run(two, 1, *given, **named))

    for layout in LAYOUTS:
        both(layout, count=4)
    for layout in ((8,), (3000,)):
        both(layout, 24, 24, count=2)
        both(layout, 8, both=True, count=12)
