"""The parameter server: ranks 0 to P - 1 serve, the next W ranks are workers and call them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from commbench.benchmarks.role import Role
from commbench.errors import UsageError


@dataclass(frozen=True, slots=True)
class PsSpec:
    """Who is what in a case of ``ps``; part of the compare key."""

    servers: int
    workers: int

    def role(self, rank: int) -> Role:
        """Ranks beyond servers and workers rest."""
        workers = range(self.servers, self.servers + self.workers)
        if rank < self.servers:
            return Role(sources=tuple(workers))
        return Role(targets=tuple(range(self.servers))) if rank in workers else Role()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(**record)


@dataclass(frozen=True, slots=True)
class PsSettings:
    """What the flags say. ``workers`` None: all ranks that are no servers."""

    servers: int = 1
    workers: int | None = None

    @property
    def ranks(self) -> int:
        """How many our own launcher starts when nobody says how many."""
        return self.servers + (self.workers or 1)

    def spec(self, ranks: int, inside: bool) -> PsSpec:
        """For so many ranks; ``inside``: over a channel that stays inside one rank.

        Raises UsageError naming --ps and --workers when there are too few.
        """
        if inside:
            return self._inside()
        workers = ranks - self.servers if self.workers is None else self.workers
        if self.workers is not None and self.servers + workers > ranks:
            raise UsageError(
                f"--ps {self.servers} --workers {workers}: {self.servers + workers} ranks, but "
                f"there are {ranks}; allowed: at most {ranks} together"
            )
        if workers < 1:
            raise UsageError(
                f"--ps {self.servers}: of {ranks} ranks none is left for --workers; "
                f"allowed: 1 to {ranks - 1}"
            )
        return PsSpec(self.servers, workers)

    def _inside(self) -> PsSpec:
        if self.servers != 1 or self.workers not in (None, 1):
            raise UsageError(
                f"--ps {self.servers} --workers {self.workers or 1}: a channel inside one rank has "
                f"one worker, which is its own server; allowed: 1 and 1"
            )
        return PsSpec(1, 1)
