"""The tail model against figures worked out by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest

from commbench.histogram import Int64Array
from commbench.tail_model import (
    Network,
    Overhead,
    amortized_average_ns,
    nearest_rank,
    overhead,
    overlapped_tail_ns,
    sequential_average_ns,
    sequential_tail_ns,
    why_no_fit,
    window_tails_ns,
)

NETWORK = Network(latency_ns=20_000, bytes_per_s=1e9)  # a byte takes a nanosecond


def ns(*values: int) -> Int64Array:
    return np.array(values, np.int64)


def test_a_message_alone() -> None:
    assert NETWORK.transfer_ns(1000) == pytest.approx(1000)
    assert NETWORK.message_ns(1000) == pytest.approx(21_000)


@pytest.mark.parametrize(("latency_ns", "bytes_per_s"), [(-1, 1), (1, 0), (1, float("nan"))])
def test_a_network_that_is_none(latency_ns: float, bytes_per_s: float) -> None:
    with pytest.raises(ValueError, match="bytes/s"):
        Network(latency_ns, bytes_per_s)


@pytest.mark.parametrize(
    ("n", "q", "rank"),
    [
        (1, 0.99, 1),
        (99, 0.99, 99),
        (100, 0.99, 99),
        (101, 0.99, 100),
        (1000, 0.99, 990),
        (4, 0.5, 2),
        (5, 0.5, 3),
    ],
)
def test_nearest_rank(n: int, q: float, rank: int) -> None:
    """Of 1 to n the value is its rank; for fewer than 100 the 99th percentile is the greatest."""
    values = np.random.default_rng(n).permutation(np.arange(1, n + 1))
    assert nearest_rank(values, q) == rank


def test_a_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        nearest_rank([])


def test_equation_1() -> None:
    assert sequential_average_ns(NETWORK, [1000, 3000]) == pytest.approx(22_000)


@pytest.mark.parametrize(("large", "tail_ns"), [(1, 21_000), (2, 25_000)])
def test_equation_2(large: int, tail_ns: int) -> None:
    """Of 100 messages the 99th in order: one large message lies beyond it, two reach it."""
    sizes = [1000] * (100 - large) + [5000] * large
    assert sequential_tail_ns(NETWORK, sizes) == pytest.approx(tail_ns)


def test_equation_3() -> None:
    """(20000 + 2000) / 2 and (20000 + 4000) / 2, and the mean of both."""
    assert amortized_average_ns(NETWORK, [[1000, 1000], [1000, 3000]]) == pytest.approx(11_500)


def test_one_in_flight_is_sequential() -> None:
    sizes = [100, 1000, 5000]
    windows = [[nbytes] for nbytes in sizes]
    assert amortized_average_ns(NETWORK, windows) == sequential_average_ns(NETWORK, sizes)


def test_tails_within_windows() -> None:
    """The greatest of each three; the seventh message is of no whole window."""
    assert window_tails_ns(ns(5, 9, 7, 3, 2, 4, 99), 3).tolist() == [9, 4]
    assert window_tails_ns(ns(5, 9), 3).tolist() == []
    assert window_tails_ns(ns(5, 9), 1).tolist() == [5, 9]
    with pytest.raises(ValueError, match="a window of 0"):
        window_tails_ns(ns(5), 0)


def test_tails_within_windows_of_200() -> None:
    """The 198th in order: the two greatest of each window lie beyond it."""
    latencies = np.concatenate([np.arange(200)[::-1], np.arange(1000, 1200)]).astype(np.int64)
    assert window_tails_ns(latencies, 200).tolist() == [197, 1197]


def test_equation_4() -> None:
    """200 windows of two; their tails are 1 to 200, and of these the 198th counts."""
    tails = np.random.default_rng(1).permutation(np.arange(1, 201))
    latencies = np.stack([np.zeros(200, np.int64), tails], axis=1).reshape(-1)
    assert overlapped_tail_ns(window_tails_ns(latencies, 2)) == 198


def test_equation_5() -> None:
    """Two producers, windows of four: tails of 26, 28 and 30 us, the middle one is 28.

    Of 28 us 21 are L + M/B, three more are the others of the window, and four are left.
    """
    first = ns(*[21_000] * 3, 26_000, *[22_000] * 3, 30_000)
    found = overhead(NETWORK, 1000, [first, ns(28_000, 1, 2, 3)], window=4)
    assert (found.window, found.producers) == (4, 2)
    assert found.in_window_ns == 28_000
    assert found.overhead_ns == pytest.approx(7000)
    assert found.queueing_ns == pytest.approx(3000)
    assert found.residual_ns == pytest.approx(4000)


def test_no_whole_window() -> None:
    with pytest.raises(ValueError, match="no values"):
        overhead(NETWORK, 1000, [ns(1, 2), ns(3)], window=4)


@pytest.mark.parametrize(
    ("in_window_ns", "reason"),
    [
        (21_000, None),
        (23_000, None),
        (19_000, None),
        (23_200, "no fit.*O is \\+10.5% of L.*23.2 us instead of 21 us"),
        (42_000, "O is \\+100.0% of"),
        (10_500, "O is -50.0% of"),
    ],
)
def test_a_fit_needs_a_single_message_to_fit(in_window_ns: float, reason: str | None) -> None:
    said = why_no_fit(Overhead(1, 1, 21_000, in_window_ns, 0))
    assert (said is None) == (reason is None)
    assert re.search(reason or "", said or ""), said


def test_a_fit_is_judged_by_a_single_message() -> None:
    with pytest.raises(ValueError, match="W = 2 with 1 producers is not alone"):
        why_no_fit(Overhead(2, 1, 21_000, 21_000, 1000))
