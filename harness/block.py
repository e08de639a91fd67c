"""What a loop is given and gives back: the same for the native and the Python one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commbench.errors import TransferError
from commbench.harness.parameters import Parameters
from commbench.payloads import gradients
from commbench.payloads.buffers import Message

BLOCK_OPERATIONS = 1 << 18


@dataclass(frozen=True, slots=True)
class Block:
    """One block of operations (``cb_run``). An operation is ``batch`` messages.

    ``kind``: closed | windowed | open | serve | ask-and-serve. ``handler``: echo, sink, accumulate
    or None. Operation k goes to ``targets[k % len(targets)]``. Content is (seed, sender, number);
    with ``verify_every`` the number grows by one per message and peer.

    ``calls``: where the messages of a step differ, the bytes that each has on arrival here; the
    request slots are then those of call 0 by target, of call 1, ..., and a reply is as long as its
    request. ``parameters``: content is gradients. ``stretch`` > 1: wait after each call until it
    took so many times as long.
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
    calls: tuple[int, ...] = ()
    parameters: Parameters | None = None
    stretch: float = 1.0

    def call(self, index: int) -> int:
        """Which of the calls of a step the message ``index`` of a peer is."""
        return index % len(self.calls) if self.calls else 0

    def fill(self, message: Message, number: int, call: int) -> None:
        """Write the content of this rank's message ``number``."""
        if self.parameters is None:
            message.fill(self.seed, self.rank, number)
        else:
            gradients.fill(message, self.seed, self.rank, number, call)

    def verify(self, message: Message, sender: int, number: int, call: int) -> None:
        """Raise PayloadMismatch unless this is message ``number`` of ``sender``."""
        if self.parameters is None:
            message.verify(self.seed, sender, number)
        else:
            gradients.verify(message, self.seed, sender, number, call)

    def reply_length(self, request: Message) -> int:
        """Bytes that the answer to this request must have."""
        return request.nbytes if self.calls else self.reply_nbytes

    def dawdle_ns(self, spent_ns: int) -> int:
        """How long a straggler waits after a call."""
        return int((self.stretch - 1) * spent_ns)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a block did; ``elements``: float32 that a handler added."""

    done: int = 0
    served: int = 0
    messages: int = 0
    validated: int = 0
    elements: int = 0


class Stamps:
    """Intended, start and end of each operation: int64 ns, CLOCK_MONOTONIC, touched in advance."""

    def __init__(self, capacity: int = BLOCK_OPERATIONS) -> None:
        self.capacity = capacity
        self.intended: NDArray[np.int64] = np.zeros(capacity, np.int64)
        self.start: NDArray[np.int64] = np.ones(capacity, np.int64)
        self.end: NDArray[np.int64] = np.ones(capacity, np.int64)


def late(what: str, block: Block) -> TransferError:
    return TransferError(f"no {what} within {block.timeout_s:g} s")
