"""What on this host makes numbers unstable, and what to do about it.

``commbench doctor`` prints all findings; a run stores those of severity "warning" with its
results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from commbench.harness import doctor_cpu as cpu
from commbench.harness import doctor_io as io
from commbench.harness.finding import Finding, Host
from commbench.harness.sysfs import Tree

CHECKS: tuple[Callable[[Host], Iterator[Finding]], ...] = (
    cpu.enough_cores,
    cpu.pinning,
    cpu.narrow_mask,
    cpu.quota,
    cpu.load,
    cpu.governor,
    cpu.turbo,
    cpu.siblings,
    cpu.idle_states,
    cpu.clocksource,
    cpu.virtual_machine,
    io.memlock,
    io.swap,
    io.hugepages,
    io.links,
    io.numa,
    io.ipoib_mode,
    io.socket_buffers,
)


def examine(
    local_ranks: int = 2,
    interfaces: tuple[str, ...] = (),
    bind: str = "core",
    root: Path = Path("/"),
) -> list[Finding]:
    """All findings, warnings first, in the order of ``CHECKS``."""
    host = Host(Tree(root), local_ranks, interfaces, bind)
    findings = [finding for check in CHECKS for finding in check(host)]
    return sorted(findings, key=lambda finding: finding.severity != "warning")


def warnings(findings: Iterable[Finding]) -> list[str]:
    """The lines that a result stores."""
    return [finding.line for finding in findings if finding.severity == "warning"]
