"""A ping-pong as a Python programmer writes it with mpi4py: every iteration stamped."""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

TAG = 3


def ask(comm: Any, peer: int, out: Any, into: Any, count: int, start: Any, end: Any) -> None:
    """``count`` round trips; ``start`` and ``end`` get CLOCK_MONOTONIC ns."""
    for i in range(count):
        before = monotonic_ns()
        comm.Send(out, peer, TAG)
        comm.Recv(into, peer, TAG)
        end[i] = monotonic_ns()
        start[i] = before


def answer(comm: Any, peer: int, out: Any, into: Any, count: int, start: Any, end: Any) -> None:
    """The other end; the stamps stay as they are."""
    for _ in range(count):
        comm.Recv(into, peer, TAG)
        comm.Send(out, peer, TAG)
