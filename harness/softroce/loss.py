"""Packet loss between the two devices, and the counters that prove it. Runs in the machine."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator

from commbench.harness.softroce.layout import ENDS
from commbench.harness.sysfs import Tree

_TC_S = 30.0


def set_loss(percent: float) -> None:
    """Drop so many percent of the packets that leave either end; 0: none, and no discipline."""
    for end in ENDS:
        where = ("dev", end.interface, "root")
        if percent:
            _tc("qdisc", "replace", *where, "netem", "loss", f"{percent:.6f}%")
        else:
            _tc("qdisc", "replace", *where, "noqueue")


@contextlib.contextmanager
def lossy(percent: float) -> Iterator[None]:
    """Packets are lost inside, none afterwards; read ``drops`` inside."""
    set_loss(percent)
    try:
        yield
    finally:
        set_loss(0)


def drops() -> dict[str, int]:
    """Packets dropped so far by the discipline of each interface: ``tc -s qdisc``."""
    counted = {}
    for end in ENDS:
        shown = _tc("-s", "-j", "qdisc", "show", "dev", end.interface)
        counted[end.interface] = sum(int(each.get("drops", 0)) for each in json.loads(shown))
    return counted


def counters(device: str, port: int = 1, tree: Tree | None = None) -> dict[str, int]:
    """The ``hw_counters`` of a port. Soft-RoCE has no others: it counts packets, not bytes."""
    tree = tree or Tree()
    folder = f"sys/class/infiniband/{device}/ports/{port}/hw_counters"
    values = {name: tree.number(f"{folder}/{name}") for name in tree.names(folder)}
    return {name: value for name, value in values.items() if value is not None}


def _tc(*words: str) -> str:
    done = subprocess.run(
        ["tc", *words], capture_output=True, text=True, timeout=_TC_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"tc {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
