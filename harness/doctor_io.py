"""Checks of memory and networks: each a small function of the host; reads and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from commbench.harness import hardware
from commbench.harness.finding import Finding, Host
from commbench.harness.sysfs import format_cpus
from commbench.units import format_memory

ENOUGH_MEMLOCK = 64 << 20  # bytes: a window of 64 messages of 1 MiB
ENOUGH_SOCKET_BUFFER = 4 << 20  # bytes: bandwidth times delay of 100 Gb/s and 300 us


def memlock(host: Host) -> Iterator[Finding]:
    limit = hardware.memlock(host.tree)
    if limit is not None and limit < ENOUGH_MEMLOCK:
        rdma = bool(hardware.rdma_ports(host.tree))
        yield Finding(
            "memlock",
            "warning" if rdma else "note",
            f"only {format_memory(limit)} may be locked (ulimit -l)",
            "RDMA registers its buffers as locked memory and fails or falls back beyond that",
            "ulimit -l unlimited, or memlock in /etc/security/limits.conf; for Slurm, LimitMEMLOCK "
            "of slurmd",
        )


def swap(host: Host) -> Iterator[Finding]:
    used = int(hardware.memory(host.tree)["swap_used"])
    if used > 0:
        yield Finding(
            "swap",
            "note",
            f"{format_memory(used)} of swap are used",
            "memory was short, and pages may still be on disk",
            "free memory, then swapoff -a",
        )


def hugepages(host: Host) -> Iterator[Finding]:
    if hardware.memory(host.tree)["transparent_hugepages"] == "always":
        yield Finding(
            "hugepages",
            "note",
            "transparent huge pages are always used",
            "which buffers get them differs from run to run, and the kernel moves pages meanwhile",
            "write madvise to /sys/kernel/mm/transparent_hugepage/enabled",
        )


def links(host: Host) -> Iterator[Finding]:
    named = set(host.interfaces)
    down = [
        nic["name"]
        for nic in hardware.nics(host.tree, host.interfaces)
        if nic["state"] in ("down", "lowerlayerdown", "dormant", "notpresent")
        and (nic["used"] if named else nic["driver"])
    ]
    down += [
        f"{port['device']} port {port['port']}"
        for port in hardware.rdma_ports(host.tree)
        if port["state"] not in (None, "ACTIVE") and (not named or named & {*port["interfaces"]})
    ]
    if down:
        yield Finding(
            "link",
            "warning" if named else "note",
            f"link down: {', '.join(down)}",
            "nothing goes over it; a channel that was meant to use it fails or takes another path",
            "ip link set NAME up; for InfiniBand see ibstat and whether a subnet manager runs",
        )


def numa(host: Host) -> Iterator[Finding]:
    nodes, allowed = hardware.numa_nodes(host.tree), hardware.allowed_cpus(host.tree)
    for nic in hardware.nics(host.tree, host.interfaces):
        near = nodes.get(str(nic["numa_node"]), allowed)
        if nic["used"] and allowed and not near & allowed:
            yield Finding(
                "numa",
                "warning",
                f"{nic['name']} is at NUMA node {nic['numa_node']}, but only CPUs "
                f"{format_cpus(allowed)} are allowed",
                "every message crosses the link between the sockets",
                f"allow CPUs of that node: {format_cpus(near)}",
            )


def ipoib_mode(host: Host) -> Iterator[Finding]:
    for nic in hardware.nics(host.tree, host.interfaces):
        looked_at = nic["used"] or not host.interfaces
        if looked_at and nic["link_layer"] == "infiniband" and nic["mode"] == "datagram":
            yield Finding(
                "ipoib",
                "note",
                f"{nic['name']} is IPoIB in datagram mode, MTU {nic['mtu']}",
                "a packet holds at most 4 KiB less headers, which costs bandwidth",
                f"write connected to /sys/class/net/{nic['name']}/mode and set MTU 65520, where "
                "the driver still has it",
            )


def socket_buffers(host: Host) -> Iterator[Finding]:
    for name in ("rmem_max", "wmem_max"):
        limit = host.tree.number(f"proc/sys/net/core/{name}")
        if limit is not None and limit < ENOUGH_SOCKET_BUFFER:
            yield Finding(
                "sockets",
                "note",
                f"net.core.{name} is {format_memory(limit)}",
                "-o buf=... cannot ask for more, and a fast long path is not filled",
                f"sysctl -w net.core.{name}={ENOUGH_SOCKET_BUFFER}",
            )
