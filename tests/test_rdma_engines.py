"""The native engine of ``rdma`` and ``ar-grpc`` at both ends, in this process: in the machine, and
there once more under ASan and UBSan."""

from __future__ import annotations

from typing import Any

import pytest

from commbench.channels import rdma_frames as frames
from tests.rdma_ends import FILLS, OPS, exercise, run, together
from tests.rdma_pair import connected

pytestmark = [pytest.mark.rdma, pytest.mark.native, pytest.mark.timeout(400)]
BOTH = ("native", "native")


@pytest.mark.parametrize("op", OPS)
def test_messages_arrive_as_they_were_sent(op: str) -> None:
    with connected(BOTH, op, native={"spin": op == "write"}) as (one, two):
        exercise(one, two)


@pytest.mark.parametrize("op", OPS)
def test_the_same_once_more_needs_no_tail(op: str) -> None:
    """But for those messages (one in 256) whose last byte could be taken for none."""
    with connected(BOTH, op, native={"spin": False}) as (one, two):
        for nbytes in (2, 5, FILLS):
            assert 1 <= tails_of(one, two, nbytes, 40) < 10, nbytes


def tails_of(one: Any, two: Any, nbytes: int, count: int) -> int:
    """How many tails the first end sent with so many requests."""
    before = one.sent_bytes
    together(
        lambda: run(one, 0, (nbytes,), count=count),
        lambda: run(two, 1, (nbytes,), count=count),
    )
    return int(one.sent_bytes - before - count * nbytes) // frames.TAIL_NBYTES


@pytest.mark.parametrize("op", OPS)
def test_a_window_needs_few_tails(op: str) -> None:
    """Of eight messages the first and the last, which wants an answer, have one."""
    nbytes, window, count = 300, 8, 10
    with connected(BOTH, op, native={"spin": False}) as (one, two):
        before = one.sent_bytes
        together(
            lambda: run(one, 0, (nbytes,), window, window, count=count),
            lambda: run(two, 1, (nbytes,), window, window, count=count),
        )
        tails = (one.sent_bytes - before - count * window * nbytes) // frames.TAIL_NBYTES
        assert 2 * count <= tails < 4 * count


def test_with_what_only_ar_grpc_has() -> None:
    """Small buffers are joined, reads go in chunks, and the threshold is learnt."""
    native = {"spin": False, "chunk": 4096, "coalesce": 512, "adaptive": True}
    with connected(BOTH, "read", native=native) as (one, two):
        exercise(one, two)


@pytest.mark.parametrize("op", ["send", "read"])
def test_with_one_receive_queue(op: str) -> None:
    with connected(BOTH, op, native={"spin": False, "srq": True}) as (one, two):
        exercise(one, two)
