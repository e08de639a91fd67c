"""A signal that asks this process to end becomes an exception, so that what it started ends too."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from commbench.errors import Interrupted

_STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def stoppable(what: str) -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise Interrupted, "``what``: stopped by ...", once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in _STOPPERS:
            signal.signal(each, signal.SIG_IGN)  # a second one must not disturb the cleaning up
        raise Interrupted(f"{what}: stopped by {signal.Signals(number).name}")

    heard = [each for each in _STOPPERS if signal.getsignal(each) != signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
