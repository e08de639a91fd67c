"""Boot the machine, run one command in it, power off: virtme-ng under QEMU, by default without KVM.

The guest sees the host's files, read-only; ``/tmp`` is a copy that is thrown away, and what is
written below ``writable`` reaches the host. QEMU, and the virtme-run that starts it, are in a
session of their own which is killed whatever happens, and die with this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from commbench.errors import MachineFailed, UsageError
from commbench.harness.softroce.layout import ENDED
from commbench.harness.softroce.virtme import Machine, argv, prepare
from commbench.harness.stoppable import stoppable
from commbench.harness.streams import unwritable

_CONSOLE = "console.log"


def run(machine: Machine, command: Sequence[str], console: Path | None = None) -> int:
    """Run ``command`` in the caller's folder and environment; its status as a shell gives it.

    Both streams are passed on as they come; there is no standard input. ``console``: where the
    kernel's log goes; None keeps it only when the machine fails. Raises MachineFailed when it did
    not come to the command's end: the line names the log.
    """
    folder = Path(tempfile.mkdtemp(prefix="commbench-vm-"))
    log = console or folder / _CONSOLE
    try:
        prepare(folder, machine, command)
        with _new(log) as file, stoppable("vm"):
            _boot(folder, file, machine)
        status = _status(folder)
    except MachineFailed as error:
        _forget(folder, but=log)
        raise MachineFailed(f"vm: {error}; the console is in {log}") from None
    except BaseException:
        _forget(folder)
        raise
    _forget(folder)
    return status


def _forget(folder: Path, but: Path | None = None) -> None:
    """Remove the folder; with ``but`` in it, all beside that file: the environment was there."""
    if but is None or but.parent != folder:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for each in folder.iterdir():
        if each.is_dir():
            shutil.rmtree(each, ignore_errors=True)
        elif each != but:
            each.unlink()


def _new(log: Path) -> IO[bytes]:
    try:
        return log.open("xb")
    except OSError as error:
        raise UsageError(f"--keep-console {log}: {error.strerror}") from None


# ---------------------------------------------------------------------- between


def _boot(folder: Path, log: IO[bytes], machine: Machine) -> None:
    """Run virtme-run to its end or the deadline; nothing of it is left afterwards."""
    deadline = time.monotonic() + machine.timeout_s
    with contextlib.ExitStack() as stack:
        # pipes, always: QEMU truncates what is a file and cannot open what is a socket
        pipes = [os.pipe() for _ in range(3)]
        for read_end, _ in pipes:
            stack.callback(os.close, read_end)
        *ports, console = [write_end for _, write_end in pipes]
        process = subprocess.Popen(
            argv(folder, machine, ports),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=ports,
            env={**os.environ, "TMPDIR": str(folder)},  # when it is killed, its files go with ours
            start_new_session=True,
        )
        stack.callback(_end, process)
        for _, write_end in pipes:
            os.close(write_end)
        outs = (sys.stdout.buffer, sys.stderr.buffer, log)
        if not _relay({pipe[0]: out for pipe, out in zip(pipes, outs, strict=True)}, deadline):
            limit = f"{machine.timeout_s:g} s"
            raise MachineFailed(f"not finished within {limit} (--timeout); it was stopped")


def _relay(streams: Mapping[int, IO[bytes]], deadline: float) -> bool:
    """Pass each on as it comes until all have ended; False when the deadline is before that."""
    with selectors.DefaultSelector() as selector:
        for read_end, out in streams.items():
            selector.register(read_end, selectors.EVENT_READ, out)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if not _pass_on(key.fd, key.data):
                    selector.unregister(key.fileobj)
        return not selector.get_map()


def _pass_on(read_end: int, out: IO[bytes]) -> bool:
    """What is there; False at the end of the stream."""
    data = os.read(read_end, 1 << 16)
    try:
        out.write(data)
        out.flush()
    except OSError as error:
        raise unwritable(out, error) from None
    return bool(data)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its whole session; before it is reaped, so that the number is still its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# ---------------------------------------------------------------------- after


def _status(folder: Path) -> int:
    try:
        ended = json.loads((folder / ENDED).read_text("utf-8"))
    except (OSError, ValueError):
        raise MachineFailed("the machine ended before the command did") from None
    if isinstance(ended, dict) and isinstance(ended.get("status"), int):
        return int(ended["status"]) & 0xFF
    raise MachineFailed(str(ended.get("error", ended) if isinstance(ended, dict) else ended))
