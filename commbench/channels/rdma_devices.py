"""RDMA devices of this host from sysfs, and by which address a port is reached.

Nothing here needs libibverbs, so that what no test machine has (RoCE v1, InfiniBand by LID, ports
that are down) is tested on made-up trees.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from commbench.errors import ChannelUnavailable, UsageError
from commbench.harness.sysfs import Tree

_CLASS = "sys/class/infiniband"
_UNUSED_RUN = 32  # the kernel fills a table from its start; Soft-RoCE's has 1024 entries
_ACTIVE = "4: ACTIVE"
_ROCE = {"RoCE v2": "RoCE v2", "IB/RoCE v1": "RoCE v1"}


@dataclass(frozen=True, slots=True)
class Gid:
    """One entry of a port's table. ``kind``: "RoCE v2", "RoCE v1" or "InfiniBand"."""

    index: int
    address: ipaddress.IPv6Address
    kind: str
    netdev: str

    @property
    def ipv4(self) -> str | None:
        mapped = self.address.ipv4_mapped
        return str(mapped) if mapped else None


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a device. ``state`` and ``rate`` as the kernel writes them."""

    device: str
    number: int
    state: str
    rate: str
    link_layer: str  # "Ethernet" or "InfiniBand"
    lid: int
    gids: tuple[Gid, ...]
    netdev: str
    netdev_mtu: int
    firmware: str

    @property
    def active(self) -> bool:
        return self.state == _ACTIVE

    @property
    def name(self) -> str:
        return f"{self.device} port {self.number}"


@dataclass(frozen=True, slots=True)
class Address:
    """How a port is reached: by a GID, or inside an InfiniBand subnet by its LID alone."""

    port: Port
    gid: Gid | None

    @property
    def kind(self) -> str:
        """ "RoCE v2", "RoCE v1", "InfiniBand GID" or "InfiniBand LID"."""
        if self.gid is None:
            return "InfiniBand LID"
        return self.gid.kind if self.gid.kind.startswith("RoCE") else "InfiniBand GID"

    @property
    def ip(self) -> str | None:
        """What rdma_cm takes. None: the GID is not made of one; its interface may have one."""
        if self.gid is None or not self.gid.kind.startswith("RoCE"):
            return None
        return self.gid.ipv4 or (None if self.gid.address.is_link_local else str(self.gid.address))

    def describe(self, firmware: str, lid: int) -> dict[str, str | int | float]:
        """For the result of a channel; what its engine knows better is given."""
        described: dict[str, str | int | float] = {
            "device": self.port.device,
            "port": self.port.number,
            "firmware": firmware,
            "link_layer": self.port.link_layer,
            "rate": self.port.rate,
            "addressing": self.kind,
        }
        if self.gid is None:
            return {**described, "address": f"LID {lid}"}
        address = f"GID {self.gid.ipv4 or self.gid.address}"
        return {**described, "address": address, "gid_index": self.gid.index}


def ports(tree: Tree, with_gids: bool = True) -> list[Port]:
    """All ports of all devices, in the order of their names."""
    return [
        _port(tree, device, int(number), with_gids)
        for device in tree.names(_CLASS)
        for number in tree.names(f"{_CLASS}/{device}/ports")
        if number.isdecimal()
    ]


def missing(tree: Tree) -> str | None:
    """None when a port is active, else one line that says what there is."""
    there = ports(tree, with_gids=False)
    if not there:
        return (
            "this host has no RDMA device (/sys/class/infiniband is empty); load the driver of "
            "the card, or for Soft-RoCE: modprobe rdma_rxe; rdma link add rxe0 type rxe netdev NAME"
        )
    if any(port.active for port in there):
        return None
    listed = ", ".join(f"{port.name} is {port.state or 'unknown'}" for port in there)
    return f"no RDMA port is active: {listed}"


def choose(
    tree: Tree,
    *,
    device: str = "",
    port: str = "",
    gid_index: str = "",
    local_rank: int = 0,
    addresses: Sequence[str] = (),
    named: bool = False,
) -> Address:
    """The address of this rank.

    ``device``: names separated by commas, taken in turn by local rank; "": the active ones.
    ``addresses``: those of the measured interface, preferred as GIDs; ``named``: by the user, so
    that its device is preferred, too. Raises UsageError for what is not there, ChannelUnavailable
    when nothing can be used.
    """
    there = ports(tree)
    if not there:
        raise ChannelUnavailable(f"channel rdma cannot run here: {missing(tree)}")
    found = _choose_port(there, device, port, local_rank, addresses if named else ())
    if not found.active:
        raise ChannelUnavailable(
            f"channel rdma: {found.name} is {found.state or 'in no known state'}, not {_ACTIVE}; "
            f"active: {_listed(each.name for each in there if each.active)}"
        )
    return Address(found, _choose_gid(found, gid_index, addresses))


def _choose_port(
    there: Sequence[Port], device: str, number: str, local_rank: int, addresses: Sequence[str]
) -> Port:
    names = [name.strip() for name in device.split(",")] if device else []
    known = dict.fromkeys(each.device for each in there)
    for name in names:
        if name not in known:
            raise UsageError(
                f"--ib-dev {device}: no device {name} here; there are: {_listed(known)}"
            )
    if not names:
        active = [each for each in there if each.active] or list(there)
        measured = [e for e in active if any(gid.ipv4 in addresses for gid in e.gids)]
        names = list(dict.fromkeys(each.device for each in measured or active))
    chosen = names[max(local_rank, 0) % len(names)]
    its = [each for each in there if each.device == chosen]
    if not number:
        return next((each for each in its if each.active), its[0])
    for each in its:
        if number == str(each.number):
            return each
    raise UsageError(
        f"--ib-port {number}: {chosen} has no such port; it has: "
        f"{_listed(str(each.number) for each in its)}"
    )


def _choose_gid(port: Port, index: str, addresses: Sequence[str]) -> Gid | None:
    if index:
        for gid in port.gids:
            if index == str(gid.index):
                return gid
        listed = _listed(f"{gid.index} ({gid.kind} {gid.address})" for gid in port.gids)
        raise UsageError(f"--gid-index {index}: {port.name} has no such GID; it has: {listed}")
    if port.link_layer == "InfiniBand" and port.lid:
        return None
    if not port.gids:
        raise ChannelUnavailable(
            f"channel rdma: {port.name} has no GID; its interface {port.netdev or ''} needs an "
            f"address"
        )
    return min(port.gids, key=lambda gid: _distance(gid, addresses))


def _distance(gid: Gid, addresses: Sequence[str]) -> tuple[bool, bool, int, int]:
    """RoCE v2 before v1; then the measured interface's address, IPv4, global, link-local."""
    text = gid.ipv4 or str(gid.address)
    kind = 0 if gid.ipv4 else 2 if gid.address.is_link_local else 1
    return gid.kind == "RoCE v1", text not in addresses, kind, gid.index


def _port(tree: Tree, device: str, number: int, with_gids: bool) -> Port:
    where = f"{_CLASS}/{device}/ports/{number}"
    gids = tuple(_gids(tree, where)) if with_gids else ()
    netdev = next((gid.netdev for gid in gids if gid.netdev), "")
    return Port(
        device=device,
        number=number,
        state=tree.text(f"{where}/state") or "",
        rate=tree.text(f"{where}/rate") or "",
        link_layer=tree.text(f"{where}/link_layer") or "",
        lid=_hex(tree.text(f"{where}/lid")),
        gids=gids,
        netdev=netdev,
        netdev_mtu=tree.number(f"sys/class/net/{netdev}/mtu") or 0 if netdev else 0,
        firmware=tree.text(f"{_CLASS}/{device}/fw_ver") or "",
    )


def _gids(tree: Tree, where: str) -> list[Gid]:
    """Entries in use: the kernel shows unused ones as zeros."""
    found: list[Gid] = []
    unused = 0
    for name in tree.names(f"{where}/gids"):
        gid = _gid(tree, where, name)
        unused = unused + 1 if gid is None else 0
        if gid is not None:
            found.append(gid)
        elif unused == _UNUSED_RUN:
            break
    return found


def _gid(tree: Tree, where: str, name: str) -> Gid | None:
    try:
        address = ipaddress.IPv6Address(tree.text(f"{where}/gids/{name}") or "")
    except ValueError:
        return None
    if not name.isdecimal() or not int(address) & ((1 << 64) - 1):
        return None
    kind = _ROCE.get(tree.text(f"{where}/gid_attrs/types/{name}") or "", "InfiniBand")
    if kind != "InfiniBand" and tree.text(f"{where}/link_layer") == "InfiniBand":
        kind = "InfiniBand"  # its driver calls the type of every GID "IB/RoCE v1"
    netdev = tree.text(f"{where}/gid_attrs/ndevs/{name}") or ""
    return Gid(int(name), address, kind, netdev)


def _hex(text: str | None) -> int:
    try:
        return int(text or "0", 16)
    except ValueError:
        return 0


def _listed(names: object) -> str:
    return ", ".join(map(str, names)) or "none"  # type: ignore[call-overload]
