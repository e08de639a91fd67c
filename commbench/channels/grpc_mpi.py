"""``grpc+mpi``: a model of TensorFlow's gRPC+MPI, with its costs.

gRPC carries control: who the workers are, and that a block is over (``grpc_mpi_control.py``).
Tensors go by MPI: the rank that wants one asks its owner for it, and one thread of each process
alone calls MPI (``native/grpc_mpi_engine.h``). There is no Python data path.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from commbench import _native
from commbench.channels.base import (
    Capability,
    NativeEngine,
    Option,
)
from commbench.channels.grpc_options import own_address, quiet
from commbench.channels.mpi import offset_in_status, thread_level, tuned_variables
from commbench.channels.native_only import NativeOnlyChannel
from commbench.errors import ChannelUnavailable, TransferError, UsageError
from commbench.harness import mpilib

if TYPE_CHECKING:
    from commbench.channels.grpc_mpi_control import Control
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.world import World

MOST_NBYTES = 2**31 - 1 - 1024  # an int, less what a response has beside the tensor's content
_NAME_NBYTES = 128  # TensorFlow's, of a worker's name in the Allgather
_CONNECT_S = 10.0


class GrpcMpiChannel(NativeOnlyChannel):
    name = "grpc+mpi"
    launcher = "mpi"
    threads = True
    capabilities = Capability.REQUEST | Capability.ONE_WAY | Capability.WINDOW
    options: ClassVar[Mapping[str, Option]] = {
        "path": Option(
            "default",
            "a tensor serialized into its response, or (MPI_OPTIMAL_PATH) from 1024 bytes on as "
            "raw bytes behind it",
            ("default", "optimal"),
        ),
        "wait": Option(
            "spin",
            "of the thread that calls MPI: look all the time, or sleep when nothing is there",
            ("spin", "sleep"),
        ),
    }

    _control: Control

    def __init__(
        self, module: ModuleType, choice: mpilib.Choice, options: Mapping[str, str]
    ) -> None:
        self._mpi: Any = module
        self._choice = choice
        self._options = dict(options)
        self._comm: Any = module.COMM_WORLD.Dup()
        self._comm.Set_errhandler(module.ERRORS_RETURN)
        self._engine: _native.GrpcMpiEngine | None = None

    # -- life

    @classmethod
    def missing(cls) -> str | None:
        if not find_spec("grpc"):
            return 'grpcio is missing: pip install "commbench[grpc]"'
        return mpilib.missing()

    @classmethod
    def check_payload(cls, sizes: Sequence[int], serialized: bool) -> None:
        if (nbytes := sum(sizes)) > MOST_NBYTES:
            raise UsageError(
                f"-m/--message-size or --scheme: {nbytes} bytes; allowed for channel {cls.name}: "
                f"{MOST_NBYTES} bytes (MPI counts a message in an int: 2 GiB)"
            )

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        quiet()
        module, choice = mpilib.load()
        mpi_world = module.COMM_WORLD
        mpilib.check_world(choice, world.rank, world.size, mpi_world.rank, mpi_world.size)
        _check_threads(module)
        channel = cls(module, choice, options)
        channel._meet(world, rendezvous)
        channel._engine = channel._open_engine()
        return channel

    def _meet(self, world: World, rendezvous: Rendezvous) -> None:
        """Names over gRPC and over MPI: the two must be of the same workers."""
        from commbench.channels.grpc_mpi_control import Control

        name = f"worker:0:{world.rank}"
        address = own_address(world, rendezvous)
        self._control = Control(
            address, rendezvous.token, world.rank, world.hosts, name, rendezvous.stop
        )
        addresses = [str(each) for each in rendezvous.allgather(self._control.address)]
        by_grpc = {world.rank: name, **self._control.connect(addresses, _CONNECT_S)}
        for rank, by_mpi in enumerate(self._gather_names(name, world.size)):
            if by_mpi != by_grpc[rank]:
                raise TransferError(
                    f"grpc+mpi: rank {rank} on {world.hosts[rank]} is {by_grpc[rank]!r} over gRPC "
                    f"and {by_mpi!r} over MPI"
                )

    def _gather_names(self, name: str, size: int) -> list[str]:
        names = bytearray(_NAME_NBYTES * size)
        self._comm.Allgather(name.encode().ljust(_NAME_NBYTES, b"\0"), names)
        parts = (names[at : at + _NAME_NBYTES] for at in range(0, len(names), _NAME_NBYTES))
        return [bytes(part).rstrip(b"\0").decode() for part in parts]

    def _open_engine(self) -> _native.GrpcMpiEngine:
        mpi = self._mpi
        return _native.GrpcMpiEngine(
            mpilib.loaded_files(mpi),
            pointer=mpi._sizeof(mpi.Comm) > ctypes.sizeof(ctypes.c_int),
            comm=mpi._handleof(self._comm),
            byte=mpi._handleof(mpi.BYTE),
            info_null=mpi._handleof(mpi.INFO_NULL),
            any_source=mpi.ANY_SOURCE,
            source_at=offset_in_status(mpi, lambda status, value: status.Set_source(value)),
            status_nbytes=mpi._sizeof(mpi.Status),
            rank=self._comm.rank,
            optimal=self._options["path"] == "optimal",
            sleeps=self._options["wait"] == "sleep",
        )

    def native(self) -> NativeEngine:
        assert self._engine is not None, "closed"
        return self._engine

    def settle(self, peers: Sequence[int], timeout_s: float) -> None:
        """Until each peer has ended its block, the thread that calls MPI goes on sending."""
        self._control.end_step(peers, timeout_s)

    def counters(self) -> dict[str, int]:
        """Since it was opened: messages sent by tag, tensors that came, payload bytes copied."""
        assert self._engine is not None, "closed"
        return self._engine.counters()

    def describe(self) -> dict[str, str | int | float]:
        mpi = self._mpi
        return {
            **self._options,
            "library": mpi.Get_library_version().splitlines()[0].strip("\0 "),
            "library_path": mpilib.loaded_files(mpi)[-1],
            "library_chosen_by": self._choice.how,
            "thread_level": thread_level(mpi),
            "grpcio": version("grpcio"),
            **tuned_variables(os.environ),
        }

    def close(self) -> None:
        """Collective the first time. MPI itself ends with the process."""
        if self._comm is None:
            return
        engine, self._engine = self._engine, None
        clean = engine is None or engine.stop()  # only then may MPI be called here
        self._control.close()
        if clean:
            self._comm.Free()
        self._comm = None


def _check_threads(mpi: Any) -> None:
    """ChannelUnavailable unless a thread that did not initialise MPI may call it."""
    if mpi.Query_thread() < mpi.THREAD_SERIALIZED:
        raise ChannelUnavailable(
            f"channel grpc+mpi calls MPI from a thread of its own and needs thread level "
            f"serialized; this MPI gives {thread_level(mpi)}: unset MPI4PY_RC_THREAD_LEVEL and "
            f"MPI4PY_RC_THREADS, or take an MPI that was built with threads"
        )
