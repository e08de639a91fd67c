"""The rdma channel over real devices: run in the Soft-RoCE machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

from commbench.testing import ChannelContract

pytestmark = [pytest.mark.rdma, pytest.mark.timeout(400)]

LONG_S = 300.0  # an emulated machine on a busy host


class TestRdma(ChannelContract):
    channel = "rdma"
    loops = ("native",)
    ranks = 3  # more than the machine has processors, so they sleep
    options: ClassVar[Mapping[str, str]] = {"ib_dev": "rxe0,rxe1", "wait": "block"}
    deadline_s = LONG_S


def regions() -> list[Any]:
    """Memory regions that any process has registered."""
    shown = subprocess.run(
        ["rdma", "-j", "resource", "show", "mr"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [each for each in json.loads(shown.stdout or "[]") if each]


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """After each test nothing is registered any more."""
    yield
    assert regions() == []
