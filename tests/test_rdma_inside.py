"""The rdma channel over real devices: run in the Soft-RoCE machine.

A process takes seconds to start in there, so each launch carries as much as it can.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from commbench.channels import rdma_cm
from commbench.channels.rdma import RdmaChannel
from commbench.channels.rdma_devices import choose
from commbench.harness.launch import launch
from commbench.harness.softroce.layout import ENDS
from commbench.harness.softroce.loss import counters
from commbench.harness.sysfs import Tree
from commbench.results import read
from commbench.testing import ChannelContract
from tests.command import COMMBENCH, Running
from tests.rdma_ends import run, together
from tests.rdma_pair import engine, record

pytestmark = [pytest.mark.rdma, pytest.mark.timeout(400)]

LONG_S = 300.0  # an emulated machine on a busy host
OPS = ("send", "write", "write-imm", "read")
BENCHMARKS = ("latency", "bandwidth", "bibw", "message-rate", "ps", "alltoall")
LARGE = "64K"
SIZES = ("1", LARGE)  # eager, and by rendezvous


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


@pytest.mark.skipif(find_spec("commbench._rdma_cm") is None, reason="built without librdmacm")
@pytest.mark.parametrize("kinds", [("native", "python"), ("python", "native")])
def test_the_connection_manager_connects_ranks_of_the_run_only(kinds: tuple[str, str]) -> None:
    with ExitStack() as undo:
        ends = [engine(kind, rank, "send") for rank, kind in enumerate(kinds)]
        records = [record(end, rank, "send") for rank, end in enumerate(ends)]
        managers = [rdma_cm.listen(end.address, end.device, 2) for end in ENDS]
        for each in (*managers, *ends):  # queue pairs first
            undo.callback(each.close)
        contacts = [[end.address, each.port] for end, each in zip(ENDS, managers, strict=True)]
        meetings = [
            rdma_cm.Meeting(
                managers[rank],
                ends[rank],
                rank,
                {1 - rank: records[rank]},
                {1 - rank: records[1 - rank]},
                "0123456789abcdef",
                0,
            )
            for rank in range(2)
        ]
        stranger = Stranger(contacts[1])
        undo.callback(stranger.manager.close)
        together(
            lambda: meetings[1].run(contacts, stranger.look, LONG_S),
            lambda: stranger.turned_away.wait(LONG_S) and meetings[0].run(contacts, lambda: None),
        )
        assert stranger.turned_away.is_set()
        together(lambda: run(ends[0], 0, (3000,), 4), lambda: run(ends[1], 1, (3000,), 4))


class Stranger:
    """Asks to be connected without the token; ``look`` is called while the other end meets."""

    def __init__(self, contact: list[Any]) -> None:
        self.turned_away = threading.Event()
        self.manager = rdma_cm.listen(ENDS[0].address, ENDS[0].device, 2)
        self.manager.resolve(*contact)

    def look(self) -> None:
        attributes = {"max_dest_rd_atomic": 1, "max_rd_atomic": 1, "retry_cnt": 6, "rnr_retry": 7}
        match self.manager.next(0.0):
            case ["ADDR_RESOLVED", id, _, _]:
                self.manager.resolve_route(id)
            case ["ROUTE_RESOLVED", id, _, _]:
                self.manager.connect(id, b"let me in".ljust(36), 99, attributes)
            case ["REJECTED", _, _, _]:
                self.turned_away.set()
            case None:
                pass
            case event:
                raise AssertionError(event)


def test_every_benchmark_and_every_op(tmp_path: Path) -> None:
    """Verified, through both devices, whose counters prove it; also when work requests and credits
    run out."""
    output, before = tmp_path / "ops.jsonl", not_ready()
    common: dict[str, object] = {
        "benchmark": list(BENCHMARKS),
        "channel": "rdma",
        "message-size": list(SIZES),
        "iterations": 4,
        "warmup": 1,
        "window": 8,
    }
    sections: dict[str, Mapping[str, object]] = {"global": common}
    sections["send"] = {}
    few = ["op=read", "wait=block", "rx_depth=16", "tx_depth=4", "signal=1", "inline=0"]
    for name, options in {**{op: [f"op={op}"] for op in OPS[1:]}, "few": few}.items():
        sections[name] = {"option": options, "benchmark": ["bibw"], "message-size": [LARGE]}
    sections["manager"] = {"option": ["connect=cm"], "benchmark": ["latency"]}
    argv = ("run", job(tmp_path, **sections), "-n", 2, "--output", output, "--bind", "none")
    ended = Running(COMMBENCH, *argv, COMMBENCH_JOIN_TIMEOUT="100").end(LONG_S)
    ended.ok()
    measured = list(read(output).cases)
    assert len(measured) == len(SIZES) * (len(BENCHMARKS) + 1) + len(OPS)
    for case in measured:
        assert case["validated"] and case["loop"] == "native"
        about = case["channel_info"]
        assert (about["device"], about["addressing"]) == ("rxe0", "RoCE v2")
        assert (about["address"], about["proof"]) == (f"GID {ENDS[0].address}", "sent_pkts")
    assert not_ready() == before  # credits kept every receiver ready
