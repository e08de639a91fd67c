"""What a host is made of, as /proc and /sys say: CPUs, memory, networks, virtual or not.

A value is None where the host does not say.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from typing import Any

from commbench.harness.sysfs import Tree, format_cpus, parse_cpus

LINK_TYPES = {1: "ethernet", 32: "infiniband", 772: "loopback"}  # linux/if_arp.h
_MOST_INTERFACES = 64

Json = dict[str, Any]


def hostname(tree: Tree) -> str:
    """As the kernel has it."""
    return tree.text("proc/sys/kernel/hostname") or platform.node()


def cpu(tree: Tree) -> Json:
    """Model, CPUs online and allowed, and what makes their speed change."""
    online = online_cpus(tree)
    return {
        "model": cpu_model(tree),
        "online": format_cpus(online),
        "cores": len(cores(tree, online)),
        "smt": smt(tree),
        "affinity": format_cpus(allowed_cpus(tree)),
        "quota": cpu_quota(tree),
        "governor": ",".join(governors(tree)) or None,
        "turbo": turbo(tree),
        "clocksource": tree.text("sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "numa": {node: format_cpus(cpus) for node, cpus in numa_nodes(tree).items()},
    }


def cpu_model(tree: Tree) -> str | None:
    """``model name`` on x86; on Arm, where there is none, implementer and part."""
    implementer = tree.field("proc/cpuinfo", "CPU implementer")
    part = tree.field("proc/cpuinfo", "CPU part")
    arm = f"Arm implementer {implementer} part {part}" if implementer and part else None
    names = (tree.field("proc/cpuinfo", name) for name in ("model name", "cpu", "Model"))
    return next((name for name in names if name), arm)


def online_cpus(tree: Tree) -> frozenset[int]:
    """CPUs that are switched on."""
    return parse_cpus(tree.text("sys/devices/system/cpu/online"))


def allowed_cpus(tree: Tree) -> frozenset[int]:
    """The affinity mask of this process's main thread."""
    return parse_cpus(tree.field("proc/self/status", "Cpus_allowed_list"))


def cores(tree: Tree, cpus: frozenset[int]) -> list[frozenset[int]]:
    """``cpus`` grouped by physical core; one CPU is a core where the kernel does not say."""
    groups = set()
    for number in cpus:
        siblings = tree.text(f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        groups.add((parse_cpus(siblings) & cpus) or frozenset((number,)))
    return sorted(groups, key=min)


def governors(tree: Tree) -> list[str]:
    """The different frequency governors of the CPUs online; empty without cpufreq."""
    folder = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
    return sorted({tree.text(folder.format(n)) or "" for n in online_cpus(tree)} - {""})


def turbo(tree: Tree) -> bool | None:
    """Whether cores may run above their nominal frequency."""
    off = tree.number("sys/devices/system/cpu/intel_pstate/no_turbo")
    if off is not None:
        return off == 0
    boost = tree.number("sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == 1


def smt(tree: Tree) -> bool | None:
    """Whether cores run more than one thread."""
    active = tree.number("sys/devices/system/cpu/smt/active")
    return None if active is None else active == 1


def numa_nodes(tree: Tree) -> dict[str, frozenset[int]]:
    """Node number -> CPUs."""
    base = "sys/devices/system/node"
    nodes = [name for name in tree.names(base) if re.fullmatch(r"node[0-9]+", name)]
    return {name[4:]: parse_cpus(tree.text(f"{base}/{name}/cpulist")) for name in nodes}


def cpu_quota(tree: Tree) -> float | None:
    """CPUs' worth of time that the control groups of this process allow; None: no limit."""
    limits = [limit for path in _cgroups(tree) if (limit := _quota(tree, path)) is not None]
    return min(limits, default=None)


def memory(tree: Tree) -> Json:
    """Sizes in bytes."""
    thp = re.search(r"\[(\w+)\]", tree.text("sys/kernel/mm/transparent_hugepage/enabled") or "")
    return {
        "total": meminfo(tree, "MemTotal"),
        "swap_used": (meminfo(tree, "SwapTotal") or 0) - (meminfo(tree, "SwapFree") or 0),
        "transparent_hugepages": thp[1] if thp else None,
        "memlock": memlock(tree),
    }


def meminfo(tree: Tree, name: str) -> int | None:
    """Bytes of one line of /proc/meminfo."""
    found = re.match(r"(\d+) kB", tree.field("proc/meminfo", name) or "")
    return int(found[1]) * 1024 if found else None


def memlock(tree: Tree) -> int | None:
    """Bytes that this process may lock (and an RDMA device may pin); None: no limit."""
    found = re.search(r"^Max locked memory\s+(\d+)", tree.text("proc/self/limits") or "", re.M)
    return int(found[1]) if found else None


def nics(tree: Tree, used: tuple[str, ...] = ()) -> list[Json]:
    """Network interfaces; of very many, those used and the first ones by name."""
    names = tree.names("sys/class/net")
    kept = sorted(names, key=lambda name: name not in used)[:_MOST_INTERFACES]
    return [{**nic(tree, name), "used": name in used} for name in names if name in kept]


def nic(tree: Tree, name: str) -> Json:
    """``speed_mbps`` as the driver reports it (None: it does not); ``mode`` is IPoIB's."""
    base = f"sys/class/net/{name}"
    link_type = tree.number(f"{base}/type")
    speed = tree.number(f"{base}/speed")
    return {
        "name": name,
        "link_layer": LINK_TYPES.get(link_type or 0, f"type {link_type}"),
        "mtu": tree.number(f"{base}/mtu"),
        "speed_mbps": speed if speed and speed > 0 else None,
        "state": tree.text(f"{base}/operstate"),
        "mode": tree.text(f"{base}/mode"),
        "driver": tree.link(f"{base}/device/driver"),
        "numa_node": _numa(tree, f"{base}/device"),
    }


def rdma_ports(tree: Tree) -> list[Json]:
    """Ports of RDMA devices, InfiniBand or RoCE."""
    base = "sys/class/infiniband"
    return [
        {
            "device": device,
            "port": int(port) if port.isdigit() else port,
            "link_layer": tree.text(f"{base}/{device}/ports/{port}/link_layer"),
            "rate": tree.text(f"{base}/{device}/ports/{port}/rate"),
            "state": _after_colon(tree.text(f"{base}/{device}/ports/{port}/state")),
            "firmware": tree.text(f"{base}/{device}/fw_ver"),
            "interfaces": tree.names(f"{base}/{device}/device/net"),
            "numa_node": _numa(tree, f"{base}/{device}/device"),
        }
        for device in tree.names(base)
        for port in tree.names(f"{base}/{device}/ports")
    ]


def hypervisor(tree: Tree) -> str | None:
    """The virtual machine that this is, as far as it tells."""
    flags = (tree.field("proc/cpuinfo", "flags") or "").split()
    vendor = tree.text("sys/class/dmi/id/sys_vendor")
    product = tree.text("sys/class/dmi/id/product_name")
    named = " ".join(part for part in (vendor, product) if part)
    kind = tree.text("sys/hypervisor/type")
    if kind or "hypervisor" in flags:
        return kind or named or "unknown"
    return None


def container(tree: Tree, environ: Mapping[str, str]) -> str | None:
    """The container runtime, as far as it tells."""
    for file, name in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if tree.exists(file):
            return name
    if "APPTAINER_NAME" in environ or "SINGULARITY_NAME" in environ:
        return "apptainer"
    groups = tree.text("proc/self/cgroup") or ""
    found = re.search(r"kubepods|docker|libpod|lxc", groups)
    return found[0] if found else environ.get("container")


def _after_colon(text: str | None) -> str | None:
    """``4: ACTIVE`` -> ``ACTIVE``."""
    return text.partition(":")[2].strip() or text if text else None


def _numa(tree: Tree, device: str) -> int | None:
    node = tree.number(f"{device}/numa_node")
    return node if node is not None and node >= 0 else None


def _cgroups(tree: Tree) -> list[str]:
    """Folders of this process's CPU control groups and their parents, version 1 or 2."""
    folders = []
    for line in (tree.text("proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = f"sys/fs/cgroup/{controllers}" if controllers else "sys/fs/cgroup"
        parts = [part for part in path.split("/") if part]
        folders += ["/".join([base, *parts[:n]]) for n in range(len(parts) + 1)]
    return folders


def _quota(tree: Tree, folder: str) -> float | None:
    v2 = re.match(r"(\d+) (\d+)", tree.text(f"{folder}/cpu.max") or "")
    quota = int(v2[1]) if v2 else tree.number(f"{folder}/cpu.cfs_quota_us")
    period = int(v2[2]) if v2 else tree.number(f"{folder}/cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def peak_rss_bytes(tree: Tree) -> int | None:
    """The most memory that this process ever had resident (VmHWM); None where it is not told."""
    found = re.fullmatch(r"([0-9]{1,15}) kB", tree.field("proc/self/status", "VmHWM") or "")
    return int(found[1]) * 1024 if found else None
