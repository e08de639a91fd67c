"""What holds for all tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from commbench.harness.softroce.layout import IN_MACHINE

if IN_MACHINE not in os.environ:  # importing it takes many seconds there, and no test needs it
    from hypothesis import settings

    # A test fails for what it finds; how long an example takes says how busy the machine is.
    settings.register_profile("commbench", deadline=None)
    settings.load_profile("commbench")

for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),  # a shell starts background jobs without it,
    (signal.SIGHUP, signal.SIG_DFL),  # and nohup without this one
):
    # What tests start and interrupt would inherit it.
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("rdma") and IN_MACHINE not in os.environ:
        pytest.skip("needs two RDMA devices: make test-rdma runs it in the Soft-RoCE machine")


@pytest.fixture(autouse=True, scope="module")
def released() -> Iterator[None]:
    """Whatever a file's tests did with the devices, no process has memory registered any more."""
    yield
    if IN_MACHINE in os.environ:
        words = ["rdma", "-j", "resource", "show", "mr"]
        shown = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        assert [each for each in json.loads(shown.stdout or "[]") if each] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB and eight files, its root among them."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=8", "tmpfs", str(folder)]
    tried = subprocess.run(mount, capture_output=True, text=True, timeout=20)
    if tried.returncode:
        pytest.skip(f"no tmpfs can be mounted: {tried.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)
