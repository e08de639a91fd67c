"""Network interfaces of this host: addresses from getifaddrs(3), the rest from /sys/class/net."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from commbench.errors import UsageError

INFINIBAND = 32  # ARPHRD_INFINIBAND in /sys/class/net/*/type
LOOPBACK = 772  # ARPHRD_LOOPBACK
_SYS = Path("/sys/class/net")
_IFF_UP = 0x1


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface. ``speed_mbps`` is what the driver says, None where it says nothing."""

    name: str
    addresses: tuple[str, ...]  # numeric, IPv4 first; link-local IPv6 carries %scope
    kind: int  # ARPHRD_*: 1 Ethernet, 32 InfiniBand, 772 loopback
    up: bool
    mtu: int
    speed_mbps: int | None
    numa_node: int | None

    @property
    def is_loopback(self) -> bool:
        return self.kind == LOOPBACK

    @property
    def is_infiniband(self) -> bool:
        return self.kind == INFINIBAND


class _SockAddr(ctypes.Structure):
    _fields_ = (("family", ctypes.c_uint16), ("data", ctypes.c_uint8 * 26))


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
]


def interfaces() -> list[Interface]:
    """All interfaces of this network namespace, in the kernel's order."""
    found: dict[str, list[str]] = {name: [] for _, name in socket.if_nameindex()}
    for name, address in _addresses():
        if name in found:
            found[name].append(address)
    return [_interface(name, addresses) for name, addresses in found.items()]


def candidates(local: bool = False) -> list[str]:
    """Addresses other ranks may reach this host by, best first; never empty.

    ``local``: all ranks are on this host. Loopback otherwise only when there is nothing else.
    """
    everything = [i for i in interfaces() if i.up]
    usable = [i for i in everything if i.is_loopback == local and i.addresses]
    usable = usable or [i for i in everything if i.addresses]
    addresses = [a for i in usable for a in i.addresses if "%" not in a]
    return sorted(addresses, key=lambda a: ":" in a)[:16] or ["127.0.0.1"]


def resolve(interface: str) -> str:
    """The numeric address of an interface given by name or address (``--interface``).

    Raises UsageError listing the interfaces that are there.
    """
    there = interfaces()
    for one in there:
        if interface in one.addresses:
            return interface
        if interface == one.name and one.addresses:
            return one.addresses[0]
    listed = ", ".join(f"{i.name} ({', '.join(i.addresses) or 'no address'})" for i in there)
    raise UsageError(f"--interface {interface}: no such interface or address here; have: {listed}")


def find(address: str) -> Interface | None:
    """The interface that has this numeric address."""
    return next((i for i in interfaces() if address in i.addresses), None)


def _interface(name: str, addresses: list[str]) -> Interface:
    flags = int(_read(name, "flags") or "0", 16)
    return Interface(
        name=name,
        addresses=tuple(sorted(addresses, key=_rank_of_address)),
        kind=_number(name, "type") or 0,
        up=bool(flags & _IFF_UP),
        mtu=_number(name, "mtu") or 0,
        speed_mbps=_positive(_number(name, "speed")),
        numa_node=_number(name, "device/numa_node"),
    )


def _rank_of_address(address: str) -> tuple[bool, bool]:
    return ":" in address, "%" in address


def _positive(value: int | None) -> int | None:
    return value if value is not None and value > 0 else None


def _read(name: str, entry: str) -> str | None:
    try:  # speed of a link that is down answers EINVAL
        return (_SYS / name / entry).read_text().strip()
    except OSError:
        return None


def _number(name: str, entry: str) -> int | None:
    text = _read(name, entry)
    return int(text) if text and text.lstrip("-").isdigit() else None


def _addresses() -> Iterator[tuple[str, str]]:
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(head)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "getifaddrs")
    try:
        entry = head
        while entry:
            one = entry.contents
            address = _numeric(one.address.contents) if one.address else None
            if address:
                yield one.name.decode(), address
            entry = one.next
    finally:
        libc.freeifaddrs(head)


def _numeric(raw: _SockAddr) -> str | None:
    data = bytes(raw.data)
    if raw.family == socket.AF_INET:
        return str(ipaddress.IPv4Address(data[2:6]))
    if raw.family == socket.AF_INET6:
        address = ipaddress.IPv6Address(data[6:22])
        if not address.is_link_local:
            return str(address)
        scope = int.from_bytes(data[22:26], "little")
        return f"{address}%{socket.if_indextoname(scope)}"
    return None
