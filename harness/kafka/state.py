"""What a run directory says of the cluster in it, and which processes belong to it.

A node's process has the node's folder as its working directory. That finds it for sure, also when
the ``up`` that started it was killed before it could write anything down.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from commbench.errors import UsageError

FILE = "commbench-kafka.json"
LOCK = "commbench-kafka.lock"
_NODE = "node"


@dataclass(frozen=True, slots=True)
class State:
    """``sasl_bootstrap`` is "" where nobody has to log in. ``ready``: every broker has answered."""

    version: str
    brokers: int
    bootstrap: str
    sasl_bootstrap: str
    ready: bool = False

    @property
    def client(self) -> str:
        """The bootstrap servers for clients: where they log in, if there is such a place."""
        return self.sasl_bootstrap or self.bootstrap


def home(folder: Path, number: int) -> Path:
    """The folder of a node, from 1."""
    return folder / f"{_NODE}{number}"


def processes(folder: Path) -> dict[int, int]:
    """The processes of the cluster: number of the node by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError):
            where = Path(os.readlink(entry / "cwd").removesuffix(" (deleted)"))
            if where.parent == folder and where.name.startswith(_NODE):
                found[int(entry.name)] = int(where.name.removeprefix(_NODE))
    return found


def read(folder: Path) -> State | None:
    """What is there, or None. Raises UsageError for a file that is not ours."""
    path = folder / FILE
    try:
        return State(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise UsageError(f"{path}: was not written by this commbench; remove it") from None


def write(folder: Path, state: State) -> None:
    """All or nothing: whoever is killed in between leaves the one or the other."""
    new = folder / f"{FILE}.new"
    new.write_text(json.dumps(asdict(state)), encoding="utf-8")
    new.rename(folder / FILE)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone with the folder, which is made. Raises UsageError when another up or down is at it, or
    when the folder has something else in it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        strange = sorted(each.name for each in folder.iterdir())
        if strange and not (folder / LOCK).exists():
            raise UsageError(
                f"--dir {folder}: has {strange[0]} in it; allowed: a new or an empty folder"
            )
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"--dir {folder}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--dir {folder}: another kafka up or down is at work there") from None
        yield
    finally:
        os.close(lock)


def clear(folder: Path) -> None:
    """Remove everything but the lock: data, logs, state."""
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
        elif each.name != LOCK:
            each.unlink(missing_ok=True)
