"""Two engines of the ``rdma`` channel in one process, one on each device of the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import pytest

from commbench.channels import rdma_connect, rdma_devices, rdma_pyverbs
from commbench.channels.rdma_loops import native_missing
from commbench.channels.rdma_python import PythonEngine
from commbench.harness.softroce.layout import ENDS
from commbench.harness.stop import StopFlag
from commbench.harness.sysfs import Tree
from tests.rdma_ends import options

MISSING = {"python": rdma_pyverbs.missing(), "native": native_missing()}


Native = Mapping[str, int] | None  # options that only the native engine has


def engine(kind: str, rank: int, op: str, native: Native = None, **more: int) -> Any:
    """``kind``: "native" or "python"; the test is skipped where that one cannot be."""
    if MISSING[kind]:
        pytest.skip(f"no {kind} engine: {MISSING[kind]}")
    wanted = options(ENDS[rank].device, rank, op, **{"tx_depth": 16, **more})
    if kind == "python":
        return PythonEngine(wanted, StopFlag())
    from commbench._rdma_core import Engine

    return Engine(**asdict(wanted), **{"spin": True, **(native or {})})


def record(end: Any, rank: int, op: str) -> rdma_connect.QueuePairAddress:
    found = rdma_devices.choose(Tree(), device=ENDS[rank].device)
    assert found.gid is not None
    return rdma_connect.QueuePairAddress(
        device=found.port.device,
        port=1,
        link_layer=found.port.link_layer,
        lid=0,
        gid=str(found.gid.address),
        gid_index=found.gid.index,
        mtu=end.limits["mtu"],
        op=op,
        max_rd_atomic=end.limits["max_rd_atomic"],
        **end.endpoint(1 - rank),
    )


@contextmanager
def connected(
    kinds: tuple[str, str],
    op: str,
    told: Mapping[str, Any] | None = None,
    native: Native = None,
    **more: int,
) -> Iterator[tuple[Any, Any]]:
    """``told``: what the first end is told of the second one that is not so."""
    ends: list[Any] = []
    try:
        for rank, kind in enumerate(kinds):
            ends.append(engine(kind, rank, op, native, **more))
        records = [record(end, rank, op) for rank, end in enumerate(ends)]
        theirs = replace(records[1], **(told or {})), records[0]
        for rank, end in enumerate(ends):
            rdma_connect.connect(end, 1 - rank, records[rank], theirs[rank], 0)
        yield ends[0], ends[1]
    finally:
        for end in ends:
            end.close()
