"""Sizes, durations and rates as people type and read them.

Sizes are binary, however they are spelt: ``1K`` = ``1KB`` = ``1KiB`` = 1024 bytes (the papers write
KB and mean that). Rates are SI: 1 MB/s = 10^6 bytes per second.
"""

from __future__ import annotations

import re

from commbench.errors import UsageError

_SHIFT = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"([0-9]{1,19}) ?([KMGT]?)(?:I?B)?", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?) ?(us|ms|s|m|h|)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_LARGEST = (1 << 63) - 1
_SIZE_HELP = "a number of bytes with an optional K, M, G or T (binary), such as 64, 4K or 1MiB"
_RANGE_HELP = f"SIZE, MIN:MAX or a list of them; SIZE is {_SIZE_HELP}"


def parse_size(text: str, flag: str = "size", least: int = 0) -> int:
    """Bytes: ``64``, ``4K``, ``10KB``, ``1MiB``.

    Raises UsageError naming ``flag`` when it is no size, below ``least`` or above 2^63 - 1.
    """
    size = _size(text, flag, text, _SIZE_HELP)
    if size < least:
        raise UsageError(f"{flag} {text}: too small; allowed: {least} bytes or more")
    return size


def parse_sizes(text: str, flag: str = "-m", least: int = 0) -> tuple[int, ...]:
    """The sizes of a sweep, ascending, each once: ``4:1M``, ``64,1K,64K``, ``0:8,1M``.

    ``MIN:MAX`` doubles from MIN while at most MAX, as OSU does (from 0: 0, 1, 2, 4, ...); ``:MAX``
    starts at 1, or at ``least`` if that is more. A lone size is just that size; here we differ from
    OSU, where ``-m MAX`` is a sweep.

    Raises UsageError naming ``flag``, also when a MIN is greater than its MAX.
    """
    sizes: set[int] = set()
    for item in text.split(","):
        sizes.update(_sweep(item.strip(), flag, text, least))
    if min(sizes) < least:
        raise UsageError(f"{flag} {text}: {min(sizes)} is too small; allowed: {least} or more")
    return tuple(sorted(sizes))


def parse_count(text: str, flag: str, least: int = 1) -> int:
    """A whole number of at least ``least``. Raises UsageError naming ``flag``."""
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()) or int(text) < least:
        raise UsageError(f"{flag} {text}: allowed: a whole number, {least} or more")
    return int(text)


def parse_duration(text: str, flag: str = "duration", allow_zero: bool = False) -> float:
    """Seconds: ``10``, ``500ms``, ``2s``, ``1.5m``. Raises UsageError naming ``flag``."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else -1.0
    if seconds < 0 or (seconds == 0 and not allow_zero):
        what = "0 or a time" if allow_zero else "a time above 0"
        raise UsageError(f"{flag} {text}: allowed: {what}, such as 10, 500ms, 2s or 1m")
    return seconds


def format_size(nbytes: int) -> str:
    """Exact and short, as ``-m`` takes it: 64, 1000, 4K, 1M; 1025 stays 1025."""
    for unit in ("T", "G", "M", "K"):
        if nbytes and nbytes % (1 << _SHIFT[unit]) == 0:
            return f"{nbytes >> _SHIFT[unit]}{unit}"
    return str(nbytes)


def format_memory(nbytes: int) -> str:
    """Rounded to three digits, for people: ``512 B``, ``6.03 MiB``, ``23.5 GiB``."""
    for unit in ("T", "G", "M", "K"):
        if nbytes >= 1 << _SHIFT[unit]:
            return f"{_digits(nbytes / (1 << _SHIFT[unit]))} {unit}iB"
    return f"{nbytes} B"


def format_time(ns: float | None) -> str:
    """Three digits and a unit: ``812 ns``, ``1.50 us``, ``12.3 ms``; ``-`` for None."""
    return _scaled(ns, (("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)))


def format_rate(bytes_per_s: float | None) -> str:
    """SI, three digits: ``1.25 GB/s``; ``-`` for None."""
    return _scaled(bytes_per_s, (("B/s", 1.0), ("kB/s", 1e3), ("MB/s", 1e6), ("GB/s", 1e9)))


def _scaled(value: float | None, units: tuple[tuple[str, float], ...]) -> str:
    """``value`` in the greatest unit in which it reads as 1 or more after rounding."""
    if value is None:
        return "-"
    unit, scale = units[0]
    for larger, larger_scale in units[1:]:
        if abs(value) >= 0.9995 * larger_scale:
            unit, scale = larger, larger_scale
    return f"{_digits(value / scale)} {unit}"


def _digits(value: float) -> str:
    """Three digits, more only before the point: 1.25, 12.5, 125, 1250."""
    if value == 0:
        return "0"
    places = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{places}f}"


def _sweep(item: str, flag: str, whole: str, least: int) -> list[int]:
    first, colon, last = item.partition(":")
    if not colon:
        return [_size(item, flag, whole, _RANGE_HELP)]
    low = _size(first, flag, whole, _RANGE_HELP) if first else max(1, least)
    high = _size(last, flag, whole, _RANGE_HELP)
    if low > high:
        raise UsageError(f"{flag} {whole}: MIN {first} is greater than MAX {last}")
    sizes = []
    while low <= high:
        sizes.append(low)
        low = max(1, 2 * low)
    return sizes


def _size(text: str, flag: str, whole: str, allowed: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    size = int(match[1]) << _SHIFT[match[2].upper()] if match else -1
    if not 0 <= size <= _LARGEST:
        shown = whole if text == whole else f"{whole}: {text!r}"
        problem = "is too large" if match else "is not a size"
        raise UsageError(f"{flag} {shown} {problem}; allowed: {allowed}")
    return size
