"""Handlers in Python, as ``native/handlers.c`` has them in C."""

from __future__ import annotations

from commbench.channels.base import Answer, Handler, Incoming
from commbench.harness.parameters import Accumulate, Parameters
from commbench.payloads.buffers import EMPTY, Message


class Echo:
    """Answers with the request itself: latency."""

    def on_request(self, incoming: Incoming) -> Message | Answer:
        return incoming.message

    def next_ready(self) -> tuple[int, Message] | None:
        return None


class Sink:
    """Answers with an empty message: bandwidth."""

    def on_request(self, incoming: Incoming) -> Message | Answer:
        return EMPTY

    def next_ready(self) -> tuple[int, Message] | None:
        return None


class Reverse:
    """Keeps eight requests, then hands out their answers last first (for the contract test)."""

    DEPTH = 8

    def __init__(self) -> None:
        self._kept: list[tuple[int, Message]] = []
        self._ready = False

    def on_request(self, incoming: Incoming) -> Message | Answer:
        self._kept.append((incoming.ticket, incoming.message))
        self._ready = len(self._kept) == self.DEPTH
        return Answer.DEFER

    def next_ready(self) -> tuple[int, Message] | None:
        if not self._ready:
            return None
        ready = self._kept.pop()
        self._ready = bool(self._kept)
        return ready


def handler_named(name: str, parameters: Parameters | None = None) -> Handler:
    """``echo``, ``sink``, ``reverse``, or with parameters ``accumulate``; KeyError otherwise."""
    if name == "accumulate" and parameters is not None:
        return Accumulate(parameters)
    handlers: dict[str, type[Echo | Sink | Reverse]] = {
        "echo": Echo,
        "sink": Sink,
        "reverse": Reverse,
    }
    return handlers[name]()
