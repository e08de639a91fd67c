"""The committed stub of the native module is what nanobind makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import commbench


def test_stub_is_up_to_date(tmp_path: Path) -> None:
    made = tmp_path / "_native.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "commbench._native"]
    subprocess.run([*command, "-o", str(made)], check=True, timeout=60)
    committed = Path(commbench.__file__).parent / "_native.pyi"
    assert made.read_text() == committed.read_text(), (
        "python -m nanobind.stubgen -m commbench._native -o commbench/_native.pyi"
    )
