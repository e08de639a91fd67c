"""What a command loads before it has anything to do: under mpirun every rank pays for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LOADED = """
import json, sys
sys.argv = ["commbench", *sys.argv[1:]]
from commbench.__main__ import main
try:
    main()
except SystemExit as end:
    code = end.code
sys.stderr.write(json.dumps([code, sorted(sys.modules)]))
"""
HEAVY = ("numpy", "tabulate", "mpi4py", "grpc", "matplotlib", "scipy", "commbench._native")
PARTS = ("commbench.channels", "commbench.reports", "commbench.harness", "commbench.payloads")


def loaded(*argv: str) -> set[str]:
    """The modules that are loaded when ``commbench ARGV...`` has ended well."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *argv], capture_output=True, text=True, timeout=60
    )
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code in (None, 0), done.stderr
    return set(modules)


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["run", "--help"], ["report", "-h"]])
def test_help_loads_no_numpy_no_channel_no_report_and_no_native_module(argv: list[str]) -> None:
    modules = loaded(*argv)
    assert "commbench.cli" in modules
    heavy = [m for m in modules if m.startswith(PARTS) or m.split(".")[0] in HEAVY or m in HEAVY]
    assert heavy == []


def test_a_list_of_channels_loads_no_transport() -> None:
    modules = loaded("channels")
    assert not modules & {"mpi4py.MPI", "grpc", "matplotlib"}


def test_a_report_loads_no_channel_and_no_harness(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    run = ["run", "-C", "loopback", "-m", "1", "-i", "20", "--output", str(output)]
    subprocess.run([sys.executable, "-m", "commbench", *run], check=True, timeout=60,
                   capture_output=True)  # fmt: skip
    modules = loaded("report", str(output))
    assert not [m for m in modules if m.startswith(("commbench.channels", "commbench.harness"))]


def test_a_rank_loads_no_broker_that_it_does_not_measure() -> None:
    program = "import commbench.harness.runner, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    modules = json.loads(done.stdout)
    parts = ("commbench.harness.broker", "commbench.harness.kafka", "commbench.channels.kafka")
    assert not [m for m in modules if m.startswith(parts)]


def test_the_time_is_printed() -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "startup.py"
    done = subprocess.run(
        [sys.executable, str(script), "1"], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    names = [line.rsplit(maxsplit=3)[0] for line in done.stdout.splitlines()]
    assert "commbench --help" in names
    assert "first barrier, -C tcp" in names
