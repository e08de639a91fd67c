"""The Python data path of ``rdma`` on real verbs, two devices in this process: each op, and the
native engine at either end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from commbench.channels import rdma_pyverbs
from commbench.channels.rdma_python import PythonEngine
from commbench.errors import PeerLost
from commbench.harness.stop import StopFlag
from commbench.results import read
from commbench.testing import ChannelContract
from tests.command import commbench
from tests.rdma_ends import OPS, exchange, exercise, options, run, together
from tests.rdma_pair import connected

MISSING = rdma_pyverbs.missing()
pytestmark = [
    pytest.mark.rdma,
    pytest.mark.timeout(400),  # an emulated machine on a busy host
    pytest.mark.skipif(MISSING is not None, reason=MISSING or ""),
]
ENDS = [("python", "python"), ("native", "python"), ("python", "native")]


class TestRdmaPython(ChannelContract):
    channel = "rdma"
    loops = ("python", "mixed")
    ranks = 2
    options: ClassVar[Mapping[str, str]] = {"ib_dev": "rxe0,rxe1"}
    deadline_s = 350.0


@pytest.fixture(autouse=True)
def _turns() -> Iterator[None]:
    """Both ends poll in threads of one interpreter."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kinds", ENDS, ids="-".join)
def test_messages_arrive_as_they_were_sent(kinds: tuple[str, str], op: str) -> None:
    with connected(kinds, op) as (one, two):
        exercise(one, two)


def test_a_message_beyond_what_one_work_request_takes() -> None:
    """max_msg_sz of Soft-RoCE is 8 MiB: two writes, and two reads."""
    for op in ("send", "read"):
        with connected(("python", "python"), op) as (one, two):
            assert one.limits["max_msg_sz"] < 9 << 20
            together(
                lambda: run(one, 0, (100, 9 << 20), count=1),
                lambda: run(two, 1, (100, 9 << 20), count=1),
            )


def test_a_peer_that_is_gone_is_named() -> None:
    with connected(("python", "python"), "send") as (one, two):
        case = exchange(0, (64,), 1, 1, False)
        one.prepare(case)
        two.close()
        with pytest.raises(PeerLost, match="rank 1 is gone"):
            one.exchange(1, case.request[0], case.reply[0], 10.0)
        one.finish()


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(OSError, match="nope"):
        PythonEngine(options("nope", 0, "send"), StopFlag())
    with pytest.raises(OSError, match="tx_depth=2000000: rxe0 has room for"):
        PythonEngine(options("rxe0", 0, "send", tx_depth=2_000_000), StopFlag())


def test_nothing_stays_registered() -> None:
    with connected(("python", "python"), "send") as (one, _two):
        case = exchange(0, (8, 9), 1, 1, False)
        for _ in range(2):
            one.prepare(case)
            assert one.regions in (1, 2)  # the allocator may put its pages side by side
            one.finish()
            assert one.regions == 0


def test_a_run_takes_either_loop_over_one_channel(tmp_path: Path) -> None:
    """Verified; the ranks connect anew when the loop changes."""
    job, output = tmp_path / "job.toml", tmp_path / "loops.jsonl"
    settings: dict[str, object] = {"benchmark": ["latency", "bibw"], "message-size": ["8", "40000"]}
    settings |= {"channel": "rdma", "iterations": 4, "warmup": 1, "window": 4}
    lines = ["[global]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    for loop in ("python", "native"):
        lines += [f"[{loop}]", f'loop = "{loop}"']
    job.write_text("\n".join(lines) + "\n")
    ended = commbench("run", job, "-n", 2, "--output", output, "--bind", "none", timeout_s=300)
    ended.ok()
    cases = list(read(output).cases)
    assert sorted(case["loop"] for case in cases) == ["native"] * 4 + ["python"] * 4
    for case in cases:
        assert case["validated"] and case["channel_info"]["proof"] == "sent_pkts"
