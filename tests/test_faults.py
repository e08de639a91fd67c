"""What happens to a run when something breaks it: exit code, one line, no orphan, what is kept."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from commbench.reports.report import report
from tests.command import (
    COMMBENCH,
    ENDS_WITHIN_S,
    Ended,
    Running,
    cases,
    commbench,
    in_second_case,
    lines,
    long_job,
    until,
)
from tests.mpi_launchers import DEBIAN_MPIRUN, HYDRA, OPENMPI_FLAGS, needs_hydra, needs_openmpi
from tests.ranks import marked

HOST = socket.gethostname()
ECHO = ("run", "latency", "-C", "loopback", "-m", "64", "-i", "200", "-x", "10")
CHANNELS = ["tcp", "grpc", pytest.param("mpi", marks=pytest.mark.mpi)]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "x.jsonl"


def begin(channel: str, output: Path, launcher: tuple[str, ...] = (), **more: object) -> Running:
    """A run in the middle of its second case; the first is in ``output``."""
    job = long_job(output.parent, channel, **more)
    running = Running((*launcher, *COMMBENCH), "run", job, "--in-order", "--output", output)
    in_second_case(running, output)
    return running


def kept(output: Path) -> None:
    """The finished case is in the file, which a report reads and calls cut."""
    assert [line["kind"] for line in lines(output)] == ["run", "case"]
    assert f"{output} is not complete: the run was killed after 1 case" in report([output])


# ---------------------------------------------------------------------- a rank is lost


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_in_a_case(channel: str, victim: int, output: Path) -> None:
    running = begin(channel, output)
    running.kill_rank(victim)
    running.end(30).one_line(5, f"rank {victim} on {HOST} was killed by SIGKILL")
    kept(output)


PS_JOB = """
[global]
benchmark = "ps"
channel = "{channel}"
ps-mode = "push-pull"
workers = 2
message-size = "64K"
[short]
iterations = 10
warmup = 0
[long]
duration = "5m"
"""


def training(channel: str, output: Path) -> Running:
    """A server and two workers, in the middle of the steps of a second case."""
    job = output.with_name("ps.toml")
    job.write_text(PS_JOB.format(channel=channel))
    running = Running(COMMBENCH, "run", job, "--in-order", "--output", output)
    in_second_case(running, output)
    return running


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_server_killed_in_mid_step(channel: str, output: Path) -> None:
    running = training(channel, output)
    running.kill_rank(0)
    running.end(30).one_line(5, f"rank 0 on {HOST} was killed by SIGKILL")
    kept(output)


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_worker_killed_while_the_others_wait_for_its_push(channel: str, output: Path) -> None:
    """Stopped first: the server has the other worker's push and defers its answer."""
    running = training(channel, output)
    os.kill(running.rank(2), signal.SIGSTOP)
    time.sleep(0.5)
    running.kill_rank(2)
    ended = running.end(30)
    ended.one_line(5, f"rank 2 on {HOST} was killed by SIGKILL")
    assert ended.elapsed_s < ENDS_WITHIN_S
    kept(output)


@pytest.mark.parametrize("loop", ["native", "python"])
def test_a_rank_without_a_part_may_be_lost_too(loop: str, output: Path) -> None:
    """Over loopback rank 1 only waits; rank 0 is in a loop that hears nothing of it."""
    running = begin("loopback", output, loop=loop)
    running.kill_rank(1)
    running.end(30).one_line(5, f"rank 1 on {HOST} was killed by SIGKILL")
    kept(output)


@needs_hydra
@pytest.mark.mpi
@pytest.mark.parametrize("channel", ["tcp", "mpi"])
def test_a_rank_killed_under_a_foreign_mpich(channel: str, output: Path) -> None:
    """hydra kills the rest at once, with its own banner and code; the file holds all the same."""
    foreign(begin(channel, output, (str(HYDRA), "-n", "2")), output)


@needs_openmpi
@pytest.mark.mpi
def test_a_rank_killed_under_a_foreign_open_mpi(output: Path) -> None:
    foreign(begin("mpi", output, (DEBIAN_MPIRUN, *OPENMPI_FLAGS, "-n", "2")), output)


def foreign(running: Running, output: Path) -> None:
    running.kill_rank(1)
    done = running.end(30)
    ours = {line for line in done.stderr.splitlines() if line.startswith("commbench: ")}
    assert ours <= {f"commbench: rank 1 on {HOST} is gone"}
    assert done.exit_code != 0
    assert done.elapsed_s < ENDS_WITHIN_S
    assert "Traceback" not in done.stdout + done.stderr
    kept(output)


# ---------------------------------------------------------------------- told to end


@pytest.mark.parametrize(
    ("channel", "number"),
    [
        ("tcp", signal.SIGINT),
        ("tcp", signal.SIGTERM),
        ("grpc", signal.SIGINT),
        pytest.param("mpi", signal.SIGINT, marks=pytest.mark.mpi),
    ],
)
def test_told_to_end(channel: str, number: int, output: Path) -> None:
    """Ctrl-C reaches the whole foreground process group."""
    running = begin(channel, output)
    running.fault()
    os.killpg(running.process.pid, number)
    running.end(30).one_line(5, "interrupted")
    kept(output)


@needs_hydra
@pytest.mark.mpi
def test_ctrl_c_under_a_foreign_launcher(output: Path) -> None:
    running = begin("tcp", output, (str(HYDRA), "-n", "2"))
    running.fault()
    os.killpg(running.process.pid, signal.SIGINT)
    done = running.end(30)
    assert done.exit_code != 0
    assert done.elapsed_s < ENDS_WITHIN_S
    assert "Traceback" not in done.stdout + done.stderr
    kept(output)


def started(running: Running, count: int = 1) -> bool:
    return len(marked(running.mark)) > count


def test_ctrl_c_before_the_ranks_have_met() -> None:
    """The ranks are started with SIGINT blocked: Python alone would say it by a traceback."""
    for delay_s in (0.0, 0.2):
        running = Running(COMMBENCH, "run", "-C", "tcp", "-D", "1m", "-m", "1")
        until(partial(started, running), "no rank was started")
        time.sleep(delay_s)
        running.fault()
        os.killpg(running.process.pid, signal.SIGINT)
        running.end(30).one_line(5, "interrupted")


def test_a_launcher_that_is_killed_leaves_no_rank(output: Path) -> None:
    running = begin("tcp", output)
    running.process.kill()
    running.end(30)  # looks for orphans
    kept(output)


# ---------------------------------------------------------------------- peers that do not fit


def rank(number: int, folder: Path, *argv: object, **env: str) -> Running:
    """One rank by hand, as a scheduler that we do not know would start it."""
    token = folder / f"token{number}"
    token.write_text(env.pop("secret", "a secret that all share"))
    token.chmod(0o600)
    world = {"COMMBENCH_RANK": str(number), "COMMBENCH_SIZE": "2", **env}
    return Running(COMMBENCH, *ECHO, "--token-file", token, *argv, **world)


@pytest.fixture
def place() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yield f"127.0.0.1:{port}"


def test_ranks_by_hand(tmp_path: Path, place: str) -> None:
    one, two = (rank(n, tmp_path, "--rendezvous", place, "-C", "tcp") for n in (0, 1))
    assert "channel=tcp" in one.end().ok().stdout
    assert two.end().ok().stdout == ""


def test_a_peer_that_never_connects(tmp_path: Path, place: str) -> None:
    alone = rank(0, tmp_path, "--rendezvous", place, "--join-timeout", "2")
    alone.end().one_line(5, "rank 1 of 2 did not connect within 2 s")
    other = rank(1, tmp_path, "--rendezvous", place, "--join-timeout", "2")
    other.end().one_line(5, "rank 0 never connected", place)


def test_a_peer_with_a_wrong_token(tmp_path: Path, place: str) -> None:
    flags = ("--rendezvous", place, "--join-timeout", "4")
    right = rank(0, tmp_path, *flags)
    wrong = rank(1, tmp_path, *flags, secret="guessed, not known")
    wrong.end().one_line(5, "refused this rank: its token is not the token of that run")
    right.end().one_line(5, "rank 1 of 2 did not connect within 4 s")


def test_two_shells(tmp_path: Path) -> None:
    token, output = tmp_path / "token", tmp_path / "x.jsonl"
    server = Running(COMMBENCH, "serve", "--interface", "lo", "--token-file", token)
    peer = said(server).split("--peer ")[1].split()[0]
    wrong = tmp_path / "wrong"
    wrong.write_text("0123456789abcdef0123")
    wrong.chmod(0o600)
    line = (*ECHO, "-C", "tcp", "--peer", peer)
    commbench(*line).one_line(2, f"--peer {peer}", "--token-file")
    commbench(*line, "--token-file", wrong).one_line(5, f"--peer {peer}", "token")
    commbench(*line, "--token-file", token, "--output", output).ok()
    server.end().ok()
    assert {case["case"]["channel"] for case in cases(output)} == {"loopback", "tcp"}  # -C twice


def said(running: Running) -> str:
    assert running.process.stdout is not None
    return running.process.stdout.readline()


def test_nobody_serves(tmp_path: Path, place: str) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123")
    token.chmod(0o600)
    done = commbench(*ECHO, "--peer", place, "--token-file", token, "--join-timeout", "2")
    done.one_line(5, f"--peer {place}", "nobody answers")


def test_a_server_without_a_runner(tmp_path: Path) -> None:
    token = tmp_path / "token"
    done = commbench("serve", "--interface", "lo", "--token-file", token, "--wait", "1s")
    done.one_line(5, "did not connect within 1 s")
    assert not token.exists()


# ---------------------------------------------------------------------- strangers

GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 4,
    struct.pack(">Q", 1 << 63) + b"\0" * 120,
    struct.pack("<Q", 1 << 63) + b"\0" * 120,
    b"f" * 64 + struct.pack(">I", 0xFFFFFFFF),
    b"\0",
    b"",
]


def listening(mark: str) -> set[tuple[str, int]]:
    """Where the processes with this mark listen by TCP."""
    inodes = set()
    for pid in marked(mark):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                name = os.readlink(fd)
            except OSError:
                continue
            if name.startswith("socket:["):
                inodes.add(name[8:-1])
    rows = [row.split() for name in ("tcp", "tcp6") for row in _table(name)]
    return {_place(row[1]) for row in rows if row[3] == "0A" and row[9] in inodes}


def _table(name: str) -> list[str]:
    return Path(f"/proc/net/{name}").read_text().splitlines()[1:]


def _place(text: str) -> tuple[str, int]:
    """``0100007F:1F90``; gRPC's sockets are IPv6 with an IPv4 address inside."""
    number, port = text.split(":")
    return socket.inet_ntoa(struct.pack("<I", int(number[-8:], 16))), int(port, 16)


def bother(running: Running, until_s: float) -> int:
    """Send garbage to whatever the run listens on; how many connections took some."""
    strange, count = [], 0
    while running.process.poll() is None and time.monotonic() < until_s:
        for place in listening(running.mark):
            for data in GARBAGE:
                try:
                    connection = socket.create_connection(place, timeout=1)
                    strange.append(connection)
                    connection.sendall(data)
                    count += 1
                except OSError:
                    continue
        time.sleep(0.01)
    for connection in strange:
        connection.close()
    return count


@pytest.mark.parametrize("channel", ["tcp", "grpc"])
def test_strangers_do_no_harm(channel: str, output: Path) -> None:
    """At the rendezvous while the ranks come, and at whatever the channel's blocks listen on."""
    running = Running(COMMBENCH, "run", "latency,bandwidth", "-C", channel, "-m", "1,1K,64K",
                      "-i", "50", "-x", "5", "--shuffle", "all", "--output", output)  # fmt: skip
    until(partial(started, running, 4), "no rank was started")
    late = running.rank(1)
    os.kill(late, signal.SIGSTOP)  # so that rank 0 listens until the strangers were there
    until(partial(listening, running.mark), "rank 0 does not listen")
    took = bother(running, time.monotonic() + 0.5)
    os.kill(late, signal.SIGCONT)
    bother(running, time.monotonic() + 40)
    running.end(30).ok()
    assert took >= len(GARBAGE)
    assert len(cases(output)) == 6
    assert lines(output)[-1]["kind"] == "end"


def test_a_stranger_at_the_rendezvous_does_not_take_a_place(tmp_path: Path, place: str) -> None:
    first = rank(0, tmp_path, "--rendezvous", place, "-C", "tcp")
    host, port = place.split(":")

    def comes() -> bool:
        with socket.socket() as connection:
            return connection.connect_ex((host, int(port))) == 0

    until(comes, "rank 0 does not listen", 10)
    strangers = [socket.create_connection((host, int(port))) for _ in range(80)]
    for number, stranger in enumerate(strangers):
        stranger.sendall(GARBAGE[number % len(GARBAGE)])
    second = rank(1, tmp_path, "--rendezvous", place, "-C", "tcp")
    second.end().ok()
    first.end().ok()
    for stranger in strangers:
        stranger.close()


# ---------------------------------------------------------------------- validation


@pytest.mark.parametrize("loop", ["native", "python"])
@pytest.mark.parametrize("fault", ["flip", "swap", "short", "few", "repeat"])
def test_a_damaged_message_is_exit_5(fault: str, loop: str, output: Path) -> None:
    shape = ("--scheme", "uniform", "--iovec", "2", "--categories", "small")
    argv = ("run", "latency", "-C", "loopback", *shape, "-i", "50")
    done = commbench(*argv, "--loop", loop, "-o", f"fault={fault}", "--output", output)
    lengths = {"short": "19 bytes instead of 20", "few": "10 bytes instead of 20"}
    done.one_line(5, f"rank 0 on {HOST}", lengths.get(fault, " 6 "))
    assert cases(output) == []


@pytest.mark.parametrize("loop", ["native", "python"])
def test_damage_after_the_verified_pass_is_found_under_c(loop: str, output: Path) -> None:
    damage = ("--loop", loop, "-o", "fault=flip", "-o", "fault_at=100")
    commbench(*ECHO, *damage, "--output", output).ok()
    assert [case["validation"] for case in cases(output)] == ["pass"]
    commbench(*ECHO, *damage, "-c").one_line(5, f"rank 0 on {HOST}", "differs")
    every = output.with_name("every.jsonl")
    commbench(*ECHO, "--loop", loop, "-c", "--output", every).ok()
    (case,) = cases(every)
    assert (case["validation"], case["validated"]) == ("every", True)
    assert case["validated_messages"] >= 2 * 210


def test_the_end_of_a_case_is_verified_without_c(output: Path) -> None:
    """The last message of the timed part is looked at in any case."""
    last = 16 + 210 - 1
    done = commbench(*ECHO, "-o", "fault=flip", "-o", f"fault_at={last}", "--output", output)
    done.one_line(5, f"rank 0 on {HOST}", "differs")


def test_cases_before_the_damage_are_kept(output: Path) -> None:
    argv = (
        "run",
        "latency,bandwidth",
        "-C",
        "loopback",
        "-m",
        "1",
        "-i",
        "9",
        "-x",
        "0",
        "--in-order",
    )
    done = commbench(*argv, "-o", "fault=flip", "-o", "fault_at=40", "--output", output)
    done.one_line(5, "differs")
    kept(output)
    assert report([output]) == commbench("report", output).ok().stdout


# ---------------------------------------------------------------------- standstill


@pytest.mark.slow
def test_a_rank_that_stands_still(output: Path) -> None:
    """A stopped process keeps its connections: only the wait without progress tells."""
    running = begin("tcp", output, timeout="2s")
    victim = running.rank(1)
    running.fault()
    os.kill(victim, signal.SIGSTOP)
    done = running.end(40)
    assert done.elapsed_s < 2 + 2 * ENDS_WITHIN_S  # the others' 10 s begin when it is noticed
    Ended(done.exit_code, done.stdout, done.stderr, 0).one_line(
        5, f"rank 0 on {HOST}", "no reply within 2 s", "rank 1"
    )
    kept(output)
