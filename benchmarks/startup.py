"""How long commbench takes to begin: ``python benchmarks/startup.py [LAUNCHES]``.

Printed are median, least and greatest of whole launches of ``commbench --help`` and ``commbench
channels``, and of a run's start to its first barrier, as its ``end`` line has it (startup_ns).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

COMMBENCH = (sys.executable, "-m", "commbench")
RUN = ("run", "latency", "-m", "1", "-i", "10", "-x", "0")


def launch_s(*argv: str) -> float:
    """Wall time of one launch, seconds. Raises CalledProcessError."""
    began = time.monotonic()
    subprocess.run([*COMMBENCH, *argv], check=True, capture_output=True, timeout=120)
    return time.monotonic() - began


def first_barrier_s(channel: str) -> float:
    """From the start of ``commbench run`` to the barrier before its first case, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "x.jsonl")
        launch_s(*RUN, "-C", channel, "--output", str(output))
        end = json.loads(output.read_text().splitlines()[-1])
        return float(end["startup_ns"]) / 1e9


def show(name: str, measure: Callable[[], float], launches: int) -> None:
    if launches > 1:
        measure()  # once for the caches
    times = sorted(measure() for _ in range(launches))
    print(f"{name:<36}{statistics.median(times):9.3f}{times[0]:9.3f}{times[-1]:9.3f}")


def main() -> None:
    launches = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    print(f"# seconds, {launches} launches{'':<14}{'median':>9}{'min':>9}{'max':>9}")
    show("python -c pass", bare_s, launches)
    show("commbench --help", lambda: launch_s("--help"), launches)
    show("commbench channels", lambda: launch_s("channels"), launches)
    for channel in ("loopback", "tcp", "mpi", "grpc"):
        show(f"first barrier, -C {channel}", lambda name=channel: first_barrier_s(name), launches)


def bare_s() -> float:
    """What the interpreter alone takes, seconds."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], check=True, timeout=60)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
