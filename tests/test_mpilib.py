"""Which MPI library is loaded under which launcher: real launchers, real libraries."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from commbench.errors import ChannelUnavailable
from commbench.harness import mpilib
from tests.mpi_launchers import (
    DEBIAN_MPIRUN,
    HYDRA,
    OPENMPI_FLAGS,
    needs_hydra,
    needs_openmpi,
    ranks,
)

pytestmark = pytest.mark.mpi

# What the channel does first; a failure ends as the command line ends it.
LOAD = """
import json, sys
from commbench.errors import CommbenchError
from commbench.harness import mpilib
try:
    MPI, choice = mpilib.load()
except CommbenchError as error:
    print(f"commbench: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
world = MPI.COMM_WORLD
print(json.dumps([world.rank, world.size, choice.kind, str(choice.path), choice.how]), flush=True)
"""

# Open MPI whoever started us, as without select_library.
FORCED = """
import sys, warnings
warnings.simplefilter("ignore")
from mpi4py import MPI
from commbench.errors import CommbenchError
from commbench.harness import mpilib
launcher = mpilib.find_launcher(__import__("os").environ)
choice = mpilib.Choice("openmpi", None, "mpi4py", launcher)
world = MPI.COMM_WORLD
try:
    mpilib.check_world(choice, launcher.rank, launcher.size, world.rank, world.size)
except CommbenchError as error:
    print(f"commbench: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""

PYTHON = [sys.executable, "-c"]
MPIRUN = (DEBIAN_MPIRUN, *OPENMPI_FLAGS)
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def debian_library() -> str:
    launcher = mpilib.Launcher("openmpi", path=Path(DEBIAN_MPIRUN))
    path = mpilib._own_library(launcher, {})
    assert path is not None
    return str(path)


def worlds(stdout: str) -> list[list[object]]:
    return sorted(json.loads(one) for one in re.findall(r"\[.*?\]", stdout))


@needs_hydra
def test_a_launcher_with_its_own_library_changes_nothing() -> None:
    done = ranks([HYDRA], 2, [*PYTHON, LOAD])
    assert done.returncode == 0, done.stderr
    first, second = worlds(done.stdout)
    assert first[:3] == [0, 2, "mpich"] and second[:3] == [1, 2, "mpich"]
    assert first[4] == "mpi4py"


@needs_hydra
@needs_openmpi
def test_the_wheels_mpich_under_open_mpis_mpirun_gives_way_to_the_launchers_library() -> None:
    done = ranks(MPIRUN, 2, [*PYTHON, LOAD])
    assert done.returncode == 0, done.stderr
    first, second = worlds(done.stdout)
    assert first[:3] == [0, 2, "openmpi"] and second[:3] == [1, 2, "openmpi"]
    assert first[4] == "launcher"
    assert mpilib.kind_of(Path(str(first[3]))) == "openmpi"


@needs_hydra
@needs_openmpi
def test_open_mpis_library_under_hydra_gives_way_to_the_launchers_library() -> None:
    done = ranks([HYDRA], 2, [*PYTHON, LOAD], MPI4PY_LIBMPI=debian_library(), **ROOT)
    assert done.returncode == 0, done.stderr
    first, second = worlds(done.stdout)
    assert first[:3] == [0, 2, "mpich"] and second[:3] == [1, 2, "mpich"]
    assert first[4] == "launcher"


@needs_hydra
@needs_openmpi
def test_two_worlds_of_size_one_are_seen() -> None:
    """What hydra with Open MPI's library silently makes."""
    done = ranks([HYDRA], 2, [*PYTHON, FORCED], MPI4PY_LIBMPI=debian_library(), **ROOT)
    assert done.returncode & 4, done.stderr  # hydra ORs the ranks' codes
    assert re.search(r"sees rank 0 of 1 .*started rank [01] of 2", done.stderr), done.stderr
    assert "Open MPI" in done.stderr and "MPICH" in done.stderr


@needs_hydra
@needs_openmpi
def test_without_a_library_of_the_launcher_both_are_named(tmp_path: Path) -> None:
    """A hydra that lies alone: nothing beside it, and the loader knows only Open MPI."""
    for name in ("mpiexec", "hydra_pmi_proxy"):
        shutil.copy(HYDRA.with_name(name), tmp_path / name)
    done = ranks([tmp_path / "mpiexec"], 2, [*PYTHON, LOAD], MPI4PY_LIBMPI=debian_library())
    if any(mpilib.kind_of(path) == "mpich" for path in mpilib._cached(mpilib._NAMES)):
        pytest.skip("the loader finds an MPICH on this system")
    assert done.returncode & 4, done.stdout + done.stderr  # hydra ORs the ranks' codes
    # One line of each rank, or of one only: hydra kills the other when the first has ended.
    lines = [line for line in done.stderr.splitlines() if line.startswith("commbench:")]
    assert lines and "Traceback" not in done.stderr
    for line in lines:
        assert "Open MPI" in line and str(tmp_path) in line and "MPI4PY_LIBMPI" in line


@needs_hydra
def test_the_prediction_is_what_mpi4py_really_loads() -> None:
    script = (
        "import mpi4py; mpi4py.rc.initialize = False\n"
        "from mpi4py import MPI\n"
        "from commbench.harness import mpilib\n"
        "print(mpilib.select_library({}).path.resolve() in\n"
        "      [mpilib.Path(f).resolve() for f in mpilib.loaded_files(MPI)])"
    )
    done = ranks([HYDRA], 1, [*PYTHON, script])
    assert done.stdout.strip() == "True", done.stderr


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "libmpi.so"
    text.write_text("INPUT(libmpi.so.12)")
    assert mpilib.kind_of(text) is None
    with pytest.raises(ChannelUnavailable, match=r"MPI4PY_LIBMPI=.*libmpi\.so"):
        mpilib.select_library({"MPI4PY_LIBMPI": str(text)})


@pytest.mark.parametrize(
    ("environ", "kind", "rank", "size"),
    [
        ({}, None, None, None),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, "openmpi", 1, 4),
        ({"PMI_RANK": "2", "PMI_SIZE": "3"}, "mpich", 2, 3),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "I_MPI_HYDRA_UUID": "x"}, "intel", 0, 2),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "SLURM_PROCID": "0"}, None, None, None),
    ],
)
def test_launchers_by_their_environment(
    environ: dict[str, str], kind: str | None, rank: int | None, size: int | None
) -> None:
    launcher = mpilib.find_launcher(environ)
    assert (launcher.kind, launcher.rank, launcher.size) == (kind, rank, size)


def test_a_world_that_is_not_the_launchers() -> None:
    choice = mpilib.Choice("mpich", Path("/x/libmpi.so"), "mpi4py", mpilib.Launcher("openmpi"))
    mpilib.check_world(choice, 1, 2, 1, 2)
    mpilib.check_world(choice, None, None, 0, 1)
    with pytest.raises(ChannelUnavailable, match=r"rank 0 of 1 where .* rank 1 of 2"):
        mpilib.check_world(choice, 1, 2, 0, 1)
