import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commbench import units
from commbench.errors import UsageError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("64", 64),
        ("64B", 64),
        ("4K", 4096),
        ("4k", 4096),
        ("10KB", 10240),
        ("10 KiB", 10240),
        ("1M", 1 << 20),
        ("1G", 1 << 30),
        ("2T", 2 << 40),
    ],
)
def test_parse_size(text: str, nbytes: int) -> None:
    assert units.parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text",
    ["", "-1", "1.5K", "K", "1X", "0x10", "1_000", "\uff11", "1e3", "9" * 19, "9" * 400, "1 2"],
)
def test_bad_size_names_flag_value_and_allowed(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_size(text, "--small")
    message = str(caught.value)
    assert message.startswith(f"--small {text}")
    assert "allowed: a number of bytes" in message
    assert "\n" not in message


def test_size_below_least() -> None:
    with pytest.raises(UsageError, match=r"^-m 0: .*allowed: 1 bytes or more"):
        units.parse_size("0", "-m", least=1)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("4:64", (4, 8, 16, 32, 64)),
        ("0:4", (0, 1, 2, 4)),
        ("0:0", (0,)),
        (":4", (1, 2, 4)),
        ("3:13", (3, 6, 12)),
        ("64K", (65536,)),
        ("64,1K,64K", (64, 1024, 65536)),
        ("1K, 8:32 ,16,1024", (8, 16, 32, 1024)),
        ("1:4M", tuple(1 << k for k in range(23))),
    ],
)
def test_parse_sizes(text: str, sizes: tuple[int, ...]) -> None:
    assert units.parse_sizes(text) == sizes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8:4", "-m 8:4: MIN 8 is greater than MAX 4"),
        ("1,,2", "-m 1,,2: '' is not a size"),
        ("4:", "-m 4:: '' is not a size"),
        ("4:8:16", "'8:16' is not a size"),
        ("-4:8", "'-4' is not a size"),
        ("1:99999T9", "is not a size"),
        ("1:9999999999T", "is too large"),
    ],
)
def test_bad_sizes(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_sizes(text)
    assert says in str(caught.value)


def test_sizes_below_least() -> None:
    assert units.parse_sizes(":16", least=8) == (8, 16)
    with pytest.raises(UsageError, match="0 is too small; allowed: 1 or more"):
        units.parse_sizes("0,4", least=1)


@given(st.integers(0, (1 << 63) - 1))
def test_format_size_is_exact(nbytes: int) -> None:
    assert units.parse_size(units.format_size(nbytes)) == nbytes


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_sweep_doubles_within_its_bounds(low: int, span: int) -> None:
    sizes = units.parse_sizes(f"{low}:{low + span}")
    assert sizes[0] == low and sizes[-1] <= low + span < max(1, 2 * sizes[-1])
    assert all(b == max(1, 2 * a) for a, b in itertools.pairwise(sizes))


@given(st.text(max_size=12))
def test_any_text_is_sizes_or_a_clear_error(text: str) -> None:
    try:
        sizes = units.parse_sizes(text)
    except UsageError as error:
        assert str(error).startswith(f"-m {text}")
    else:
        assert sizes == tuple(sorted(set(sizes))) and sizes[0] >= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 10.0), ("500ms", 0.5), ("2s", 2.0), ("1m", 60.0), ("1.5 h", 5400.0), ("20us", 2e-5)],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "-1", "inf", "nan", "1d", "ms", "1e5", "0.0ms"])
def test_bad_duration(text: str) -> None:
    with pytest.raises(UsageError, match=r"--duration .*allowed: a time above 0"):
        units.parse_duration(text, "--duration")


def test_zero_duration_where_it_means_something() -> None:
    assert units.parse_duration("0", allow_zero=True) == 0.0
    with pytest.raises(UsageError, match="allowed: 0 or a time"):
        units.parse_duration("x", allow_zero=True)


def test_parse_count() -> None:
    assert units.parse_count("10", "-i") == 10
    assert units.parse_count("0", "-x", least=0) == 0


@pytest.mark.parametrize("text", ["0", "-5", "", "ten", "1.0", "1K", "9" * 5000])
def test_bad_count(text: str) -> None:
    with pytest.raises(UsageError, match=r"^-i .*allowed: a whole number, 1 or more"):
        units.parse_count(text, "-i")


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "-"),
        (0, "0 ns"),
        (1, "1.00 ns"),
        (12.34, "12.3 ns"),
        (812, "812 ns"),
        (999.6, "1.00 us"),
        (1500, "1.50 us"),
        (12_345_678, "12.3 ms"),
        (2e9, "2.00 s"),
        (3.6e12, "3600 s"),
    ],
)
def test_format_time(ns: float | None, text: str) -> None:
    assert units.format_time(ns) == text


def test_format_rate_is_si() -> None:
    assert units.format_rate(1.25e9) == "1.25 GB/s"
    assert units.format_rate(1e6) == "1.00 MB/s"
    assert units.format_rate(None) == "-"


def test_format_memory_is_binary() -> None:
    assert units.format_memory(6_322_186) == "6.03 MiB"
    assert units.format_memory(512) == "512 B"
    assert units.format_memory(24 << 30) == "24.0 GiB"
