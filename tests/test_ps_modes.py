"""Parameter servers that add: real ranks, sums that are checked exactly, shards and tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commbench import _native
from commbench.benchmarks import PsSpec
from commbench.channels.base import Channel, Exchange
from commbench.channels.loopback import LoopbackChannel
from commbench.errors import PayloadMismatch
from commbench.harness.loops import Block, Loop, NativeLoop, PythonLoop, Stamps
from commbench.harness.parameters import Accumulate, Parameters
from commbench.harness.steps import step_memory_nbytes
from commbench.payloads import gradients
from commbench.payloads.buffers import Message, allocate
from tests import usable
from tests.command import commbench
from tests.test_ps import consistent, ran

TENSORS = ("--scheme", "uniform", "--iovec", 3, "--small", 12, "--large", "1M")  # 12, 10K, 1M
NBYTES = 12 + 10 * 1024 + (1 << 20)
LOOPS = [NativeLoop, PythonLoop]


def work(elements: int, copied: int = 0) -> dict[str, int]:
    return {"flops": elements, "bytes": 12 * elements, "copied_bytes": copied}


# copies: what the server's channel copies of each byte, there and back
@pytest.mark.parametrize(
    ("channel", "mode", "argv", "copies"),
    [
        ("tcp", "push-pull", ("--ps", 2, "--shard", "-c"), 0),
        ("tcp", "async", ("--loop", "python", "--per-tensor", "on"), 0),
        ("uds", "push-pull", ("--loop", "python", "-c"), 0),
        ("uds", "async", ("--ps", 2, "--shard"), 0),
        usable.channel("grpc", "push-pull", ("--per-tensor", "on", "-c"), 2),
        usable.channel("grpc", "async", ("--mode", "serialized"), 6),
        usable.channel("grpc-core", "push-pull", ("--mode", "serialized", "-c"), 4),
        usable.channel("grpc-core", "async", ("--ps", 2, "--shard"), 1),
        usable.channel("mpi", "push-pull", ("--per-tensor", "on"), 0),
        usable.channel("mpi", "async", ("--ps", 2, "-c", "-o", "iovec=pack"), 2),
        usable.channel("mpi", "async", ("--loop", "python", "-o", "iovec=pack"), 2),
        usable.channel("grpc+mpi", "push-pull", ("-c",), 5),
        usable.channel("grpc+mpi", "async", ("--per-tensor", "on"), 5),
    ],
)
def test_sums_are_exact(
    channel: str, mode: str, argv: tuple[Any, ...], copies: int, tmp_path: Path
) -> None:
    """Every element on every server; and the work is that of a run whose size is known."""
    who = ("-C", channel, "--workers", 2, "--ps-mode", mode)
    (case,) = ran(tmp_path / "x.jsonl", *who, *TENSORS, "-i", 10, "-x", 2, *argv)
    ps = PsSpec(**case["case"]["ps"])
    assert (ps.mode, ps.per_tensor) == (mode, "on" in argv)
    whole = 1 if ps.shard else ps.servers  # how many times the parameters are there
    elements = 10 * 2 * whole * NBYTES // 4
    copied = (copies + (mode == "async")) * 4 * elements
    if channel == "grpc-core" and "serialized" not in argv:
        copied += 10 * 2 * 12  # of an answer the tensor of 12 bytes, for which a slice is too dear
    assert case["work"] == work(elements, copied)
    assert case["nbytes_total"] == 4 * elements
    assert case["n"] == 10 * 2 * ps.servers * (3 if ps.per_tensor else 1)
    assert case["validated_messages"] > 0
    consistent(case)


@pytest.mark.parametrize("loop", ["native", "python"])
@pytest.mark.parametrize("mode", ["push-pull", "async"])
@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("flip", "steps? .*differ in tensor 2"),
        ("short", "a push (of rank 0 )?has"),
        ("few", "a push .*has 10252 bytes instead of 1058828: not the tensors "),
    ],
)
def test_a_damaged_push_is_found(loop: str, mode: str, fault: str, line: str) -> None:
    """In the timed part, without -c: the sums show it."""
    import re

    argv = ("--loop", loop, *TENSORS, "-i", 20, "-x", 0, "-o", f"fault={fault}")
    ended = commbench("run", "ps", "-C", "loopback", "--ps-mode", mode, *argv, "-o", "fault_at=25")
    ended.one_line(5)
    assert re.search(line, ended.stderr), ended.stderr


@pytest.mark.parametrize("loop", ["native", "python"])
def test_a_straggler(loop: str, tmp_path: Path) -> None:
    """Of one server (ping-pong) and of two at once; it is named in the key."""
    argv = ("-m", "4K", "--workers", 2, "-i", 50, "-x", 0)
    slow = ("--straggler", "2:3x", "--ps-mode", "push-pull", "--loop", loop)
    (case,) = ran(tmp_path / "one.jsonl", *argv, *slow)
    assert case["case"]["ps"]["straggler"] == "2:3x"
    assert case["n"] == 100
    (case,) = ran(tmp_path / "two.jsonl", *argv, "--straggler", "3:3x", "--ps", 2, "--loop", loop)
    assert case["n"] == 200


def test_ranks_that_rest_keep_step(tmp_path: Path) -> None:
    argv = ("-n", 4, "--workers", 2, "--ps-mode", "push-pull", "--per-tensor", "on")
    (case,) = ran(tmp_path / "x.jsonl", *argv, *TENSORS, "-D", "300ms")
    assert case["work"]["flops"] * 4 == case["nbytes_total"] > 0


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--ps-mode", "sync"), ["--ps-mode sync", "echo, push-pull, async"]),
        (("--ps-mode", "push-pull", "-m", "10"), ["push-pull", "10 bytes", "multiples of 4"]),
        (("--shard", "-m", "1"), ["--shard", "1 bytes", "multiples of 4"]),
        (("--per-tensor", "yes"), ["--per-tensor yes", "on, off"]),
        (("--straggler", "1"), ["--straggler 1", "1:2x"]),
        (("--straggler", "1:1x"), ["--straggler 1:1x", "above 1"]),
        (("--straggler", "0:2x"), ["--straggler 0:2x", "rank 0 is no worker", "1 to 1"]),
        (("-C", "loopback", "--straggler", "0:2x"), ["--straggler 0:2x", "inside one rank"]),
    ],
)
def test_bad_input_is_one_line(argv: tuple[object, ...], words: list[str]) -> None:
    commbench("run", "ps", *argv).one_line(2, *words)


# ---------------------------------------------------------------------- shapes and sums


def test_shards_are_consecutive_and_even() -> None:
    ps = PsSpec(3, 1, shard=True)
    shards = [ps.calls((40, 8, 4, 0), server) for server in range(3)]
    assert shards == [((16, 4, 4, 0),), ((12, 4, 0, 0),), ((12, 0, 0, 0),)]
    single = replace(ps, per_tensor=True)
    assert single.calls((40, 8), 2) == ((12,), (0,))
    assert PsSpec(2, 1).calls((3, 5), 1) == ((3, 5),)


def test_a_server_has_one_push_of_each_worker_and_two_sets_of_weights() -> None:
    mib = 1 << 20
    per_worker = 2 * mib + mib  # requests and replies there, what arrives here
    ps = PsSpec(1, 16, "push-pull")
    assert step_memory_nbytes(ps, (mib,)) == 16 * per_worker + 2 * mib
    assert step_memory_nbytes(replace(ps, mode="echo"), (mib,)) == 16 * per_worker


@pytest.mark.parametrize("stride", [0, 1, 3, 7])
@pytest.mark.parametrize("steps", [0, 1, 6, 7, 100])
def test_the_closed_form_is_the_sum(stride: int, steps: int) -> None:
    total = np.zeros(gradients.CYCLE)
    for worker in (2, 3, 4):
        for step in range(steps):
            total += gradients.by_phase(worker, 5 + step * stride)
    assert np.array_equal(gradients.weights_of(2, 3, 5, stride, steps), total)


def test_python_and_c_write_the_same_gradients() -> None:
    (ours, theirs) = allocate((0, 4, 4000, 12), 2)
    slots = _native.Slots([theirs.addresses], theirs)
    for seed, sender, number, call in [(0, 0, 0, 0), (7, 3, 10**9, 2), (2**62, 511, 5, 160)]:
        gradients.fill(ours, seed, sender, number, call)
        slots.fill_gradients(0, seed, sender, number, call)
        assert [bytes(view) for view in ours.views] == [bytes(view) for view in theirs.views]
        gradients.verify(theirs, seed, sender, number, call)
        with pytest.raises(PayloadMismatch, match="tensor"):
            gradients.verify(theirs, seed, sender, number + 1, call)
    assert set(np.unique(gradients.floats(ours.views[2]))) == set(range(-3, 4))


def test_a_block_ends_before_a_sum_is_not_exact() -> None:
    parameters = Parameters(1, 64, 1, True)
    largest = parameters.most_steps * 64 * gradients.LARGEST
    assert gradients.LIMIT - 64 * gradients.LARGEST <= largest < gradients.LIMIT


# ---------------------------------------------------------------------- a push that is wrong


def pushing(sizes: tuple[int, ...], loop: type[NativeLoop] | type[PythonLoop]) -> None:
    """A worker whose step has ``sizes`` with a server that has tensors of 8 and 4 bytes."""
    held = tuple(allocate((size,), 1)[0] for size in (8, 4, 8, 4))
    parameters = Parameters(0, 1, 2, True, held)
    parameters.clear()
    channel: Channel = LoopbackChannel(LoopbackChannel.check_options({}))
    requests = [allocate((size,), 1)[0] for size in sizes]
    exchange = Exchange(
        (0,), 1, 1, True, True, requests, [allocate((8,), 1)[0] for _ in sizes],
        allocate((8,), 1), 8, _native.StopFlag(),
    )  # fmt: skip
    made: Loop = loop(channel, exchange)
    block = Block(
        kind="ask-and-serve",
        handler="accumulate",
        targets=(0,),
        rank=0,
        count=4,
        serve=4,
        verify_every=False,
        timeout_s=1.0,
        calls=(8, 4),
        parameters=parameters,
    )
    for index, request in enumerate(requests):
        block.fill(request, 0, index)
    made.run(block, Stamps(4))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_step_with_a_tensor_too_few(loop: type[NativeLoop]) -> None:
    pushing((8, 4), loop)
    with pytest.raises(PayloadMismatch, match=r"a push .*8 bytes instead of 4: not the tensor"):
        pushing((8,), loop)


def test_other_tensors_of_the_same_length() -> None:
    """As buffers of one message: 4 + 8 bytes where 8 + 4 are held."""
    held = tuple(allocate((8, 4), 2))
    handler = Accumulate(Parameters(0, 1, 1, True, held))
    (pushed,) = allocate((4, 8), 1)
    with pytest.raises(PayloadMismatch, match="other tensors"):
        handler.on_request(incoming(pushed))


def incoming(message: Message) -> Any:
    from commbench.channels.base import Incoming

    return Incoming(0, 0, True, message)
