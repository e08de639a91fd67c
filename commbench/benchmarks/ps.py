"""The parameter server: ranks 0 to P - 1 serve, the next W ranks are workers and call them all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from commbench.benchmarks.role import Role
from commbench.errors import UsageError
from commbench.payloads.spec import PayloadSpec

PS_MODES = ("echo", "push-pull", "async")
FLOAT_NBYTES = 4
MOST_STRETCH = 100.0


@dataclass(frozen=True, slots=True)
class PsSpec:
    """Who is what in a case of ``ps`` and what is done; part of the compare key.

    ``mode``: of ``PS_MODES``. ``shard``: each server holds 1/P of the parameters. ``per_tensor``:
    each buffer of the payload is a call of its own. ``straggler``: "RANK:2x", a slow worker.
    """

    servers: int
    workers: int
    mode: str = "echo"
    shard: bool = False
    per_tensor: bool = False
    straggler: str | None = None

    @property
    def differs(self) -> bool:
        """Whether the messages of a step are not all alike and plain."""
        return self.mode != "echo" or self.shard or self.per_tensor

    def calls(self, sizes: tuple[int, ...], server: int) -> tuple[tuple[int, ...], ...]:
        """The messages of a worker's step to this server, each as the sizes of its buffers."""
        parts = tuple(self._part(size, server) for size in sizes) if self.shard else sizes
        return tuple((part,) for part in parts) if self.per_tensor else (parts,)

    def _part(self, nbytes: int, server: int) -> int:
        """Consecutive elements; what is left over goes to the first servers, one each."""
        elements = nbytes // FLOAT_NBYTES
        mine = elements // self.servers + (server < elements % self.servers)
        return mine * FLOAT_NBYTES

    def stretch(self, rank: int) -> float:
        """How many times as long a step of this rank takes."""
        if self.straggler is None:
            return 1.0
        slow, factor = parse_straggler(self.straggler)
        return factor if slow == rank else 1.0

    def with_payload(self, payload: PayloadSpec, per_tensor: bool | None) -> PsSpec:
        """For this payload; None: each tensor is a call when it is a model's.

        Raises UsageError for a payload that is not of float32 where one is needed.
        """
        if per_tensor is None:
            per_tensor = payload.scheme.startswith(("model:", "trace:"))
        odd = [size for size in payload.sizes if size % FLOAT_NBYTES]
        if odd and (self.mode != "echo" or self.shard):
            flag = "--shard" if self.mode == "echo" else f"--ps-mode {self.mode}"
            raise UsageError(
                f"{flag}: a buffer of {odd[0]} bytes has no whole number of float32; "
                f"allowed: multiples of {FLOAT_NBYTES}, e.g. -m 4:4M, --small 12"
            )
        return replace(self, per_tensor=per_tensor)

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
    mode: str = "echo"
    shard: bool = False
    per_tensor: bool | None = None
    straggler: str | None = None

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
        if self.straggler is not None:
            self._check_straggler(workers)
        return PsSpec(self.servers, workers, self.mode, self.shard, straggler=self.straggler)

    def _check_straggler(self, workers: int) -> None:
        rank, _ = parse_straggler(str(self.straggler))
        if not self.servers <= rank < self.servers + workers:
            raise UsageError(
                f"--straggler {self.straggler}: rank {rank} is no worker; "
                f"allowed: {self.servers} to {self.servers + workers - 1}"
            )

    def _inside(self) -> PsSpec:
        if self.servers != 1 or self.workers not in (None, 1):
            raise UsageError(
                f"--ps {self.servers} --workers {self.workers or 1}: a channel inside one rank has "
                f"one worker, which is its own server; allowed: 1 and 1"
            )
        if self.straggler is not None:
            raise UsageError(
                f"--straggler {self.straggler}: a channel inside one rank has no slow worker; "
                f"allowed over channels between ranks"
            )
        return PsSpec(1, 1, self.mode, self.shard)


def parse_straggler(text: str, flag: str = "--straggler") -> tuple[int, float]:
    """Rank and factor of "RANK:2x". Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,3}(?:\.[0-9]{1,3})?)x", text)
    if not match or not 1 < float(match[2]) <= MOST_STRETCH:
        raise UsageError(
            f"{flag} {text}: allowed: RANK:FACTORx with a factor above 1 and at most "
            f"{MOST_STRETCH:g}, e.g. 1:2x"
        )
    return int(match[1]), float(match[2])
