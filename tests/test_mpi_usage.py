"""What is wrong with the flags is said once, however many ranks another launcher started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.mpi_launchers import (
    DEBIAN_MPIRUN,
    HYDRA,
    OPENMPI_FLAGS,
    needs_hydra,
    needs_openmpi,
    ranks,
)


@pytest.mark.mpi
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param((HYDRA,), marks=needs_hydra, id="hydra"),
        pytest.param((DEBIAN_MPIRUN, *OPENMPI_FLAGS), marks=needs_openmpi, id="openmpi"),
    ],
)
def test_bad_flags_are_one_line_of_all_ranks(launcher: tuple[str | Path, ...]) -> None:
    command = [sys.executable, "-m", "commbench", "run", "broker", "--acks", "2"]
    ended = ranks(launcher, 3, command)
    assert ended.returncode == 2
    assert ended.stderr.count("commbench: --acks 2: allowed: 0, 1, all") == 1
