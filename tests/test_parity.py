"""benchmarks/parity.py: its arithmetic on made-up numbers, and that the references run."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ratios import kafka, tools
from benchmarks.ratios.figures import FIGURES
from benchmarks.ratios.pairs import pairs
from benchmarks.ratios.references import c_compiler, compile_all, compile_library
from benchmarks.ratios.result import HEADER, Result
from benchmarks.ratios.statistics import Spread, Target, close_enough, quad_ratio, verdict
from commbench.channels import kafka_admin
from commbench.channels.grpc_core import GrpcCoreChannel
from commbench.channels.mpi import MpiChannel
from commbench.errors import CommbenchError
from commbench.registry import load

AT_MOST, AT_LEAST = Target(1.05, at_most=True), Target(0.97, at_most=False)
EVEN = Spread(1.0, 0.99, 1.01)

needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="cc is missing: install gcc")
needs_mpi = pytest.mark.skipif(MpiChannel.missing() is not None, reason=str(MpiChannel.missing()))
needs_grpc_core = pytest.mark.skipif(
    GrpcCoreChannel.missing() is not None, reason=str(GrpcCoreChannel.missing())
)
needs_openmpi = pytest.mark.skipif(
    not (shutil.which("mpirun.openmpi") and shutil.which("mpicc.openmpi")),
    reason="Open MPI is missing: apt install openmpi-bin libopenmpi-dev",
)


def test_a_steady_drift_cancels_out() -> None:
    assert quad_ratio((100.0, 106.0), (102.0, 104.0)) == 1.0
    assert quad_ratio((100.0, 100.0), (110.0, 110.0)) == pytest.approx(1.1)


def test_interval_is_by_ranks() -> None:
    spread = Spread.of([float(value) for value in range(1, 16)])
    assert (spread.median, spread.low, spread.high) == (8.0, 3.0, 13.0)
    assert Spread.of([1.0] * 5).low is None


@pytest.mark.parametrize(
    ("target", "ratio", "itself", "expected"),
    [
        (AT_MOST, Spread(1.02, 1.00, 1.05), EVEN, "holds"),
        (AT_MOST, Spread(1.02, 1.00, 1.051), EVEN, "missed"),
        (AT_MOST, Spread(0.80, 0.70, 0.90), EVEN, "holds"),
        (AT_MOST, Spread(1.02, 1.00, 1.04), Spread(1.026, 1.0, 1.1), "not shown"),
        (AT_MOST, Spread(1.02, 1.00, 1.04), Spread(1.024, 1.0, 1.1), "holds"),
        (AT_LEAST, Spread(0.99, 0.97, 1.20), EVEN, "holds"),
        (AT_LEAST, Spread(0.99, 0.969, 1.20), EVEN, "missed"),
        (AT_LEAST, Spread(0.99, 0.98, 1.00), Spread(0.98, 0.9, 1.1), "not shown"),
        (AT_MOST, Spread(1.0, None, None), EVEN, "not shown"),
        (None, Spread(1.5, 1.4, 1.6), EVEN, "-"),
    ],
)
def test_verdicts(target: Target | None, ratio: Spread, itself: Spread, expected: str) -> None:
    assert verdict(target, ratio, itself) == expected


@pytest.mark.parametrize(
    ("ratio", "itself", "expected"),
    [
        (Spread(1.029, 1.0, 1.1), EVEN, "counts"),
        (Spread(1.031, 1.0, 1.1), EVEN, "does not count"),
        (Spread(0.96, 0.9, 1.0), EVEN, "does not count"),
        (Spread(1.0, 0.9, 1.1), Spread(1.02, 0.9, 1.1), "not shown"),
    ],
)
def test_a_reference_of_ours_counts(ratio: Spread, itself: Spread, expected: str) -> None:
    assert close_enough(ratio, itself, 0.03) == expected


def test_pairs_are_interleaved_and_rows_say_what_was_found() -> None:
    called: list[str] = []

    def ours() -> float:
        called.append("ours")
        return 20_400.0

    def tool() -> float:
        called.append("tool")
        return 20_000.0

    result = pairs(Result("tcp 64", "tool", "ns", AT_MOST), ours, tool, 6)
    assert called[:9] == ["ours", "tool", "tool", "tool", "tool", "ours", "tool", "ours", "tool"]
    result.beside["mpi4py"], result.ours_to["mpi4py"] = [1.4] * 6, [0.7] * 6
    row, beside = result.lines()
    assert row.split()[:9] == ["tcp", "64", "<=", "1.05", "1.020", "1.020", "..", "1.020", "1.000"]
    assert "holds" in row and "20.400 us" in row and "1.400" in beside and "ours 0.700" in beside
    assert HEADER.index("verdict") == row.index("holds")
    record = result.record()
    assert (record["verdict"], record["ratio"]["median"]) == ("holds", pytest.approx(1.02))
    assert len(record["ratios"]) == len(record["against_itself"]) == 6


def test_every_figure_is_a_case_of_a_channel() -> None:
    for figures in FIGURES.values():
        for figure in figures:
            case = figure.case()
            assert (case.nbytes, case.window > 1) == (figure.nbytes, figure.windowed)
            assert load(case.channel).name == figure.channel


def measured(group: str, launcher: str, folder: Path) -> list[dict[str, Any]]:
    """The records of all figures of a group, from one quad of tiny blocks."""
    compile_all(group, folder, launcher == "openmpi")
    out = folder / "out"
    words = [f"--figures={group}", f"--out={out}", f"--libraries={folder}", "--quads=1"]
    ranks = FIGURES[group][0].ranks
    tools.start_workers([*words, "--shrink=500", "--bind=none"], launcher, ranks, timeout_s=60.0)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [each["name"] for each in records] == [figure.name for figure in FIGURES[group]]
    assert all(each["verdict"] in ("not shown", "-") for each in records)
    return records


@needs_cc
@needs_grpc_core
def test_grpc_core_references_and_ours_in_one_launch(tmp_path: Path) -> None:
    assert len(measured("grpc-core", "process", tmp_path)) == 5


@needs_cc
def test_tcp_references_and_ours_in_one_launch(tmp_path: Path) -> None:
    measured("tcp", "process", tmp_path)


@needs_cc
def test_tcp_reference_alone(tmp_path: Path) -> None:
    compile_all("tcp", tmp_path)
    assert tools.reference_alone("tcp", tmp_path, None, blocks=1, shrink=500) > 0


@needs_cc
def test_ps_reference_and_ours_in_one_launch(tmp_path: Path) -> None:
    (record,) = measured("ps", "process", tmp_path)
    assert record["unit"] == "1/s"
    assert min(record["ours"] + record["reference"]) > 0


@needs_cc
@pytest.mark.parametrize("wait", ["block", "spin"])
def test_ps_reference_alone(tmp_path: Path, wait: str) -> None:
    compile_all("ps", tmp_path)
    assert tools.reference_alone("ps-alone", tmp_path, None, 1, 500, f"wait={wait}") > 0


@pytest.mark.mpi
@needs_cc
@needs_mpi
def test_mpi_references_and_ours_in_one_launch(tmp_path: Path) -> None:
    records = measured("mpi", "mpi", tmp_path)
    assert list(records[0]["beside"]) == ["osu_latency", "mpi4py"]


@pytest.mark.mpi
@needs_cc
@needs_mpi
@needs_openmpi
def test_mpi_references_under_open_mpi(tmp_path: Path) -> None:
    measured("mpi", "openmpi", tmp_path)


def test_grpc_reference_and_ours_in_one_launch(tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    measured("grpc", "process", tmp_path)


@pytest.mark.skipif(not shutil.which("sockperf"), reason="apt install sockperf")
def test_sockperf_gives_a_median() -> None:
    assert tools.sockperf_ns(64, spin=False, cpus=None) > 0


@pytest.mark.skipif(not shutil.which("iperf3"), reason="apt install iperf3")
def test_iperf3_gives_a_rate() -> None:
    assert tools.iperf3_rate(65536, "system", cpus=None) > 0


@needs_cc
def test_a_reference_that_does_not_compile_says_why(tmp_path: Path) -> None:
    with pytest.raises(CommbenchError, match=r"cannot compile mpi_loops\.c"):
        compile_library("mpi_loops.c", c_compiler(), tmp_path)


@needs_cc
@pytest.mark.skipif(kafka_admin.missing() is not None, reason=str(kafka_admin.missing()))
def test_both_kafka_producers_run(tmp_path: Path) -> None:
    with contextlib.closing(kafka.Producers("", 100, 500, tmp_path)) as both:
        assert both.ours() > 0 and both.reference() > 0
        assert both.our_tail_ns(10_000) > 0
