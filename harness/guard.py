"""Stands between our launcher and one rank: ``guard.py COMMAND...``, a script of few imports.

It starts the rank, reports its pid and how it ended in the launcher's ``events`` fifo, and keeps
what the MPI launcher gave it (PMI_FD) open until all ranks have ended: hydra kills every process
the moment one dies, so that no survivor could say why, and mixes exit codes by OR.
A guard and its rank die with the launcher. ``guard.py --exec COMMAND...`` only promises the latter.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_RANKS = ("COMMBENCH_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before we asked
        os._exit(5)


def _start(command: list[str]) -> int:
    """The rank, in a process group of its own so that it can be ended with its children."""
    guard = os.getpid()
    pid = os.fork()  # nothing but this script is loaded here
    if pid == 0:
        os.setpgid(0, 0)
        _die_with_parent(guard)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until Python can say it well
        try:
            os.execvp(command[0], command)
        except OSError as error:
            sys.stderr.write(f"commbench: {command[0]}: {error.strerror}\n")
            os._exit(5)
    return pid


def _guard(command: list[str], folder: str, rank: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the launcher signals the ranks itself
    events = os.open(os.path.join(folder, "events"), os.O_WRONLY)
    pid = _start(command)
    os.write(events, f"start {rank} {pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(events, f"exit {rank} {os.waitstatus_to_exitcode(status)}\n".encode())
    os.read(os.open(os.path.join(folder, "release"), os.O_RDONLY), 1)


def main() -> None:
    if sys.argv[1] == "--exec":
        _die_with_parent(int(os.environ["COMMBENCH_LAUNCHER_PID"]))
        os.execvp(sys.argv[2], sys.argv[2:])
    _die_with_parent(os.getppid())
    rank = next(os.environ[name] for name in _RANKS if name in os.environ)
    _guard(sys.argv[1:], os.environ["COMMBENCH_LAUNCH_DIR"], rank)


if __name__ == "__main__":
    main()
