"""What workers push to a parameter server: integer-valued float32, as ``native/gradients.c``.

A gradient is an integer of -3 to 3, a function of (seed, sender, number, tensor, element) that
comes back after ``CYCLE`` numbers. So the sums of all workers have a closed form, and are exact in
float32 while they stay below ``LIMIT``, in whatever order they were added.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from commbench.errors import PayloadMismatch
from commbench.payloads.buffers import Message, key

CYCLE = 7
LARGEST = CYCLE // 2
LIMIT = 1 << 24  # float32 has every integer up to here
FLOAT_NBYTES = 4

Floats = NDArray[np.float32]


def floats(view: memoryview) -> Floats:
    """The buffer as float32, in the same memory."""
    return np.frombuffer(view, np.float32) if view.nbytes else np.zeros(0, np.float32)


def by_phase(sender: int, number: int) -> Floats:
    """The gradient of this message by the phase of the element."""
    turn = (3 * sender + number) % CYCLE
    return ((np.arange(CYCLE) + turn) % CYCLE - LARGEST).astype(np.float32)


def weights_of(first_worker: int, workers: int, number: int, stride: int, steps: int) -> Floats:
    """The sums by phase after ``steps`` steps of all workers, that began with ``number`` and went
    on by ``stride`` (0: every step has the same gradients)."""
    total = np.zeros(CYCLE)
    for worker in range(first_worker, first_worker + workers):
        for step in range(min(CYCLE, steps)):
            times = steps // CYCLE + (step < steps % CYCLE)
            total += times * by_phase(worker, number + step * stride)
    return total.astype(np.float32)


def fill(message: Message, seed: int, sender: int, number: int, call: int) -> None:
    """Write the gradients of message ``number`` from ``sender``; ``call``: its first tensor."""
    message.revision += 1
    table = by_phase(sender, number)
    for index, view in enumerate(message.views):
        floats(view)[:] = _content(seed, call + index, view.nbytes, table)


def verify(message: Message, seed: int, sender: int, number: int, call: int) -> None:
    """Raise PayloadMismatch unless this is what ``fill`` wrote."""
    check(
        message, seed, call, by_phase(sender, number), f"request {number} of rank {sender} differs"
    )


def check(message: Message, seed: int, call: int, table: Floats, what: str) -> None:
    """Raise PayloadMismatch, beginning with ``what``, unless each element is as its phase says."""
    for index, view in enumerate(message.views):
        differs = floats(view) != _content(seed, call + index, view.nbytes, table)
        if differs.any():
            at = int(np.flatnonzero(differs)[0]) * FLOAT_NBYTES
            raise PayloadMismatch(f"{what} in tensor {call + index} at byte {at}")


def _content(seed: int, buffer: int, nbytes: int, table: Floats) -> Floats:
    base = key(seed, 0, 0, buffer) & 0xFFFFFFFF
    place = np.arange(base, base + nbytes // FLOAT_NBYTES, dtype=np.uint64) & 0xFFFFFFFF
    phase = (place * 2654435761 & 0xFFFFFFFF) >> 16
    return table[(phase % CYCLE).astype(np.int64)]
