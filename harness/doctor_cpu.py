"""Checks of CPUs and clock: each a small function of the host that reads and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

from commbench.harness import hardware
from commbench.harness.finding import Finding, Host
from commbench.harness.sysfs import Tree, format_cpus

GOOD_CLOCKS = ("tsc", "arch_sys_counter", "timebase", "kvm-clock", "hyperv_clocksource_tsc_page")
SLOW_WAKE_US = 50
STEAL_PERCENT = 1.0


def governor(host: Host) -> Iterator[Finding]:
    slow = [name for name in hardware.governors(host.tree) if name != "performance"]
    if slow:
        yield Finding(
            "governor",
            "warning",
            f"CPU frequency governor is {', '.join(slow)}",
            "the clock speed follows the load, so short messages are measured on a slow core",
            "cpupower frequency-set -g performance",
        )


def turbo(host: Host) -> Iterator[Finding]:
    if hardware.turbo(host.tree):
        yield Finding(
            "turbo",
            "note",
            "turbo is on",
            "the clock speed depends on temperature and on how many cores are busy",
            "compare only runs with the same number of busy cores, or write 1 to "
            "/sys/devices/system/cpu/intel_pstate/no_turbo or 0 to .../cpufreq/boost",
        )


def enough_cores(host: Host) -> Iterator[Finding]:
    allowed = hardware.allowed_cpus(host.tree)
    if allowed and len(allowed) < host.local_ranks:
        yield Finding(
            "cores",
            "warning",
            f"{host.local_ranks} ranks on {len(allowed)} allowed CPU(s) ({format_cpus(allowed)})",
            "ranks wait for each other's time slices, and nothing is pinned",
            "start fewer ranks on this host or allow more CPUs",
        )
    elif allowed and len(hardware.cores(host.tree, allowed)) < host.local_ranks:
        yield Finding(
            "cores",
            "warning",
            f"{host.local_ranks} ranks share {len(hardware.cores(host.tree, allowed))} core(s)",
            "two ranks on the threads of one core take each other's execution units",
            "start fewer ranks on this host or allow more cores",
        )


def pinning(host: Host) -> Iterator[Finding]:
    if host.bind == "none":
        yield Finding(
            "pinning",
            "warning",
            "ranks are not pinned",
            "the scheduler moves them, and one core or two decides a round trip more than the "
            "network does",
            "use --bind core, the default",
        )


def narrow_mask(host: Host) -> Iterator[Finding]:
    allowed, online = hardware.allowed_cpus(host.tree), hardware.online_cpus(host.tree)
    if allowed and online - allowed:
        yield Finding(
            "mask",
            "note",
            f"only CPUs {format_cpus(allowed)} of {format_cpus(online)} are allowed",
            "the launcher or a control group set this mask, and --bind stays within it",
            "check that it is what you want: mpirun --bind-to, srun --cpu-bind, taskset",
        )


def siblings(host: Host) -> Iterator[Finding]:
    allowed = hardware.allowed_cpus(host.tree)
    if any(len(core) > 1 for core in hardware.cores(host.tree, allowed)):
        yield Finding(
            "smt",
            "note",
            "cores run two threads or more (SMT)",
            "what runs on a sibling thread slows a rank down",
            "leave siblings idle, or write off to /sys/devices/system/cpu/smt/control",
        )


def load(host: Host) -> Iterator[Finding]:
    found = re.match(r"[0-9.]+", host.tree.text("proc/loadavg") or "")
    busy, cpus = float(found[0]) if found else 0.0, len(hardware.online_cpus(host.tree)) or 1
    if busy >= 0.5 and (busy + host.local_ranks > cpus or busy > cpus / 4):
        yield Finding(
            "load",
            "warning",
            f"load average is {busy:.2f} on {cpus} CPUs",
            "other processes take time, caches and memory bandwidth",
            "wait until the host is idle, or ask the scheduler for it alone",
        )


def quota(host: Host) -> Iterator[Finding]:
    limit = hardware.cpu_quota(host.tree)
    if limit is not None:
        yield Finding(
            "quota",
            "warning",
            f"a control group allows {limit:g} CPUs' worth of time",
            "when it is used up, all ranks stand still for the rest of a period (0.1 s)",
            "run without a CPU limit (docker --cpus, Kubernetes limits.cpu), with whole CPUs",
        )


def idle_states(host: Host) -> Iterator[Finding]:
    base = "sys/devices/system/cpu/cpu0/cpuidle"
    states = [name for name in host.tree.names(base) if name.startswith("state")]
    enabled = [s for s in states if not host.tree.number(f"{base}/{s}/disable")]
    slowest = max((host.tree.number(f"{base}/{s}/latency") or 0 for s in enabled), default=0)
    if slowest > SLOW_WAKE_US:
        yield Finding(
            "idle",
            "note",
            f"idle CPUs may sleep so deep that waking takes {slowest} us",
            "a rank that blocks for a message pays it, one that spins does not",
            f"cpupower idle-set -D {SLOW_WAKE_US}, or wait by spinning",
        )


def clocksource(host: Host) -> Iterator[Finding]:
    path = "sys/devices/system/clocksource/clocksource0/current_clocksource"
    name = host.tree.text(path)
    if name and name not in GOOD_CLOCKS:
        yield Finding(
            "clock",
            "warning",
            f"the kernel's clock source is {name}",
            "reading the clock is a system call or device access and takes about a microsecond",
            "find out in the kernel log why tsc was not taken; boot with tsc=reliable if it is",
        )


def virtual_machine(host: Host) -> Iterator[Finding]:
    name = hardware.hypervisor(host.tree)
    stolen = _steal_percent(host.tree)
    if name and stolen > STEAL_PERCENT:
        yield Finding(
            "steal",
            "warning",
            f"{stolen:.1f} % of this virtual machine's CPU time was stolen since it started",
            "the hypervisor runs others on these CPUs, and ranks stop without knowing it",
            "use dedicated CPUs or a physical host",
        )
    elif name:
        yield Finding(
            "virtual",
            "note",
            f"this is a virtual machine ({name})",
            "its network is emulated or shared, and its CPUs may be other people's too",
            "compare only with the same kind of machine",
        )


def _steal_percent(tree: Tree) -> float:
    """Share of all CPU time since boot, from the first line of /proc/stat."""
    fields = (tree.text("proc/stat") or "").partition("\n")[0].split()[1:]
    ticks = [int(field) for field in fields if field.isdigit()][:8]  # the rest is part of these
    total = sum(ticks)
    return 100 * ticks[7] / total if len(ticks) == 8 and total else 0.0
