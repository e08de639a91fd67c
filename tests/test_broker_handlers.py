"""Handlers of a broker with all ranks as threads of one process: what sanitizers look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commbench.harness.broker import BrokerRun
from commbench.harness.measure import Share
from tests.broker_ranks import Scene, case
from tests.socket_ranks import Meeting, together

pytestmark = pytest.mark.native


class Hours(Meeting):
    """Meetings one after the other: nobody begins the next before all have read this one."""

    def allgather(self, value: Any, timeout_s: float = 30.0) -> list[Any]:
        found = super().allgather(value, timeout_s)
        self.hall.barrier.wait(timeout_s)
        return found

    def barrier(self, timeout_s: float) -> None:
        self.hall.barrier.wait(timeout_s)


@pytest.mark.parametrize("design", ["design=frieda", "reorder=broker", "eager-flush=off"])
def test_a_whole_case(design: str, tmp_path: Path) -> None:
    flags = {} if design == "design=frieda" else {"design_option": design}
    wanted = case(
        brokers="2", replication="2", acks="all", partitions="6", producers="2", consumers="2",
        design="frieda", handlers="3", records="300", warmup="0", batch_size="512",
        validate="true", log_dir=str(tmp_path), **flags,
    )  # fmt: skip

    def one(rank: int) -> Share:
        channel, meeting = scene.enter(rank)
        return BrokerRun(wanted, channel, Hours(meeting.hall, rank), rank).run()

    with Scene(6) as scene:
        shares = together(6, one)
    brokers = [share.broker for share in shares[:2]]
    assert [each["handlers"] for each in brokers] == [3, 3]
    assert sum(each["records"] for each in brokers) == 2 * 300
    assert sum(share.validated for share in shares) == 2 * 2 * (64 + 300)
    producers = [share.broker for share in shares[2:4]]
    assert [each["acked"] for each in producers] == [300, 300]
    if design == "reorder=broker":
        assert [each["reordered"] for each in producers] == [0, 0]
