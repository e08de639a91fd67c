"""The ``mpi`` channel: two-sided messages between the ranks of an MPI launcher.

Both data paths work on one duplicate of COMM_WORLD: ``native/mpi_engine.h`` calls the functions of
the library that mpi4py loaded, ``mpi_python.py`` calls mpi4py; they speak the same tags.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from commbench import _native
from commbench.channels.base import Capability, NativeEngine, Option
from commbench.channels.mpi_python import MpiMessages
from commbench.channels.rdma_proof import Carriers
from commbench.errors import TransferError
from commbench.harness import mpilib
from commbench.harness.sysfs import Tree

if TYPE_CHECKING:
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.stop import StopFlag
    from commbench.harness.world import World

_TUNED = ("MPIR_CVAR_", "MPICH_", "I_MPI_", "OMPI_MCA_", "UCX_", "FI_", "PSM")
_NOISE = (
    "I_MPI_INFO",
    "I_MPI_HYDRA_UUID",
    "I_MPI_PIN_",
    "OMPI_MCA_orte_",
    "OMPI_MCA_ess",
    "OMPI_MCA_rmaps_",
)


class MpiChannel(MpiMessages):
    """MPI through mpi4py and, natively, through the functions of the same library."""

    name: ClassVar[str] = "mpi"
    capabilities: ClassVar[Capability] = (
        Capability.REQUEST | Capability.ONE_WAY | Capability.WINDOW | Capability.IOVEC
    )
    launcher: ClassVar[str] = "mpi"
    options: ClassVar[Mapping[str, Option]] = {
        "mode": Option(
            "blocking",
            "MPI_Send and MPI_Recv, Isend and Irecv, or Send_init, Recv_init and Start",
            ("blocking", "nonblocking", "persistent"),
        ),
        "iovec": Option(
            "datatype",
            "messages of several buffers: an hindexed datatype, or packed inside the timing",
            ("datatype", "pack"),
        ),
    }

    def __init__(
        self,
        module: ModuleType,
        choice: mpilib.Choice,
        options: Mapping[str, str],
        stop: StopFlag,
    ) -> None:
        self._options = dict(options)
        self._choice = choice
        comm = module.COMM_WORLD.Dup()
        comm.Set_errhandler(module.ERRORS_RETURN)
        super().__init__(module, comm, options["mode"], options["iovec"] == "pack", stop)
        self._between = module.COMM_WORLD.Dup()  # for settle(): no tag of a message can match
        self._engine: NativeEngine | None = None
        self._carriers = Carriers(Tree())

    @classmethod
    def missing(cls) -> str | None:
        return mpilib.missing()

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        module, choice = mpilib.load()
        mpi_world = module.COMM_WORLD
        mpilib.check_world(choice, world.rank, world.size, mpi_world.rank, mpi_world.size)
        return cls(module, choice, options, rendezvous.stop)

    def settle(self, peers: Sequence[int], timeout_s: float) -> None:
        """Meet each peer inside MPI, which sends what is queued only while it is called."""
        late = {peer: self._between.Irecv(bytearray(1), peer) for peer in peers}
        sends = [self._between.Isend(b"\0", peer) for peer in peers]

        def met() -> bool:
            with self._errors():
                for peer in [peer for peer, request in late.items() if request.Test()]:
                    del late[peer]
                return not late and bool(self._mpi.Request.Testall(sends))

        if not self._wait(met, timeout_s):
            ranks = ", ".join(map(str, sorted(late) or peers))
            raise TransferError(
                f"channel mpi: rank {ranks} did not end its block within {timeout_s:g} s"
            )

    def native(self) -> NativeEngine:
        if self._engine is None:
            mpi: Any = self._mpi
            self._engine = _native.MpiEngine(
                mpilib.loaded_files(mpi),
                pointer=mpi._sizeof(mpi.Comm) > ctypes.sizeof(ctypes.c_int),
                comm=mpi._handleof(self._comm),
                byte=mpi._handleof(mpi.BYTE),
                request_null=mpi._handleof(mpi.REQUEST_NULL),
                status_nbytes=mpi._sizeof(mpi.Status),
                error_at=offset_in_status(mpi, lambda status, value: status.Set_error(value)),
                count_at=offset_in_status(
                    mpi, lambda status, value: status.Set_elements(mpi.BYTE, value)
                ),
                error_in_status=mpi.ERR_IN_STATUS,
                error_pending=mpi.ERR_PENDING,
                undefined=mpi.UNDEFINED,
                mode=self._options["mode"],
                pack=self._options["iovec"] == "pack",
            )
        return self._engine

    def describe(self) -> dict[str, str | int | float]:
        mpi: Any = self._mpi
        files = mpilib.loaded_files(mpi)
        described: dict[str, str | int | float] = {
            **self._options,
            "library": mpi.Get_library_version().splitlines()[0].strip("\0 "),
            "library_path": files[-1],
            "library_chosen_by": self._choice.how,
            "thread_level": thread_level(mpi),
        }
        described.update(self._carriers.describe())
        described.update(tuned_variables(os.environ))
        return described

    def close(self) -> None:
        """Collective the first time. MPI itself ends with the process."""
        self._engine = None
        if self._comm is not None:
            self._comm.Free()
            self._between.Free()
            self._comm = None


def thread_level(mpi: Any) -> str:
    """What this MPI allows threads to do."""
    levels = {
        mpi.THREAD_SINGLE: "single",
        mpi.THREAD_FUNNELED: "funneled",
        mpi.THREAD_SERIALIZED: "serialized",
        mpi.THREAD_MULTIPLE: "multiple",
    }
    return levels.get(mpi.Query_thread(), "unknown")


def tuned_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What tunes the library: it is part of what a number means."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if name.startswith(_TUNED) and not name.startswith(_NOISE)
    }


def offset_in_status(mpi: Any, put: Callable[[Any, int], None]) -> int:
    """Where a Status keeps what ``put`` puts there, found by doing it; -1: not to be seen."""
    status = mpi.Status()
    memory = (ctypes.c_char * mpi._sizeof(mpi.Status)).from_address(mpi._addressof(status))
    found = set()
    for value in (0x5A17C0DE, 0x1DEA50F1):
        put(status, value)
        found.add(bytes(memory).find(value.to_bytes(4, sys.byteorder)))
    return found.pop() if len(found) == 1 else -1
