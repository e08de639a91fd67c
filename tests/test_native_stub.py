"""The committed stubs of the native modules are what nanobind makes of them."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import commbench


@pytest.mark.parametrize("name", ["_native", "_grpc_core", "_rdma_core", "_rdma_cm", "_verbs_core"])
def test_stub_is_up_to_date(name: str, tmp_path: Path) -> None:
    if find_spec(f"commbench.{name}") is None:
        pytest.skip(f"built without {name}: `commbench channels` says what to install")
    made = tmp_path / f"{name}.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", f"commbench.{name}"]
    subprocess.run([*command, "-o", str(made)], check=True, timeout=60)
    committed = Path(commbench.__file__).parent / f"{name}.pyi"
    assert made.read_text() == committed.read_text(), (
        f"python -m nanobind.stubgen -m commbench.{name} -o commbench/{name}.pyi"
    )
