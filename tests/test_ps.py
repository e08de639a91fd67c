"""The parameter server benchmark: real ranks, every message verified, and its arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commbench.benchmarks import PsSettings, PsSpec
from commbench.errors import UsageError
from commbench.harness.measure import memory_nbytes
from commbench.jobs import make_plan
from commbench.registry import load
from commbench.reports.report import report
from commbench.reports.stats import merge_launches
from commbench.schema import mismatch
from tests import usable
from tests.command import cases, commbench

CASES = [
    ("tcp", 2, 2),
    ("uds", 1, 2),
    usable.channel("grpc", 1, 2),
    usable.channel("grpc-core", 2, 2),
    usable.channel("mpi", 2, 2),
    usable.channel("grpc+mpi", 1, 2),
]


def ran(output: Path, *argv: object) -> list[dict[str, Any]]:
    commbench("run", "ps", *argv, "--output", output).ok()
    found = cases(output)
    assert [mismatch("case", case) for case in found] == [None] * len(found)
    return found


@pytest.mark.parametrize(("channel", "servers", "workers"), CASES)
def test_workers_call_all_servers(channel: str, servers: int, workers: int, tmp_path: Path) -> None:
    """Under -c each request and each reply is verified on its own."""
    who = ("--ps", servers, "--workers", workers, "-C", channel)
    found = ran(tmp_path / "x.jsonl", *who, "-m", "1,4K", "-i", 200, "-x", 5, "-c")
    pairs = servers * workers
    for case, nbytes in zip(found, (1, 4096), strict=True):
        assert case["case"]["ranks"] == servers + workers
        assert PsSpec(**case["case"]["ps"]) == PsSpec(servers, workers)
        assert case["estimator"] == "rtt"
        assert case["n"] == case["messages"] == 200 * pairs
        assert case["nbytes_total"] == 200 * pairs * nbytes
        # the verified pass (16 with each) and the timed part, at both ends
        assert case["validated_messages"] == 2 * pairs * (16 + 205)
        consistent(case)


def consistent(case: dict[str, Any]) -> None:
    """Calls inside the interval are some of all, and the workers' rates add up to the rate."""
    rpc = case["rpc"]
    assert rpc["calls"] <= case["messages"] * 2
    assert rpc["interval_ns"] <= case["elapsed_ns"] * 2
    if rpc["interval_ns"]:
        assert rpc["per_s"] == pytest.approx(rpc["calls"] * 1e9 / rpc["interval_ns"])
        assert sum(rpc["worker_per_s"]) == pytest.approx(rpc["per_s"])
    else:
        assert rpc["per_s"] is None
        assert any("never all issuing at once" in line for line in case["warnings"])


@pytest.mark.parametrize("loop", ["native", "python"])
def test_by_duration_all_are_issuing_most_of_the_time(loop: str, tmp_path: Path) -> None:
    argv = ("-m", "64", "--workers", 2, "-D", "500ms", "--warmup-time", "100ms")
    (case,) = ran(tmp_path / "x.jsonl", "-C", "tcp", "--loop", loop, *argv)
    assert case["loop"] == loop
    assert case["rpc"]["calls"] > 0
    consistent(case)


def test_one_server_and_the_rest_are_workers(tmp_path: Path) -> None:
    (case,) = ran(tmp_path / "x.jsonl", "-n", 4, "-m", 8, "-i", 20, "-x", 0)
    assert PsSpec(**case["case"]["ps"]) == PsSpec(1, 3)
    assert case["n"] == 60


def test_inside_one_rank(tmp_path: Path) -> None:
    (case,) = ran(tmp_path / "x.jsonl", "-C", "loopback", "-m", 64, "-i", 50, "-x", 0)
    assert (case["n"], case["rpc"]["calls"]) == (50, 50)
    text = report([tmp_path / "x.jsonl"])
    assert "RPC/s" in text
    assert "servers=1  workers=1" in text


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--ps", 2, "--workers", 3, "-n", 4), ["--ps 2 --workers 3", "5 ranks", "at most 4"]),
        (("--ps", 4, "-n", 4), ["--ps 4", "--workers", "allowed: 1 to 3"]),
        (("--ps", 0), ["--ps 0", "allowed"]),
        (("--ps", 2, "-C", "loopback"), ["--ps 2 --workers 1", "inside one rank"]),
        (("--ps", 300, "--workers", 300), ["--ranks 600", "1 to 512"]),
        (("--save-samples", "--output", "x"), ["--save-samples", "ps"]),
    ],
)
def test_bad_input_is_one_line(argv: tuple[object, ...], words: list[str]) -> None:
    commbench("run", "ps", *argv).one_line(2, *words)


def test_a_flag_of_ps_without_it() -> None:
    with pytest.raises(UsageError, match="--workers 2: goes with the benchmark ps"):
        make_plan({"benchmark": "latency", "workers": "2"})


# ---------------------------------------------------------------------- plan


def test_a_job_file_has_the_same_keys(tmp_path: Path) -> None:
    job = tmp_path / "ps.toml"
    job.write_text('[one]\nbenchmark = "ps"\nps = 2\nworkers = 3\nmessage-size = "64"\n')
    plan = make_plan({}, job)
    assert plan.ranks() == 5
    ((case,),) = plan.blocks(load, 6)
    assert case.ps == PsSpec(2, 3)
    assert type(case).from_json(case.to_json() | {"ps": case.ps.to_json()}) == case
    assert PsSpec(**case.key()["ps"]) == case.ps


def test_roles() -> None:
    spec = PsSettings(2, 3).spec(6, inside=False)
    roles = [spec.role(rank) for rank in range(6)]
    assert [role.sources for role in roles] == [(2, 3, 4)] * 2 + [()] * 4
    assert [role.targets for role in roles] == [()] * 2 + [(0, 1)] * 3 + [()]


def test_a_server_has_one_message_of_each_worker() -> None:
    ((case,),) = make_plan({"benchmark": "ps", "message-size": "1M"}).blocks(load, 17)
    assert memory_nbytes(case) == (16 + 2 * 16) << 20


def test_launches_add_up() -> None:
    rpc = {"interval_ns": 10**9, "calls": 10, "per_s": 10.0, "worker_per_s": [4.0, 6.0]}
    source = cases(Path(__file__).parent / "golden" / "run.jsonl")[0]
    first = {**source, "rpc": {**rpc, "bytes_per_s": 100.0}}
    none = {"interval_ns": 0, "calls": 0, "per_s": None, "worker_per_s": [None, None]}
    empty = {**source, "rpc": {**none, "bytes_per_s": None}}
    (merged,) = merge_launches([first, first, empty])
    assert merged["rpc"] == {**first["rpc"], "interval_ns": 2 * 10**9, "calls": 20}
