"""Who this process is: rank, size and host, as its launcher tells by the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from commbench.errors import UsageError

UNKNOWN = -1  # a local rank that the launcher does not tell; join() counts it from the host names


@dataclass(frozen=True, slots=True)
class World:
    """One process among ``size``. ``hosts[r]`` is the host name of rank r, for messages."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: str  # "commbench", "mpich", "openmpi", "slurm", "flux", "env", "peer", ...
    hosts: tuple[str, ...] = ()  # filled in by join()
    interface: str | None = None  # --interface: name or address, None: chosen by the rendezvous


@dataclass(frozen=True, slots=True)
class _Source:
    """The variables of one launcher. ``size`` is a list of which the first there counts."""

    launcher: str
    rank: str
    size: tuple[str, ...]
    local_rank: str = ""
    local_size: str = ""


# First match wins. Slurm is last, and believed only inside a step of several tasks: SLURM_PROCID
# is 0 in every process that a one-task job starts by itself.
_SOURCES = (
    _Source(
        "env", "COMMBENCH_RANK", ("COMMBENCH_SIZE",), "COMMBENCH_LOCAL_RANK", "COMMBENCH_LOCAL_SIZE"
    ),
    _Source(
        "openmpi",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Source(
        "pmix",
        "PMIX_RANK",
        ("PMIX_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE", "FLUX_JOB_SIZE"),
        "SLURM_LOCALID",
    ),
    _Source("mpich", "PMI_RANK", ("PMI_SIZE",), "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Source(
        "mvapich2",
        "MV2_COMM_WORLD_RANK",
        ("MV2_COMM_WORLD_SIZE",),
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    _Source("flux", "FLUX_TASK_RANK", ("FLUX_JOB_SIZE",), "FLUX_TASK_LOCAL_ID"),
    _Source("slurm", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS",), "SLURM_LOCALID"),
)


def detect(environ: Mapping[str, str]) -> World | None:
    """The world a launcher made for this process, or None: started alone.

    Raises UsageError for a rank without a size, or numbers that cannot be.
    """
    source = next((s for s in _SOURCES if s.rank in environ and _believed(s, environ)), None)
    if source is None:
        return None
    size_name = next((name for name in source.size if name in environ), None)
    if size_name is None:
        raise UsageError(
            f"{source.rank}={environ[source.rank]} is set without {source.size[0]}; "
            f"set COMMBENCH_RANK and COMMBENCH_SIZE for each process"
        )
    size = _number(environ, size_name, 1)
    rank = _number(environ, source.rank, 0)
    if rank >= size:
        raise UsageError(f"{source.rank}={rank}: must be below {size_name}={size}")
    launcher = "commbench" if _ours(source, environ) else source.launcher
    return World(
        rank,
        size,
        _optional(environ, source.local_rank),
        _optional(environ, source.local_size),
        launcher,
    )


def _ours(source: _Source, environ: Mapping[str, str]) -> bool:
    return source.launcher == "env" and "COMMBENCH_LAUNCH_DIR" in environ


def _believed(source: _Source, environ: Mapping[str, str]) -> bool:
    if source.launcher == "slurm":
        return environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    if source.launcher == "pmix":  # PMIx tells no size; a later launcher of the table may
        return any(name in environ for name in source.size) or not any(
            s.rank in environ for s in _SOURCES if s.launcher in ("mpich", "mvapich2", "flux")
        )
    return True


def _number(environ: Mapping[str, str], name: str, least: int) -> int:
    text = environ[name]
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise UsageError(f"{name}={text}: must be an integer of at least {least}")
    return int(text)


def _optional(environ: Mapping[str, str], name: str) -> int:
    return _number(environ, name, 0) if name in environ else UNKNOWN
