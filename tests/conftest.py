"""What holds for all tests."""

from __future__ import annotations

import os
import signal

import pytest

from commbench.harness.softroce.layout import IN_MACHINE

if IN_MACHINE not in os.environ:  # importing it takes many seconds there, and no test needs it
    from hypothesis import settings

    # A test fails for what it finds; how long an example takes says how busy the machine is.
    settings.register_profile("commbench", deadline=None)
    settings.load_profile("commbench")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so, and what tests start and interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("rdma") and IN_MACHINE not in os.environ:
        pytest.skip("needs two RDMA devices: make test-rdma runs it in the Soft-RoCE machine")
