"""Payload schemes: from a scheme's name and options to the sizes of a message's buffers.

``uniform``, ``random`` and ``skew`` are those of TF-gRPC-Bench (Biswas, Lu, Panda: Designing a
Micro-Benchmark Suite to Evaluate gRPC for TensorFlow, BPOE-9 2018, arXiv:1804.01138, Table 1 and
section 4). What the paper leaves open is decided here and written down in ``docs/payloads.md``.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from commbench.errors import UsageError
from commbench.payloads.models import parameters
from commbench.payloads.spec import PayloadSpec
from commbench.units import format_size, parse_count, parse_size

CATEGORIES = ("small", "medium", "large")
KB, MB = 1 << 10, 1 << 20
RANGES = {"small": (1, KB - 1), "medium": (KB, MB - 1), "large": (MB, 10 * MB)}  # both inclusive
DEFAULT_RATIO = (60, 30, 10)
MAX_BUFFERS = 1 << 20

# Which category has the greatest share, the next, the least: by distance from the favoured one,
# of two equally far the larger first.
_RANKING = {
    "small": ("small", "medium", "large"),
    "medium": ("medium", "large", "small"),
    "large": ("large", "medium", "small"),
}


@dataclass(frozen=True, slots=True)
class SchemeOptions:
    """How a message of ``iovec`` buffers is made; the defaults are the paper's.

    ``small``, ``medium``, ``large``: bytes of a buffer of that category, within ``RANGES``.
    ``skew_ratio``: weights, the favoured category's first; None means ``DEFAULT_RATIO``.
    Raises UsageError naming the flag.
    """

    iovec: int = 10
    categories: tuple[str, ...] = CATEGORIES
    small: int = 10
    medium: int = 10 * KB
    large: int = MB
    skew_to: str = "large"
    skew_ratio: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.iovec <= MAX_BUFFERS:
            raise UsageError(f"--iovec {self.iovec}: allowed: 1 to {MAX_BUFFERS} buffers")
        _check_categories(self.categories, "--categories")
        _check_categories((self.skew_to,), "--skew-to")
        for name in CATEGORIES:
            _check_size(name, self.size_of(name))

    def size_of(self, category: str) -> int:
        """Bytes of one buffer of ``category``."""
        return {"small": self.small, "medium": self.medium, "large": self.large}[category]


def make_spec(scheme: str, options: SchemeOptions | None = None) -> PayloadSpec:
    """The message of ``uniform``, ``random``, ``skew``, ``model:NAME`` or ``trace:FILE``.

    Raises UsageError for an unknown scheme, a file that cannot be read, or options that do not
    fit the scheme.
    """
    options = options or SchemeOptions()
    name, colon, path = scheme.partition(":")
    if name == "trace" and colon:
        return PayloadSpec(f"trace:{Path(path).name}", read_trace(Path(path)), options.seed)
    if name == "model" and colon:
        sizes = tuple(tensor.nbytes for tensor in parameters(path))
        return PayloadSpec(scheme, sizes, options.seed)
    if scheme not in SCHEMES:
        allowed = ", ".join(["contiguous", *SCHEMES, "model:NAME", "trace:FILE"])
        raise UsageError(f"--scheme {scheme}: no such payload scheme; allowed: {allowed}")
    categories = SCHEMES[scheme](options)
    return PayloadSpec(scheme, tuple(options.size_of(c) for c in categories), options.seed)


def contiguous(nbytes: int, seed: int = 0) -> PayloadSpec:
    """One buffer of ``nbytes``: what a plain size sweep sends."""
    return PayloadSpec("contiguous", (nbytes,), seed)


def uniform(options: SchemeOptions) -> list[str]:
    """Categories dealt in turn in the order given, so the first ones get the remainder."""
    names = options.categories
    return [names[i % len(names)] for i in range(options.iovec)]


def drawn(options: SchemeOptions) -> list[str]:
    """Each buffer's category drawn with equal chances: scheme ``random``.

    Only ``random.Random.random`` is used: Python promises its sequence for a seed in all versions.
    """
    names = _at_least_two("random", options.categories)
    generator = random.Random(options.seed)
    return [names[int(generator.random() * len(names))] for _ in range(options.iovec)]


def skew(options: SchemeOptions) -> list[str]:
    """Counts after the ratio by largest remainder, buffers in the order small, medium, large."""
    names = _at_least_two("skew", options.categories)
    if options.skew_to not in names:
        raise UsageError(
            f"--skew-to {options.skew_to}: not among --categories; allowed: {', '.join(names)}"
        )
    ranked = [name for name in _RANKING[options.skew_to] if name in names]
    shares = apportion(options.iovec, _ratio(options.skew_ratio, len(ranked)))
    counts = dict(zip(ranked, shares, strict=True))
    return [name for name in CATEGORIES for _ in range(counts.get(name, 0))]


SCHEMES: dict[str, Callable[[SchemeOptions], list[str]]] = {
    "uniform": uniform,
    "random": drawn,
    "skew": skew,
}


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split ``total`` after ``weights`` by largest remainder (Hare); on a tie the earlier wins."""
    whole = sum(weights)
    counts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % whole))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def read_trace(path: Path) -> tuple[int, ...]:
    """Buffer sizes from a CSV file: one buffer per row, all rows together are one message.

    Bare sizes, or a header with a column ``nbytes`` (other columns are ignored). Empty rows and
    rows starting with ``#`` are skipped. Raises UsageError naming file and line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            sizes = _trace_sizes(path, csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--scheme trace:{path}: cannot be read: {reason}") from None
    if not sizes:
        raise UsageError(f"--scheme trace:{path}: has no sizes; allowed: one size per line")
    return sizes


def parse_categories(text: str, flag: str = "--categories") -> tuple[str, ...]:
    """``small,large`` in the order given. Raises UsageError naming ``flag``."""
    names = tuple(part.strip() for part in text.split(","))
    _check_categories(names, flag)
    return names


def parse_ratio(text: str, flag: str = "--skew-ratio") -> tuple[int, ...]:
    """``60,30,10`` or ``60/30/10``: weights, the favoured category's first."""
    return tuple(parse_count(part, flag) for part in text.replace("/", ",").split(","))


def _trace_sizes(path: Path, rows: Iterable[list[str]]) -> tuple[int, ...]:
    flag = f"--scheme trace:{path}"
    numbered = ((n, [cell.strip() for cell in row]) for n, row in enumerate(rows, start=1))
    kept = [(n, row) for n, row in numbered if any(row) and not row[0].startswith("#")]
    if len(kept) > MAX_BUFFERS + 1:
        raise UsageError(f"{flag}: {len(kept)} rows; allowed: {MAX_BUFFERS} buffers")
    column = 0
    if kept and "nbytes" in kept[0][1]:
        column = kept.pop(0)[1].index("nbytes")
    elif kept and len(kept[0][1]) > 1:
        raise UsageError(f"{flag}: of several columns the first row must name one nbytes")
    return tuple(_cell(row, column, f"{flag}, row {n}:") for n, row in kept)


def _cell(row: list[str], column: int, where: str) -> int:
    if len(row) <= column:
        raise UsageError(f"{where} has no column {column + 1}, the one with nbytes")
    return parse_size(row[column], where, least=1)


def _check_categories(names: tuple[str, ...], flag: str) -> None:
    unknown = [name for name in names if name not in CATEGORIES]
    if unknown or not names or len(set(names)) != len(names):
        given = ",".join(names)
        raise UsageError(f"{flag} {given}: allowed, each at most once: {', '.join(CATEGORIES)}")


def _check_size(name: str, nbytes: int) -> None:
    low, high = RANGES[name]
    if not low <= nbytes <= high:
        raise UsageError(f"--{name} {format_size(nbytes)}: allowed: {low} to {high} bytes")


def _at_least_two(scheme: str, names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) < 2:
        raise UsageError(
            f"--categories {','.join(names)}: scheme {scheme} needs at least two of "
            f"{', '.join(CATEGORIES)}"
        )
    return names


def _ratio(given: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    ratio = DEFAULT_RATIO[:count] if given is None else given
    favoured = len(ratio) == count and min(ratio) > 0 and all(ratio[0] > w for w in ratio[1:])
    if not favoured:
        shown = ",".join(map(str, ratio))
        raise UsageError(
            f"--skew-ratio {shown}: allowed: {count} weights above 0, the first the greatest"
        )
    return ratio
