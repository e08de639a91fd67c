"""Does one parameter server stand many workers? Time, and the server's memory for each worker.

python benchmarks/scaling.py [-C tcp,grpc-core,mpi] [--workers 16,32,64] [-m 1M] [-i 20]

More processes than cores: no figure of speed comes from here. What is asked is that all calls are
through within 120 s with the most workers, and that the server's peak of resident memory grows by
at most 2.5 payloads for each worker (its slope over their numbers). Over gRPC the memory is printed
and nothing is asked of it: the slices in which messages arrive are gRPC's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import click
import numpy as np

from commbench.errors import UsageError
from commbench.results import read
from commbench.units import format_size, parse_size

SECONDS, PAYLOADS = 120.0, 2.5
OWN_MEMORY = ("grpc", "grpc-core", "grpc+mpi")  # of the library; printed only


@dataclass(frozen=True, slots=True)
class Run:
    """One launch: how long it took in all, and the server's peak of resident memory."""

    workers: int
    seconds: float
    peak_rss_bytes: int


def measure(channel: str, workers: int, nbytes: int, calls: int) -> Run:
    """Raises click.ClickException with what the run said, when it fails or takes too long."""
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        output = Path(folder, "ps.jsonl")
        words = ["run", "ps", "-C", channel, "-m", str(nbytes), "--workers", str(workers)]
        words += ["-i", str(calls), "-x", "0", "--bind", "none", "--output", str(output)]
        before = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "commbench", *words],
                capture_output=True,
                text=True,
                timeout=2 * SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise click.ClickException(f"{channel}, {workers} workers: not through") from None
        seconds = time.monotonic() - before
        if done.returncode:
            raise click.ClickException(f"{channel}, {workers} workers: {done.stderr.strip()}")
        (case,) = read(output).cases
    return Run(workers, seconds, case["peak_rss_bytes"][0])


def slope(runs: list[Run], nbytes: int) -> float:
    """Payloads for each worker, by least squares."""
    workers = [run.workers for run in runs]
    return float(np.polyfit(workers, [run.peak_rss_bytes / nbytes for run in runs], 1)[0])


def verdict(channel: str, runs: list[Run], nbytes: int) -> str:
    """What was found of the two things that are asked."""
    in_time = max(run.seconds for run in runs) <= SECONDS
    found = [f"within {SECONDS:.0f} s: {'holds' if in_time else 'missed'}"]
    if len(runs) > 1:
        grows = slope(runs, nbytes)
        asked = "" if channel in OWN_MEMORY else "holds" if grows <= PAYLOADS else "missed"
        limit = f" (<= {PAYLOADS}: {asked})" if asked else ""
        found.append(f"{grows:.2f} payloads for each worker{limit}")
    return f"# {channel}: {', '.join(found)}"


@click.command()
@click.option("-C", "--channel", "channels", default="tcp,grpc-core,mpi", show_default=True)
@click.option("--workers", default="16,32,64", show_default=True)
@click.option("-m", "--message-size", "size", default="1M", show_default=True)
@click.option("-i", "--iterations", "calls", default=20, show_default=True)
def main(channels: str, workers: str, size: str, calls: int) -> None:
    """A row for each run as it ends, and what was found of each channel."""
    try:
        nbytes = parse_size(size, "-m")
        counts = [int(each) for each in workers.split(",")]
    except (UsageError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    print(f"# one server, {calls} calls of {format_size(nbytes)} from each worker")
    print("# channel    workers  seconds  server's peak, MiB")
    for channel in channels.split(","):
        runs = []
        for count in counts:
            run = measure(channel, count, nbytes, calls)
            runs.append(run)
            peak = run.peak_rss_bytes / (1 << 20)
            print(f"{channel:<12} {count:>7} {run.seconds:>8.1f} {peak:>19.1f}", flush=True)
        print(verdict(channel, runs, nbytes), flush=True)


if __name__ == "__main__":
    main()
