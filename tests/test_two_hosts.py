"""The main job between two hosts (network namespaces): under mpiexec, and in two shells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commbench.channels.grpc_core import GrpcCoreChannel
from commbench.harness.launch import mpiexec
from commbench.results import read
from tests import netns

COMMBENCH = [sys.executable, "-m", "commbench"]
GRPC = ["grpc"] if GrpcCoreChannel.missing() else ["grpc", "grpc-core"]
QUICK = ["-m", "64,64K", "-i", "20", "-x", "2", "--in-order"]

pytestmark = pytest.mark.netns


def addresses(record: dict[str, Any]) -> str:
    return str(record["channel_info"])


def check(path: Path, channels: list[str]) -> None:
    """Every case is there, validated, and no socket channel went over loopback."""
    file = read(path)
    assert file.complete
    assert [record["case"]["channel"] for record in file.cases[::4]] == channels
    assert len(file.cases) == 4 * len(channels)
    assert all(record["validated"] and record["validated_messages"] for record in file.cases)
    assert not any("127.0.0." in addresses(record) for record in file.cases)


def test_mpiexec_over_two_hosts(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with netns.two_hosts() as hosts:
        script = hosts.launcher_exec(tmp_path)
        command = [
            *hosts.inside(0), mpiexec(), "-launcher", "ssh", "-launcher-exec", str(script),
            "-localhost", hosts.addresses[0], "-hosts", ",".join(hosts.addresses), "-n", "2",
            *COMMBENCH, "run", "latency,bandwidth", "-C", ",".join(("tcp", "mpi", *GRPC)), *QUICK,
            "--output", str(out),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    check(out, ["tcp", "mpi", *GRPC])
    tcp = next(r for r in read(out).cases if r["case"]["channel"] == "tcp")
    assert any(address in addresses(tcp) for address in hosts.addresses)


def test_two_shells(tmp_path: Path) -> None:
    out, token = tmp_path / "out.jsonl", str(tmp_path / "token")
    with netns.two_hosts() as hosts:
        serve = subprocess.Popen(
            [*hosts.inside(1), *COMMBENCH, "serve", "--interface", hosts.interface,
             "--token-file", token, "--wait", "30s"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert serve.stdout is not None
            words = serve.stdout.readline().split()
            assert words[:2] == ["commbench", "run"]
            run = [*hosts.inside(0), *COMMBENCH, *words[1:], "latency,bandwidth",
                   "-C", ",".join(("tcp", *GRPC)), *QUICK, "--output", str(out)]  # fmt: skip
            done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            assert serve.wait(15) == 0
        finally:
            serve.kill()
            serve.communicate()
    check(out, ["tcp", *GRPC])
    assert not Path(token).exists()
