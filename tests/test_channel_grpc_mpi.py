"""The grpc+mpi channel through the real launchers of every MPI at hand."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import grpc
import pytest

from commbench import _native
from commbench.channels.grpc_messages import credential_of
from commbench.channels.grpc_mpi import MOST_NBYTES
from commbench.channels.grpc_mpi_control import CLEANUP_GRAPH, GET_STATUS, Control
from commbench.errors import Interrupted, PeerLost, TransferError
from commbench.testing import ChannelContract, Finished
from tests.command import COMMBENCH, Running, cases, commbench, in_second_case, long_job
from tests.mpi_launchers import (
    DEBIAN_MPIRUN,
    HYDRA,
    OPENMPI_FLAGS,
    needs_hydra,
    needs_openmpi,
    ranks,
)

pytestmark = pytest.mark.mpi

NATIVE = ("native",)


@needs_hydra
class TestGrpcMpi(ChannelContract):
    channel = "grpc+mpi"
    launcher = "mpi"
    loops = NATIVE


class TestOptimal(TestGrpcMpi):
    options: ClassVar[Mapping[str, str]] = {"path": "optimal"}


class TestSleep(TestGrpcMpi):
    options: ClassVar[Mapping[str, str]] = {"wait": "sleep"}


class TestOptimalSleep(TestGrpcMpi):
    options: ClassVar[Mapping[str, str]] = {"path": "optimal", "wait": "sleep"}


@needs_openmpi
class TestOpenMpi(ChannelContract):
    """Debian's, 4.1, started by its own mpirun: the pointer handles."""

    channel = "grpc+mpi"
    given: ClassVar[Mapping[str, str]] = {"wait": "sleep"}

    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, tmp_path_factory: pytest.TempPathFactory) -> Finished:
        out = tmp_path_factory.mktemp("contract") / "finished"
        options = [f"--option={name}={value}" for name, value in cls.given.items()]
        worker = [sys.executable, "-m", "commbench.testing.worker", "--channel=grpc+mpi"]
        done = ranks(
            (DEBIAN_MPIRUN, *OPENMPI_FLAGS),
            4,
            [*worker, "--loops=native", f"--out={out}", *options],
        )
        passed = out.read_text().split() if out.exists() else []
        return Finished(NATIVE, frozenset(passed), done.returncode, done.stdout + done.stderr)


class TestOpenMpiOptimal(TestOpenMpi):
    given: ClassVar[Mapping[str, str]] = {"path": "optimal"}


# ---------------------------------------------------------------------- what a tensor costs

COUNT = """
import json, sys
from commbench.channels.base import Exchange
from commbench.harness.loops import Block, NativeLoop, Stamps
from commbench.harness.rendezvous import join
from commbench.payloads.buffers import allocate
from commbench.registry import usable
sizes, path = json.loads(sys.argv[1]), sys.argv[2]
world, rendezvous = join()
kind = usable("grpc+mpi")
channel = kind.open(world, rendezvous, kind.check_options({"path": path}))
asks = world.rank == 0
exchange = Exchange((1 - world.rank,), 1, 1, asks, not asks, allocate(sizes, 1),
                    allocate(sizes, 1), allocate(sizes, 1), sum(sizes), rendezvous.stop)
loop = NativeLoop(channel, exchange)
rendezvous.barrier()
n = sum(sizes)
if asks:
    block = Block("closed", None, (1,), 0, 20, 0, request_nbytes=n, reply_nbytes=n, timeout_s=20.0,
                  verify_every=True)
else:
    block = Block("serve", "echo", (), 1, 0, 20, request_nbytes=n, timeout_s=20.0,
                  verify_every=True)
loop.run(block, Stamps(20))
channel.settle((1 - world.rank,), 20.0)
loop.close()
counted = rendezvous.allgather(channel.counters())
channel.close()
if asks:
    print(json.dumps({key: sum(each[key] for each in counted) for key in counted[0]}))
rendezvous.barrier()
rendezvous.close()
"""


@needs_hydra
@pytest.mark.parametrize(
    ("path", "sizes", "messages", "copies"),
    [
        # tensor_content, MPI's buffer | parsed, passed by value, the tensor
        ("default", [4096], 1, 5),
        ("default", [1000, 3096], 1, 5),
        ("optimal", [1023], 1, 5),
        # a header and the raw bytes; several buffers are joined and taken apart
        ("optimal", [1024], 2, 0),
        ("optimal", [100, 3996], 2, 2),
    ],
)
def test_messages_and_copies_of_a_tensor(
    path: str, sizes: list[int], messages: int, copies: int
) -> None:
    done = ranks([HYDRA], 2, [sys.executable, "-c", COUNT, json.dumps(sizes), path])
    counted = json.loads(done.stdout)
    tensors = 40  # 20 requests and 20 replies
    assert counted["tensors"] == tensors, done.stderr
    assert counted["responses"] == tensors
    assert counted["contents"] == tensors * (messages - 1)
    assert counted["copied_nbytes"] == tensors * copies * sum(sizes)
    # a request for each; the server asks ahead for one more, unless the case ends before
    assert counted["requests"] in (tensors, tensors + 1)


# ---------------------------------------------------------------------- the command line


@needs_hydra
def test_run_report_and_options_by_the_name_with_a_plus(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    given = ("-C", "tcp,grpc+mpi", "-o", "grpc+mpi:path=optimal", "-o", "grpc+mpi:wait=sleep")
    sizes = ("-m", "1,64K", "-i", "20", "-x", "2", "-n", "2")
    commbench("run", "latency,bandwidth", *given, *sizes, "--output", output).ok()
    rows = [case for case in cases(output) if case["case"]["channel"] == "grpc+mpi"]
    assert len(rows) == 4
    for row in rows:
        assert row["case"]["options"] == {"path": "optimal", "wait": "sleep"}
        assert row["loop"] == "native"
        assert row["channel_info"]["thread_level"] == "serialized"
        assert row["channel_info"]["path"] == "optimal"
    assert {row["delivery"] for row in rows} == {"request", "one-way"}
    assert "grpc+mpi" in commbench("report", output).ok().stdout


@needs_hydra
def test_default_options_are_in_channel_info_only(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    commbench("run", "latency", "-C", "grpc+mpi", "-m", "64", "-i", "20", "--output", output).ok()
    (row,) = cases(output)
    assert row["case"]["options"] == {}
    assert (row["channel_info"]["path"], row["channel_info"]["wait"]) == ("default", "spin")


def test_a_message_that_an_int_cannot_count() -> None:
    done = commbench("run", "latency", "-C", "grpc+mpi", "-m", "2G", "-n", "2")
    done.one_line(2, "-m/--message-size", str(2 << 30), str(MOST_NBYTES), "2 GiB")


@needs_hydra
def test_the_python_loop_is_refused() -> None:
    done = commbench("run", "latency", "-C", "grpc+mpi", "-m", "64", "--loop", "python", "-n", "2")
    done.one_line(2, "--loop python", "grpc+mpi", "native")


def test_an_option_that_does_not_exist() -> None:
    done = commbench("run", "latency", "-C", "grpc+mpi", "-o", "path=shortest", "-n", "2")
    done.one_line(2, "-o path=shortest", "grpc+mpi", "default, optimal")


@needs_hydra
def test_an_mpi_without_threads() -> None:
    words = ("run", "latency", "-C", "grpc+mpi", "-m", "64", "-n", "2")
    done = commbench(*words, MPI4PY_RC_THREAD_LEVEL="single")
    done.one_line(4, "grpc+mpi", "serialized", "single", "MPI4PY_RC_THREAD_LEVEL")


@needs_hydra
@pytest.mark.parametrize("path", ["default", "optimal"])
def test_a_rank_killed(path: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    job = long_job(tmp_path, "grpc+mpi", option=[f"path={path}"])
    running = Running(COMMBENCH, "run", job, "-n", "2", "--in-order", "--output", output)
    in_second_case(running, output)
    running.kill_rank(1)
    running.end(30).one_line(5, f"rank 1 on {socket.gethostname()} was killed by SIGKILL")
    assert len(cases(output)) == 1


# ---------------------------------------------------------------------- control


def control(rank: int, stop: _native.StopFlag) -> Control:
    hosts = ("here", "there")
    return Control("127.0.0.1", "token", rank, hosts, f"worker:0:{rank}", stop)


def test_control_names_and_steps() -> None:
    stop = _native.StopFlag()
    both = [control(rank, stop) for rank in range(2)]
    try:
        addresses = [each.address for each in both]
        assert both[0].connect(addresses, 5.0) == {1: "worker:0:1"}
        assert both[1].connect(addresses, 5.0) == {0: "worker:0:0"}
        with pytest.raises(TransferError, match=r"rank 1 did not end its block within 0\.2 s"):
            both[0].end_step((1,), 0.2)
        both[1].end_step((0,), 5.0)
        stop.set()
        with pytest.raises(Interrupted):
            both[1].end_step((0,), 5.0)
        stop.clear()
        both[1].close()
        with pytest.raises((PeerLost, TransferError)):
            both[0].end_step((1,), 1.0)
    finally:
        for each in both:
            each.close()


@pytest.mark.parametrize("agent", [None, credential_of("guessed", 1), credential_of("token", 2)])
@pytest.mark.parametrize("method", [GET_STATUS, CLEANUP_GRAPH])
def test_control_asks_for_the_token(agent: str | None, method: str) -> None:
    served = control(0, _native.StopFlag())
    options = [("grpc.primary_user_agent", agent)] if agent else []
    try:
        with (
            grpc.insecure_channel(served.address, options=options) as channel,
            pytest.raises(grpc.RpcError) as refused,
        ):
            channel.unary_unary(method)(b"", timeout=5.0)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        served.close()
