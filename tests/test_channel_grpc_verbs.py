"""The grpc+verbs channel: what needs no device, and in the Soft-RoCE machine the rest."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from commbench.channels.grpc_verbs import GrpcVerbsChannel
from commbench.channels.grpc_verbs_set_up import VARIABLES, read_record, record
from commbench.channels.rdma_connect import QueuePair
from commbench.errors import TransferError, UsageError
from commbench.harness.launch import launch
from commbench.testing import ChannelContract
from tests.command import COMMBENCH, Running, cases, commbench, long_job, until

LONG_S = 300.0  # an emulated machine on a busy host
DEVICES = "rxe0,rxe1"
SLOW = {"COMMBENCH_JOIN_TIMEOUT": "200"}
in_machine = pytest.mark.rdma
pytestmark = pytest.mark.timeout(400)


class Contract(ChannelContract):
    channel = "grpc+verbs"
    loops = ("native",)
    ranks = 3
    environment = SLOW
    deadline_s = LONG_S


@in_machine
class TestV2(Contract):
    options: ClassVar[Mapping[str, str]] = {"ib_dev": DEVICES}


# ---------------------------------------------------------------------- protocols

FIRST = 2  # requests and replies, of each the first


@pytest.fixture(scope="module")
def tried() -> list[dict[str, Any]]:
    """What two ranks say of all protocols; they start slowly, so it is one run."""
    done = launch(
        [
            f"--ib-dev={DEVICES}",
            "--count=20",
            *(f"--protocol={each}" for each in PROTOCOLS),
            *(f"--sizes={each}" for each in LAYOUTS),
        ],
        2,
        module="tests.verbs_protocols",
        env=SLOW,
        timeout_s=LONG_S,
        capture=True,
    )
    assert done.exit_code == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


PROTOCOLS = ("v2", "gdr", "v1")
LAYOUTS = ("4096", "1000,3096", "0", "8388611")  # the last in two parts
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def counted(tried: list[dict[str, Any]], protocol: str, layout: str) -> tuple[int, dict[str, int]]:
    """How many tensors there were, messages of all kinds, and the bytes that were copied."""
    for each in tried:
        if (each["protocol"], each.get("sizes")) == (protocol, layout):
            found = {key: value for key, value in each.items() if value and isinstance(value, int)}
            tensors = 2 * found.pop("count")
            assert found.pop("tensors") == tensors
            assert found.pop("tensor_requests") == tensors + 1  # a server asks ahead for one more
            return tensors, found
    raise AssertionError(tried)


def copies(layout: str, of_one: int, of_several: int) -> dict[str, int]:
    """Of so many tensors, whether they are one buffer or several."""
    nbytes = sum(map(int, layout.split(","))) * (of_several if "," in layout else of_one)
    return {"copied_nbytes": nbytes} if nbytes else {}


@in_machine
@pytest.mark.parametrize(
    ("protocol", "layout"), [*(("v2", each) for each in LAYOUTS), ("spin", LAYOUTS[0])]
)
def test_v2_messages_and_copies_of_a_tensor(
    tried: list[dict[str, Any]], protocol: str, layout: str
) -> None:
    """First 3 control, 3 ACK, 1 content and a copy at the owner; then 1, 1 and 1."""
    tensors, found = counted(tried, protocol, layout)
    assert found == {
        "metadata_updates": FIRST,
        "re_requests": FIRST,
        "acks": tensors + 1 + 2 * FIRST,
        "contents": tensors,
        **copies(layout, FIRST, FIRST + 2 * tensors),  # joined, and taken apart
    }


@in_machine
@layouts
def test_gdr_messages_and_copies_of_a_tensor(tried: list[dict[str, Any]], layout: str) -> None:
    """Each 2 control, 2 ACK, 1 read, and a write of nothing that frees it."""
    tensors, found = counted(tried, "gdr", layout)
    reads = {"reads": tensors} if layout != "0" else {}
    assert found == {
        "memory_regions": tensors,
        "acks": 2 * tensors + 1,
        "frees": tensors,
        **reads,
        **copies(layout, 0, 2 * tensors),
    }


@in_machine
@layouts
def test_v1_messages_and_copies_of_a_tensor(tried: list[dict[str, Any]], layout: str) -> None:
    """First 4 control, 4 ACK and 1 content; then 2, 2 and 1: BUFFER_IDLE. A copy on each side."""
    tensors, found = counted(tried, "v1", layout)
    assert found == {
        "buffer_requests": FIRST,
        "buffer_responses": FIRST,
        "buffer_idles": tensors,
        "acks": 2 * tensors + 1 + 2 * FIRST,
        "contents": tensors,
        **copies(layout, 2 * tensors, 3 * tensors),  # taken apart by the copy that there is
    }


@in_machine
@pytest.mark.parametrize("protocol", PROTOCOLS[1:])
def test_scenarios_of_the_contract(tried: list[dict[str, Any]], protocol: str) -> None:
    passed = [each.get("passed") for each in tried if each["protocol"] == protocol]
    assert passed[-4:] == ["reverse", "both_ways", "all_to_all", "describe"]


@in_machine
def test_a_rank_that_no_packet_reaches(tried: list[dict[str, Any]]) -> None:
    for rank, said in zip((1, 0), tried[-1]["error"], strict=True):
        assert f"rank {rank} is gone (transport retry counter exceeded)" in said


# ---------------------------------------------------------------------- the command line


BENCHMARKS = ("latency", "bandwidth", "bibw", "message-rate", "ps", "alltoall")


@in_machine
def test_verified_runs(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    where = ("-C", "grpc+verbs", "--ib-dev", DEVICES, "-n", 2, "--bind", "none")
    short = ("-m", "64K", "-i", "10", "-x", "2", "-W", "4", "-c", "--output", output)
    commbench("run", ",".join(BENCHMARKS), *where, *short, timeout_s=LONG_S, **SLOW).ok()
    rows = cases(output)
    assert len(rows) == len(BENCHMARKS)
    for row in rows:
        assert row["loop"] == "native"
        assert row["channel_info"]["protocol"] == "v2"
        assert row["channel_info"]["proof"] == "sent_pkts"


@in_machine
def test_a_rank_killed(tmp_path: Path) -> None:
    output, host = tmp_path / "out.jsonl", socket.gethostname()
    job = long_job(tmp_path, "grpc+verbs", option=[f"ib_dev={DEVICES}"])
    words = ("-n", 2, "--bind", "none", "--in-order", "--output", output)
    running = Running(COMMBENCH, "run", job, *words, **SLOW)
    until(lambda: cases(output) or running.process.poll() is not None, "no case came", LONG_S)
    assert running.process.poll() is None, running.end()
    time.sleep(1.0)
    running.kill_rank(1)
    running.end(60).one_line(5, f"rank 1 on {host} was killed by SIGKILL")
    assert len(cases(output)) == 1


def test_the_python_loop_is_refused() -> None:
    with pytest.raises(UsageError, match="--loop python: channel grpc\\+verbs has native"):
        GrpcVerbsChannel.check_loop("python")


# ---------------------------------------------------------------------- options


def test_options_are_tensorflows_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    options = GrpcVerbsChannel.check_options({})
    assert (options["depth"], options["timeout"], options["retry_count"]) == ("1024", "14", "7")
    monkeypatch.setenv("RDMA_QP_QUEUE_DEPTH", "256")
    monkeypatch.setenv("RDMA_QP_TIMEOUT", "18")
    options = GrpcVerbsChannel.check_options({"timeout": "16"})
    assert (options["depth"], options["timeout"]) == ("256", "16")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("depth", "7", "8 to 16384"),
        ("timeout", "32", "1 to 31"),
        ("retry_count", "8", "0 to 7"),
        ("sl", "x", "0 to 15"),
        ("traffic_class", "-1", "0 to 255"),
        ("protocol", "v3", "v2"),
        ("mtu", "1500", "1024"),
    ],
)
def test_an_option_that_cannot_be(name: str, value: str, allowed: str) -> None:
    with pytest.raises(UsageError, match=f"{name}={value}.*grpc\\+verbs.*{allowed}"):
        GrpcVerbsChannel.check_options({name: value})


# ---------------------------------------------------------------------- what is swapped

OURS = QueuePair(
    port=1,
    lid=7,
    gid="fe80::a00:1",
    gid_index=3,
    mtu=1024,
    max_rd_atomic=1,
    qpn=17,
    psn=0xABCDEF,
)
ENDPOINT = {"tx_address": 4096, "tx_rkey": 5, "rx_address": 1 << 47, "rx_rkey": 6}


def test_a_record_is_tensorflows_channel_and_two_regions() -> None:
    given = json.loads(record(OURS, ENDPOINT))
    assert given["channel"] == {
        "lid": 7,
        "qpn": 17,
        "psn": 0xABCDEF,
        "snp": 0xFE80 << 48,
        "iid": 0x0A000001,
    }
    assert given["mr"] == [
        {"remote_addr": 4096, "rkey": 5},
        {"remote_addr": 1 << 47, "rkey": 6},
    ]


def test_the_peer_writes_into_the_second_region() -> None:
    theirs, rx = read_record(record(OURS, ENDPOINT), 1)
    assert rx == {"rx_address": 1 << 47, "rx_rkey": 6}
    assert (theirs.gid, theirs.lid, theirs.qpn, theirs.psn) == (OURS.gid, 7, 17, 0xABCDEF)


@pytest.mark.parametrize("path", [("channel", "qpn"), ("channel", "psn"), ("mr",), ("mtu",)])
def test_a_record_that_cannot_be_read(path: tuple[str, ...]) -> None:
    given = json.loads(record(OURS, ENDPOINT))
    at = given
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = -1
    for data in (json.dumps(given).encode(), b"{", b"[]"):
        with pytest.raises(TransferError, match="rank 4"):
            read_record(data, 4)


# ---------------------------------------------------------------------- the control message


def test_the_layout_of_a_control_message() -> None:
    core = pytest.importorskip("commbench._verbs_core", reason="built without libibverbs")
    name = "/job:worker/replica:0/task:1/device:CPU:0;edge"
    message = core.write_message(2, name, 11, 12, 1 << 47, 13, 4096)
    kind, nbytes, text, step, index, address, rkey, dead, dtype, shape, size = struct.unpack(
        "=BH512sQQQI?I24sQ", message
    )
    assert len(message) == 580
    assert (kind, text[:nbytes].decode(), step, index) == (2, name, 11, 12)
    assert (address, rkey, dead, dtype, size) == (1 << 47, 13, False, 4, 4096)
    assert (shape[:8], shape[15], shape[16:]) == (size.to_bytes(8, "little"), 1, shape[:8])


def test_an_error_has_its_text_behind_it() -> None:
    core = pytest.importorskip("commbench._verbs_core", reason="built without libibverbs")
    text = "x" * 5000
    message = core.write_message(3, text, 0, 0, 0, 0, 0)
    assert struct.unpack_from("=I", message, 580) == (4096,)
    assert message[584:] == b"x" * 4096
