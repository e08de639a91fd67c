"""Proof that bytes went through an RDMA device: its own counters grew by at least as much."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from commbench.channels.rdma_devices import ports
from commbench.errors import TransferError
from commbench.harness.sysfs import Tree

_PATIENCE_S = 2.0  # drivers refresh counters in their own time: Soft-RoCE every 10 ms
_MORE_THAN_OTHERS = 16  # packets or words: fewer may be those of the port's own management
_WORD = 4  # port_xmit_data counts 32-bit words


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter of what a port has sent, and its value when the channel was opened."""

    tree: Tree
    path: str  # "": the device has none
    before: int

    @classmethod
    def of(cls, tree: Tree, device: str, port: int) -> Self:
        where = f"sys/class/infiniband/{device}/ports/{port}"
        for path in (f"{where}/counters/port_xmit_data", f"{where}/hw_counters/sent_pkts"):
            value = tree.number(path)
            if value is not None:
                return cls(tree, path, value)
        return cls(tree, "", 0)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def least(self, nbytes: int, mtu: int) -> int:
        """By how much it grows at least when so many bytes are sent."""
        return nbytes // _WORD if self.name == "port_xmit_data" else nbytes // mtu

    def grown(self) -> int:
        return (self.tree.number(self.path) or 0) - self.before


class Carriers:
    """Which RDMA devices of this host have sent since: for a library that chooses by itself."""

    def __init__(self, tree: Tree) -> None:
        self._counters = [
            (each.device, Counter.of(tree, each.device, each.number))
            for each in ports(tree, with_gids=False)
        ]

    def describe(self) -> dict[str, str]:
        """``rdma_devices``: their names, or "none"; nothing on a host without such a device."""
        if not self._counters:
            return {}
        sent = {name for name, counter in self._counters if counter.grown() >= _MORE_THAN_OTHERS}
        return {"rdma_devices": ", ".join(sorted(sent)) or "none"}


def check_grown(
    counter: Counter, nbytes: int, mtu: int, patience_s: float = _PATIENCE_S, looped: bool = False
) -> str:
    """The name of the counter that proves it, or why there is none. Raises TransferError.

    ``looped``: ranks share the port, and a card does not count what never reaches its link.
    """
    if not counter.path:
        return "none: the device counts neither port_xmit_data nor sent_pkts"
    wanted = counter.least(nbytes, mtu)
    deadline = time.monotonic() + patience_s
    while (grown := counter.grown()) < wanted:
        if time.monotonic() > deadline and looped:
            return f"none: ranks share the port, and {counter.name} does not count them"
        if time.monotonic() > deadline:
            raise TransferError(
                f"channel rdma: {nbytes} bytes were sent, and {counter.name} grew by {grown} "
                f"instead of at least {wanted}; they did not go through this device"
            )
        time.sleep(0.02)
    return counter.name
