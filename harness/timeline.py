"""The stamps of several ranks on one time line: when were all of them at work at once?

Ranks of one host read the same clock, and their stamps are compared as they are. Ranks of several
hosts do not: there each rank counts from its own leaving of the block's barrier, which all leave
when the last has come; they differ by how long the news of it takes to each of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TIME_NAMESPACE = "/proc/self/ns/time"


class Gathering(Protocol):
    """What is needed of the rendezvous."""

    def allgather(self, value: Any, timeout_s: float) -> Sequence[object]: ...


@dataclass(frozen=True, slots=True)
class Span:
    """One block, in ns of this rank's clock: from the first start of all askers to the last end,
    and from their latest first start to their earliest last end, when all were issuing."""

    first: int
    last: int
    all_from: int
    all_until: int

    @property
    def elapsed_ns(self) -> int:
        return self.last - self.first

    @property
    def issuing_ns(self) -> int:
        """How long all askers were issuing at once; 0: never."""
        return max(0, self.all_until - self.all_from)


@cache
def clock_identity() -> str:
    """Names the clock that this process reads: host, boot, time namespace; "" where unknown."""
    try:
        return f"{BOOT_ID.read_text().strip()} {os.readlink(TIME_NAMESPACE)}"
    except OSError:
        return ""


def gather_span(
    gathering: Gathering, origin: int, mine: tuple[int, int] | None, timeout_s: float
) -> Span:
    """Collective. ``mine``: first start and last end of this rank in ns, None when it asks nobody;
    ``origin``: when it left the barrier before the block. At least one rank must ask.
    """
    value = [clock_identity(), origin, *(mine or ())]
    return span_of(gathering.allgather(value, timeout_s), origin)


def span_of(ranks: Sequence[Any], origin: int) -> Span:
    """``ranks``: [clock, origin, first start, last end] of each, or [clock, origin]."""
    one_clock = len({clock for clock, *_ in ranks}) == 1 and ranks[0][0] != ""
    askers = [
        [stamp if one_clock else stamp - theirs + origin for stamp in stamps]
        for _, theirs, *stamps in ranks
        if stamps
    ]
    starts, ends = zip(*askers, strict=True)
    return Span(min(starts), max(ends), max(starts), min(ends))
