"""The loops: against a hand-driven clock, native against Python, and with damaged messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from commbench import _native
from commbench.channels.base import Channel, Exchange
from commbench.channels.loopback import LoopbackChannel
from commbench.errors import Interrupted, PayloadMismatch, TransferError
from commbench.harness.loops import Block, Loop, NativeLoop, PythonLoop, Stamps
from commbench.payloads.buffers import Message, allocate

LOOPS: list[Callable[[Channel, Exchange], Loop]] = [NativeLoop, PythonLoop]


def loopback(**options: str) -> LoopbackChannel:
    return LoopbackChannel(LoopbackChannel.check_options(options))


def exchange(
    sizes: tuple[int, ...] = (8,), window: int = 1, reply_every: int = 1, reply: bool = True
) -> Exchange:
    return Exchange(
        peers=(0,),
        window=window,
        reply_every=reply_every,
        asks=True,
        serves=True,
        request=allocate(sizes, window),
        reply=allocate(sizes if reply else (), window),
        incoming=allocate(sizes, window),
        answer_nbytes=sum(sizes),
        stop=_native.StopFlag(),
    )


def block(count: int, nbytes: int = 8, **changes: object) -> Block:
    plain = Block(
        kind="ask-and-serve",
        handler="echo",
        targets=(0,),
        rank=0,
        count=count,
        serve=count,
        seed=3,
        number=7,
        request_nbytes=nbytes,
        reply_nbytes=nbytes,
        verify_every=True,
        timeout_s=1.0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


class Clock:
    """Stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now = 1000

    def __call__(self) -> int:
        return self.now


class Slow(LoopbackChannel):
    """Loopback whose post takes 5 ns and whose k-th answer takes k ns, by a hand-driven clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(self.check_options({}))
        self.clock = clock
        self.answers = 0

    def post(self, peer: int, ticket: int, request: Message, reply: Message | None) -> bool:
        self.clock.now += 5
        return super().post(peer, ticket, request, reply)

    def answer(self, ticket: int, answer: Message) -> None:
        self.answers += 1
        self.clock.now += self.answers
        super().answer(ticket, answer)

    def exchange(self, peer: int, request: Message, reply: Message, timeout_s: float) -> int:
        self.post(peer, 0, request, reply)
        for incoming in self.accept(1, timeout_s):
            self.answer(incoming.ticket, incoming.message)
        return sum(done.reply_nbytes for done in self.poll(timeout_s))


def test_pingpong_stamps_exactly_the_exchange() -> None:
    clock, stamps = Clock(), Stamps(4)
    loop = PythonLoop(Slow(clock), exchange(), clock)
    outcome = loop.run(block(4, kind="closed", serve=0), stamps)
    assert (outcome.done, outcome.messages, outcome.validated) == (4, 4, 4)
    assert (stamps.end - stamps.start).tolist() == [6, 7, 8, 9]
    assert stamps.start.tolist() == [1000, 1006, 1013, 1021]


def test_window_is_stamped_from_first_post_to_last_completion() -> None:
    clock, stamps = Clock(), Stamps(2)
    loop = PythonLoop(Slow(clock), exchange(window=3, reply_every=3, reply=False), clock)
    changes = {"batch": 3, "serve": 6, "handler": "sink", "reply_nbytes": 0}
    outcome = loop.run(block(2, **changes), stamps)
    assert (outcome.done, outcome.messages, outcome.served) == (2, 6, 6)
    # three posts of 5 ns, one answer (of 1 ns, then of 2 ns) for the last of them
    assert (stamps.end - stamps.start).tolist() == [16, 17]


def test_open_loop_keeps_the_intended_time_of_a_late_send() -> None:
    clock, stamps = Clock(), Stamps(3)
    stamps.intended[:] = [0, 0, 2]
    loop = PythonLoop(Slow(clock), exchange(), clock)
    loop.run(block(3, kind="open"), stamps)
    assert stamps.intended.tolist() == [1000, 1000, 1002]
    assert stamps.start.tolist() == [1000, 1006, 1013]  # the second waits for the first's slot
    assert (stamps.end - stamps.intended).tolist() == [6, 13, 19]  # response time has the wait


@pytest.mark.native
def test_native_open_loop_waits_for_the_schedule() -> None:
    stamps = Stamps(20)
    stamps.intended[:] = np.arange(20) * 1_000_000
    loop = NativeLoop(loopback(), exchange(window=4))
    loop.run(block(20, kind="open"), stamps)
    assert (stamps.start >= stamps.intended).all()
    assert (np.diff(stamps.intended) == 1_000_000).all()
    assert stamps.end[-1] - stamps.intended[0] >= 19_000_000


SHAPES = [
    pytest.param((8,), 1, 1, id="ping-pong"),
    pytest.param((1, 0, 4000, 7), 1, 1, id="iovec"),
    pytest.param((64,), 8, 1, id="eight in flight"),
    pytest.param((64,), 16, 16, id="one-way windows"),
]


@pytest.mark.native
@pytest.mark.parametrize(("sizes", "window", "reply_every"), SHAPES)
def test_native_and_python_do_the_same(
    sizes: tuple[int, ...], window: int, reply_every: int
) -> None:
    outcomes, contents = [], []
    batch = reply_every
    for make in LOOPS:
        case = exchange(sizes, window, reply_every, reply=batch == 1)
        loop = make(loopback(), case)
        changes: dict[str, object] = {"batch": batch, "serve": 32 * batch}
        if batch > 1:
            changes.update(handler="sink", reply_nbytes=0)
        stamps = Stamps(32)
        outcomes.append(loop.run(block(32, sum(sizes), **changes), stamps))
        contents.append([bytes(view) for slot in case.incoming for view in slot.views])
        assert (stamps.end >= stamps.start).all()
        assert (np.diff(stamps.start) >= 0).all()
        loop.close()
    assert outcomes[0] == outcomes[1]
    assert contents[0] == contents[1]


@pytest.mark.native
@pytest.mark.parametrize("make", LOOPS)
def test_last_window_is_verified_after_the_clock_stopped(
    make: Callable[[Channel, Exchange], Loop],
) -> None:
    case = exchange()
    loop = make(loopback(), case)
    case.request[0].fill(3, 0, 7)
    outcome = loop.run(block(50, verify_every=False, verify_last=True), Stamps(50))
    assert outcome.validated == 2  # the last request and the last reply
    case.request[0].fill(3, 0, 8)  # an older or newer message than the one expected
    with pytest.raises(PayloadMismatch, match="differs in buffer 0"):
        loop.run(block(50, verify_every=False, verify_last=True), Stamps(50))


FAULTS: Sequence[tuple[str, str]] = [
    ("flip", "differs in buffer 1"),
    ("swap", "differs in buffer 0"),
    ("short", "bytes instead of"),
    ("few", "bytes instead of"),
    ("repeat", "differs in buffer 0"),
]


@pytest.mark.native
@pytest.mark.parametrize("make", LOOPS)
@pytest.mark.parametrize(("fault", "why"), FAULTS)
def test_a_damaged_message_is_seen(
    make: Callable[[Channel, Exchange], Loop], fault: str, why: str
) -> None:
    loop = make(loopback(fault=fault, fault_at="9"), exchange((16, 16)))
    with pytest.raises(PayloadMismatch, match=why):
        loop.run(block(20, 32), Stamps(20))


@pytest.mark.native
@pytest.mark.parametrize("make", LOOPS)
def test_stop_flag_ends_a_loop(make: Callable[[Channel, Exchange], Loop]) -> None:
    case = exchange()
    loop = make(loopback(), case)
    case.stop.set()
    with pytest.raises(Interrupted):
        loop.run(block(10), Stamps(10))


@pytest.mark.native
@pytest.mark.parametrize("make", LOOPS)
def test_a_loop_that_makes_no_progress_ends(make: Callable[[Channel, Exchange], Loop]) -> None:
    loop = make(loopback(), exchange())
    with pytest.raises(TransferError, match=r"within 0\.2 s"):
        loop.run(block(0, serve=1, timeout_s=0.2), Stamps(1))


@pytest.mark.native
def test_engine_of_another_abi_is_refused() -> None:
    with pytest.raises(ValueError, match="PyCapsule_GetPointer"):
        _native.Prepared(
            object(), [0], 1, 1, True, True, *[_native.Slots([], ())] * 3, 0, _native.StopFlag()
        )


@pytest.mark.native
def test_clock_pairs_are_small_and_not_negative() -> None:
    pairs = _native.clock_pairs(1000)
    assert min(pairs) >= 0
    assert sorted(pairs)[500] < 100_000
