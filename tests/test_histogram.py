"""The histogram against numpy on the raw samples, and the interval against the binomial law."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from commbench.histogram import BEYOND, Histogram, bin_bounds, bin_index, median_ranks, rank_of

SAMPLES = st.lists(st.integers(0, 2**63 - 1), max_size=200)
QUANTILES = st.sampled_from([0.001, 0.01, 0.07, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999])


def histogram_of(values: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.add(np.array(values, np.int64))
    return histogram


@given(st.lists(SAMPLES, max_size=4))
def test_merging_equals_the_histogram_of_all(parts: list[list[int]]) -> None:
    merged = Histogram()
    for part in parts:
        merged.merge(histogram_of(part))
    assert merged == histogram_of([value for part in parts for value in part])


@given(SAMPLES.filter(bool), QUANTILES)
def test_a_rank_is_within_one_percent_and_the_extremes_are_exact(
    values: list[int], q: float
) -> None:
    histogram = histogram_of(values)
    rank = rank_of(q, len(values))
    exact = sorted(values)[rank - 1]
    assert abs(histogram.at_rank(rank) - exact) <= exact / 100
    assert histogram.at_rank(1) == histogram.least == min(values)
    assert histogram.at_rank(len(values)) == histogram.greatest == max(values)
    assert (histogram.n, histogram.total) == (len(values), sum(values))


@given(SAMPLES)
def test_json_there_and_back(values: list[int]) -> None:
    histogram = histogram_of(values)
    assert Histogram.from_json(json.loads(json.dumps(histogram.to_json()))) == histogram


@given(st.integers(0, 2**63 - 1))
def test_a_value_lies_in_its_bin(value: int) -> None:
    index = int(bin_index(np.array([value], np.int64))[0])
    low, high = bin_bounds(index)
    assert low <= value <= high and high - low <= low / 128
    assert bin_bounds(index + 1)[0] == high + 1


@given(st.lists(st.integers(0, 10**9), min_size=40, max_size=300))
def test_quantiles_grow_and_small_values_are_exact(values: list[int]) -> None:
    histogram = histogram_of(values)
    found = [histogram.at_rank(rank) for rank in range(1, len(values) + 1)]
    assert all(a <= b for a, b in pairwise(found))
    small = np.array([value % 256 for value in values], np.int64)
    expected = np.percentile(small, 50, method="inverted_cdf")
    assert histogram_of(small.tolist()).quantile(0.5) == expected


@pytest.mark.parametrize(("q", "n"), [(0.99, 1000), (0.999, 10000), (0.5, 20), (0.01, 1001)])
def test_a_quantile_needs_ten_samples_beyond_it(q: float, n: int) -> None:
    values = np.arange(n, dtype=np.int64)
    beyond = n - rank_of(q, n) if q >= 0.5 else rank_of(q, n) - 1
    assert beyond == BEYOND
    assert histogram_of(values.tolist()).quantile(q) is not None
    assert histogram_of(values[1:].tolist()).quantile(q) is None


def test_ranks_are_exact_where_floats_are_not() -> None:
    assert 0.07 * 100 > 7
    assert rank_of(0.07, 100) == 7


@pytest.mark.parametrize("n", [*range(6, 80), 100, 999, 10_000])
def test_the_interval_of_the_median_covers_95_percent(n: int) -> None:
    ranks = median_ranks(n)
    assert ranks is not None
    low, high = ranks
    assert 1 <= low < high <= n
    assert binom.cdf(high - 1, n, 0.5) - binom.cdf(low - 1, n, 0.5) >= 0.949


def test_the_interval_contains_the_median_and_is_none_for_few() -> None:
    rng = np.random.default_rng(3)
    values = rng.gamma(2.0, 5000.0, 999).astype(np.int64)
    interval = histogram_of(values.tolist()).median_interval()
    assert interval is not None
    assert interval[0] <= np.median(values) <= interval[1]
    assert histogram_of([1, 2, 3, 4, 5]).median_interval() is None


def test_a_clock_that_goes_backwards_is_an_error() -> None:
    with pytest.raises(ValueError, match="went backwards"):
        histogram_of([5, -1])


def test_an_empty_histogram_has_no_numbers() -> None:
    empty = Histogram()
    empty.add(np.array([], np.int64))
    assert (empty.mean, empty.quantile(0.5), empty.median_interval()) == (None, None, None)
    with pytest.raises(ValueError, match="rank 1 of 0"):
        empty.at_rank(1)


@pytest.mark.parametrize(
    "change",
    [
        {"sub_bits": 8},
        {"index": [1]},
        {"index": [700, 5]},
        {"index": [-1, 700]},
        {"index": [5, 99999]},
        {"count": [1, 0]},
        {"count": [1, 2]},
        {"count": [1, "x"]},
        {"n": 7},
        {"min": 4},
        {"max": None},
        {"sum": None},
        {"min": "soon"},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    good = histogram_of([5, 5000]).to_json()
    Histogram.from_json(good)
    with pytest.raises(ValueError, match="histogram"):
        Histogram.from_json(good | change)
