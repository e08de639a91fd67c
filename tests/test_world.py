"""Who this process is, as a table of launchers' environments; addresses of this host."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from commbench.errors import UsageError
from commbench.harness import interfaces
from commbench.harness.world import UNKNOWN, World, detect

OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "1",
}
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "3", "PMI_FD": "9"}
HYDRA_LOCAL = {**HYDRA, "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}
SLURM_JOB = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
SLURM_STEP = {**SLURM_JOB, "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
OURS = {
    "COMMBENCH_RANK": "1",
    "COMMBENCH_SIZE": "2",
    "COMMBENCH_LOCAL_RANK": "1",
    "COMMBENCH_LOCAL_SIZE": "2",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (OPENMPI, World(1, 4, 1, 2, "openmpi")),
        (HYDRA, World(2, 3, UNKNOWN, UNKNOWN, "mpich")),
        (HYDRA_LOCAL, World(2, 3, 0, 1, "mpich")),
        (
            {
                "MV2_COMM_WORLD_RANK": "0",
                "MV2_COMM_WORLD_SIZE": "2",
                "MV2_COMM_WORLD_LOCAL_RANK": "0",
                "MV2_COMM_WORLD_LOCAL_SIZE": "2",
            },
            World(0, 2, 0, 2, "mvapich2"),
        ),
        (
            {"FLUX_TASK_RANK": "3", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "1"},
            World(3, 4, 1, UNKNOWN, "flux"),
        ),
        (SLURM_STEP, World(5, 8, 1, UNKNOWN, "slurm")),
        # srun --mpi=pmix: PMIx tells the rank, Slurm the size
        ({**SLURM_STEP, "PMIX_RANK": "5"}, World(5, 8, 1, UNKNOWN, "pmix")),
        # PMIx without a size: what comes later in the table
        ({**HYDRA, "PMIX_RANK": "2"}, World(2, 3, UNKNOWN, UNKNOWN, "pmix")),
        # Slurm outside a step, or in a step of one task that starts processes by itself
        (SLURM_JOB, None),
        ({**SLURM_JOB, "SLURM_STEP_NUM_TASKS": "1"}, None),
        # mpirun inside a Slurm step: the inner launcher counts
        ({**SLURM_STEP, **OPENMPI}, World(1, 4, 1, 2, "openmpi")),
        ({**SLURM_STEP, **HYDRA_LOCAL}, World(2, 3, 0, 1, "mpich")),
        # COMMBENCH_* before all
        ({**OPENMPI, **HYDRA, "COMMBENCH_RANK": "0", "COMMBENCH_SIZE": "9"},
         World(0, 9, UNKNOWN, UNKNOWN, "env")),
        ({**OURS, "COMMBENCH_LAUNCH_DIR": "/x"}, World(1, 2, 1, 2, "commbench")),
    ],
)  # fmt: skip
def test_detect(environ: dict[str, str], expected: World | None) -> None:
    assert detect(environ) == expected


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"COMMBENCH_RANK": "1"}, "COMMBENCH_SIZE"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK=1"),
        ({"PMI_RANK": "1"}, "PMI_SIZE"),
        ({"COMMBENCH_RANK": "2", "COMMBENCH_SIZE": "2"}, "COMMBENCH_RANK=2"),
        ({"COMMBENCH_RANK": "-1", "COMMBENCH_SIZE": "2"}, "COMMBENCH_RANK=-1"),
        ({"COMMBENCH_RANK": "0", "COMMBENCH_SIZE": "two"}, "COMMBENCH_SIZE=two"),
        ({"COMMBENCH_RANK": "0", "COMMBENCH_SIZE": "0"}, "COMMBENCH_SIZE=0"),
    ],
)
def test_detect_refuses(environ: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        detect(environ)


def test_interfaces_have_loopback() -> None:
    loopback = next(i for i in interfaces.interfaces() if i.is_loopback)
    assert loopback.up
    assert loopback.addresses[0] == "127.0.0.1"
    assert not loopback.is_infiniband
    assert loopback.mtu > 1000
    assert interfaces.find("127.0.0.1") == loopback


def test_resolve_name_and_address() -> None:
    assert interfaces.resolve("lo") == "127.0.0.1"
    assert interfaces.resolve("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize("wrong", ["ib7", "192.0.2.254", "", "localhost"])
def test_resolve_lists_what_is_there(wrong: str) -> None:
    with pytest.raises(UsageError, match=rf"--interface {wrong}: .*lo \(127\.0\.0\.1"):
        interfaces.resolve(wrong)


def test_candidates_can_be_listened_on() -> None:
    assert "127.0.0.1" in interfaces.candidates(local=True)
    for address in interfaces.candidates():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, 0), family=family):
            pass
        assert not ipaddress.ip_address(address).is_unspecified
