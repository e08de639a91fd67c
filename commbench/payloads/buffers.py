"""Messages in memory: page-aligned iovec buffers, allocated once, filled and verified.

The content is a function of (seed, sender, number) and the same as ``cb_fill`` of
``native/commbench_ops.h`` makes; there it is written down.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from commbench.errors import PayloadMismatch, UsageError
from commbench.units import format_memory

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


class Message:
    """Buffers of one message in wire order. Addresses never change while it lives.

    ``revision`` grows with every ``fill``, so that a channel may keep what it made of the content;
    who writes into ``views`` of a message that is sent again without ``fill`` has to count it too.
    """

    __slots__ = ("addresses", "nbytes", "revision", "views")

    def __init__(self, views: Sequence[memoryview]) -> None:
        self.revision = 0
        self.views: tuple[memoryview, ...] = tuple(views)
        self.nbytes: int = sum(view.nbytes for view in self.views)
        self.addresses: tuple[tuple[int, int], ...] = tuple(
            (_address(view), view.nbytes) for view in self.views
        )

    def cut(self, nbytes: int) -> Message:
        """The first ``nbytes`` bytes of this message, in the same memory."""
        if nbytes >= self.nbytes:
            return self
        views = []
        for view in self.views:
            part = view[: min(view.nbytes, nbytes)]
            nbytes -= part.nbytes
            views.append(part)
            if nbytes == 0:
                break
        return Message(views)

    def fill(self, seed: int, sender: int, number: int) -> None:
        """Write the content of message ``number`` from rank ``sender``."""
        self.revision += 1
        for index, view in enumerate(self.views):
            np.frombuffer(view, np.uint8)[:] = _content(seed, sender, number, index, view.nbytes)

    def verify(self, seed: int, sender: int, number: int) -> None:
        """Raise PayloadMismatch, naming the first difference, unless this is message ``number``
        from rank ``sender``. The length is the caller's to check: a prefix passes."""
        for index, view in enumerate(self.views):
            expected = _content(seed, sender, number, index, view.nbytes)
            got = np.frombuffer(view, np.uint8)
            if not np.array_equal(got, expected):
                at = int(np.flatnonzero(got != expected)[0])
                raise PayloadMismatch(
                    f"message {number} from rank {sender} differs in buffer {index} at byte {at}: "
                    f"{int(got[at]):#04x} instead of {int(expected[at]):#04x}"
                )


EMPTY = Message(())


def allocate(sizes: Sequence[int], count: int) -> list[Message]:
    """``count`` messages of these buffer sizes; each buffer starts on a page of its own, touched.

    The memory is private and anonymous, as malloc gives it to the tools that we are compared with.
    Raises UsageError when the system has not that much memory.
    """
    page = mmap.PAGESIZE
    spans = [max(page, -(-size // page) * page) for size in sizes]
    total = max(page, sum(spans) * count)
    check_memory(total)
    try:
        memory = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise UsageError(f"buffers of {format_memory(total)} cannot be had: {error}") from None
    arena = memoryview(memory)
    np.frombuffer(arena, np.uint8)[::page] = 0
    messages, at = [], 0
    for _ in range(count):
        views = []
        for size, span in zip(sizes, spans, strict=True):
            views.append(arena[at : at + size])
            at += span
        messages.append(Message(views))
    return messages


def check_memory(nbytes: int, root: Path = Path("/")) -> None:
    """Raise UsageError when ``nbytes`` more do not fit into what the kernel calls available."""
    try:
        meminfo = (root / "proc/meminfo").read_text()
    except OSError:
        return
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    if found and nbytes > int(found[1]) * 1024:
        raise UsageError(
            f"buffers of {format_memory(nbytes)} do not fit: MemAvailable is "
            f"{format_memory(int(found[1]) * 1024)}; choose smaller sizes, fewer iovec buffers or "
            "a smaller window"
        )


def copy(to: Message, source: Message) -> int:
    """Copy ``source`` into the memory of ``to``, whatever their layouts; bytes copied.

    Raises ValueError when ``to`` is too small.
    """
    if source.nbytes > to.nbytes:
        raise ValueError(f"{source.nbytes} bytes do not fit into {to.nbytes}")
    if [view.nbytes for view in to.views] == [view.nbytes for view in source.views]:
        for target, view in zip(to.views, source.views, strict=True):
            target[:] = view
    else:
        scatter(to, b"".join(source.views))
    return source.nbytes


def scatter(to: Message, data: bytes | memoryview) -> None:
    """Write ``data`` over the first buffers of ``to``."""
    rest = memoryview(data)
    for view in to.views:
        part = min(view.nbytes, rest.nbytes)
        view[:part] = rest[:part]
        rest = rest[part:]


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data) if view.nbytes else 0


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def key(seed: int, sender: int, number: int, buffer: int) -> int:
    """``cb_key``: the first word of a buffer."""
    x = _mix(((seed & _MASK) + _STEP) & _MASK)
    x = _mix(x ^ ((sender & 0xFFFFFFFF) << 32 | buffer))
    return _mix((x + number * _STEP) & _MASK)


def _content(seed: int, sender: int, number: int, buffer: int, nbytes: int) -> NDArray[np.uint8]:
    words = np.arange(-(-nbytes // 8), dtype=np.uint64) * np.uint64(_STEP)
    words += np.uint64(key(seed, sender, number, buffer))
    return words.astype("<u8").view(np.uint8)[:nbytes]
