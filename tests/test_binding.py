"""Where ranks are pinned: the placement as a table, and the real thing once."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest

from commbench.errors import UsageError
from commbench.harness.binding import Machine, data_masks, place, thread_masks
from commbench.harness.sysfs import format_cpus
from tests.ranks import said, scene

ALL = frozenset(range(8))


def cpus(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


# two nodes of two cores of two threads: CPUs 0-3 and 4-7, siblings n and n + 1
MACHINE = Machine(
    cores=[cpus(0, 1), cpus(2, 3), cpus(4, 5), cpus(6, 7)],
    nodes=[cpus(0, 1, 2, 3), cpus(4, 5, 6, 7)],
    nic_node=None,
    masks=[ALL, ALL],
)


@pytest.mark.parametrize(
    ("policy", "nic_node", "expected"),
    [
        ("none", 1, (ALL, ALL)),
        ("core", None, (cpus(0, 1), cpus(2, 3))),
        ("core", 1, (cpus(4, 5), cpus(6, 7))),  # the NIC's node first
        ("core", -1, (cpus(0, 1), cpus(2, 3))),  # as a virtual NIC says it has no node
        ("numa", None, (cpus(0, 1, 2, 3), cpus(4, 5, 6, 7))),
        ("numa", 1, (cpus(4, 5, 6, 7), cpus(0, 1, 2, 3))),
        ("3,5", None, (cpus(3), cpus(5))),
        ("0-1,4-7", None, (cpus(0, 1), cpus(4, 5, 6, 7))),
    ],
)
def test_place(
    policy: str, nic_node: int | None, expected: tuple[frozenset[int], frozenset[int]]
) -> None:
    machine = replace(MACHINE, nic_node=nic_node)
    chosen = tuple(place(policy, rank, 2, ALL, machine) for rank in range(2))
    assert chosen == ((expected[0], None), (expected[1], None))


def test_place_keeps_what_the_launcher_set() -> None:
    mine, other = cpus(2, 3), cpus(6, 7)
    machine = Machine([mine], MACHINE.nodes, None, [mine, other])
    assert place("core", 0, 2, mine, machine) == (mine, None)


def test_place_pins_nothing_on_too_few_cores() -> None:
    few = cpus(0, 1)
    chosen, warning = place("core", 1, 2, few, Machine([few], [few], None, [few, few]))
    assert chosen == few
    assert warning is not None
    assert "2 local ranks on 1 allowed cores" in warning


@pytest.mark.parametrize(
    ("policy", "named"),
    [("cores", "core, numa, none"), ("0", "1 entries for 2"), ("0,9", "CPUs 0-7 only"),
     ("0,,1", "core, numa, none")],
)  # fmt: skip
def test_place_refuses(policy: str, named: str) -> None:
    with pytest.raises(UsageError, match=f"--bind {policy}.*{named}"):
        place(policy, 1, 2, ALL, MACHINE)


def test_thread_masks_has_the_main_thread() -> None:
    assert thread_masks()[os.getpid()] == format_cpus(frozenset(os.sched_getaffinity(0)))


def test_data_masks_are_the_main_threads_or_all_but_the_harness() -> None:
    mine = thread_masks()[os.getpid()]
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        os.sched_setaffinity(thread.native_id, {min(os.sched_getaffinity(0))})
        other = thread_masks()[thread.native_id]
        before = set(thread_masks()) - {thread.native_id}
        assert data_masks(False, ()) == mine
        assert data_masks(True, before) == " ".join(sorted({mine, other}))
    finally:
        over.set()
        thread.join()


def test_bind_for_real() -> None:
    """Two ranks get different cores of this machine, or a warning says why not."""
    done = scene("bound", "core")
    assert done.exit_code == 0, done.stderr
    first, second = said(done)
    if first["warnings"]:
        assert "nothing is pinned" in first["warnings"][0]
    else:
        assert first["mask"] != second["mask"]
    assert all(line["mask"] == line["applied"] for line in (first, second))
