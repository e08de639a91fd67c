"""The reference loops as objects: compiled and called, or in Python, with one way to use them all.

A reference runs in the two ranks that also run our loop, over the same buffers, and has a
connection or communicator of its own. Its stamps go where ours go.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from commbench.errors import ChannelUnavailable, TransferError
from commbench.harness.loops import Stamps
from commbench.harness.measure import buffers
from commbench.harness.rendezvous import Rendezvous
from commbench.harness.world import World
from commbench.payloads.buffers import Message
from commbench.plan import Case

SOURCES = Path(__file__).parent.parent / "reference"
_FLAGS = ("-O2", "-Wall", "-Wextra", "-shared", "-fPIC")
_TIMEOUT_S = 60.0
PERFTEST = ("ib_write_lat", "ib_send_lat", "ib_write_bw")
_SOURCES = {
    "mpi": ("mpi_loops.c",),
    "tcp": ("tcp_pingpong.c", "tcp_stream.c"),
    "grpc-core": ("grpc_echo.cc",),
    "ps": ("tcp_pingpong.c", "tcp_ps.c"),
    "rdma": ("verbs_loops.c",),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reference runs: this rank, the case that ours measures, the compiled files."""

    case: Case
    world: World
    rendezvous: Rendezvous
    libraries: Path

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def server(self) -> int:
        """The rank that answers; all others ask it."""
        return 0 if self.case.benchmark == "ps" else 1

    @property
    def asks(self) -> bool:
        return self.rank != self.server

    @property
    def windowed(self) -> bool:
        return self.case.window > 1

    def message(self, use: str) -> Message:
        """The very buffer that ours uses."""
        return buffers(use, self.case.payload.sizes, 1)[0]

    def out_and_in(self, echo: bool = True) -> tuple[Message, Message]:
        """What is sent and where messages land; ``echo``: what arrived goes back, as ours does."""
        if self.asks:
            return self.message("request"), self.message("reply")
        return self.message("incoming" if echo else "reply"), self.message("incoming")


class Reference(Protocol):
    """``block``: ``count`` operations, on both ranks; the asking one's stamps are filled. A tool
    that takes its own returns what it measured: ns of a round trip, or B/s."""

    def block(self, count: int, stamps: Stamps) -> float | None: ...
    def close(self) -> None: ...


# ---------------------------------------------------------------------- compiling


def compile_all(group: str, folder: Path, open_mpi: bool = False) -> None:
    """The sources of a group as shared objects in ``folder``. Raises ChannelUnavailable."""
    for source in _SOURCES.get(group, ()):
        compile_library(source, mpi_compiler(open_mpi) if group == "mpi" else c_compiler(), folder)


def compile_library(source: str, compiler: str, folder: Path) -> Path:
    """A shared object of ``reference/SOURCE``. Raises ChannelUnavailable with what cc said."""
    library = folder / Path(source).with_suffix(".so").name
    command = [compiler, "-std=gnu11", *_FLAGS, "-o", str(library), str(SOURCES / source)]
    if source.endswith(".cc"):
        command[:2] = [cxx_compiler(), "-std=gnu++17"]
        command += grpc_flags()
    if source.startswith("verbs_"):
        command.append("-libverbs")
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        raise ChannelUnavailable(f"{command[0]} cannot compile {source}: {done.stderr.strip()}")
    return library


def c_compiler() -> str:
    """What CMake takes too: CC, else cc."""
    return _found(os.environ.get("CC", "cc"))


def cxx_compiler() -> str:
    """What CMake takes too: CXX, else c++."""
    return _found(os.environ.get("CXX", "c++"))


def grpc_flags() -> list[str]:
    """Of the gRPC C++ that the engine was built with. Raises ChannelUnavailable."""
    command = [_found("pkg-config"), "--cflags", "--libs", "grpc++"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        raise ChannelUnavailable(f"gRPC C++ is missing: {done.stderr.strip()}")
    return done.stdout.split()


def mpi_compiler(open_mpi: bool) -> str:
    """The mpicc of the library that the ranks load. Raises ChannelUnavailable."""
    if open_mpi:
        return _found("mpicc.openmpi")
    beside = Path(sys.executable).with_name("mpicc")
    return str(beside) if beside.exists() else _found("mpicc")


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ChannelUnavailable(f"{program} is not on PATH: the references cannot be compiled")
    return path


# ---------------------------------------------------------------------- C


class Library:
    """A shared object whose functions return 0; ctypes releases the GIL while they run."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)

    def call(self, name: str, *arguments: Any) -> None:
        """Python ints go as 64 bits, which the callee may take fewer of."""
        passed = [ctypes.c_int64(each) if isinstance(each, int) else each for each in arguments]
        if code := getattr(self._library, name)(*passed):
            raise TransferError(f"the reference failed in {name}: {code}")


def _pointer(message: Message) -> ctypes.c_void_p:
    return ctypes.c_void_p(message.addresses[0][0])


def stamps_of(stamps: Stamps) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    return ctypes.c_void_p(stamps.start.ctypes.data), ctypes.c_void_p(stamps.end.ctypes.data)


class MpiLoops:
    """mpi_loops.c, in the library that mpi4py has loaded already.

    ``echo`` False: as in osu_latency the server sends another buffer than the one that came, which
    never leaves its cache.
    """

    def __init__(self, place: Place, echo: bool = True) -> None:
        from mpi4py import MPI

        self.place = place
        self.library = Library(place.libraries / "mpi_loops.so")
        _one_library()
        self.comm = MPI.COMM_WORLD.Dup()
        self.out, self.into = (_pointer(each) for each in place.out_and_in(echo))

    def block(self, count: int, stamps: Stamps) -> None:
        place, nbytes = self.place, self.place.case.nbytes
        who = (self.comm.py2f(), int(place.asks), 1 - place.rank)
        if place.windowed:
            buffer = self.out if place.asks else self.into
            shape = (nbytes, 0, place.case.window, count)
            self.library.call("reference_windows", *who, buffer, *shape, *stamps_of(stamps))
        else:
            ends = (self.out, self.into, nbytes, count, *stamps_of(stamps))
            self.library.call("reference_pingpong", *who, *ends)

    def close(self) -> None:
        self.comm.Free()


def _one_library() -> None:
    """The reference must not have brought a libmpi of its own."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split()[-1] for line in maps if "/libmpi.so" in line}
    if len(mapped) != 1:
        raise ChannelUnavailable(f"two MPI libraries in one process: {', '.join(sorted(mapped))}")


class TcpLoops:
    """tcp_pingpong.c or tcp_stream.c over a connection with the options of our channel."""

    def __init__(self, place: Place, spin: bool = False) -> None:
        self.place, self.spin = place, spin
        name = "tcp_stream.so" if place.windowed else "tcp_pingpong.so"
        self.library = Library(place.libraries / name)
        self.data = _pointer(place.message("request" if place.asks else "incoming"))
        (self.socket,) = _connections(place)

    def block(self, count: int, stamps: Stamps) -> None:
        case = self.place.case
        what = (self.socket.fileno(), self.data, case.nbytes)
        times = stamps_of(stamps) if self.place.asks else ()
        if self.place.windowed:
            name = "reference_send" if self.place.asks else "reference_receive"
            self.library.call(name, *what, case.window, count, *times)
        else:
            name = "reference_ping" if self.place.asks else "reference_pong"
            self.library.call(name, *what, count, int(self.spin), *times)

    def close(self) -> None:
        self.socket.close()


class ParameterServer:
    """tcp_ps.c on the server, tcp_pingpong.c on each worker; a connection for each worker."""

    def __init__(self, place: Place, spin: bool = False) -> None:
        self.place, self.spin = place, spin
        self.workers = place.case.ranks - 1
        name = "tcp_pingpong.so" if place.asks else "tcp_ps.so"
        self.library = Library(place.libraries / name)
        self.sockets = _connections(place)
        use, slots = ("request", 1) if place.asks else ("incoming", self.workers)
        self.data = [_pointer(each) for each in buffers(use, place.case.payload.sizes, slots)]

    def block(self, count: int, stamps: Stamps) -> None:
        nbytes = self.place.case.nbytes
        if self.place.asks:
            what = (self.sockets[0].fileno(), self.data[0], nbytes, count, int(self.spin))
            self.library.call("reference_ping", *what, *stamps_of(stamps))
            return
        fds = (ctypes.c_int * self.workers)(*(each.fileno() for each in self.sockets))
        data = (ctypes.c_void_p * self.workers)(*self.data)
        shape = (self.workers, nbytes, count * self.workers, int(self.spin))
        self.library.call("reference_serve", fds, data, *shape)

    def close(self) -> None:
        for each in self.sockets:
            each.close()


def _connections(place: Place) -> list[socket.socket]:
    """On the server one for each other rank, which has proved the run's token; on these one."""
    rendezvous, token = place.rendezvous, place.rendezvous.token.encode()
    listener = None if place.asks else socket.create_server((rendezvous.local_address, 0))
    everyone = rendezvous.allgather(listener.getsockname()[:2] if listener else None)
    where = everyone[place.server]
    assert isinstance(where, list)
    if listener is None:
        made = [socket.create_connection((str(where[0]), int(str(where[1]))), _TIMEOUT_S)]
        made[0].sendall(token)
    else:
        with listener:
            listener.settimeout(_TIMEOUT_S)
            made = [_accepted(listener, token) for _ in range(len(everyone) - 1)]
    for each in made:
        each.settimeout(None)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _accepted(listener: socket.socket, token: bytes) -> socket.socket:
    made, _ = listener.accept()
    made.settimeout(_TIMEOUT_S)
    if made.recv(len(token), socket.MSG_WAITALL) != token:
        raise TransferError("a stranger connected to the reference")
    return made


# ---------------------------------------------------------------------- Python


class Mpi4pyLoop:
    """reference/mpi4py_loop.py."""

    def __init__(self, place: Place) -> None:
        from mpi4py import MPI

        from benchmarks.reference import mpi4py_loop

        self.comm = MPI.COMM_WORLD.Dup()
        self.peer = 1 - place.rank
        self.loop = mpi4py_loop.ask if place.asks else mpi4py_loop.answer
        self.out, self.into = (each.views[0] for each in place.out_and_in())

    def block(self, count: int, stamps: Stamps) -> None:
        self.loop(self.comm, self.peer, self.out, self.into, count, stamps.start, stamps.end)

    def close(self) -> None:
        self.comm.Free()


class GrpcLoop:
    """reference/grpc_echo.py; ``delivers``: both ends keep what arrives in a buffer, as ours do."""

    def __init__(self, place: Place, delivers: bool = True) -> None:
        from benchmarks.reference.grpc_echo import EchoClient, EchoServer

        self.rendezvous, nbytes = place.rendezvous, place.case.nbytes
        here = f"{self.rendezvous.local_address}:0"
        self.server = None if place.asks else EchoServer(here, nbytes, delivers)
        where = self.rendezvous.allgather(self.server.address if self.server else None)[1]
        self.client = EchoClient(str(where), nbytes, delivers) if place.asks else None

    def block(self, count: int, stamps: Stamps) -> None:
        if self.client is not None:
            self.client.pingpong(stamps.start[:count], stamps.end[:count])
        self.rendezvous.barrier()

    def close(self) -> None:
        for each in (self.client, self.server):
            if each is not None:
                each.close()


def _grpc_core(place: Place) -> Reference:
    from benchmarks.ratios.grpc_loops import GrpcCoreLoops

    return GrpcCoreLoops(place)


def _verbs(place: Place) -> Reference:
    from benchmarks.ratios.verbs import VerbsLoops

    return VerbsLoops(place)


def _perftest(place: Place, tool: str) -> Reference:
    from benchmarks.ratios.perftest import Perftest

    return Perftest(place, tool)


def _ours(place: Place, channel: str, loop: str, keeps: bool = False) -> Reference:
    from benchmarks.ratios.channel_loop import ChannelLoop

    return ChannelLoop(place, channel, loop, keeps)


def loop_named(name: str) -> Callable[[Place], Reference]:
    """The references by name, and those that only stand beside."""
    known: dict[str, Callable[[Place], Reference]] = {
        "mpi": MpiLoops,
        "osu_latency": partial(MpiLoops, echo=False),
        "mpi4py": Mpi4pyLoop,
        "tcp": TcpLoops,
        "tcp-spin": partial(TcpLoops, spin=True),
        "tcp-ps": ParameterServer,
        "tcp-ps-spin": partial(ParameterServer, spin=True),
        "grpc": GrpcLoop,
        "grpc-bare": partial(GrpcLoop, delivers=False),
        "grpc-core": _grpc_core,
        "verbs": _verbs,
        **{name: partial(_perftest, tool=name) for name in PERFTEST},
        "pyverbs": partial(_ours, channel="rdma", loop="python", keeps=True),
        "channel grpc-core": partial(_ours, channel="grpc-core", loop="native"),
    }
    return known[name]
