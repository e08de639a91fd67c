"""The messages of a step of ``ps`` where they differ: shards, a call for each tensor, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from commbench.benchmarks import PsSpec, Role
from commbench.harness.parameters import Parameters
from commbench.payloads.buffers import Message, allocate
from commbench.plan import Case

Layout = tuple[int, ...]  # bytes of each buffer of a message


@dataclass(frozen=True, slots=True)
class Steps:
    """What one rank sends in a step, by call and in it by target, and what may arrive of a worker.

    ``calls``: bytes of the calls of a step, on a server those that arrive here.
    """

    requests: tuple[Layout, ...]
    calls: tuple[int, ...]
    incoming: Layout
    parameters: Parameters | None

    @property
    def nbytes(self) -> int:
        """Of all messages that this rank sends in a step."""
        return sum(map(sum, self.requests))

    @property
    def op_nbytes(self) -> list[int]:
        """Of each operation of a step, in their order."""
        return [sum(layout) for layout in self.requests]


def steps_of(case: Case, role: Role, rank: int, inside: bool) -> Steps | None:
    """None where all messages of the case are alike."""
    ps = case.ps
    if ps is None or not ps.differs:
        return None
    to = [ps.calls(case.payload.sizes, server) for server in role.targets]
    here = ps.calls(case.payload.sizes, rank if role.sources else 0)
    requests = tuple(layout for call in zip(*to, strict=True) for layout in call)
    largest = max(here, key=sum, default=())
    parameters = None
    if ps.mode != "echo":
        weights = slots("weights", here * 2) if role.sources else ()
        parameters = Parameters(
            0 if inside else ps.servers, ps.workers, len(here), ps.mode == "push-pull", weights
        )
    return Steps(requests, tuple(map(sum, here)), largest, parameters)


def step_memory_nbytes(ps: PsSpec, sizes: Layout) -> int:
    """What the buffers of all ranks take at least."""
    total = 0
    for server in range(ps.servers):
        calls = [sum(layout) for layout in ps.calls(sizes, server)]
        total += ps.workers * (2 * sum(calls) + max(calls, default=0))
        total += 2 * sum(calls) if ps.mode != "echo" else 0
    return total


@lru_cache(maxsize=4)
def slots(use: str, layouts: Sequence[Layout]) -> tuple[Message, ...]:
    """A message of its own for each layout; the next case of the same shapes gets the same."""
    return tuple(allocate(layout, 1)[0] for layout in layouts)
