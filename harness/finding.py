"""What a check of ``doctor`` says, and what it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from commbench.harness.sysfs import Tree


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that spoils numbers. "warning": it does; "note": it can, know about it."""

    check: str
    severity: Literal["warning", "note"]
    what: str
    why: str
    remedy: str

    @property
    def line(self) -> str:
        """All of it on one line."""
        return f"{self.what}: {self.why}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Host:
    """What the checks look at: a host and what is to run on it.

    ``local_ranks``: ranks on this host. ``interfaces``: names of those used (none: all are looked
    at). ``bind``: what ``--bind`` says.
    """

    tree: Tree
    local_ranks: int = 2
    interfaces: tuple[str, ...] = ()
    bind: str = "core"
