"""RDMA channels beside others on one device: in the Soft-RoCE machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import COMMBENCH, cases, commbench
from tests.mpi_launchers import DEBIAN_MPIRUN, OPENMPI_FLAGS, needs_openmpi, ranks

pytestmark = [pytest.mark.rdma, pytest.mark.timeout(400)]

LONG_S = 300.0  # an emulated machine on a busy host
CHANNELS = ("tcp", "grpc-core", "rdma", "grpc+verbs", "ar-grpc", "mpi")
FEW = ("-i", 10, "-x", 2, "--bind", "none")


def test_one_table(tmp_path: Path) -> None:
    output = tmp_path / "table.jsonl"
    table = ("latency", "-C", ",".join(CHANNELS), "-m", "64,64K", "-n", 2, "--output", output)
    commbench("run", *table, *FEW, timeout_s=LONG_S).ok()
    rows = {(each["case"]["channel"], each["case"]["nbytes"]): each for each in cases(output)}
    assert set(rows) == {(channel, size) for channel in CHANNELS for size in (64, 65536)}
    for (channel, _), case in rows.items():
        about, over = case["channel_info"], channel in CHANNELS[2:5]
        assert case["validated"] and (about.get("proof") == "sent_pkts") == over
        assert channel != "mpi" or about["rdma_devices"] == "none"


@needs_openmpi
def test_mpi_over_ucx_says_which_device_it_took(tmp_path: Path) -> None:
    """Debian's Open MPI can go through the device; nothing but its counters says that it did."""
    output = tmp_path / "mpi.jsonl"
    launcher = (DEBIAN_MPIRUN, *OPENMPI_FLAGS, "--mca", "pml", "ucx", "--bind-to", "none")
    words = ("run", "latency", "-C", "mpi", "-m", "64", *FEW, "--output", output)
    chosen = {"UCX_TLS": "rc_verbs,self", "UCX_NET_DEVICES": "rxe0:1"}
    done = ranks(launcher, 2, [*COMMBENCH, *map(str, words)], **chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    (case,) = cases(output)
    assert case["channel_info"]["rdma_devices"] == "rxe0"
