"""``benchmarks/broker_designs.py``: its table, what it says of it, that nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.broker_designs import FIGURES, RATE, REAL, TAIL, Load, designs, rows, verdicts
from commbench.benchmarks.broker import PARTS

ROOT = Path(__file__).parent.parent


def launches(**rates_and_tails: tuple[float, float]) -> list[dict[str, dict[str, float | None]]]:
    """Six launches whose figures differ by one per cent."""
    plain: dict[str, float | None] = dict.fromkeys(FIGURES, 1.0)
    return [
        {
            name.replace("_", " "): plain
            | {RATE: rate * (1 + at / 500), TAIL: tail * (1 + at / 500)}
            for name, (rate, tail) in rates_and_tails.items()
        }
        for at in range(6)
    ]


def test_every_part_is_alone_and_left_out_once() -> None:
    found = {each.name: set(each.parts) for each in designs()}
    assert found["kafka"] == set()
    assert found["frieda"] == set(PARTS)
    for part in PARTS:
        assert found[f"+{part}"] == {part}
        assert found[f"frieda -{part}"] == set(PARTS) - {part}
    assert [each.reorder for each in designs()].count("broker") == 1


@pytest.mark.parametrize(
    ("kafka", "word"),
    [((90.0, 10.9), ": comparable"), ((89.0, 10.0), "not comparable"), ((100.0, 11.1), "not ")],
)
def test_design_kafka_is_no_straw_man(kafka: tuple[float, float], word: str) -> None:
    found = launches(kafka=kafka, frieda=(200.0, 5.0), real_Kafka=(100.0, 10.0))
    *others, last = verdicts(found)
    assert word in last
    assert [each.endswith("better") for each in others] == [True] * 4
    assert REAL in "".join(rows(found))


def test_intervals_that_overlap_show_nothing() -> None:
    found = launches(kafka=(100.0, 10.0), frieda=(100.1, 9.99))
    assert [each.rpartition(", ")[2] for each in verdicts(found)] == ["intervals overlap"] * 2
    assert "(" not in "".join(list(rows(found[:5]))[1:])  # no interval below six launches


def test_a_kafka_holds_as_many_records() -> None:
    load = Load("tcp", 8, 1000, {"record-size": "100", "batch-size": "1100"})
    assert load.held() == (1 + 5) * 10


def test_it_runs_and_keeps_what_was_measured(tmp_path: Path) -> None:
    output = tmp_path / "x.json"
    argv = ["--producers", "2", "--records", "6000", "--launches", "1", "--set", "warmup=0"]
    script = str(ROOT / "benchmarks" / "broker_designs.py")
    command = [sys.executable, script, *argv, "--json", str(output)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    names = [each.name for each in designs()]
    assert len(ran.stdout.splitlines()) == 2 + len(names) + 2
    assert "launch 1 of 1" in ran.stderr
    (launch,) = json.loads(output.read_text())["launches"]
    assert set(launch) == set(names)
    assert all(figure > 0 for row in launch.values() for figure in row.values())
