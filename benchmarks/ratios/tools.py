"""Independent tools and commbench's own command, each run as processes on given CPUs.

Every function runs one measurement and returns a number: ns of a round trip, or B/s.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from commbench.errors import ChannelUnavailable, TransferError
from commbench.harness.launch import launch

ROOT = Path(__file__).parent.parent.parent
HOST = "127.0.0.1"
SECONDS = 1.0
TIMEOUT_S = 120.0
Cpus = tuple[int, int] | None  # of client or sender, server or receiver; None: not pinned


# ---------------------------------------------------------------------- ours


def commbench(arguments: Sequence[str], cpus: Cpus) -> list[dict[str, Any]]:
    """``commbench run ARGUMENTS`` with a rank on each CPU; the records of its results file."""
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        results = Path(folder, "results.jsonl")
        command = [sys.executable, "-m", "commbench", "run", *arguments, bind_flag(cpus)]
        output([*command, "--output", str(results)])
        return [json.loads(line) for line in results.read_text().splitlines()]


def our_latency_ns(options: Sequence[str], nbytes: int, cpus: Cpus) -> float:
    """Median round trip of the tcp channel."""
    words = ("latency", "-C", "tcp", "-m", str(nbytes), "--rtt", "-D", f"{SECONDS}s")
    records = commbench([*words, "--warmup-time", "0.4s", *options], cpus)
    return float(_case(records)["latency_ns"]["p50"])


def our_rate(options: Sequence[str], nbytes: int, cpus: Cpus) -> float:
    """B/s of the tcp channel."""
    words = ("bandwidth", "-C", "tcp", "-m", str(nbytes), "-D", f"{SECONDS}s")
    records = commbench([*words, "--warmup-time", "0.4s", *options], cpus)
    return float(_case(records)["bytes_per_s"])


def _case(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return next(record for record in records if record["kind"] == "case")


def reference_alone(
    group: str,
    libraries: Path,
    cpus: Cpus,
    blocks: int = 4,
    shrink: int = 1,
    only: str = "",
) -> float:
    """The reference of a group's first figure with ``only`` in its name, in a launch of its own."""
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        out = Path(folder, "out")
        words = [f"--figures={group}", f"--out={out}", f"--libraries={libraries}"]
        words += [f"--alone={blocks}", f"--shrink={shrink}", f"--only={only}", bind_flag(cpus)]
        start_workers(words, "process")
        return float(out.read_text())


def start_workers(
    words: Sequence[str], launcher: str, ranks: int = 2, timeout_s: float = 3600.0
) -> None:
    """Ranks of benchmarks.ratios.worker. Raises TransferError when they fail."""
    module = "benchmarks.ratios.worker"
    env = {"PYTHONPATH": str(ROOT)}
    if launcher != "openmpi":
        if code := launch(words, ranks, launcher, module, env, timeout_s).exit_code:
            raise TransferError(f"the ranks ended with exit code {code}")
        return
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        flags = ("--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(ranks))
        command = [program("mpirun.openmpi"), *flags, sys.executable, "-m", module, *words]
        env["COMMBENCH_RENDEZVOUS"] = f"file:{folder}"
        with running(command, env=env) as process:
            if process.wait(timeout_s):
                raise TransferError(f"mpirun.openmpi ended with exit code {process.returncode}")


# ---------------------------------------------------------------------- sockperf, iperf3


def sockperf_ns(nbytes: int, spin: bool, cpus: Cpus) -> float:
    """Median round trip of ``sockperf ping-pong --tcp``."""
    port = free_port()
    common = ["--tcp", "-i", HOST, "-p", str(port), *(["--nonblocked"] if spin else [])]
    sockperf = program("sockperf")
    words = ["ping-pong", *common, "-m", str(nbytes), "-t", str(max(1, round(SECONDS)))]
    with running(pinned(cpus, 1, [sockperf, "server", *common]), quiet=True):
        wait_for(port)
        said = output(pinned(cpus, 0, [sockperf, *words, "--full-rtt"]))
    found = re.search(r"percentile 50\.000\D+([\d.]+)", said)
    if found is None:
        raise TransferError(f"sockperf printed no median: {said[-500:]}")
    return float(found[1]) * 1e3


def iperf3_rate(nbytes: int, buffer: str, cpus: Cpus) -> float:
    """B/s that the receiver of ``iperf3 -l NBYTES`` counted. ``buffer``: -w, or "system"."""
    iperf3, port = program("iperf3"), str(free_port())
    window = [] if buffer == "system" else ["-w", buffer]
    words = ["-c", HOST, "-p", port, "-l", str(nbytes), "-t", str(max(1, round(SECONDS)))]
    server = [iperf3, "-s", "-1", "-p", port, "-B", HOST]
    with running(pinned(cpus, 1, server), quiet=True):
        wait_for(int(port))
        said = output(pinned(cpus, 0, [iperf3, *words, *window, "-O", "1", "-J"]))
    report = json.loads(said)
    return float(report["end"]["sum_received"]["bits_per_second"]) / 8


# ---------------------------------------------------------------------- processes


def program(name: str) -> str:
    """Its path. Raises ChannelUnavailable."""
    path = shutil.which(name)
    if path is None:
        raise ChannelUnavailable(f"{name} is not on PATH; install it to be compared with it")
    return path


def pinned(cpus: Cpus, end: int, command: Sequence[str]) -> list[str]:
    """``end``: 0 the client or sender, 1 the server or receiver."""
    return [program("taskset"), "-c", str(cpus[end]), *command] if cpus else [*command]


def bind_flag(cpus: Cpus) -> str:
    return f"--bind={cpus[0]},{cpus[1]}" if cpus else "--bind=none"


def output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=ROOT)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise TransferError(f"{Path(command[0]).name} failed: {said[-500:]}")
    return done.stdout


@contextlib.contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str] | None = None, quiet: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block."""
    silence = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=silence,
        stderr=silence,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Until something listens there; without connecting, which a server would count."""
    until = time.monotonic() + 10.0
    listening = re.compile(rf"^\s*\d+: \w+:{port:04X} \w+:0000 0A ", re.MULTILINE)
    while time.monotonic() < until:
        if any(listening.search(Path(f"/proc/net/{name}").read_text()) for name in ("tcp", "tcp6")):
            return
        time.sleep(0.01)
    raise TransferError(f"nothing listens on port {port}")
