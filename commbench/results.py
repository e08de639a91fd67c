"""The results file: JSON Lines, the only door between measuring and reporting.

Line 1 is the run, then one line per case, flushed as the case ends, then one ``end`` line. A file
without its ``end`` line is of a run that was killed: what it has is still good.

``schema/result-1.json`` is the exact description. History of ``format``:

1  0.1.0: the first. Times are int64 nanoseconds, rates are per second, sizes are bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO, TypeAlias

from commbench.errors import CommbenchError, UsageError
from commbench.histogram import Histogram, Int64Array
from commbench.record import (
    KEY_FIELDS,
    PERCENTILES,
    Measured,
    Record,
    compare_key,
    halved,
    make_case_record,
)
from commbench.samples import append_samples, samples_path
from commbench.schema import FORMAT, mismatch

__all__ = [
    "FORMAT",
    "KEY_FIELDS",
    "PERCENTILES",
    "Measured",
    "Record",
    "ResultFile",
    "ResultWriter",
    "compare_key",
    "halved",
    "make_case_record",
    "read",
]

OnExists: TypeAlias = Literal["refuse", "number"]


# ---------------------------------------------------------------- writing


class ResultWriter:
    """Creates the file at once, so that an impossible path is known before anything is measured.

    An existing file is never touched: ``refuse`` raises UsageError, ``number`` takes the first
    free one of ``PATH.1``, ``PATH.2``, ... ``path`` says what was created.
    """

    def __init__(self, path: str | Path, on_exists: OnExists = "refuse") -> None:
        self.path, self._file = _create(Path(path), on_exists)
        self._cases = 0  # in the file
        self._earlier = 0  # of them, by launches before this one

    @classmethod
    def reopen(cls, path: str | Path) -> Self:
        """Go on with a file that an earlier launch of the same run began and did not end.

        Raises UsageError when it is not such a file.
        """
        file = read(path)
        if file.complete or file.cut:
            problem = "its run has ended" if file.complete else "its last line is cut off"
            raise UsageError(f"--output {path}: cannot be continued: {problem}")
        new = cls.__new__(cls)
        new.path = Path(path)
        new._file = new.path.open("a", encoding="utf-8")
        new._cases = new._earlier = len(file.cases)
        return new

    def run(self, header: Mapping[str, Any]) -> None:
        """The first line. ``kind`` and ``format`` are added here."""
        self._write({"kind": "run", "format": FORMAT, **header})

    def case(self, record: Mapping[str, Any]) -> None:
        self._write({**record, "kind": "case"})
        self._cases += 1

    def end(self, record: Mapping[str, Any]) -> None:
        """The last line: it tells a complete file from a killed one."""
        self._write({"kind": "end", "cases": self._cases, **record})

    def save_samples(
        self, case_index: int, start: Int64Array, end: Int64Array, intended: Int64Array | None
    ) -> None:
        """Add the raw stamps of a block of a case to ``<run>.npz``; None: intended is start.

        ``case_index`` counts the cases of this launch from 0; in the archive, those of the file.
        """
        stamps = {"start": start, "end": end}
        if intended is not None:
            stamps["intended"] = intended
        append_samples(samples_path(self.path), self._earlier + case_index, stamps)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what _write() could not and has told already
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, record: Record) -> None:
        line = json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as problem:
            reason = problem.strerror or problem
            raise CommbenchError(f"cannot write {self.path}: {reason}") from problem


def free_path(path: Path, on_exists: OnExists) -> Path:
    """The path that a writer would create now: ``path``, or with ``number`` a free one.

    Raises UsageError when it exists and ``refuse`` is given.
    """
    number, candidate = 0, path
    while _is_there(candidate) or _is_there(samples_path(candidate)):
        if on_exists == "refuse":
            raise _exists(path)
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as problem:
        raise UsageError(f"--output {path}: cannot be created: {problem.strerror}") from problem


def _exists(path: Path) -> UsageError:
    return UsageError(
        f"--output {path}: it (or its .npz) exists and is never overwritten; "
        "move it aside, give another name, or use --on-exists number"
    )


def _create(path: Path, on_exists: OnExists) -> tuple[Path, TextIO]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    _make_folder(path)
    while True:
        candidate = free_path(path, on_exists)
        try:
            return candidate, os.fdopen(os.open(candidate, flags, 0o644), "w", encoding="utf-8")
        except FileExistsError:  # somebody was faster
            continue
        except OSError as problem:
            raise UsageError(f"--output {path}: cannot be created: {problem.strerror}") from problem


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(f"--output {path}: no folder for it: {problem.strerror}") from problem


# ---------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One results file. ``complete``: its ``end`` line is there, so the run was not killed.

    ``cut``: it does not end with a line end; a last line that was broken off is left out.
    """

    path: str
    run: Record
    cases: tuple[Record, ...]
    end: Record | None
    cut: bool = False

    @property
    def complete(self) -> bool:
        return self.end is not None

    @property
    def note(self) -> str | None:
        """One line for people when the run did not end well."""
        if self.end is None:
            return f"{self.path} is not complete: the run was killed after {len(self.cases)} cases"
        if self.end.get("error"):
            return f"{self.path}: the run failed: {self.end['error']}"
        return None


def read(path: str | Path) -> ResultFile:
    """Read a results file; a killed run's last, broken line is left out.

    Raises UsageError naming the file and line for anything that is not ours or is newer.
    """
    lines = _lines(Path(path))
    run = _parse(path, 1, lines[0]) if lines else None
    if run is None or run.get("kind") != "run":
        raise UsageError(f"{path}: line 1: not a commbench results file (no run line)")
    _check_format(path, run.get("format"))
    _check(path, 1, run)
    records: list[Record] = []
    cut = not lines[-1].endswith("\n")
    for number, line in enumerate(lines[1:], 2):
        record = _parse(path, number, line)
        if record is None and number == len(lines) and cut:
            break  # killed while it wrote this line
        if record is None or record.get("kind") not in ("case", "end"):
            raise UsageError(f"{path}: line {number}: neither a case nor the end of a run")
        if records and records[-1]["kind"] == "end":
            raise UsageError(f"{path}: line {number}: comes after the end line")
        _check(path, number, record)
        records.append(record)
    end = records.pop() if records and records[-1]["kind"] == "end" else None
    return ResultFile(str(path), run, tuple(records), end, cut)


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            return list(file)
    except UnicodeDecodeError as problem:
        raise UsageError(f"{path}: not a commbench results file (not text)") from problem
    except OSError as problem:
        raise UsageError(f"{path}: cannot be read: {problem.strerror}") from problem


def _parse(path: str | Path, number: int, line: str) -> Record | None:
    """The object on this line; None when it is not one."""
    try:
        record = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_format(path: str | Path, found: object) -> None:
    if isinstance(found, int) and found > FORMAT:
        raise UsageError(
            f"{path}: line 1: format {found}, but this commbench reads up to format {FORMAT}; "
            "read it with a newer commbench"
        )
    if found != FORMAT:
        raise UsageError(f"{path}: line 1: format {found!r} is unknown; allowed: {FORMAT}")


def _check(path: str | Path, number: int, record: Record) -> None:
    """Enough of the schema that no report can fail: required fields and their types."""
    problem = mismatch(record["kind"], record)
    if problem is None and record["kind"] == "case":
        try:
            Histogram.from_json(record["histogram"])
        except ValueError as contradiction:
            problem = str(contradiction)
    if problem is not None:
        raise UsageError(f"{path}: line {number}: {problem}")
