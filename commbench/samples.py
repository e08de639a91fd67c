"""Raw stamps beside the results file (``--save-samples``): a ``.npz`` that grows with each case."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np

from commbench.errors import CommbenchError, UsageError
from commbench.histogram import Int64Array

_MEMBER = re.compile(r"case(\d+)_block(\d+)_(\w+)")


def samples_path(results: Path) -> Path:
    """Where the stamps of this results file are: ``demo.jsonl`` -> ``demo.npz``."""
    return results.with_suffix(".npz") if results.suffix == ".jsonl" else Path(f"{results}.npz")


def append_samples(path: Path, case_index: int, stamps: dict[str, Int64Array]) -> None:
    """Add one block of stamps of a case to the archive at ``path``; it is created when missing.

    The archive is closed after each call, so that a killed run keeps what was added before.
    """
    try:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
            earlier = {_place(name)[1] for name in archive.namelist() if _is_of(name, case_index)}
            for name, values in stamps.items():
                member = f"case{case_index}_block{len(earlier)}_{name}.npy"
                with archive.open(member, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)
    except OSError as problem:
        raise CommbenchError(f"cannot write {path}: {problem.strerror or problem}") from problem


def load_samples(results: str | Path, case_index: int) -> dict[str, Int64Array]:
    """Stamps of one case in ns, blocks joined: ``start``, ``end`` and, if open loop, ``intended``.

    ``results`` is the results file, ``case_index`` counts its case lines from 0. Raises UsageError
    when there are no such samples.
    """
    path = samples_path(Path(results))
    blocks: dict[str, list[Int64Array]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = [name for name in archive.files if _is_of(name, case_index)]
            for name in sorted(names, key=_place):
                blocks.setdefault(_place(name)[2], []).append(archive[name])
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as problem:
        raise UsageError(f"{path}: no readable samples: {problem}") from problem
    if not blocks:
        raise UsageError(f"{path}: has no samples of case {case_index}")
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


def _place(name: str) -> tuple[int, int, str]:
    """Case, block and name of a member."""
    match = _MEMBER.match(name)
    return (int(match[1]), int(match[2]), match[3]) if match else (-1, -1, "")


def _is_of(name: str, case_index: int) -> bool:
    return _place(name)[0] == case_index
