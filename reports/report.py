"""``commbench report``: results files in, text and pictures out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from commbench.errors import UsageError
from commbench.reports.formats import as_csv, as_json, markdown, table
from commbench.reports.osu import osu
from commbench.results import ResultFile, read

FORMATS: dict[str, Callable[[Sequence[ResultFile], Sequence[float]], str]] = {
    "table": table,
    "csv": as_csv,
    "json": as_json,
    "markdown": markdown,
    "osu": osu,
}


def report(
    files: Sequence[str | Path],
    format: str = "table",
    png: str | Path | None = None,
    percentiles: Sequence[float] = (),
) -> str:
    """The text of a report on these results files; with ``png`` also a picture of them.

    ``percentiles``: between 0 and 100; empty: those that the format shows by itself. Raises
    UsageError for an unknown format, an unreadable file, or a picture without matplotlib.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format}: allowed: {', '.join(FORMATS)}")
    results = [read(path) for path in files]
    if png is not None:
        from commbench.reports.figures import save_png  # matplotlib takes a second to import

        save_png(results, Path(png))
    return FORMATS[format](results, percentiles)
