"""What the ranks print, on its way through the launcher: kept or passed on, without a banner."""

from __future__ import annotations

import os
import re
from typing import IO, Any

from commbench.errors import Interrupted

# hydra's block about a process that ended; ours is one line that names rank and host
_BANNER = re.compile(
    rb"={40,}|=   |YOUR APPLICATION TERMINATED|This typically refers to a problem with|"
    rb"Please see the FAQ page for debugging|\[(mpiexec|proxy:[^]]*)@"
)


def unwritable(out: IO[Any], error: OSError) -> Interrupted:
    """What to raise for a full disk or ``commbench ... | head -1``.

    From now on ``out`` goes nowhere: the interpreter flushes it once more at its end.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    return Interrupted(f"stdout cannot be written: {error.strerror}")


class Stream:
    """The reading end of a pipe that ranks write to. ``out`` None: keep in ``kept``."""

    def __init__(self, pipe: IO[bytes], out: IO[bytes] | None, filtered: bool) -> None:
        self.pipe, self.kept = pipe, bytearray()
        self._out, self._filtered = out, filtered
        self._rest = b""
        self._blank = b""  # empty lines held back: the banner begins with one
        os.set_blocking(pipe.fileno(), False)

    def drain(self) -> bool:
        """Pass on what is there; False at the end of the stream."""
        try:
            while data := os.read(self.pipe.fileno(), 1 << 16):
                self._take(data)
        except BlockingIOError:
            return True
        return False

    def finish(self) -> None:
        """Pass on a last line without its end."""
        self.drain()
        self._write(self._blank + self._rest)
        self._blank = self._rest = b""

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line + b"\n")

    def _line(self, line: bytes) -> None:
        if not self._filtered:
            self._write(line)
        elif line == b"\n":
            self._blank += line
        elif _BANNER.match(line):
            self._blank = b""
        else:
            self._write(self._blank + line)
            self._blank = b""

    def _write(self, data: bytes) -> None:
        if self._out is None:
            self.kept += data
        elif data:
            try:
                self._out.write(data)
                self._out.flush()
            except OSError as error:
                raise unwritable(self._out, error) from None
