"""Is commbench as fast as plain C and the tools that people trust? See docs/parity.md.

python benchmarks/parity.py [GROUP]... [--pairs N] [--openmpi] [--json FILE]
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import click

from benchmarks.ratios import harness, kafka, pairs, tools
from benchmarks.ratios.figures import FIGURES, chosen
from benchmarks.ratios.references import compile_all
from benchmarks.ratios.result import HEADER
from commbench.errors import CommbenchError
from commbench.harness.hardware import cpu_model
from commbench.harness.sysfs import Tree

GROUPS = ("mpi", "tcp", "grpc", "grpc-core", "ps", "harness")
# on demand: they need two ports of RDMA devices, or Java and Kafka's jars
ON_DEMAND = ("rdma", "rdma-grpc", "kafka")
_PAIRS = {"tcp": pairs.of_tcp, "ps": pairs.of_ps, "kafka": kafka.of_kafka}
Records = Iterator[dict[str, Any]]


class Parity:
    """One call of the command: prints rows as they end and yields their records."""

    def __init__(
        self, cpus: tools.Cpus, quads: int, count: int, shrink: int, only: str, folder: Path
    ) -> None:
        self.cpus, self.quads, self.count, self.shrink = cpus, quads, count, shrink
        self.only, self.folder = only, folder

    def all(self, groups: Sequence[str], openmpi: bool) -> Records:
        for name in groups:
            yield from self.group(name)
            if name == "mpi" and openmpi:
                yield from self.open_mpi()

    def group(self, name: str) -> Records:
        if name == "harness":
            yield from self.harness()
            return
        print(HEADER, flush=True)
        prefix = "mpich: " if name == "mpi" else ""
        if name in FIGURES:
            yield from self.one_launch(name, "mpi" if name == "mpi" else "process", prefix)
        if name in _PAIRS:
            yield from self.pairs(_PAIRS[name])

    def open_mpi(self) -> Records:
        print(HEADER, flush=True)
        yield from self.one_launch("mpi", "openmpi", "openmpi: ")

    def one_launch(self, group: str, launcher: str, prefix: str) -> Records:
        if not chosen(group, self.only):
            return
        compile_all(group, self.folder, launcher == "openmpi")
        out = self.folder / f"{launcher}-{group}"
        words = [f"--figures={group}", f"--out={out}", f"--quads={self.quads}"]
        words += [f"--shrink={self.shrink}", f"--prefix={prefix}", f"--only={self.only}"]
        words += [self.bind_flag(group), f"--libraries={self.folder}"]
        tools.start_workers(words, launcher, FIGURES[group][0].ranks)
        yield from (json.loads(line) for line in out.read_text().splitlines())

    def bind_flag(self, group: str) -> str:
        """Of the parameter server rank 0 is the server; all workers share the client's CPU."""
        if self.cpus is None or group != "ps":
            return tools.bind_flag(self.cpus)
        client, server = self.cpus
        return f"--bind={server}" + f",{client}" * FIGURES[group][0].workers

    def pairs(self, of: Callable[..., pairs.Pairs]) -> Records:
        for blank, ours, reference in of(self.folder, self.cpus, self.shrink):
            if self.only not in blank.name:
                continue
            result = pairs.pairs(blank, ours, reference, self.count)
            print("\n".join(result.lines()), flush=True)
            yield result.record()

    def harness(self) -> Records:
        for row in harness.rows(self.cpus):
            print(harness.line(row), flush=True)
            yield row


def about(cpus: tools.Cpus) -> dict[str, Any]:
    """Where, when and with what."""
    packages = ("commbench", "mpi4py", "mpich", "grpcio", "confluent-kafka", "numpy")
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(Tree()) or "unknown",
        "cpus": cpus,
        "cpu_count": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "versions": {name: _package(name) for name in packages}
        | {name: _said(*command) for name, command in _PROGRAMS.items()},
    }


_PROGRAMS = {
    "cc": ("cc", "--version"),
    "sockperf": ("sockperf", "--version"),
    "iperf3": ("iperf3", "--version"),
    "grpc++": ("pkg-config", "--modversion", "grpc++"),
    "openmpi": ("mpirun.openmpi", "--version"),
    "perftest": ("ib_write_lat", "--version"),
    "java": ("java", "--version"),
}


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _said(*command: str) -> str:
    """The first line that a program prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    return (done.stdout or done.stderr).strip().split("\n")[0]


def _cpus(text: str) -> tools.Cpus:
    first, _, second = text.partition(",")
    if not (first.isdecimal() and second.isdecimal() and first != second):
        raise click.BadParameter(f"{text}: allowed: two different CPUs, such as 0,1")
    return int(first), int(second)


@click.command()
@click.argument("groups", nargs=-1, type=click.Choice(GROUPS + ON_DEMAND))
@click.option(
    "--pairs",
    "count",
    type=click.IntRange(1),
    default=15,
    show_default=True,
    help="Of runs of ours and of a tool that is a process of its own.",
)
@click.option(
    "--quads",
    type=click.IntRange(1),
    default=60,
    show_default=True,
    help="Of blocks in one launch.",
)
@click.option("--only", default="", metavar="TEXT", help="Figures whose name contains it.")
@click.option("--openmpi", is_flag=True, help="The mpi figures under Open MPI, too.")
@click.option("--cpus", default="0,1", show_default=True, help="Of the client and the server.")
@click.option("--shrink", type=click.IntRange(1), default=1, help="Divides iterations, for a try.")
@click.option("--json", "output", type=click.Path(path_type=Path), metavar="FILE")
def main(
    groups: tuple[str, ...],
    count: int,
    quads: int,
    only: str,
    openmpi: bool,
    cpus: str,
    shrink: int,
    output: Path | None,
) -> None:
    """Measure the groups; a row for each figure as it ends.

    Without any named all but rdma and rdma-grpc, which need two ports of RDMA devices, and kafka,
    which needs Java and boots a broker.
    """
    where = about(_cpus(cpus))
    _announce(where)
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        run = Parity(_cpus(cpus), quads, count, shrink, only, Path(folder))
        try:
            for row in run.all(groups or GROUPS, openmpi):
                records.append(row)
                if output is not None:  # after each: what is measured is kept whatever ends us
                    output.write_text(json.dumps({"format": 1, **where, "rows": records}, indent=1))
        except CommbenchError as error:
            raise click.ClickException(str(error)) from None


def _announce(where: dict[str, Any]) -> None:
    client, server = where["cpus"]
    print(f"# {where['when']}  {where['cpu']}, client on CPU {client}, server on CPU {server}")
    print(f"# kernel {where['kernel']}, Python {where['python']}, load {where['load_before']:.2f}")
    for name, text in where["versions"].items():
        print(f"#   {name}: {text}")


if __name__ == "__main__":
    main()
