"""Channels as parameters of tests: skipped with the reason where one cannot run."""

from __future__ import annotations

from typing import Any

import pytest

from commbench.registry import load


def channel(name: str, *more: object) -> Any:
    """``pytest.param(name, *more)``; marked ``mpi`` where an MPI launcher starts the ranks."""
    kind = load(name)
    missing = kind.missing()
    marks = [pytest.mark.skipif(missing is not None, reason=f"{name}: {missing}")]
    if kind.launcher == "mpi":
        marks.append(pytest.mark.mpi)
    return pytest.param(name, *more, marks=marks)
