"""Registered memory of the ``rdma`` channel in Python: the slots of a case, each page once."""

from __future__ import annotations

import bisect
import errno
import mmap
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from commbench.payloads.buffers import Message

Span = tuple[int, int]  # first address and the one behind the last

_PAGE = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Keys:
    """Of a memory region: kept here, because asking a closed one crashes pyverbs (version 44)."""

    lkey: int
    rkey: int
    close: Callable[[], None]


Register = Callable[[int, int], Keys]  # (address, bytes); OSError


def pages_of(address: int, nbytes: int) -> Span:
    return address & -_PAGE, -(-(address + nbytes) // _PAGE) * _PAGE


def join_spans(spans: Iterable[Span]) -> list[Span]:
    """Sorted, and those that touch joined."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def spans_of(messages: Iterable[Message]) -> Iterator[Span]:
    for message in messages:
        for address, nbytes in message.addresses:
            if nbytes:
                yield pages_of(address, nbytes)


class Regions:
    """What is registered for a case. ``register`` raises OSError when the device refuses."""

    def __init__(self, register: Register) -> None:
        self._register = register
        self._starts: list[int] = []
        self._found: list[tuple[int, Keys]] = []  # end, region
        self._kept: list[Message] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, messages: Iterable[Message]) -> None:
        """The slots, before anything else."""
        for start, end in join_spans(spans_of(messages)):
            self._insert(start, end)

    def adopt(self, message: Message) -> None:
        """Memory that is in no slot, such as a handler's; kept until the case ends."""
        missing = [
            pages_of(address, nbytes)
            for address, nbytes in message.addresses
            if nbytes and not self._of(address, nbytes)
        ]
        if missing:
            self._kept.append(message)
        for start, end in join_spans(missing):
            self._insert(start, end)

    def at(self, address: int, nbytes: int) -> Keys:
        found = self._of(address, nbytes)
        assert found is not None, "adopt() comes first"
        return found

    def release(self) -> None:
        while self._found:
            self._found.pop()[1].close()
        self._starts.clear()
        self._kept.clear()

    def _of(self, address: int, nbytes: int) -> Keys | None:
        """Adopted spans may overlap others, so those before the nearest may have it, too."""
        index = bisect.bisect_right(self._starts, address) - 1
        while index >= 0:
            end, region = self._found[index]
            if address + nbytes <= end:
                return region
            index -= 1
        return None

    def _insert(self, start: int, end: int) -> None:
        region = self._register(start, end - start)
        index = bisect.bisect_right(self._starts, start)
        self._starts.insert(index, start)
        self._found.insert(index, (end, region))


class Pages:
    """Zeroed pages of the data path's own, registered while it lives."""

    def __init__(self, register: Register, nbytes: int) -> None:
        self._memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._memory)
        self.address = Message([self.view]).addresses[0][0]
        self.region = register(self.address, nbytes)

    def close(self) -> None:
        self.region.close()


def cannot_register(nbytes: int, device: str, code: int) -> OSError:
    """In one line; names the limit of locked memory where that may be why."""
    text = f"{nbytes} bytes cannot be registered on {device}: {os.strerror(code)}"
    if code in (errno.ENOMEM, errno.EAGAIN, errno.EPERM):
        soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024} KiB"
        text += (
            f"; the limit of locked memory is {limit}: raise it (ulimit -l unlimited; memlock in "
            f"/etc/security/limits.conf; LimitMEMLOCK of slurmd)"
        )
    return OSError(code, text)


def error_code(error: Any) -> int:
    """errno of what pyverbs raised; EIO where it does not say."""
    code = getattr(error, "error_code", -1)
    return code if isinstance(code, int) and code > 0 else errno.EIO
