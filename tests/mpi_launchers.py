"""Real MPI launchers for tests: the wheel's hydra, Debian's Open MPI, and wheels in own venvs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

DEBIAN_MPIRUN = "/usr/bin/mpirun.openmpi"
OPENMPI_FLAGS = ("--allow-run-as-root", "--oversubscribe")
HYDRA = Path(sys.executable).parent / "mpiexec"

needs_openmpi = pytest.mark.skipif(
    not os.access(DEBIAN_MPIRUN, os.X_OK), reason="no Open MPI: apt install openmpi-bin"
)
needs_hydra = pytest.mark.skipif(
    not os.access(HYDRA, os.X_OK), reason="no mpiexec of the wheel: pip install mpich"
)


def ranks(
    launcher: Sequence[str | Path], size: int, command: Sequence[str], **env: str
) -> subprocess.CompletedProcess[str]:
    """``launcher -n size command...``, at most 110 s; ``env`` is added, stdout is captured."""
    return subprocess.run(
        [*map(str, launcher), "-n", str(size), *command],
        env={**clean(os.environ), **env},
        capture_output=True,
        text=True,
        timeout=110,
        stdin=subprocess.DEVNULL,
    )


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what would choose a library or be taken for a launcher."""
    taken = ("MPI4PY_", "OMPI_", "PMI_", "PMIX_", "I_MPI_", "HYDRA_", "COMMBENCH_")
    return {name: value for name, value in environ.items() if not name.startswith(taken)}


def venv_with(wheel: str) -> Path:
    """The ``bin`` of a venv with mpi4py and this MPI, made once; everything else is inherited.

    Skips when the wheels cannot be downloaded.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "commbench-tests"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = cache / f"{wheel}-{version}"
    if not (home / "made").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _make(home, wheel, Path(folder) / "log")
    inherited = home / "lib" / f"python{version}" / "site-packages" / "zz_inherited.pth"
    inherited.write_text(f"import site; site.addsitedir({sysconfig.get_path('platlib')!r})\n")
    return home / "bin"


def _make(home: Path, wheel: str, log: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=100)
    with log.open("w") as out:
        try:
            done = subprocess.run(
                [home / "bin" / "python", "-m", "pip", "install", "-q", "mpi4py", wheel],
                stdout=out,
                stderr=out,
                timeout=300,
            ).returncode
        except subprocess.TimeoutExpired:
            done = 1
    if done != 0:
        pytest.skip(f"pip install mpi4py {wheel} did not work: {log.read_text()[-200:].strip()}")
    (home / "made").touch()
