"""Our own local launcher: N fresh processes on this host, directly or through an MPI's mpiexec.

Each rank stands behind a ``guard.py``, which reports its pid and how it ended through a fifo in
a private folder. So there is one way to learn who died of what, whoever started the ranks.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from commbench.errors import ChannelUnavailable
from commbench.harness.streams import Stream

AFTER_FAILURE_S = 4.5  # survivors learn of it by the rendezvous and say so; then they are killed
_REAP_S = 5.0
_FAILED = 5


@dataclass(frozen=True, slots=True)
class Launched:
    """How it ended. ``stdout`` and ``stderr`` are empty unless captured."""

    exit_code: int
    stdout: str
    stderr: str


def launch(
    argv: Sequence[str],
    size: int,
    launcher: str = "process",
    module: str = "commbench",
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    capture: bool = False,
) -> Launched:
    """Run ``python -m module argv...`` as ``size`` ranks and wait for them.

    ``launcher``: "process", or "mpi" for mpiexec. ``env`` is added to this process's. The exit
    code is that of the first rank that failed by itself; 5 when one was killed, with a line naming
    rank and host; SIGINT and SIGTERM are forwarded, a second one kills. Nothing is left behind.
    Raises ChannelUnavailable when there is no mpiexec.
    """
    with tempfile.TemporaryDirectory(prefix="commbench-") as folder:
        run = _Run(Path(folder), size, capture, timeout_s)
        try:
            command = [sys.executable, "-m", module, *argv]
            run.start(command, launcher, {**os.environ, **(env or {})})
            return run.result(run.wait())
        finally:
            run.close()


def mpiexec() -> str:
    """The mpiexec beside this Python (a wheel's), else the one on PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpiexec")
    if found is None:
        raise ChannelUnavailable(
            "mpi: no mpiexec beside this Python nor on PATH; pip install 'commbench[mpich]'"
        )
    return found


@dataclass(slots=True)
class _Rank:
    """What the guard of one rank has told."""

    pid: int | None = None
    code: int | None = None
    ended: int = 0  # 1: first to end
    killed: bool = False  # by us


class _Run:
    """One launch: the processes, the fifos, and the loop that waits for them."""

    def __init__(self, folder: Path, size: int, capture: bool, timeout_s: float | None) -> None:
        self._folder, self._size, self._capture = folder, size, capture
        self._ranks = [_Rank() for _ in range(size)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stdout: list[Stream] = []
        self._stderr: list[Stream] = []
        self._said = ""
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._late = False
        self._signals: list[int] = []
        self._selector = selectors.DefaultSelector()
        for name in ("events", "release"):
            os.mkfifo(folder / name, 0o600)
        # opened for both so that neither end of file nor a missing reader can occur
        self._events = os.open(folder / "events", os.O_RDWR | os.O_NONBLOCK)
        self._release = os.open(folder / "release", os.O_RDWR | os.O_NONBLOCK)
        self._tail = b""
        self._selector.register(self._events, selectors.EVENT_READ, self._hear)
        self._restore = self._catch_signals()

    # ------------------------------------------------------------------ starting

    def start(self, command: list[str], launcher: str, env: dict[str, str]) -> None:
        env = {k: v for k, v in env.items() if k not in ("COMMBENCH_RANK", "COMMBENCH_SIZE")}
        env["COMMBENCH_LAUNCH_DIR"] = str(self._folder)
        env["COMMBENCH_LAUNCHER_PID"] = str(os.getpid())
        env.setdefault("COMMBENCH_RENDEZVOUS", f"file:{self._folder}")
        guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
        if launcher == "mpi":
            starter = [*guard, "--exec", mpiexec(), "-n", str(self._size)]
            self._spawn([*starter, *guard, *command], {**env, **_local_mpi()}, filtered=True)
            return
        for rank in range(self._size):
            here = {
                "COMMBENCH_RANK": str(rank),
                "COMMBENCH_LOCAL_RANK": str(rank),
                "COMMBENCH_SIZE": str(self._size),
                "COMMBENCH_LOCAL_SIZE": str(self._size),
            }
            self._spawn([*guard, *command], env | here, filtered=False)

    def _spawn(self, command: list[str], env: dict[str, str], filtered: bool) -> None:
        piped = subprocess.PIPE if self._capture or filtered else None
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=piped,
            stderr=piped,
            process_group=0,  # a terminal's Ctrl-C reaches the launcher alone, which forwards it
        )
        self._processes.append(process)
        self._on_exit(process)
        for pipe, ours, streams in (
            (process.stdout, sys.stdout, self._stdout),
            (process.stderr, sys.stderr, self._stderr),
        ):
            if pipe is not None:
                stream = Stream(pipe, None if self._capture else ours.buffer, filtered)
                self._selector.register(pipe, selectors.EVENT_READ, partial(self._drain, stream))
                streams.append(stream)

    def _on_exit(self, process: subprocess.Popen[bytes]) -> None:
        fd = os.pidfd_open(process.pid)

        def ended() -> None:
            self._selector.unregister(fd)
            os.close(fd)
            process.wait()

        self._selector.register(fd, selectors.EVENT_READ, ended)

    # ------------------------------------------------------------------ waiting

    def wait(self) -> int:
        """Until every rank has ended, or every process of ours has."""
        while self._running() and any(p.returncode is None for p in self._processes):
            self._step()
        os.write(self._release, b"x" * self._size)
        self._deadline = time.monotonic() + _REAP_S
        while any(p.returncode is None for p in self._processes):
            self._step()
        self._hear()
        for stream in self._stdout + self._stderr:
            stream.finish()
        return self._verdict()

    def _step(self) -> None:
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        for key, _ in self._selector.select(left):
            key.data()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._late = self._late or not self._someone_failed()
            self._kill()

    def _running(self) -> list[_Rank]:
        return [rank for rank in self._ranks if rank.code is None]

    def _someone_failed(self) -> bool:
        return bool(self._signals) or any(rank.code for rank in self._ranks)

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._tail += os.read(self._events, 1 << 16)
        *lines, self._tail = self._tail.split(b"\n")
        for line in lines:
            what, rank, number = line.split()
            one = self._ranks[int(rank)]
            if what == b"start":
                one.pid = int(number)
                self._forward(one)
            else:
                one.code, one.ended = int(number), 1 + max(r.ended for r in self._ranks)
                if one.code:
                    self._hurry()

    def _hurry(self) -> None:
        soon = time.monotonic() + AFTER_FAILURE_S
        self._deadline = soon if self._deadline is None else min(self._deadline, soon)

    def _drain(self, stream: Stream) -> None:
        if not stream.drain():
            self._selector.unregister(stream.pipe)

    # ------------------------------------------------------------------ ending

    def _catch_signals(self) -> Callable[[], None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)
        wake.setblocking(False)
        self._woken = wake
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_wake)
        try:
            before = [signal.signal(number, self._on_signal) for number in numbers]
        except ValueError:  # not the main thread: signals are somebody else's
            return lambda: None
        wakeup = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)

        def restore() -> None:
            signal.set_wakeup_fd(wakeup)
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

        return restore

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(64)
        if len(self._signals) > 1:
            self._kill()
        elif self._signals:
            self._hurry()
            for rank in self._ranks:
                self._forward(rank)

    def _forward(self, rank: _Rank) -> None:
        if self._signals and rank.pid is not None and rank.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, self._signals[0])

    def _kill(self) -> None:
        """End what is left: the ranks, whose guards then report; without ranks, the starters."""
        self._deadline = time.monotonic() + _REAP_S
        running = [rank for rank in self._running() if rank.pid is not None and not rank.killed]
        for rank in running:
            rank.killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid or 0, signal.SIGKILL)
        if not running:
            for process in self._processes:
                if process.returncode is None:
                    process.kill()

    def _verdict(self) -> int:
        failed = sorted((r for r in self._ranks if r.code), key=lambda r: r.ended)
        if self._signals:
            return self._say("interrupted")
        if self._late:
            return self._say(f"not finished within {self._timeout_s:g} s; all ranks were killed")
        for rank in failed:
            if rank.code and rank.code < 0 and not rank.killed:
                name = signal.Signals(-rank.code).name
                return self._say(f"{self._name(rank)} was killed by {name}")
        told = {rank.pid: self._folder / f"told.{rank.pid}" for rank in failed}
        for rank in failed:
            if rank.code and rank.code > 0 and not told[rank.pid].exists():
                return rank.code
        for rank in failed:
            if rank.code and rank.code > 0:
                self._say(told[rank.pid].read_text())
                return rank.code
        if self._running():
            return self._say(f"{self._name(self._running()[0])} ended without a word")
        return self._say("ranks had to be killed") if failed else 0

    def _name(self, rank: _Rank) -> str:
        return f"rank {self._ranks.index(rank)} on {socket.gethostname()}"

    def _say(self, line: str) -> int:
        if self._capture:
            self._said += f"commbench: {line}\n"
        else:
            sys.stderr.write(f"commbench: {line}\n")
        return _FAILED

    def result(self, exit_code: int) -> Launched:
        """What was captured, with what the launcher itself had to say at the end of stderr."""
        out, err = (
            b"".join(bytes(s.kept) for s in streams).decode(errors="replace")
            for streams in (self._stdout, self._stderr)
        )
        return Launched(exit_code, out, err + self._said)

    def close(self) -> None:
        """Whatever happened: no process, no descriptor and no handler of ours is left."""
        self._kill()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0 if process.returncode is not None else 1)
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._restore()
        for key in list(self._selector.get_map().values()):
            if key.fd not in (self._events, self._wake.fileno()) and isinstance(key.fileobj, int):
                os.close(key.fd)
        self._selector.close()
        for fd in (self._events, self._release):
            os.close(fd)
        self._wake.close()
        self._woken.close()


def _local_mpi() -> dict[str, str]:
    """Ranks on this host only, also inside an allocation, on as many cores as there are."""
    local = {
        "HYDRA_LAUNCHER": "fork",
        "HYDRA_RMK": "user",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    if os.geteuid() == 0:  # Open MPI asks root to say so; whoever started commbench has
        local |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return local
