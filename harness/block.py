"""What a loop is given and gives back: the same for the native and the Python one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commbench.errors import TransferError

BLOCK_OPERATIONS = 1 << 18


@dataclass(frozen=True, slots=True)
class Block:
    """One block of operations (``cb_run``). An operation is ``batch`` messages.

    ``kind``: closed | windowed | open | serve | ask-and-serve. ``handler``: echo, sink or None.
    Operation k goes to ``targets[k % len(targets)]``. Content is (seed, sender, number); with
    ``verify_every`` the number grows by one per message and peer.
    """

    kind: str
    handler: str | None
    targets: tuple[int, ...]
    rank: int
    count: int
    serve: int
    batch: int = 1
    seed: int = 0
    number: int = 0
    request_nbytes: int = 0
    reply_nbytes: int = 0
    verify_every: bool = False
    verify_last: bool = False
    ordered: bool = True  # False: requests in flight of one peer may arrive in any order
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a block did."""

    done: int = 0
    served: int = 0
    messages: int = 0
    validated: int = 0


class Stamps:
    """Intended, start and end of each operation: int64 ns, CLOCK_MONOTONIC, touched in advance."""

    def __init__(self, capacity: int = BLOCK_OPERATIONS) -> None:
        self.capacity = capacity
        self.intended: NDArray[np.int64] = np.zeros(capacity, np.int64)
        self.start: NDArray[np.int64] = np.ones(capacity, np.int64)
        self.end: NDArray[np.int64] = np.ones(capacity, np.int64)


def late(what: str, block: Block) -> TransferError:
    return TransferError(f"no {what} within {block.timeout_s:g} s")
