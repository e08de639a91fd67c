"""How much of a normal run is measuring, and how long it takes to begin."""

from __future__ import annotations

from typing import Any

from benchmarks.ratios import tools
from benchmarks.ratios.statistics import HOLDS, MISSED

SHARE, STARTUP_NS = 0.80, 3_000_000_000
RUN = ("latency,bandwidth", "-C", "tcp,mpi")


def rows(cpus: tools.Cpus, arguments: tuple[str, ...] = RUN) -> list[dict[str, Any]]:
    """From the ``end`` line of ``commbench run ARGUMENTS``."""
    end = tools.commbench(arguments, cpus)[-1]
    share, startup = end["measured_share"], end["startup_ns"]
    command = " ".join(("commbench run", *arguments))
    return [
        _row(f"measured share of {command}", ">= 0.80", share, share >= SHARE),
        _row("start to first barrier, s", "<= 3.00", startup / 1e9, startup <= STARTUP_NS),
    ]


def _row(name: str, target: str, value: float, met: bool) -> dict[str, Any]:
    return {"name": name, "target": target, "value": value, "verdict": HOLDS if met else MISSED}


def line(row: dict[str, Any]) -> str:
    return f"{row['name']:<64} {row['target']:>7} {row['value']:>7.3f}  {row['verdict']}"
