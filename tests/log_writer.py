"""Processes that append to a log until they are killed, for tests.

``python -m tests.log_writer`` reads a line ``FOLDER FLUSH_EVERY LONGEST`` and forks a child, which
is quick; prints ``pid N``, each base offset as it is acknowledged, and ``gone`` when the child is.
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
from types import TracebackType
from typing import Self

from tests.record_batches import batch_of, drawn_values

SEGMENT_BYTES = 1 << 20
DEADLINE_S = 30.0


def values_at(offset: int, longest: int) -> list[bytes]:
    """The values of the batch with this base offset, which a test computes as well."""
    return drawn_values(random.Random(f"log-{offset}-{longest}"), longest=longest)


def append_for_ever(folder: str, flush_every: int, longest: int) -> None:
    from commbench._native import Log

    log = Log(folder, segment_bytes=SEGMENT_BYTES, flush_every=flush_every)
    while True:
        offset = log.append(batch_of(values_at(log.next_offset, longest)))
        os.write(1, b"%d\n" % offset)


def serve() -> None:
    for line in sys.stdin:
        folder, flush_every, longest = line.split()
        pid = os.fork()
        if pid == 0:
            append_for_ever(folder, int(flush_every), int(longest))
        os.write(1, b"pid %d\n" % pid)
        os.waitpid(pid, 0)
        os.write(1, b"gone\n")


class Writers:
    """The process that forks them; every wait has a deadline."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.log_writer"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.rest = b""

    def start(self, folder: str, flush_every: int, longest: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder} {flush_every} {longest}\n".encode())

    def line(self) -> str:
        """The next one. TimeoutError when none comes in time, EOFError when the process ended."""
        assert self.process.stdout is not None
        while b"\n" not in self.rest:
            if not select.select([self.process.stdout], [], [], DEADLINE_S)[0]:
                raise TimeoutError("no line of the writer")
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise EOFError("the writer ended")
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


if __name__ == "__main__":
    serve()
