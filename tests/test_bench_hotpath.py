"""Unit costs of what runs between or inside measurements: ``pytest --benchmark-only``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from commbench.channels.base import Exchange
from commbench.channels.loopback import LoopbackChannel
from commbench.harness.loops import Block, NativeLoop, PythonLoop, Stamps
from commbench.harness.stop import StopFlag
from commbench.harness.wire import JSON, Frames, encode
from commbench.histogram import Histogram
from commbench.payloads.buffers import allocate

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

BLOCK = 1 << 18  # stamps that are folded at once


def block() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(1).gamma(2.0, 5000.0, BLOCK).astype(np.int64)


def test_histogram_add_a_block(benchmark: BenchmarkFixture) -> None:
    histogram, values = Histogram(), block()
    benchmark(histogram.add, values)
    assert histogram.n % BLOCK == 0 and histogram.n > 0


def test_histogram_merge(benchmark: BenchmarkFixture) -> None:
    histogram, other = Histogram(), Histogram()
    other.add(block())
    benchmark(histogram.merge, other)
    assert histogram.least == other.least


def test_histogram_percentile(benchmark: BenchmarkFixture) -> None:
    histogram = Histogram()
    histogram.add(block())
    assert benchmark(histogram.quantile, 0.99) is not None


def test_cost_of_a_frame_of_the_rendezvous(benchmark: BenchmarkFixture) -> None:
    message: dict[str, JSON] = {"op": "gather", "kind": "barrier", "value": None}

    def there_and_back() -> list[dict[str, JSON]]:
        return Frames().feed(encode(message))

    assert benchmark(there_and_back) == [message]


@pytest.mark.parametrize("make", [NativeLoop, PythonLoop])
def test_cost_of_a_loopback_exchange(
    benchmark: BenchmarkFixture, make: type[NativeLoop] | type[PythonLoop]
) -> None:
    """100 requests of 64 B, asked, served and stamped: the floor of every number."""
    channel = LoopbackChannel(LoopbackChannel.check_options({}))
    slots = [allocate((64,), 1) for _ in range(3)]
    loop = make(channel, Exchange((0,), 1, 1, True, True, *slots, 64, StopFlag()))
    block = Block("ask-and-serve", "echo", (0,), 0, 100, 100, request_nbytes=64, reply_nbytes=64)
    stamps = Stamps(100)
    assert benchmark(loop.run, block, stamps).done == 100
