"""A parameter server in Python: what it holds, and the handler that adds to it.

The twin of ``native/accumulate.c``, which says why there are two sets of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from commbench import _native
from commbench.channels.base import Answer, Incoming
from commbench.errors import PayloadMismatch, TransferError
from commbench.payloads import gradients
from commbench.payloads.buffers import Message


@dataclass(frozen=True)
class Parameters:
    """Shared by ``workers`` ranks from ``first_worker`` on; ``calls`` messages make a step.

    ``deferred``: answers of a step wait until every worker has pushed it. ``weights``: on a server
    two messages for each call, set after set; elsewhere none.
    """

    first_worker: int
    workers: int
    calls: int
    deferred: bool
    weights: tuple[Message, ...] = ()

    @cached_property
    def native(self) -> _native.Parameters:
        slots = _native.Slots([message.addresses for message in self.weights], self.weights)
        return _native.Parameters(self.first_worker, self.workers, self.calls, self.deferred, slots)

    @property
    def most_steps(self) -> int:
        """Steps from zero after which every sum is still exact."""
        return (gradients.LIMIT - 1) // (gradients.LARGEST * self.workers)

    def clear(self) -> None:
        """Each block begins with zeros."""
        for message in self.weights:
            message.revision += 1
            for view in message.views:
                gradients.floats(view)[:] = 0

    def at(self, step: int) -> Sequence[Message]:
        """The weights that ``step`` writes, by call."""
        first = step % 2 * self.calls if self.deferred else 0
        return self.weights[first : first + self.calls]

    def expected(self, number: int, every: bool, call: int, steps: int) -> gradients.Floats:
        """By phase: the weights of this call after ``steps`` steps of a block."""
        first, stride = (number + call, self.calls) if every else (number, 0)
        return gradients.weights_of(self.first_worker, self.workers, first, stride, steps)

    def check(self, seed: int, number: int, every: bool, steps: int) -> int:
        """Raise PayloadMismatch unless the weights are the closed form; messages checked."""
        for call, held in enumerate(self.at(max(steps - 1, 0))):
            table = self.expected(number, every, call, steps)
            gradients.check(held, seed, call, table, f"the weights after {steps} steps differ")
        return self.calls


class Accumulate:
    """Adds pushes into the weights: ``--ps-mode push-pull`` (deferred) and ``async``."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.elements = 0
        self._pushes = [0] * parameters.workers
        self._tickets: list[int] = []
        self._ready: list[int] = []
        self._turn = 0  # calls that are complete

    def on_request(self, incoming: Incoming) -> Message | Answer:
        worker = incoming.peer - self.parameters.first_worker
        pushes, self._pushes[worker] = self._pushes[worker], self._pushes[worker] + 1
        step, call = divmod(pushes, self.parameters.calls)
        if not self.parameters.deferred:
            return self._at_once(call, incoming.message)
        if pushes != self._turn:
            raise TransferError(f"rank {incoming.peer} pushed twice in one step")
        self._add(call, step, incoming.message)
        self._tickets.append(incoming.ticket)
        if len(self._tickets) == self.parameters.workers:
            self._tickets, self._ready = [], self._tickets
        return Answer.DEFER

    def next_ready(self) -> tuple[int, Message] | None:
        if not self._ready:
            return None
        step, call = divmod(self._turn, self.parameters.calls)
        ticket = self._ready.pop(0)
        if not self._ready:
            self._turn += 1
        return ticket, self.parameters.at(step)[call]

    def _add(self, call: int, step: int, pushed: Message) -> None:
        """The first push of a step reads one set and writes the other."""
        to, old = self.parameters.at(step)[call], self.parameters.at(step + 1)[call]
        source = to if self._tickets else old
        to.revision += 1
        for target, first, gradient in self._buffers(to, source, pushed):
            np.add(gradients.floats(first), gradients.floats(gradient), gradients.floats(target))

    def _at_once(self, call: int, pushed: Message) -> Message:
        """The answer goes where the gradient was: others may push while it is on its way."""
        to = self.parameters.at(0)[call]
        pushed.revision += 1
        for target, _, gradient in self._buffers(to, to, pushed):
            held = gradients.floats(target)
            held += gradients.floats(gradient)
            gradients.floats(gradient)[:] = held
        return pushed

    def _buffers(
        self, to: Message, source: Message, pushed: Message
    ) -> list[tuple[memoryview, memoryview, memoryview]]:
        if [v.nbytes for v in pushed.views] != [v.nbytes for v in to.views]:
            raise PayloadMismatch("a push has other tensors than the parameters")
        self.elements += to.nbytes // gradients.FLOAT_NBYTES
        return list(zip(to.views, source.views, pushed.views, strict=True))
