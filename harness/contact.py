"""How ranks find the hub: rank 0 draws addresses, ports and a token and publishes them.

The first way that applies: what the user says (``HOST:PORT`` or ``file:DIR``); PMI-1; one MPI
broadcast, where a launcher of MPI gives no other way; a file in a folder that Slurm or Flux share.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from commbench.errors import ChannelUnavailable, TransferError, UsageError
from commbench.harness import interfaces
from commbench.harness.pmi import VALUE_LIMIT, Pmi
from commbench.harness.wire import TOKEN_NBYTES
from commbench.harness.world import World

_FILE = "rendezvous"
_RETRY_S = 0.05
_CONNECT_S = 2.0
_PUBLISH_S = 30.0


@dataclass(frozen=True, slots=True)
class Contact:
    """Where the hub listens, best address first, and the secret of the run (hex)."""

    endpoints: tuple[tuple[str, int], ...]
    token: str

    def encode(self) -> str:
        """One word without spaces, short enough for a PMI value."""
        places = [f"{host}|{port}" for host, port in self.endpoints]
        while len(",".join(places)) > VALUE_LIMIT - TOKEN_NBYTES - 1:
            places.pop()
        return f"{self.token}/{','.join(places)}"

    @classmethod
    def decode(cls, text: str) -> Contact:
        """Raises ValueError for anything that ``encode`` does not make."""
        token, _, places = text.strip().partition("/")
        if not re.fullmatch(rf"[0-9a-f]{{{TOKEN_NBYTES}}}", token):
            raise ValueError("no token")
        pairs = (place.split("|") for place in places.split(","))
        return cls(tuple((host, int(port)) for host, port in pairs), token)

    def __str__(self) -> str:
        return " or ".join(show(host, port) for host, port in self.endpoints)


def show(host: str, port: int) -> str:
    """HOST:PORT as people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Meeting(Protocol):
    """One way to hand rank 0's contact to the others."""

    def publish(self, contact: Contact) -> None: ...
    def find(self, deadline: float) -> Contact: ...
    def close(self) -> None: ...


class FileMeeting:
    """A 0600 file in a shared folder, written atomically and removed by who wrote it."""

    def __init__(self, path: Path) -> None:
        self._path, self._written = path, False

    def publish(self, contact: Contact) -> None:
        draft = self._path.with_name(f"{self._path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "w") as file:
                file.write(contact.encode())
            os.replace(draft, self._path)
        except OSError as error:
            raise UsageError(f"--rendezvous file:{self._path.parent}: {error.strerror}") from None
        self._written = True

    def find(self, deadline: float) -> Contact:
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                return Contact.decode(self._path.read_text())
            time.sleep(_RETRY_S)
        raise TransferError(f"rank 0 never connected: it published nothing in {self._path}")

    def close(self) -> None:
        if self._written:
            self._path.unlink(missing_ok=True)


class PmiMeeting:
    """put, barrier, get over the launcher's PMI-1 socket; MPI_Init still works afterwards."""

    _KEY = "commbench-rendezvous"

    def __init__(self, environ: Mapping[str, str], timeout_s: float) -> None:
        try:
            self._pmi = Pmi(int(environ["PMI_FD"]), timeout_s)
        except (OSError, ValueError) as error:
            raise TransferError(
                f"PMI_FD={environ['PMI_FD']}: not the launcher's socket ({error}); "
                f"give --rendezvous HOST:PORT or file:DIR"
            ) from None

    def publish(self, contact: Contact) -> None:
        self._pmi.put(self._KEY, contact.encode())
        self._pmi.barrier()

    def find(self, deadline: float) -> Contact:
        self._pmi.barrier()
        return Contact.decode(self._pmi.get(self._KEY))

    def close(self) -> None:
        self._pmi.close()


class MpiMeeting:
    """One broadcast by MPI itself: for launchers that give no other way."""

    def __init__(self, world: World) -> None:
        from commbench.harness import mpilib

        try:
            mpi, choice = mpilib.load()
        except ChannelUnavailable as error:
            raise ChannelUnavailable(
                f"{error} (or give --rendezvous HOST:PORT or file:DIR)"
            ) from None
        self._comm: Any = mpi.COMM_WORLD
        mpilib.check_world(choice, world.rank, world.size, self._comm.rank, self._comm.size)

    def publish(self, contact: Contact) -> None:
        text = contact.encode().encode().ljust(VALUE_LIMIT)
        self._broadcast(bytearray(text), time.monotonic() + _PUBLISH_S)

    def find(self, deadline: float) -> Contact:
        return Contact.decode(self._broadcast(bytearray(VALUE_LIMIT), deadline).decode())

    def _broadcast(self, buffer: bytearray, deadline: float) -> bytearray:
        request = self._comm.Ibcast(buffer, root=0)
        while not request.Test():
            if time.monotonic() > deadline:
                raise TransferError("rank 0 never connected: no MPI broadcast came from it")
            time.sleep(0.001)
        return buffer

    def close(self) -> None:
        """Nothing to undo: MPI stays initialised for the mpi channel."""


class FixedMeeting:
    """HOST:PORT and a token file: nothing to publish."""

    def __init__(self, contact: Contact) -> None:
        self._contact = contact

    def publish(self, contact: Contact) -> None: ...

    def find(self, deadline: float) -> Contact:
        return self._contact

    def close(self) -> None: ...


def choose(
    world: World,
    explicit: str | None,
    token_file: str | None,
    environ: Mapping[str, str],
    timeout_s: float,
) -> Meeting:
    """The first way that applies. Raises UsageError, ChannelUnavailable, TransferError."""
    if explicit is not None:
        return _explicit(explicit, token_file)
    if "PMI_FD" in environ:
        return PmiMeeting(environ, timeout_s)
    if world.launcher in ("openmpi", "mpich", "mvapich2", "pmix"):
        return MpiMeeting(world)
    key = _job_key(environ)
    if key is not None:
        folder = Path(environ.get("SLURM_SUBMIT_DIR") or os.getcwd())
        return FileMeeting(folder / f".commbench-{key}")
    raise UsageError(
        f"rank {world.rank} of {world.size} (by {world.launcher}) cannot find rank 0: "
        f"give --rendezvous HOST:PORT or file:DIR"
    )


def _explicit(text: str, token_file: str | None) -> Meeting:
    if text.startswith("file:"):
        folder = Path(text.removeprefix("file:"))
        if not folder.is_dir():
            raise UsageError(f"--rendezvous {text}: must be an existing folder that all ranks see")
        return FileMeeting(folder / _FILE)
    endpoint = parse_endpoint(text, "--rendezvous")
    if token_file is None:
        raise UsageError(
            f"--rendezvous {text}: needs --token-file FILE with the same secret on every rank"
        )
    return FixedMeeting(Contact((endpoint,), read_token(token_file)))


def _job_key(environ: Mapping[str, str]) -> str | None:
    if "SLURM_JOB_ID" in environ:
        return f"slurm-{environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID', '0')}"
    if "FLUX_JOB_ID" in environ:
        return f"flux-{environ['FLUX_JOB_ID']}"
    return None


def parse_endpoint(text: str, flag: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPV6]:PORT``. Raises UsageError."""
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\s]+)):(\d{1,5})", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise UsageError(f"{flag} {text}: must be HOST:PORT with a port of 1 to 65535, or file:DIR")
    return match[1] or match[2], int(match[3])


def read_token(path: str) -> str:
    """The run's token from a file of a secret that only its owner may read."""
    try:
        with open(path, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise UsageError(f"--token-file {path}: others may read it; chmod 600 {path}")
            secret = file.read(4096).strip()
    except OSError as error:
        raise UsageError(f"--token-file {path}: {error.strerror}") from None
    if len(secret) < 16:
        raise UsageError(f"--token-file {path}: must hold a secret of at least 16 characters")
    return hashlib.sha256(secret).hexdigest()


def write_secret(path: str) -> None:
    """A new secret in a 0600 file that must not be there yet."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UsageError(f"--token-file {path}: {error.strerror}") from None
    with open(fd, "w") as file:
        file.write(secrets.token_hex(32) + "\n")


def new_token() -> str:
    return secrets.token_hex(TOKEN_NBYTES // 2)


def listen(addresses: Sequence[str], port: int, flag: str) -> list[socket.socket]:
    """One listening socket per address, never the wildcard. Raises UsageError naming ``flag``."""
    listeners = []
    for address in addresses:
        try:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listeners.append(socket.create_server((address, port), family=family, backlog=128))
        except OSError as error:
            if port or len(addresses) == 1:
                close_all(listeners)
                reason = os.strerror(error.errno) if error.errno else error
                raise UsageError(f"{flag} {show(address, port)}: {reason}") from None
    if not listeners:
        raise UsageError(f"{flag}: cannot listen on any of {', '.join(addresses)}")
    return listeners


def close_all(sockets: Sequence[socket.socket]) -> None:
    for one in sockets:
        one.close()


def addresses_to_listen(interface: str | None, local: bool) -> list[str]:
    """The --interface's address, or all that other hosts may reach this one by."""
    return [interfaces.resolve(interface)] if interface else interfaces.candidates(local)


def endpoints(listeners: Sequence[socket.socket]) -> tuple[tuple[str, int], ...]:
    return tuple((str(s.getsockname()[0]), int(s.getsockname()[1])) for s in listeners)


def connect(
    find: Callable[[], Contact], source: str | None, deadline: float
) -> tuple[socket.socket, Contact]:
    """A connection to the first endpoint that answers; looks again until ``deadline``.

    ``source``: numeric address to come from (--interface). Raises TransferError.
    """
    while True:
        contact = find()
        for host, port in contact.endpoints:
            left = deadline - time.monotonic()
            with contextlib.suppress(OSError):
                return _connect(host, port, source, max(0.05, min(_CONNECT_S, left))), contact
        if time.monotonic() > deadline:
            raise TransferError(f"rank 0 never connected: nobody answers at {contact}")
        time.sleep(_RETRY_S)


def _connect(host: str, port: int, source: str | None, timeout_s: float) -> socket.socket:
    here = (source, 0) if source and (":" in source) == (":" in host) else None
    return socket.create_connection((host, port), timeout=timeout_s, source_address=here)
