"""benchmarks/scaling.py: its arithmetic, and that it measures a real server."""

from __future__ import annotations

import click
import pytest

from benchmarks.scaling import Run, measure, slope, verdict

MIB = 1 << 20


def runs(*peaks: float, seconds: float = 1.0) -> list[Run]:
    return [Run(16 * 2**at, seconds, round(peak * MIB)) for at, peak in enumerate(peaks)]


def test_slope_is_in_payloads_for_each_worker() -> None:
    assert slope(runs(100, 132, 196), MIB) == pytest.approx(2.0)
    assert slope(runs(100, 132, 196), MIB // 2) == pytest.approx(4.0)


def test_verdicts() -> None:
    said = verdict("tcp", runs(100, 132, 196), MIB)
    assert said == "# tcp: within 120 s: holds, 2.00 payloads for each worker (<= 2.5: holds)"
    assert "missed)" in verdict("mpi", runs(100, 148, 244), MIB)
    assert "within 120 s: missed" in verdict("tcp", runs(100, 100, seconds=121), MIB)
    assert verdict("grpc-core", runs(100, 180), MIB).endswith("5.00 payloads for each worker")


def test_a_real_server() -> None:
    run = measure("tcp", workers=2, nbytes=MIB, calls=2)
    assert run.workers == 2
    assert run.seconds > 0
    assert run.peak_rss_bytes > 2 * MIB


def test_a_run_that_fails_says_why() -> None:
    with pytest.raises(click.ClickException, match="no such channel"):
        measure("pigeon", workers=2, nbytes=1, calls=1)
