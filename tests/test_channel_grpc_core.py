"""The grpc-core channel: the contract in real processes, and what it has alone, over sockets."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from commbench.channels.base import Exchange
from commbench.channels.grpc_core import GrpcCoreChannel
from commbench.channels.grpc_messages import codec_named, credential_of
from commbench.errors import (
    ChannelUnavailable,
    Interrupted,
    PayloadMismatch,
    PeerLost,
    TransferError,
    UsageError,
)
from commbench.harness.loops import Block, NativeLoop, Stamps
from commbench.harness.stop import StopFlag
from commbench.harness.world import World
from commbench.payloads.buffers import Message, allocate
from commbench.results import read
from commbench.testing import ChannelContract
from tests.command import COMMBENCH, ENDS_WITHIN_S, Running, commbench, in_second_case, long_job
from tests.tap import Tap

pytestmark = pytest.mark.skipif(
    GrpcCoreChannel.missing() is not None, reason=GrpcCoreChannel.missing() or ""
)

TOKEN = "5e" * 16
MODES = ("non-serialized", "serialized")
SIZES = (3, 0, 70_000)
HOSTS = ("one", "two")


class TestGrpcCore(ChannelContract):
    channel = "grpc-core"
    loops = ("native",)


class TestGrpcCoreSerialized(ChannelContract):
    channel = "grpc-core"
    loops = ("native",)
    options: ClassVar[Mapping[str, str]] = {"mode": "serialized"}


class TestGrpcCoreConnections(ChannelContract):
    channel = "grpc-core"
    loops = ("native",)
    options: ClassVar[Mapping[str, str]] = {"channels": "3"}


# ---------------------------------------------------------------------- ranks that are threads


class Meeting:
    """What open() needs of a rendezvous, for ranks that are threads of this process."""

    local_address = "127.0.0.1"

    def __init__(self, rank: int, size: int = 1, token: str = TOKEN) -> None:
        self.rank, self.token = rank, token
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(1)

    @classmethod
    def of(cls, size: int, tokens: Mapping[int, str]) -> list[Meeting]:
        meetings = [cls(rank, size, tokens.get(rank, TOKEN)) for rank in range(size)]
        values: list[Any] = [None] * size

        def share() -> None:
            for each in meetings:
                each.gathered = list(values)

        barrier = threading.Barrier(size, share)
        for each in meetings:
            each.values, each.barrier = values, barrier
        return meetings

    def allgather(self, value: Any, timeout_s: float = 60.0) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait(20.0)
        return self.gathered

    gathered: list[Any]


def open_rank(meeting: Meeting, **options: str) -> GrpcCoreChannel:
    world = World(meeting.rank, 2, meeting.rank, 2, "test", HOSTS)
    checked = GrpcCoreChannel.check_options(options)
    return GrpcCoreChannel.open(world, meeting, checked)  # type: ignore[arg-type]


def open_pair(**options: str) -> list[GrpcCoreChannel]:
    meetings = Meeting.of(2, {})
    with ThreadPoolExecutor(2) as pool:
        opened = [pool.submit(open_rank, meeting, **options) for meeting in meetings]
        return [each.result(30.0) for each in opened]


class Rank:
    """One end of a case with one message in flight; blocks run on a thread of their own."""

    def __init__(
        self, channel: GrpcCoreChannel, rank: int, sizes: tuple[int, ...], pool: ThreadPoolExecutor
    ) -> None:
        self.rank, self.pool, self.nbytes = rank, pool, sum(sizes)
        self.stop = StopFlag()
        self.request, self.reply, self.incoming = (allocate(sizes, 1) for _ in range(3))
        exchange = Exchange(
            peers=(1 - rank,),
            window=1,
            reply_every=1,
            asks=rank == 0,
            serves=rank == 1,
            request=self.request,
            reply=self.reply,
            incoming=self.incoming,
            answer_nbytes=self.nbytes,
            stop=self.stop,
        )
        self.loop = NativeLoop(channel, exchange)

    def run(self, count: int = 1, timeout_s: float = 20.0) -> Future[Any]:
        """So many round trips, asked by rank 0 and served by rank 1; each verified on both ends."""
        block = Block(
            kind="serve" if self.rank else "closed",
            handler="echo" if self.rank else None,
            targets=() if self.rank else (1,),
            rank=self.rank,
            count=0 if self.rank else count,
            serve=count if self.rank else 0,
            seed=7,
            number=1,
            request_nbytes=self.nbytes,
            reply_nbytes=self.nbytes,
            verify_every=True,
            timeout_s=timeout_s,
        )
        return self.pool.submit(self.loop.run, block, Stamps(count))


@pytest.fixture(name="pool")
def _pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture(name="ranks")
def _ranks(request: pytest.FixtureRequest, pool: ThreadPoolExecutor) -> Iterator[list[Rank]]:
    channels = open_pair(**getattr(request, "param", {}))
    ranks = [Rank(channel, rank, SIZES, pool) for rank, channel in enumerate(channels)]
    yield ranks
    for rank in ranks:
        rank.stop.set()  # its thread must be out of the engine
    pool.shutdown()
    for channel in channels:
        channel.close()


def both_modes() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ranks", [{"mode": mode} for mode in MODES], indirect=True)


@pytest.mark.native
@both_modes()
def test_round_trips(ranks: list[Rank]) -> None:
    asked, served = [rank.run(20) for rank in ranks]
    assert (asked.result(30).validated, served.result(30).validated) == (20, 20)
    for rank in ranks:
        rank.loop.close()


@pytest.mark.native
@pytest.mark.parametrize("end", ["stop", "deadline"])
@pytest.mark.parametrize("rank", [0, 1])
def test_every_wait_ends(ranks: list[Rank], rank: int, end: str) -> None:
    """Rank 0 asks a server that does nothing; rank 1 serves nobody."""
    waits = ranks[rank].run(timeout_s=0.2 if end == "deadline" else 30.0)
    if end == "stop":
        time.sleep(0.2)
        ranks[rank].stop.set()
    with pytest.raises(Interrupted if end == "stop" else TransferError, match=r"stopped|within"):
        waits.result(5.0)
    ranks[rank].loop.close()  # nothing is left in flight: it would say so


@pytest.mark.native
def test_lost_peer_is_named(ranks: list[Rank]) -> None:
    ranks[1].loop.close()
    ranks[1].loop._channel.close()
    with pytest.raises(PeerLost, match="rank 1 on two is gone"):
        ranks[0].run().result(10.0)


@pytest.mark.native
@pytest.mark.parametrize("count", [1, 3])
def test_connections_are_counted_and_used(count: int, pool: ThreadPoolExecutor) -> None:
    channels = open_pair(channels=str(count))
    try:
        for rank, channel in enumerate(channels):
            came, went = channel.native().came, channel.native().went
            assert [each for each, _ in came] == [each for each, _ in went] == [1 - rank] * count
            assert len({peer for _, peer in came}) == count  # ports
            assert {peer.rpartition(":")[0] for _, peer in came + went} == {"ipv4:127.0.0.1"}
        ranks = [Rank(channel, rank, SIZES, pool) for rank, channel in enumerate(channels)]
        for future in [rank.run(9) for rank in ranks]:
            future.result(30)
    finally:
        for channel in channels:
            channel.close()


# ---------------------------------------------------------------------- strangers


def stranger(address: str, token: str, rank: int = 1) -> Any:
    """A caller of the echo without any code of ours; the context manager of a call."""
    grpc = pytest.importorskip("grpc")
    agent = [("grpc.primary_user_agent", credential_of(token, rank))] if token else []
    options = [*agent, ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(address, options=options)


@pytest.mark.parametrize("token", ["", "00" * 16, TOKEN[:-1], TOKEN + "0"])
@pytest.mark.parametrize("method", ["Ask", "Send", "Hello"])
def test_stranger_is_refused(ranks: list[Rank], token: str, method: str) -> None:
    grpc = pytest.importorskip("grpc")
    served = ranks[1].run()
    with stranger(address_of(ranks[1]), token) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/commbench/{method}")(bytes(ranks[1].nbytes), timeout=10.0)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not served.done()
    ranks[1].stop.set()
    with pytest.raises(Interrupted):
        served.result(5.0)


def test_payload_of_a_stranger_is_not_read(ranks: list[Rank]) -> None:
    grpc = pytest.importorskip("grpc")
    ranks[1].run()
    with (
        Tap(address_of(ranks[1])) as tap,
        stranger(tap.address, "00" * 16) as channel,
        pytest.raises(grpc.RpcError),
    ):
        channel.unary_unary("/commbench/Ask")(bytes(64 << 20), timeout=10.0)
    assert tap.upstream < 16 << 20  # HTTP/2's window (4 MiB), which is sent before the answer comes


@pytest.mark.native
def test_ranks_of_two_runs_do_not_meet() -> None:
    meetings = Meeting.of(2, {1: "00" * 16})
    with ThreadPoolExecutor(2) as pool:
        opened = [pool.submit(open_rank, meeting) for meeting in meetings]
        with pytest.raises(TransferError, match=r"rank [01] on (one|two): .*the run's token"):
            for each in opened:
                each.result(30.0)
        meetings[0].barrier.abort()


def address_of(rank: Rank) -> str:
    return str(rank.loop._channel.describe()["address"])


# ---------------------------------------------------------------------- what is on the wire


def wire(*buffers: bytes) -> bytes:
    """``repeated bytes buffers = 1`` as protobuf.dev describes it."""
    return b"".join(b"\x0a" + varint(len(buffer)) + buffer for buffer in buffers)


def varint(value: int) -> bytes:
    more = value >> 7
    return bytes([value & 127]) if not more else bytes([value & 127 | 128]) + varint(more)


def filled(message: Message) -> list[bytes]:
    message.fill(7, 0, 1)
    return [bytes(view) for view in message.views]


@both_modes()
def test_grpcio_asks(ranks: list[Rank], request: pytest.FixtureRequest) -> None:
    """Bytes without a serializer go in and come out: protobuf's in one mode, ours in the other."""
    served = ranks[1].run()
    buffers = filled(ranks[0].request[0])
    serialized = request.node.callspec.params["ranks"]["mode"] == "serialized"
    message = wire(*buffers) if serialized else b"".join(buffers)
    with stranger(address_of(ranks[1]), TOKEN, rank=0) as channel:
        answer = channel.unary_unary("/commbench/Ask")(message, timeout=10.0)
    assert answer == message
    assert served.result(10.0).validated == 1


@pytest.mark.parametrize("ranks", [{"mode": "serialized"}], indirect=True)
def test_what_is_no_protobuf_is_refused(ranks: list[Rank]) -> None:
    grpc = pytest.importorskip("grpc")
    served = ranks[1].run()
    with (
        stranger(address_of(ranks[1]), TOKEN, rank=0) as channel,
        pytest.raises(grpc.RpcError),
    ):
        channel.unary_unary("/commbench/Ask")(b"\xff" * ranks[1].nbytes, timeout=5.0)
    with pytest.raises(PayloadMismatch, match="rank 0 on one: its request is no protobuf Payload"):
        served.result(10.0)


@pytest.mark.parametrize("mode", MODES)
def test_server_of_the_grpc_channel_answers(mode: str, pool: ThreadPoolExecutor) -> None:
    pytest.importorskip("grpc")
    from commbench.channels.grpc_server import Desk, Listener
    from commbench.harness.handlers import handler_named

    codec = codec_named(mode)
    listener = Listener("127.0.0.1", [], 4, codec, [credential_of(TOKEN, 0)], False)
    slots = allocate(SIZES, 1)
    exchange = Exchange((0,), 1, 1, False, True, (), (), slots, sum(SIZES), StopFlag())
    listener.desk = Desk(codec, exchange, print)
    listener.desk.handle(handler_named("echo"))
    channel = asking(mode, listener.address)
    try:
        assert Rank(channel, 0, SIZES, pool).run(5).result(20.0).validated == 5
    finally:
        channel.close()
        listener.close()


def asking(mode: str, server: str) -> GrpcCoreChannel:
    """Rank 0 alone, connected to a rank 1 that somebody else is."""
    from commbench._grpc_core import Engine

    credentials = [credential_of(TOKEN, rank) for rank in (0, 1)]
    engine = Engine(
        "127.0.0.1", credentials, HOSTS, 0,
        serialized=mode == "serialized", channels=1, arguments=[],
    )  # fmt: skip
    engine.connect([engine.address, server])
    deadline = time.monotonic() + 10.0
    while not engine.connected(0.02):
        assert time.monotonic() < deadline
    return GrpcCoreChannel(engine, GrpcCoreChannel.check_options({"mode": mode}))


@pytest.mark.parametrize("mode", MODES)
def test_bytes_between_two_engines(mode: str, pool: ThreadPoolExecutor) -> None:
    """Through a tap: a buffer is announced by protobuf's tag and length, or by nothing."""
    sizes = (40, 50)
    server, client = open_pair(mode=mode)[1], None
    try:
        with Tap(str(server.describe()["address"])) as tap:
            serving = Rank(server, 1, sizes, pool)
            served = serving.run()
            client = asking(mode, tap.address)
            asker = Rank(client, 0, sizes, pool)
            asker.run().result(20.0)
            served.result(20.0)
            first, second = filled(asker.request[0])
            assert (wire(first, second) in tap.sent) == (mode == "serialized")
            assert (first + second in tap.sent) == (mode == "non-serialized")
    finally:
        server.close()
        if client is not None:
            client.close()


# ---------------------------------------------------------------------- options, what is missing


@pytest.mark.native
@pytest.mark.parametrize(
    "ranks",
    [
        {"minimal_stack": "1", "optimization_target": "throughput", "tcp_zerocopy": "1"},
        {"bdp_probe": "0", "lookahead_bytes": "4194304", "max_frame_size": "1048576"},
    ],
    indirect=True,
)
def test_tuned_channel_carries_data_and_says_how(ranks: list[Rank]) -> None:
    for future in [rank.run(5) for rank in ranks]:
        assert future.result(30).validated == 5
    described = ranks[0].loop._channel.describe()
    assert {"grpc", "protobuf", "mode", "channels", "interface", "mtu"} < set(described)
    assert (described["interface"], described["transport"]) == ("lo", "grpc++")
    tuned = {"minimal_stack", "optimization_target", "tcp_zerocopy"}
    assert tuned < set(described) or {"bdp_probe", "lookahead_bytes"} < set(described)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("channels", "0", "-o channels=0: allowed for channel grpc-core: a number from 1"),
        ("mode", "json", "allowed for channel grpc-core: non-serialized, serialized"),
        ("max_frame_size", "big", "-o max_frame_size=big: allowed for channel grpc-core"),
        ("rpc", "stream", "channel grpc-core has no such option"),
    ],
)
def test_wrong_option(key: str, value: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_rank(Meeting(0), **{key: value})


def test_address_that_is_not_here() -> None:
    meeting = Meeting(0)
    meeting.local_address = "192.0.2.1"
    with pytest.raises(ChannelUnavailable, match=r"grpc-core: cannot listen on 192\.0\.2\.1"):
        open_rank(meeting)


def test_missing_says_what_to_install_and_how_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libgrpc++.so.1.51: cannot open shared object file")

    monkeypatch.setattr("commbench.channels.grpc_core.import_module", broken)
    assert "libgrpc++.so.1.51" in (GrpcCoreChannel.missing() or "")
    monkeypatch.setattr("commbench.channels.grpc_core.find_spec", lambda name: None)
    missing = GrpcCoreChannel.missing() or ""
    assert "apt install libgrpc++-dev" in missing and "pip install --no-binary commbench" in missing
    assert "\n" not in missing


def test_build_goes_on_without_grpc(tmp_path: Path) -> None:
    """CMake on a machine that has neither pkg-config files nor packages of gRPC."""

    root = Path(__file__).parents[1]
    hidden = [f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in ("PkgConfig", "gRPC")]
    cmake = [sys.executable, "-m", "cmake"] if _has_cmake_module() else ["cmake"]
    done = subprocess.run(
        [*cmake, "-S", str(root), "-B", str(tmp_path), f"-DPython_EXECUTABLE={sys.executable}",
         *hidden], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "grpc-core: left out, it needs grpc++ >= 1.51" in done.stdout


def _has_cmake_module() -> bool:
    from importlib.util import find_spec

    return find_spec("cmake") is not None


# ---------------------------------------------------------------------- as people use it


def test_every_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "all.jsonl"
    commbench(
        "run", "latency,bandwidth,bibw,message-rate", "-C", "grpc-core", "-m", "1,64K", "-W", "8",
        "-i", "20", "-x", "2", "--mode", "non-serialized,serialized", "--output", output,
    ).ok()  # fmt: skip
    cases = read(output).cases
    assert len(cases) == 16
    assert all(case["validated"] and case["loop"] == "native" for case in cases)
    assert {case["case"]["mode"] for case in cases} == set(MODES)
    assert {case["channel_info"]["transport"] for case in cases} == {"grpc++"}


def test_both_grpc_channels_in_one_run(tmp_path: Path) -> None:
    """Two gRPC libraries of different versions in one process."""
    pytest.importorskip("grpc")
    output = tmp_path / "two.jsonl"
    commbench(
        "run", "latency", "-C", "grpc,grpc-core", "-m", "64", "-i", "20", "--scheme",
        "contiguous,skew", "--output", output,
    ).ok()  # fmt: skip
    assert len(read(output).cases) == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--loop", "python"], "--loop python: channel grpc-core has native loops only; allowed:"),
        (["-m", "3G"], "3221225472 bytes; allowed for channel grpc-core: 2147483647 bytes"),
    ],
)
def test_what_it_cannot_do_is_said(words: list[str], says: str) -> None:
    size = [] if "-m" in words else ["-m", "64"]
    commbench("run", "latency", "-C", "grpc-core", "--dry-run", *size, *words).one_line(2, says)


def test_all_leaves_it_out_where_only_python_will_do() -> None:
    ended = commbench("run", "latency", "-C", "all", "--loop", "python", "-m", "64", "--dry-run")
    assert ended.exit_code == 0, ended.stderr
    assert "channel grpc-core has native loops only" in ended.stderr
    assert "grpc-core" not in ended.stdout


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_ends_the_run(tmp_path: Path, victim: int) -> None:
    output = tmp_path / "x.jsonl"
    job = long_job(tmp_path, "grpc-core")
    running = Running(COMMBENCH, "run", job, "--in-order", "--output", output)
    in_second_case(running, output)
    running.kill_rank(victim)
    ended = running.end()
    ended.one_line(5, f"rank {victim} on ", "killed by SIGKILL")
    assert ended.elapsed_s < ENDS_WITHIN_S
