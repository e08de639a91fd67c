"""The command line as people use it: real processes, what they say and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ranks import marked

COMMBENCH = (sys.executable, "-m", "commbench")
MARK = "COMMBENCH_TEST_MARK"
ENDS_WITHIN_S = 10.0  # after a fault, on every rank


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and how long that took since it began or since the fault."""

    exit_code: int
    stdout: str
    stderr: str
    elapsed_s: float

    def one_line(self, exit_code: int, *words: str) -> None:
        """Exactly one line for people beside remarks, which holds ``words``."""
        lines = [line for line in self.stderr.splitlines() if not line.startswith("# ")]
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("commbench: ")
        assert "Traceback" not in self.stdout + self.stderr
        assert [word for word in words if word not in lines[0]] == [], lines[0]
        assert self.exit_code == exit_code
        assert self.elapsed_s < ENDS_WITHIN_S

    def ok(self) -> Ended:
        """It went well and had nothing but remarks to say."""
        said = [line for line in self.stderr.splitlines() if not line.startswith("# ")]
        assert (self.exit_code, said) == (0, []), self.stderr
        return self


def commbench(*argv: object, timeout_s: float = 60, **env: str) -> Ended:
    """``commbench ARGV...`` from start to end."""
    return Running(COMMBENCH, *argv, **env).end(timeout_s)


class Running:
    """A command under way, in a session of its own; its processes carry ``mark``."""

    def __init__(self, launcher: tuple[str, ...], *argv: object, **env: str) -> None:
        self.mark = f"{MARK}={os.getpid()}.{time.monotonic_ns()}"
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [*launcher, *map(str, argv)],
            env={**_clean(os.environ), **env, MARK: self.mark.partition("=")[2]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def end(self, timeout_s: float = 60) -> Ended:
        """Wait for it; nothing of it may stay. Kills what does."""
        try:
            out, err = self.process.communicate(timeout=timeout_s)
            elapsed_s = time.monotonic() - self.began
            until(lambda: not marked(self.mark), "orphans", 3)
        finally:
            for pid in marked(self.mark):
                os.kill(pid, signal.SIGKILL)
        return Ended(self.process.returncode, out, err, elapsed_s)

    def fault(self) -> None:
        """``elapsed_s`` counts from here."""
        self.began = time.monotonic()

    def kill_rank(self, rank: int) -> None:
        """SIGKILL to the process of that rank."""
        self.fault()
        os.kill(self.rank(rank), signal.SIGKILL)

    def rank(self, rank: int) -> int:
        """Its process id, whoever launched it; waits for one that is just being started."""
        until(lambda: self._ranks(rank), f"rank {rank} is not running", 10)
        return self._ranks(rank)[0]

    def _ranks(self, rank: int) -> list[int]:
        names = ("COMMBENCH_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
        wanted = {f"{name}={rank}".encode() for name in names}
        return [
            pid
            for pid in marked(self.mark)
            if wanted & set(_words(pid, "environ")) and b"commbench" in _words(pid, "cmdline")[:4]
        ]


def _words(pid: int, what: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().split(b"\0")
    except OSError:
        return []


def until(true: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Wait for ``true``; AssertionError ``what`` when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a results file that may still be written."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def cases(path: Path) -> list[dict[str, Any]]:
    """The finished cases of a results file."""
    return [line for line in lines(path) if line["kind"] == "case"]


def long_job(folder: Path, channel: str, **more: object) -> Path:
    """A job whose first case is short and whose second runs until something happens."""
    job = folder / "long.toml"
    common = "".join(f"{name} = {json.dumps(value)}\n" for name, value in more.items())
    job.write_text(
        f'[global]\nbenchmark = "latency"\nchannel = "{channel}"\n{common}'
        f'[short]\nmessage-size = "1"\niterations = 10\nwarmup = 0\n'
        f'[long]\nmessage-size = "64"\nduration = "5m"\n'
    )
    return job


def in_second_case(running: Running, output: Path) -> None:
    """Wait until the first case of a ``long_job`` is in the file and the second runs."""
    until(lambda: cases(output) or running.process.poll() is not None, "no case came")
    assert running.process.poll() is None, running.end()
    time.sleep(0.5)


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    taken = ("COMMBENCH_", "PMI_", "PMIX_", "OMPI_", "SLURM_", "FLUX_", "MPI4PY_")
    return {name: value for name, value in environ.items() if not name.startswith(taken)}
