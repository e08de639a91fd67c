"""The rendezvous over real sockets: strangers, wrong tokens, missing and lost ranks."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from commbench.errors import CommbenchError, Interrupted, PeerLost, TransferError, UsageError
from commbench.harness import contact as contacts
from commbench.harness.contact import Contact, FileMeeting
from commbench.harness.hub import Hub
from commbench.harness.peer import Serving, dial
from commbench.harness.rendezvous import Rendezvous, enter, join
from commbench.harness.wire import FRAME_LIMIT, Frames, encode
from commbench.harness.world import UNKNOWN, World
from commbench.session import _with_host

_come: list[Rendezvous] = []


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    """Also after a failed test: a rank that has lost the others ends this process."""
    yield
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda rank: rank.close(), _come))
    _come.clear()


@contextlib.contextmanager
def hub(size: int, timeout_s: float = 3.0) -> Iterator[tuple[Hub, Contact]]:
    listeners = contacts.listen(["127.0.0.1"], 0, "--interface")
    contact = Contact(contacts.endpoints(listeners), contacts.new_token())
    made = Hub(listeners, contact.token, size, join_timeout_s=timeout_s)
    try:
        yield made, contact
    finally:
        made.close(0)


def come(rank: int, size: int, contact: Contact, timeout_s: float = 3.0) -> Rendezvous:
    world = World(rank, size, UNKNOWN, UNKNOWN, "env")
    made = enter(world, lambda: contact, time.monotonic() + timeout_s)[1]
    _come.append(made)
    return made


def all_come(size: int, contact: Contact) -> list[Rendezvous]:
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: come(rank, size, contact), range(size)))


def stranger(contact: Contact, data: bytes) -> socket.socket:
    connection = socket.create_connection(contact.endpoints[0], timeout=5)
    if data:
        connection.sendall(data)
    return connection


def dropped(connection: socket.socket) -> bool:
    """Whether the other end hangs up without a byte."""
    with connection, contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def everywhere(ranks: list[Rendezvous], call: Callable[[Rendezvous], object]) -> list[object]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(call, ranks))


def test_gather_barrier_broadcast() -> None:
    with hub(3) as (_, contact):
        ranks = all_come(3, contact)
        assert (
            everywhere(ranks, lambda r: r.allgather({"r": r.rank}))
            == [[{"r": 0}, {"r": 1}, {"r": 2}]] * 3
        )
        assert everywhere(ranks, lambda r: r.broadcast(r.rank * 10, root=2)) == [20] * 3
        for _ in range(50):
            everywhere(ranks, lambda r: r.barrier())
        everywhere(ranks, lambda r: r.close())


def test_large_values() -> None:
    with hub(2) as (_, contact):
        ranks = all_come(2, contact)
        value = "x" * (FRAME_LIMIT // 2 - 200)
        assert everywhere(ranks, lambda r: r.allgather(value) == [value] * 2) == [True, True]
        with pytest.raises(TransferError, match="allgather of 2 ranks: a message of"):
            ranks[0].allgather("x" * FRAME_LIMIT)
        everywhere(ranks, lambda r: r.close())


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 8,
        struct.pack(">Q", 1 << 63) + b"\0" * 64,
        b"0" * 64,  # a token, but not this run's
        os.urandom(4096),
        b"short",
        b"",
    ],
    ids=["http", "2^63", "wrong-token", "random", "short", "nothing"],
)
def test_strangers_are_dropped_and_harmless(garbage: bytes) -> None:
    with hub(2) as (_, contact):
        strange = [stranger(contact, garbage) for _ in range(3)]
        ranks = all_come(2, contact)
        everywhere(ranks, lambda r: r.barrier())
        assert all(dropped(each) for each in strange)
        everywhere(ranks, lambda r: r.close())


def test_silent_strangers_are_dropped_in_seconds() -> None:
    with hub(2, timeout_s=30) as (_, contact):
        began = time.monotonic()
        assert dropped(stranger(contact, b""))
        assert time.monotonic() - began < 4.5


def test_many_strangers_cannot_keep_a_rank_out() -> None:
    with hub(2) as (_, contact):
        strange = [stranger(contact, b"") for _ in range(200)]
        ranks = all_come(2, contact)
        everywhere(ranks, lambda r: r.close())
        for each in strange:
            each.close()


@pytest.mark.parametrize(
    "frame",
    [struct.pack(">Q", 1 << 63), struct.pack(">I", FRAME_LIMIT + 1), struct.pack(">I", 2) + b"{]",
     struct.pack(">I", 100000) + b"[" * 100000, encode({"op": "gather"}), encode({"op": "join"}),
     encode({"op": "join", "rank": "0", "size": 2, "host": "h"})],
    ids=["2^63", "long", "not-json", "deep", "no-join", "no-rank", "text-rank"],
)  # fmt: skip
def test_nonsense_after_the_token(frame: bytes) -> None:
    with hub(2) as (_, contact):
        assert dropped(stranger(contact, contact.token.encode() + frame))
        ranks = all_come(2, contact)
        everywhere(ranks, lambda r: r.close())


def test_nobody_listens_once_all_are_there() -> None:
    with hub(2) as (_, contact):
        ranks = all_come(2, contact)
        with pytest.raises(OSError):
            stranger(contact, b"x")
        everywhere(ranks, lambda r: r.close())


def test_wrong_token_of_a_rank() -> None:
    with hub(2) as (_, contact), pytest.raises(TransferError, match="its token is not the token"):
        come(0, 2, Contact(contact.endpoints, "0" * 64))


def test_wrong_size_and_twice_the_same_rank() -> None:
    with hub(2) as (_, contact), ThreadPoolExecutor() as pool:
        with pytest.raises(UsageError, match="told of 3 ranks, the rendezvous of 2"):
            come(0, 3, contact)
        with pytest.raises(UsageError, match="rank 5 joined twice, or is not one of 2"):
            come(5, 2, contact)
        first = pool.submit(come, 0, 2, contact)
        time.sleep(0.1)
        with pytest.raises(UsageError, match="rank 0 joined twice"):
            come(0, 2, contact)
        second = come(1, 2, contact)
        everywhere([first.result(), second], lambda r: r.close())


def test_missing_ranks_are_named() -> None:
    with hub(4, timeout_s=0.5) as (_, contact), ThreadPoolExecutor() as pool:
        two = [pool.submit(come, rank, 4, contact) for rank in (0, 2)]
        for each in two:
            with pytest.raises(
                TransferError, match=r"ranks 1, 3 of 4 did not connect within 0.5 s"
            ):
                each.result(5)


def test_lost_rank() -> None:
    with hub(3) as (_, contact):
        ranks = all_come(3, contact)
        ranks[1]._connection.shutdown(socket.SHUT_RDWR)  # as the kernel does for a dead process
        for rank in (ranks[0], ranks[2]):
            with pytest.raises(PeerLost, match=f"rank 1 on {socket.gethostname()} is gone"):
                rank.barrier()
            assert rank.stop.is_set
        everywhere(ranks, lambda r: r.close())


def test_failure_is_told_with_its_code() -> None:
    with hub(3) as (_, contact):
        ranks = all_come(3, contact)
        ranks[2].fail("the disk is full", 2)
        for rank in ranks[:2]:
            with pytest.raises(CommbenchError, match=r"rank 2 on .*: the disk is full") as raised:
                rank.allgather(1)
            assert raised.value.exit_code == 2
        everywhere(ranks, lambda r: r.close())


def test_a_rank_that_a_channel_misses_is_named_with_its_host() -> None:
    hosts = ("here", "there", "elsewhere")
    assert _with_host("channel x: rank 2 is gone (why)", hosts) == (
        "channel x: rank 2 on elsewhere is gone (why)"
    )
    assert _with_host("rank 1 on there is gone", hosts) == "rank 1 on there is gone"


def test_of_failures_at_the_same_time_one_is_that_of_all() -> None:
    with hub(3) as (_, contact):
        ranks = all_come(3, contact)
        errors = [TransferError(f"the disk of rank {rank} is full") for rank in range(3)]
        for rank, error in zip(ranks, errors, strict=True):
            rank.fail(str(error))
        ends = [rank.cause(error, 2.0) for rank, error in zip(ranks, errors, strict=True)]
        (first,) = [rank for rank in range(3) if ends[rank] is errors[rank]]
        for rank in {0, 1, 2} - {first}:
            assert f"rank {first} on " in str(ends[rank]) and ends[rank].remote
        everywhere(ranks, lambda r: r.close())


def test_orderly_close_is_no_loss() -> None:
    with hub(2) as (_, contact):
        ranks = all_come(2, contact)
        ranks[1].close()
        time.sleep(0.1)
        ranks[0].check()
        with pytest.raises(TransferError, match="rank 1 has left the run; rank 0 waits at barrier"):
            ranks[0].barrier()
        ranks[0].close()
        ranks[0].close()


def test_different_meetings_are_noticed() -> None:
    with hub(2) as (_, contact), ThreadPoolExecutor() as pool:
        ranks = all_come(2, contact)
        other = pool.submit(ranks[0].barrier)
        time.sleep(0.1)
        with pytest.raises(TransferError, match="rank 1 is at allgather while others are at barr"):
            ranks[1].allgather(1)
        with pytest.raises(TransferError):
            other.result()
        everywhere(ranks, lambda r: r.close())


def test_waits_end() -> None:
    with hub(2) as (_, contact):
        ranks = all_come(2, contact)
        with pytest.raises(TransferError, match=r"rank 0 on .* waited 0.2 s at barrier"):
            ranks[0].barrier(timeout_s=0.2)
        threading.Timer(0.1, ranks[1].stop.set).start()
        with pytest.raises(Interrupted):
            ranks[1].check()
            time.sleep(0.2)
            ranks[1].check()
        ranks[0].stop.set()
        with pytest.raises(Interrupted):
            ranks[0].barrier()
        everywhere(ranks, lambda r: r.close())


def test_idle_ranks_use_no_cpu() -> None:
    with hub(2) as (_, contact):
        ranks = all_come(2, contact)
        everywhere(ranks, lambda r: r.barrier())
        before = time.process_time()
        time.sleep(1.0)
        assert time.process_time() - before < 0.01
        everywhere(ranks, lambda r: r.close())


def test_alone() -> None:
    world, rendezvous = join(environ={})
    assert (world.rank, world.size, world.hosts) == (0, 1, (socket.gethostname(),))
    assert rendezvous.allgather("x") == ["x"]
    rendezvous.close()


def test_host_and_port_with_a_token_file(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    contacts.write_secret(str(secret))
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = contacts.show(*free.getsockname())

    def enter_rank(rank: int) -> tuple[World, Rendezvous]:
        environ = {"COMMBENCH_RANK": str(rank), "COMMBENCH_SIZE": "2"}
        return join(place, token_file=str(secret), join_timeout_s=5, environ=environ)

    with ThreadPoolExecutor() as pool:
        both = list(pool.map(enter_rank, (1, 0)))
    ranks = [rendezvous for _, rendezvous in both]
    assert everywhere(ranks, lambda r: r.allgather(r.rank)) == [[0, 1]] * 2
    assert [(world.local_rank, world.local_size) for world, _ in both] == [(1, 2), (0, 2)]
    everywhere(ranks, lambda r: r.close())


def test_file_is_private_and_removed(tmp_path: Path) -> None:
    meeting = FileMeeting(tmp_path / "rendezvous")
    contact = Contact((("127.0.0.1", 9),), contacts.new_token())
    (tmp_path / "rendezvous").write_text("left by a crash")
    meeting.publish(contact)
    assert (tmp_path / "rendezvous").stat().st_mode & 0o777 == 0o600
    assert FileMeeting(tmp_path / "rendezvous").find(time.monotonic() + 1) == contact
    meeting.close()
    assert list(tmp_path.iterdir()) == []


def test_contact_survives_a_pmi_value() -> None:
    contact = Contact(tuple((f"fd00::{n:x}:1:2:3:4:5", 65535) for n in range(40)), "a" * 64)
    text = contact.encode()
    assert len(text) <= 1000
    assert " " not in text
    assert contact.endpoints[:20] == Contact.decode(text).endpoints[:20]


def _refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as raised:
        call()
    return str(raised.value)


def test_bad_flags_are_named(tmp_path: Path) -> None:
    two = {"COMMBENCH_RANK": "0", "COMMBENCH_SIZE": "2"}
    short = tmp_path / "short"
    short.touch(0o600)
    public = tmp_path / "public"
    public.write_text("x" * 64)
    public.chmod(0o644)
    assert "give --rendezvous" in _refusal(lambda: join(environ=two))
    assert "file:/nowhere" in _refusal(lambda: join("file:/nowhere", environ=two))
    assert "--rendezvous h:0" in _refusal(lambda: join("h:0", environ=two))
    assert "--token-file" in _refusal(lambda: join("h:1", environ=two))
    assert "16 char" in _refusal(lambda: join("h:1", token_file=str(short), environ=two))
    assert "chmod 600" in _refusal(lambda: join("h:1", token_file=str(public), environ=two))
    assert "--join-timeout 0" in _refusal(lambda: join(join_timeout_s=0, environ=two))
    assert "--join-timeout soon" in _refusal(
        lambda: join(environ={**two, "COMMBENCH_JOIN_TIMEOUT": "soon"})
    )
    assert "--interface ib7" in _refusal(lambda: join(interface="ib7", environ={}))
    assert "--peer nowhere" in _refusal(lambda: dial("nowhere", None))
    assert "--port 70000" in _refusal(lambda: Serving(port=70000))


def test_port_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port 127.0.0.1:{port}: Address already in use" in _refusal(
            lambda: Serving("lo", port, str(tmp_path / "token"))
        )
    assert not (tmp_path / "token").exists()


def test_serve_and_dial(tmp_path: Path) -> None:
    serving = Serving("lo", token_file=str(tmp_path / "token"))
    words = serving.line.split()
    assert words[:3] == ["commbench", "run", "--peer"]
    with ThreadPoolExecutor() as pool:
        server = pool.submit(serving.join, 5)
        runner = dial(words[3], words[5])
        worlds, ranks = zip(runner, server.result(), strict=True)
    assert [(world.rank, world.size, world.launcher) for world in worlds] == [
        (0, 2, "peer"), (1, 2, "peer")]  # fmt: skip
    assert ranks[1].local_address == "127.0.0.1"
    plan = everywhere(list(ranks), lambda r: r.broadcast("plan" if r.rank == 0 else None))
    assert plan == ["plan", "plan"]
    everywhere(list(ranks), lambda r: r.close())
    serving.close()
    assert not (tmp_path / "token").exists()


def test_dial_with_another_token(tmp_path: Path) -> None:
    serving = Serving("lo", token_file=str(tmp_path / "token"))
    contacts.write_secret(str(tmp_path / "other"))
    with ThreadPoolExecutor() as pool:
        server = pool.submit(serving.join, 2)
        with pytest.raises(TransferError, match=r"--peer .*: .*refused this rank: its token"):
            dial(serving.line.split()[3], str(tmp_path / "other"))
        with pytest.raises(TransferError, match="rank 0 of 2 did not connect within 2 s"):
            server.result()
    serving.close()


def test_frames_in_pieces() -> None:
    data = encode({"a": 1}) + encode({"b": [None, 2.5, "x"]})
    frames = Frames()
    assert [m for byte in data for m in frames.feed(bytes([byte]))] == [
        {"a": 1}, {"b": [None, 2.5, "x"]}]  # fmt: skip
