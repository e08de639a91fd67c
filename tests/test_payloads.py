import mmap
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commbench._native import Slots
from commbench.errors import PayloadMismatch, UsageError
from commbench.payloads import PayloadSpec, SchemeOptions, contiguous, make_spec
from commbench.payloads import buffers as buffers_module
from commbench.payloads.buffers import EMPTY, Message, allocate, check_memory, copy, key
from commbench.payloads.schemes import (
    CATEGORIES,
    RANGES,
    apportion,
    parse_categories,
    parse_ratio,
    read_trace,
)

KIB, MIB = 1 << 10, 1 << 20

# ---------------------------------------------------------------- schemes, as the paper has them


def test_uniform_of_the_paper() -> None:
    spec = make_spec("uniform")
    assert spec.sizes[:4] == (10, 10 * KIB, MIB, 10)
    assert Counter(spec.sizes) == {10: 4, 10 * KIB: 3, MIB: 3}
    assert spec.nbytes == 3_176_488


def test_skew_of_the_paper() -> None:
    spec = make_spec("skew")
    assert spec.sizes == (10,) + (10 * KIB,) * 3 + (MIB,) * 6
    assert spec.nbytes == 6_322_186


@pytest.mark.parametrize(
    ("to", "counts"),
    [
        ("small", {10: 6, 10 * KIB: 3, MIB: 1}),
        ("medium", {10: 1, 10 * KIB: 6, MIB: 3}),
        ("large", {10: 1, 10 * KIB: 3, MIB: 6}),
    ],
)
def test_skew_to_each_category(to: str, counts: dict[int, int]) -> None:
    assert Counter(make_spec("skew", SchemeOptions(skew_to=to)).sizes) == counts


def test_skew_of_two_categories_takes_the_first_two_weights() -> None:
    options = SchemeOptions(categories=("small", "large"), iovec=9)
    assert make_spec("skew", options).sizes == (10,) * 3 + (MIB,) * 6


def test_skew_ratio_is_given_favoured_first() -> None:
    options = SchemeOptions(skew_to="small", skew_ratio=(8, 1, 1))
    assert make_spec("skew", options).sizes == (10,) * 8 + (10 * KIB,) + (MIB,)


def test_random_is_pinned_for_good() -> None:
    """A result made with a seed years ago can be made again: the draw must never change."""
    letters = {10: "S", 10 * KIB: "M", MIB: "L"}
    drawn = {
        seed: "".join(letters[n] for n in make_spec("random", SchemeOptions(seed=seed)).sizes)
        for seed in (0, 1)
    }
    assert drawn == {0: "LLMSMMLSMM", 1: "SLLSMMMLSS"}


def test_contiguous_is_one_buffer() -> None:
    assert contiguous(0) == PayloadSpec("contiguous", (0,), 0)
    assert contiguous(64, seed=7).nbytes == 64


category_lists = st.lists(st.sampled_from(CATEGORIES), unique=True, min_size=1).map(tuple)
several_categories = category_lists.filter(lambda names: len(names) > 1)
counts = st.integers(1, 300)
seeds = st.integers(0, (1 << 64) - 1)


@given(category_lists, counts)
def test_uniform_counts_differ_by_at_most_one(names: tuple[str, ...], iovec: int) -> None:
    options = SchemeOptions(iovec=iovec, categories=names)
    sizes = make_spec("uniform", options).sizes
    found = [sizes.count(options.size_of(name)) for name in names]
    assert sum(found) == len(sizes) == iovec
    assert found == sorted(found, reverse=True) and found[0] - found[-1] <= 1


@given(several_categories, counts, seeds)
def test_random_draws_only_the_given_categories(
    names: tuple[str, ...], iovec: int, seed: int
) -> None:
    options = SchemeOptions(iovec=iovec, categories=names, seed=seed)
    spec = make_spec("random", options)
    assert spec == make_spec("random", options)
    assert len(spec.sizes) == iovec and spec.seed == seed
    assert set(spec.sizes) <= {options.size_of(name) for name in names}


def test_random_draws_with_equal_chances() -> None:
    found = Counter(make_spec("random", SchemeOptions(iovec=30_000)).sizes)
    assert all(9_700 < count < 10_300 for count in found.values()) and len(found) == 3


@given(several_categories, counts, st.data())
def test_skew_counts_are_within_one_of_the_ratio(
    names: tuple[str, ...], iovec: int, data: st.DataObject
) -> None:
    favoured = data.draw(st.sampled_from(names))
    options = SchemeOptions(iovec=iovec, categories=names, skew_to=favoured)
    sizes = make_spec("skew", options).sizes
    weights = (60, 30, 10)[: len(names)]
    found = sorted((sizes.count(options.size_of(name)) for name in names), reverse=True)
    assert sum(found) == iovec and list(sizes) == sorted(sizes)
    assert sizes.count(options.size_of(favoured)) == found[0]
    for count, weight in zip(found, weights, strict=True):
        assert abs(count - iovec * weight / sum(weights)) < 1


@given(st.integers(0, 10_000), st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_apportion_gives_all_and_is_within_one(total: int, weights: list[int]) -> None:
    found = apportion(total, weights)
    assert sum(found) == total
    for count, weight in zip(found, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1


def test_apportion_tie_goes_to_the_earlier() -> None:
    assert apportion(3, (1, 1)) == [2, 1]


# ---------------------------------------------------------------- schemes, wrong


@pytest.mark.parametrize("name", CATEGORIES)
def test_category_sizes_stay_in_the_ranges_of_the_paper(name: str) -> None:
    assert {"small": (1, 1023), "medium": (KIB, MIB - 1), "large": (MIB, 10 * MIB)} == RANGES
    low, high = RANGES[name]
    for nbytes in (low, high):
        assert SchemeOptions(**{name: nbytes}).size_of(name) == nbytes  # type: ignore[arg-type]
    for nbytes in (low - 1, high + 1):
        with pytest.raises(UsageError, match=rf"^--{name} \w+: allowed: {low} to {high} bytes"):
            SchemeOptions(**{name: nbytes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scheme", "options", "says"),
    [
        ("zipf", {}, "--scheme zipf: no such payload scheme; allowed: contiguous, uniform"),
        ("trace", {}, "--scheme trace: no such payload scheme"),
        ("uniform", {"iovec": 0}, "--iovec 0: allowed: 1 to"),
        ("uniform", {"iovec": -3}, "--iovec -3: allowed: 1 to"),
        ("uniform", {"categories": ()}, "--categories : allowed"),
        ("uniform", {"categories": ("small", "small")}, "--categories small,small: allowed"),
        ("uniform", {"categories": ("tiny",)}, "--categories tiny: allowed"),
        ("uniform", {"seed": -1}, "seed -1: allowed: 0 to 2^64 - 1"),
        ("random", {"categories": ("small",)}, "scheme random needs at least two of"),
        ("skew", {"categories": ("large",)}, "scheme skew needs at least two of"),
        ("skew", {"skew_to": "huge"}, "--skew-to huge: allowed"),
        ("skew", {"categories": ("small", "medium")}, "--skew-to large: not among --categories"),
        ("skew", {"skew_ratio": (60, 40)}, "--skew-ratio 60,40: allowed: 3 weights above 0"),
        ("skew", {"skew_ratio": (60, 40, 0)}, "--skew-ratio 60,40,0: allowed: 3 weights above 0"),
        ("skew", {"skew_ratio": (30, 60, 10)}, "the first the greatest"),
    ],
)
def test_wrong_options_name_the_flag(scheme: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_spec(scheme, SchemeOptions(**options))  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sizes", [(), (-1,), (0, 4), (4, -4)])
def test_spec_refuses_sizes_that_no_message_has(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"payload contiguous: sizes .*allowed: one buffer"):
        PayloadSpec("contiguous", sizes)


def test_lists_from_the_command_line() -> None:
    assert parse_categories("large, small") == ("large", "small")
    assert parse_ratio("60/30/10") == parse_ratio("60,30,10") == (60, 30, 10)
    with pytest.raises(UsageError, match=r"^--categories small,: allowed"):
        parse_categories("small,")
    with pytest.raises(UsageError, match=r"^--skew-ratio 0: allowed"):
        parse_ratio("60,0,10")


# ---------------------------------------------------------------- traces


@pytest.mark.parametrize(
    "text",
    [
        "10\n10K\n1M\n",
        "# comment\n\n10\n10240\n 1048576 \n",
        "nbytes\n10\n10KB\n1MiB\n",
        "name,nbytes\nheader,10\nbias,10K\n\nweights,1M\n",
    ],
)
def test_trace_is_one_buffer_per_row(tmp_path: Path, text: str) -> None:
    file = tmp_path / "resnet.csv"
    file.write_text(text)
    assert make_spec(f"trace:{file}", SchemeOptions(seed=3)) == PayloadSpec(
        "trace:resnet.csv", (10, 10 * KIB, MIB), 3
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no sizes"),
        (b"nbytes\n", "has no sizes"),
        (b"10\nten\n", "row 2: ten is not a size"),
        (b"10\n0\n", "row 2: 0: too small; allowed: 1 bytes or more"),
        (b"10\n-1\n", "row 2: -1 is not a size"),
        (b"10,20\n", "of several columns the first row must name one nbytes"),
        (b"name,nbytes\nheader\n", "row 2: has no column 2"),
        (b"\xff\xfe\x00", "cannot be read: 'utf-8' codec"),
        (b'"10\n', "cannot be read: unexpected end of data"),
    ],
)
def test_wrong_trace_names_file_and_row(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_trace(file)
    assert str(caught.value).startswith(f"--scheme trace:{file}")
    assert says in str(caught.value)


def test_trace_that_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        make_spec(f"trace:{tmp_path}/none.csv")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        make_spec(f"trace:{tmp_path}")


# ---------------------------------------------------------------- buffers


def in_memory(*sizes: int) -> Message:
    return allocate(sizes, 1)[0]


def content(message: Message) -> bytes:
    return b"".join(message.views)


def test_each_buffer_has_pages_of_its_own() -> None:
    messages = allocate((1, mmap.PAGESIZE, mmap.PAGESIZE + 1), 3)
    starts = [address for message in messages for address, _ in message.addresses]
    assert len(set(starts)) == 9
    assert all(start % mmap.PAGESIZE == 0 for start in starts)
    assert [n for _, n in messages[0].addresses] == [1, mmap.PAGESIZE, mmap.PAGESIZE + 1]
    for message in messages:
        message.fill(1, 2, 3)
    for message in messages:  # none overlaps another
        message.verify(1, 2, 3)


def test_addresses_are_where_the_views_are() -> None:
    message = in_memory(5, 3)
    message.fill(0, 0, 0)
    for view, (address, nbytes) in zip(message.views, message.addresses, strict=True):
        assert np.frombuffer(view, np.uint8).ctypes.data == address
        assert view.nbytes == nbytes and not view.readonly


def test_pages_are_resident_before_the_clock_starts() -> None:
    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    before = resident()
    messages = allocate((8 * MIB,), 4)
    assert resident() - before > 30 * MIB
    del messages


def test_message_without_bytes() -> None:
    message = in_memory(0)
    assert message.nbytes == 0 and message.addresses == ((0, 0),)
    for empty in (message, EMPTY):
        empty.fill(1, 1, 1)
        empty.verify(1, 1, 1)
        assert empty.cut(0) is empty


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 250))
def test_cut_is_a_prefix_in_the_same_memory(sizes: list[int], nbytes: int) -> None:
    message = in_memory(*sizes)
    message.fill(1, 0, 9)
    part = message.cut(nbytes)
    assert content(part) == content(message)[:nbytes]
    assert part.nbytes == min(nbytes, message.nbytes)
    part.verify(1, 0, 9)
    assert all(view.nbytes for view in part.views) or nbytes == 0
    if part.nbytes:
        assert part.addresses[0][0] == message.addresses[0][0]


# ---------------------------------------------------------------- content


def test_content_is_pinned_for_good() -> None:
    """Byte k of buffer b is byte k % 8, little endian, of key(...) + (k / 8) * STEP."""
    message = in_memory(3, 20)
    message.fill(seed=7, sender=1, number=5)
    words = [key(7, 1, 5, 1) + i * 0x9E3779B97F4A7C15 & (1 << 64) - 1 for i in range(3)]
    assert content(message) == (
        key(7, 1, 5, 0).to_bytes(8, "little")[:3]
        + b"".join(word.to_bytes(8, "little") for word in words)[:20]
    )
    assert key(7, 1, 5, 0) == 0xB528C634057D1F80  # from cb_key


@given(
    st.tuples(seeds, st.integers(0, 1000), st.integers(0, 1 << 40)),
    st.tuples(seeds, st.integers(0, 1000), st.integers(0, 1 << 40)),
)
def test_other_seed_sender_or_number_is_other_content(
    one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    message = in_memory(16)
    message.fill(*one)
    message.verify(*one)
    if one != other:
        with pytest.raises(PayloadMismatch):
            message.verify(*other)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=4), st.data())
def test_any_flipped_bit_is_named(sizes: list[int], data: st.DataObject) -> None:
    message = in_memory(*sizes)
    message.fill(5, 1, 2)
    index = data.draw(st.integers(0, len(sizes) - 1))
    at = data.draw(st.integers(0, sizes[index] - 1))
    view = message.views[index]
    sent = view[at]
    view[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PayloadMismatch) as caught:
        message.verify(5, 1, 2)
    assert str(caught.value) == (
        f"message 2 from rank 1 differs in buffer {index} at byte {at}: "
        f"{view[at]:#04x} instead of {sent:#04x}"
    )


def test_swapped_buffers_and_an_old_message_show() -> None:
    message = in_memory(64, 64)
    message.fill(5, 0, 3)
    swapped = Message(message.views[::-1])
    with pytest.raises(PayloadMismatch, match="message 3 from rank 0 differs in buffer 0"):
        swapped.verify(5, 0, 3)
    with pytest.raises(PayloadMismatch, match="message 4 from rank 0 differs in buffer 0"):
        message.verify(5, 0, 4)


@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=4),
    seeds,
    st.integers(0, (1 << 31) - 1),
    st.integers(0, (1 << 64) - 1),
)
def test_native_content_is_the_same(sizes: list[int], seed: int, sender: int, number: int) -> None:
    ours, theirs = allocate(sizes, 2)
    native = Slots([theirs.addresses], theirs)
    native.fill(0, seed, sender, number)
    ours.fill(seed, sender, number)
    assert content(ours) == content(theirs)
    theirs.verify(seed, sender, number)
    assert native.differs(0, seed, sender, number) == ()


@given(st.lists(st.integers(1, 70), min_size=1, max_size=4), st.data())
def test_native_names_the_same_first_difference(sizes: list[int], data: st.DataObject) -> None:
    message = in_memory(*sizes)
    message.fill(5, 1, 2)
    index = data.draw(st.integers(0, len(sizes) - 1))
    at = data.draw(st.integers(0, sizes[index] - 1))
    message.views[index][at] ^= 1 << data.draw(st.integers(0, 7))
    assert Slots([message.addresses], message).differs(0, 5, 1, 2) == (index, at)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.data())
def test_copy_is_the_same_bytes_whatever_the_layout(sizes: list[int], data: st.DataObject) -> None:
    source = in_memory(*sizes)
    source.fill(1, 2, 3)
    where = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    target = in_memory(*where)
    if source.nbytes > target.nbytes:
        with pytest.raises(ValueError, match="do not fit into"):
            copy(target, source)
    else:
        assert copy(target, source) == source.nbytes
        assert content(target)[: source.nbytes] == content(source)


# ---------------------------------------------------------------- memory


def test_sizes_beyond_memory_are_refused_before_allocation(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    meminfo = tmp_path / "proc/meminfo"
    meminfo.write_text("MemTotal: 24684084 kB\nMemAvailable:    1024 kB\n")
    check_memory(MIB, tmp_path)
    with pytest.raises(UsageError) as caught:
        check_memory(MIB + 1, tmp_path)
    assert "1.00 MiB" in str(caught.value) and "MemAvailable is 1.00 MiB" in str(caught.value)


def test_without_meminfo_nothing_is_refused(tmp_path: Path) -> None:
    check_memory(1 << 60, tmp_path)


@pytest.mark.parametrize("size", [1 << 50, 1 << 62])
def test_allocate_beyond_memory(size: int) -> None:
    with pytest.raises(UsageError, match="do not fit: MemAvailable is"):
        allocate((size,), 4)


@pytest.mark.parametrize("size", [1 << 50, 1 << 62])
def test_what_the_kernel_refuses_is_a_clear_error(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers_module, "check_memory", lambda nbytes: None)
    with pytest.raises(UsageError, match="cannot be had"):
        allocate((size,), 4)


# ---------------------------------------------------------------- unit costs


@pytest.mark.parametrize("nbytes", [64, 64 * KIB])
def test_cost_of_native_fill_and_verify(benchmark: Any, nbytes: int) -> None:
    message = in_memory(nbytes)
    slots = Slots([message.addresses], message)

    def fill_and_verify() -> tuple[int, ...]:
        slots.fill(0, 1, 2, 3)
        return slots.differs(0, 1, 2, 3)

    assert benchmark.pedantic(fill_and_verify, rounds=200, warmup_rounds=5) == ()


@pytest.mark.parametrize("nbytes", [64, 64 * KIB])
def test_cost_of_python_fill_and_verify(benchmark: Any, nbytes: int) -> None:
    message = in_memory(nbytes)

    def fill_and_verify() -> None:
        message.fill(1, 2, 3)
        message.verify(1, 2, 3)

    benchmark.pedantic(fill_and_verify, rounds=200, warmup_rounds=5)
