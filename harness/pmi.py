"""PMI-1: the few words a process may say to MPICH's or Intel's hydra before MPI_Init.

The launcher hands each process a connected socket in ``PMI_FD``; requests and answers are lines
of ``key=value``. MPI_Init repeats the ``init`` afterwards, which every server allows.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Mapping

from commbench.errors import TransferError

_LINE_LIMIT = 4096
_GOODBYE_S = 5.0
VALUE_LIMIT = 1000  # bytes of a value; servers allow 1024 with the terminator


class Pmi:
    """One PMI-1 conversation on a copy of the descriptor; every answer has a deadline."""

    def __init__(self, fd: int, timeout_s: float) -> None:
        self._socket = socket.socket(fileno=os.dup(fd))
        self._deadline = time.monotonic() + timeout_s
        self._ask("init", pmi_version="1", pmi_subversion="1")
        self._kvsname = self._ask("get_my_kvsname")["kvsname"]

    def put(self, key: str, value: str) -> None:
        """Publish; others see it after the barrier. No spaces, at most ``VALUE_LIMIT`` bytes."""
        if " " in value or "\n" in value or len(value.encode()) > VALUE_LIMIT:
            raise ValueError(f"not a PMI value: {value!r}")
        self._ask("put", kvsname=self._kvsname, key=key, value=value)

    def barrier(self) -> None:
        self._ask("barrier_in")

    def get(self, key: str) -> str:
        return self._ask("get", kvsname=self._kvsname, key=key)["value"]

    def finalize(self) -> None:
        """Say that this process is through: only then may it end and the others stay."""
        self._ask("finalize")

    def close(self) -> None:
        """Drop the copy; the launcher's own descriptor is left to MPI, in blocking mode."""
        if self._socket.fileno() >= 0:
            self._socket.settimeout(None)  # O_NONBLOCK is shared with the descriptor MPI will use
            self._socket.close()

    def _ask(self, command: str, **words: str) -> dict[str, str]:
        text = " ".join([f"cmd={command}", *(f"{k}={v}" for k, v in words.items())])
        try:
            self._socket.settimeout(max(0.01, self._deadline - time.monotonic()))
            self._socket.sendall(f"{text}\n".encode())
            line = self._line()
        except OSError as error:
            raise TransferError(
                f"PMI_FD: no answer to {command} from the launcher ({error}); "
                f"give --rendezvous HOST:PORT or file:DIR"
            ) from None
        answer = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if answer.get("rc", "0") != "0":
            raise TransferError(f"PMI_FD: the launcher refused {command}: {line}")
        return answer

    def _line(self) -> str:
        line = bytearray()
        while not line.endswith(b"\n"):  # byte by byte: what follows belongs to MPI
            self._socket.settimeout(max(0.01, self._deadline - time.monotonic()))
            byte = self._socket.recv(1)
            if not byte or len(line) > _LINE_LIMIT:
                raise ConnectionError("the connection ended")
            line += byte
        return line.decode(errors="replace").strip()


def leave(environ: Mapping[str, str]) -> None:
    """Before a process ends in order: the launcher takes one that said ``init`` and never
    ``finalize`` for dead, and kills the rest. Where MPI was initialised its own exit says it."""
    mpi = sys.modules.get("mpi4py.MPI")
    if "PMI_FD" not in environ or (mpi is not None and mpi.Is_initialized()):
        return
    with contextlib.suppress(OSError, ValueError, TransferError):  # a launcher that is gone
        pmi = Pmi(int(environ["PMI_FD"]), _GOODBYE_S)
        pmi.finalize()
        pmi.close()
