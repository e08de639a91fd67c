"""Ctrl-C while a native loop runs: the main thread is in C, where no Python handler can run.

The interpreter's C handler writes the signal's number into a pipe; a thread blocked on it sets
the stop flag, and ends the process after the grace if the main thread has not come back.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from commbench.errors import Interrupted
from commbench.harness.client import GRACE_S, leave, tell
from commbench.harness.stop import StopFlag

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """SIGINT and SIGTERM set ``stop`` and raise KeyboardInterrupt in the main thread.

    Make it there, once per process; ``close`` puts back what was before. A second signal, or
    ``GRACE_S`` without ``close``, ends the process with exit code 5.
    """

    def __init__(self, stop: StopFlag, grace_s: float = GRACE_S) -> None:
        self._stop, self._grace_s = stop, grace_s
        self._closed = threading.Event()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._before = [signal.signal(number, _interrupt) for number in _CAUGHT]
        self._wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _CAUGHT)  # blocked by guard.py

    def close(self) -> None:
        """Put the handlers back; may be called twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in zip(_CAUGHT, self._before, strict=True):
            signal.signal(number, handler)
        os.close(self._write_end)
        self._thread.join(1.0)

    def _watch(self) -> None:
        caught = 0
        while number := os.read(self._read_end, 1):
            if number[0] in _CAUGHT:
                caught += 1
                self._stop.set()
                if caught > 1:
                    self._expire()
                threading.Thread(target=self._grace, name="signals-grace", daemon=True).start()
        os.close(self._read_end)

    def _grace(self) -> None:
        if not self._closed.wait(self._grace_s):
            self._expire()

    def _expire(self) -> None:
        tell(Interrupted("interrupted"))
        leave(Interrupted.exit_code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
