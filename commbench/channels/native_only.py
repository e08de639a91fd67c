"""A channel without a Python data path: its verbs are the engine's alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NoReturn

from commbench.channels.base import Channel, Done, Exchange, Incoming
from commbench.errors import UsageError
from commbench.payloads.buffers import Message


class NativeOnlyChannel(Channel):
    """``check_loop`` refuses ``--loop python`` before anything starts; so do the verbs."""

    loops: ClassVar[tuple[str, ...]] = ("native",)

    def prepare(self, exchange: Exchange) -> None:
        self._refuse()

    def finish(self) -> None:
        """Nothing was prepared."""

    def post(self, peer: int, ticket: int, request: Message, reply: Message | None) -> bool:
        self._refuse()

    def poll(self, timeout_s: float) -> Sequence[Done]:
        self._refuse()

    def exchange(self, peer: int, request: Message, reply: Message, timeout_s: float) -> int:
        self._refuse()

    def accept(self, limit: int, timeout_s: float) -> Sequence[Incoming]:
        self._refuse()

    def answer(self, ticket: int, answer: Message) -> None:
        self._refuse()

    def progress(self, timeout_s: float) -> bool:
        self._refuse()

    def _refuse(self) -> NoReturn:
        self.check_loop("python")
        raise UsageError(f"channel {self.name} has no Python data path")
