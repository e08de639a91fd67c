"""One rank's part in a benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Role:
    """One rank's part: the ranks it asks and the ranks that ask it."""

    targets: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()

    @property
    def peers(self) -> tuple[int, ...]:
        return tuple(sorted({*self.targets, *self.sources}))
