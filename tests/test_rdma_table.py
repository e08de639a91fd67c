"""RDMA channels beside others on one device: in the Soft-RoCE machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import cases, commbench

pytestmark = [pytest.mark.rdma, pytest.mark.timeout(400)]

LONG_S = 300.0  # an emulated machine on a busy host
CHANNELS = ("tcp", "grpc-core", "rdma", "grpc+verbs", "ar-grpc", "mpi")
FEW = ("-i", 10, "-x", 2, "--bind", "none")


def test_one_table(tmp_path: Path) -> None:
    output = tmp_path / "table.jsonl"
    table = ("latency", "-C", ",".join(CHANNELS), "-m", "64,64K", "-n", 2, "--output", output)
    said = commbench("run", *table, *FEW, timeout_s=LONG_S).ok().stdout
    heading, *beside = said.partition("p50 in us\n")[2].splitlines()
    assert heading.split() == ["#", "size", *sorted(CHANNELS)]
    assert [line.split()[1] for line in beside[:2]] == ["64", "64K"]
    rows = {(each["case"]["channel"], each["case"]["nbytes"]): each for each in cases(output)}
    assert set(rows) == {(channel, size) for channel in CHANNELS for size in (64, 65536)}
    for (channel, _), case in rows.items():
        about, over = case["channel_info"], channel in CHANNELS[2:5]
        assert case["validated"] and (about.get("proof") == "sent_pkts") == over
        assert channel != "mpi" or about["rdma_devices"] == "none"
