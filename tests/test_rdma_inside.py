"""The rdma channel over real devices: run in the Soft-RoCE machine.

A process takes seconds to start in there, so each launch carries as much as it can.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from commbench.channels.rdma import RdmaChannel
from commbench.channels.rdma_devices import choose
from commbench.harness.launch import launch
from commbench.harness.softroce.layout import ENDS
from commbench.harness.softroce.loss import counters
from commbench.harness.sysfs import Tree
from commbench.results import read
from commbench.testing import ChannelContract
from tests.command import COMMBENCH, Running

pytestmark = [pytest.mark.rdma, pytest.mark.timeout(400)]

LONG_S = 300.0  # an emulated machine on a busy host
OPS = ("send", "write", "write-imm", "read")
BENCHMARKS = ("latency", "bandwidth", "bibw", "message-rate", "ps", "alltoall")
SOME = ("latency", "bandwidth", "bibw")
SIZES = (1, 65536)  # eager, and by rendezvous


class TestRdma(ChannelContract):
    channel = "rdma"
    loops = ("native",)
    ranks = 3  # more than the machine has processors, so they sleep
    options: ClassVar[Mapping[str, str]] = {"ib_dev": "rxe0,rxe1", "wait": "block"}
    deadline_s = LONG_S


def test_one_receive_queue_for_all_peers(tmp_path: Path) -> None:
    """Scenarios of the contract with fewer entries than are in flight, and none too few."""
    out, before = tmp_path / "passed", not_ready()
    scenarios = ("echo", "windows", "both_ways", "all_to_all", "again")
    options = ("ib_dev=rxe0,rxe1", "wait=block", "srq=on", "rx_depth=32")
    argv = ["--channel=rdma", "--loops=native", f"--out={out}"]
    argv += [f"--option={option}" for option in options] + [f"--only={name}" for name in scenarios]
    ended = launch(argv, 3, module="commbench.testing.worker", timeout_s=LONG_S, capture=True)
    assert ended.exit_code == 0, ended.stdout + ended.stderr
    assert set(out.read_text().split()) == {f"{name}/native" for name in scenarios}
    assert not_ready() == before


def not_ready() -> list[int]:
    return [counters(end.device)["rcvd_rnr_err"] for end in ENDS]


def job(folder: Path, **sections: Mapping[str, object]) -> Path:
    path = folder / "job.toml"
    text = []
    for name, settings in sections.items():
        text.append(f"[{name}]")
        text += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    path.write_text("\n".join(text) + "\n")
    return path


def test_the_channel_is_usable_and_takes_the_ends_in_turn() -> None:
    assert RdmaChannel.missing() is None
    for rank, end in enumerate(ENDS):
        address = choose(Tree(), local_rank=rank)
        assert (address.port.device, address.gid and address.gid.ipv4) == (end.device, end.address)


def test_every_benchmark_and_every_op(tmp_path: Path) -> None:
    """Verified, through both devices, whose counters prove it; also when work requests and credits
    run out."""
    output, before = tmp_path / "ops.jsonl", not_ready()
    common: dict[str, object] = {
        "benchmark": list(BENCHMARKS),
        "channel": "rdma",
        "message-size": list(map(str, SIZES)),
        "iterations": 4,
        "warmup": 1,
        "window": 8,
    }
    sections: dict[str, Mapping[str, object]] = {"global": common}
    sections["send"] = {}
    sections |= {op: {"option": [f"op={op}"], "benchmark": list(SOME)} for op in OPS[1:]}
    sections["few"] = {
        "option": ["op=read", "wait=block", "rx_depth=16", "tx_depth=4", "signal=1", "inline=0"],
        "benchmark": list(SOME),
    }
    argv = ("run", job(tmp_path, **sections), "-n", 2, "--output", output, "--bind", "none")
    ended = Running(COMMBENCH, *argv, COMMBENCH_JOIN_TIMEOUT="100").end(LONG_S)
    ended.ok()
    measured = list(read(output).cases)
    assert len(measured) == len(SIZES) * (len(BENCHMARKS) + len(OPS) * len(SOME))
    for case in measured:
        assert case["validated"] and case["loop"] == "native"
        about = case["channel_info"]
        assert (about["device"], about["addressing"]) == ("rxe0", "RoCE v2")
        assert (about["address"], about["proof"]) == (f"GID {ENDS[0].address}", "sent_pkts")
    assert not_ready() == before  # credits kept every receiver ready
