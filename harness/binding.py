"""Pinning: ``--bind core|numa|none|LIST``, by local rank, within the mask this process inherited.

Where a process runs decides its numbers, so it is a default, recorded, and part of the compare key.
"""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from dataclasses import dataclass

from commbench.errors import UsageError
from commbench.harness import hardware, interfaces
from commbench.harness.rendezvous import Rendezvous
from commbench.harness.sysfs import Tree, format_cpus, parse_cpus
from commbench.harness.world import World

Cpus = frozenset[int]


@dataclass(frozen=True, slots=True)
class Binding:
    """What was applied: ``mask`` as the kernel writes it ("0-3,8")."""

    policy: str
    mask: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """What placement needs to know. ``masks``: inherited ones of this host's ranks, mine too."""

    cores: Sequence[Cpus]  # allowed CPUs, by physical core
    nodes: Sequence[Cpus]  # CPUs of each NUMA node; empty where the kernel does not say
    nic_node: int | None
    masks: Sequence[Cpus]


def bind(policy: str, world: World, rendezvous: Rendezvous) -> Binding:
    """Pin this thread, and all that it starts from now on. Collective.

    Raises UsageError for a LIST that this process may not run on, or that is too short.
    """
    tree = Tree()
    inherited = frozenset(os.sched_getaffinity(0))
    everyone = rendezvous.allgather(format_cpus(inherited))
    masks = [
        parse_cpus(str(mask))
        for mask, host in zip(everyone, world.hosts, strict=True)
        if host == world.hosts[world.rank]
    ]
    nodes = hardware.numa_nodes(tree)
    nic = interfaces.find(rendezvous.local_address)
    machine = Machine(
        hardware.cores(tree, inherited),
        [nodes[name] for name in sorted(nodes, key=int)],
        nic.numa_node if nic else None,
        masks,
    )
    chosen, warning = place(policy, world.local_rank, world.local_size, inherited, machine)
    if chosen != inherited:
        os.sched_setaffinity(0, chosen)
    return Binding(policy, format_cpus(chosen), (warning,) if warning else ())


def place(
    policy: str, local_rank: int, local_size: int, inherited: Cpus, machine: Machine
) -> tuple[Cpus, str | None]:
    """The CPUs of a local rank, and a warning. Never more than ``inherited``."""
    if policy == "none":
        return inherited, None
    if policy not in ("core", "numa"):
        return _listed(policy, local_rank, local_size, inherited), None
    if len(set(machine.masks)) > 1:  # the launcher placed each rank itself
        return inherited, None
    if len(machine.cores) < local_size:
        return inherited, (
            f"--bind {policy}: {local_size} local ranks on {len(machine.cores)} "
            f"allowed cores: nothing is pinned, numbers will vary"
        )
    near = _near(inherited, machine)
    if policy == "numa":
        return near[local_rank % len(near)], None
    cores = sorted(machine.cores, key=lambda core: _index(near, core))
    return cores[local_rank], None


def thread_masks() -> dict[int, str]:
    """Thread id -> its CPUs, of every thread of this process."""
    tree, masks = Tree(), {}
    for thread in tree.names("proc/self/task"):
        mask = tree.field(f"proc/self/task/{thread}/status", "Cpus_allowed_list")
        if mask is not None:  # it may have ended meanwhile
            masks[int(thread)] = mask
    return masks


def data_masks(threads: bool, harness: Container[int]) -> str:
    """The CPUs of the threads that move data, each mask once: "0", or "0 0-1".

    That is this process's main thread, and with ``threads`` (the channel has some of its own) all
    but those of the ``harness``.
    """
    main = os.getpid()
    moving = {
        mask
        for thread, mask in thread_masks().items()
        if thread == main or (threads and thread not in harness)
    }
    return " ".join(sorted(moving))


def _near(inherited: Cpus, machine: Machine) -> list[Cpus]:
    """Allowed CPUs of each NUMA node, the NIC's first; all ranks share it if it is large enough."""
    order = list(machine.nodes)
    if machine.nic_node is not None and 0 <= machine.nic_node < len(order):
        order.insert(0, order.pop(machine.nic_node))
    return [node & inherited for node in order if node & inherited] or [inherited]


def _index(near: Sequence[Cpus], core: Cpus) -> tuple[int, int]:
    at = next((i for i, node in enumerate(near) if core & node), len(near))
    return at, min(core)


def _listed(text: str, local_rank: int, local_size: int, inherited: Cpus) -> Cpus:
    """One entry per local rank: a CPU (``3``) or a range (``0-3``)."""
    entries = text.split(",")
    masks = [parse_cpus(entry) for entry in entries]
    if not all(masks):
        raise UsageError(
            f"--bind {text}: allowed: core, numa, none, or one CPU or range of CPUs "
            f"for each local rank (0,1 or 0-3,4-7)"
        )
    if len(masks) < local_size:
        raise UsageError(f"--bind {text}: {len(masks)} entries for {local_size} local ranks")
    mine = masks[local_rank]
    if not mine <= inherited:
        raise UsageError(
            f"--bind {text}: local rank {local_rank} may run on CPUs {format_cpus(inherited)} only"
        )
    return mine
