"""The fully connected benchmark: real ranks, every message verified, and its arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from commbench.benchmarks import benchmark
from commbench.errors import UsageError
from commbench.harness.timeline import Span, span_of
from commbench.reports.report import report
from commbench.schema import mismatch
from tests import usable
from tests.command import cases, commbench

CHANNELS = [
    *("tcp", "uds", "loopback"),
    *(usable.channel(name) for name in ("grpc", "grpc-core", "mpi", "grpc+mpi")),
]


@pytest.mark.parametrize("channel", CHANNELS)
def test_everyone_calls_everyone(channel: str, tmp_path: Path) -> None:
    """Under -c each request and each reply is verified on its own."""
    output = tmp_path / "x.jsonl"
    argv = ("-m", "1,4K", "-n", 3, "-i", 20, "-x", 3, "--output", output)
    ran = commbench("run", "alltoall", "-C", channel, *argv, "-c").ok()
    assert "RPC/s" in ran.stdout
    pairs = 1 if channel == "loopback" else 6
    for case, nbytes in zip(cases(output), (1, 4096), strict=True):
        assert mismatch("case", case) is None
        assert case["estimator"] == "rtt"
        assert case["n"] == case["messages"] == 20 * pairs
        assert case["nbytes_total"] == 20 * pairs * nbytes
        # the verified pass (16 with each) and the timed part, at both ends
        assert case["validated_messages"] == 2 * pairs * (16 + 23)
        assert case["ops_per_s"] == pytest.approx(20e9 * pairs / case["elapsed_ns"])


@pytest.mark.parametrize("loop", ["native", "python"])
def test_several_blocks_by_duration(loop: str, tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    argv = ("-m", "64", "-n", 3, "-D", "300ms", "--warmup-time", "50ms", "--output", output)
    commbench("run", "alltoall", "-C", "tcp", "--loop", loop, *argv).ok()
    (case,) = cases(output)
    assert case["loop"] == loop
    assert case["blocks"] >= 2
    assert case["elapsed_ns"] >= 0.3e9
    assert case["n"] == case["messages"] > 0


def test_osu_has_no_such_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    argv = ("-m", "1", "-i", 20, "-x", 0, "--output", output)
    commbench("run", "alltoall", "-C", "loopback", *argv).ok()
    with pytest.raises(UsageError, match="--format osu: alltoall has no counterpart"):
        report([output], "osu")
    assert "RPC/s" in report([output])


def test_nobody_is_asked_by_all_first() -> None:
    roles = [benchmark("alltoall").role(rank, 4) for rank in range(4)]
    assert [role.targets[0] for role in roles] == [1, 2, 3, 0]
    assert all(len(set(role.targets)) == 3 and role.sources == role.targets for role in roles)


def test_stamps_of_one_clock_are_compared_as_they_are() -> None:
    ranks = [["a", 5, 100, 200], ["a", 0], ["a", 70, 110, 190]]
    assert span_of(ranks, 5) == Span(100, 200, 110, 190)


def test_stamps_of_several_clocks_count_from_the_barrier() -> None:
    """The second clock is 1000 ahead: 110 after its barrier is 110 after ours."""
    ranks = [["a", 50, 150, 250], ["b", 1000, 1110, 1190]]
    here, there = span_of(ranks, 50), span_of(ranks, 1000)
    assert here == Span(150, 250, 160, 240)
    assert (here.elapsed_ns, here.issuing_ns) == (there.elapsed_ns, there.issuing_ns) == (100, 80)
    assert span_of([["", 50, 150, 250], ["", 1000, 1110, 1190]], 50) == here  # clocks not known


def test_ranks_that_never_were_at_work_together() -> None:
    assert span_of([["a", 0, 10, 20], ["a", 0, 30, 40]], 0).issuing_ns == 0
