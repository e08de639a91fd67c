"""Ranks as threads of this process, over real sockets: native loops run without the GIL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from commbench import _native
from commbench.channels.tcp import SocketChannel, TcpChannel
from commbench.harness.rendezvous import Rendezvous
from commbench.harness.world import World

T = TypeVar("T")
DEADLINE_S = 30.0


@dataclass
class Hall:
    """What the ranks share. ``on_gather`` sees the gathered values before anyone gets them."""

    size: int
    on_gather: Callable[[list[Any]], None] = lambda values: None
    values: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = [None] * self.size
        self.barrier = threading.Barrier(self.size, lambda: self.on_gather(self.values))


class Meeting:
    """A rendezvous of threads: what a channel needs of the real one."""

    local_address = "127.0.0.1"
    token = "5e" * 32

    def __init__(self, hall: Hall, rank: int) -> None:
        self.hall, self.rank, self.size = hall, rank, hall.size
        self.stop = _native.StopFlag()

    def allgather(self, value: Any, timeout_s: float = DEADLINE_S) -> list[Any]:
        self.hall.values[self.rank] = value
        self.hall.barrier.wait(timeout_s)
        return list(self.hall.values)

    def check(self) -> None: ...


def open_rank(
    hall: Hall, rank: int, kind: type[SocketChannel] = TcpChannel, **options: str
) -> tuple[SocketChannel, Meeting]:
    world = World(rank, hall.size, rank, hall.size, "threads", ("here",) * hall.size)
    meeting = Meeting(hall, rank)
    channel = kind.open(world, cast(Rendezvous, meeting), kind.check_options(options))
    return channel, meeting


def together(size: int, one: Callable[[int], T]) -> Sequence[T]:
    """What each rank's thread returned; raises what the first of them raised."""
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
        return [future.result(DEADLINE_S) for future in futures]
