"""Real ranks under our launcher, MPICH's, Open MPI's, and on two hosts: what they see and leave."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commbench.errors import ChannelUnavailable
from commbench.harness.launch import Launched, launch, mpiexec
from tests import netns
from tests.ranks import WORKER, command, environment, finish, marked, said, scene, start

HOST = socket.gethostname()
LAUNCHERS = [pytest.param("process"), pytest.param("mpi", marks=pytest.mark.mpi)]
OPEN_MPI = "/usr/bin/mpirun.openmpi"


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    """Put into the environment of what a test starts; nothing with it may stay."""
    made = f"COMMBENCH_TEST_MARK={tmp_path.name}.{os.getpid()}"
    yield made
    deadline = time.monotonic() + 2
    while marked(made) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = marked(made)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "orphans"


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the launcher makes its folder; it must be empty again."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def run(mark: str, name: str, *argv: str, size: int = 3, launcher: str = "process") -> Launched:
    key, value = mark.split("=")
    return scene(name, *argv, size=size, launcher=launcher, **{key: value})


def one_line(done: Launched, text: str, exit_code: int = 5) -> None:
    assert done.stderr.splitlines() == [f"commbench: {text}"]
    assert done.stdout == ""
    assert done.exit_code == exit_code


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_meet(launcher: str, mark: str, private: Path) -> None:
    done = run(mark, "meet", launcher=launcher)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = said(done)
    assert [line["rank"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert [value["rank"] for value in line["values"]] == [0, 1, 2]
        assert line["plan"] == {"plan": 2}
        assert line["address"] == "127.0.0.1"
        assert line["hosts"] == [HOST] * 3
        assert (line["local_rank"], line["local_size"]) == (line["rank"], 3)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("victim", ["0", "1"])
@pytest.mark.parametrize("where", ["stuck", "waiting"])
def test_killed_rank(launcher: str, victim: str, where: str, mark: str, private: Path) -> None:
    """SIGKILL of one, the others at a barrier or where nothing can be noticed."""
    began = time.monotonic()
    done = run(mark, where, victim, launcher=launcher)
    one_line(done, f"rank {victim} on {HOST} was killed by SIGKILL")
    assert time.monotonic() - began < 10


@pytest.mark.mpi
@pytest.mark.parametrize("victim", ["0", "1"])
def test_killed_rank_while_others_are_in_mpi_recv(victim: str, mark: str, private: Path) -> None:
    began = time.monotonic()
    done = run(mark, "mpi_stuck", victim, launcher="mpi")
    one_line(done, f"rank {victim} on {HOST} was killed by SIGKILL")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("code", [2, 4, 5])
def test_first_failure_gives_line_and_code(launcher: str, code: int, mark: str) -> None:
    one_line(run(mark, "failing", str(code), launcher=launcher), "the disk is full", code)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_rank_that_leaves_without_a_word(launcher: str, mark: str) -> None:
    one_line(run(mark, "early", launcher=launcher), f"rank 1 on {HOST} is gone")


def test_rank_that_never_connects(mark: str, private: Path) -> None:
    began = time.monotonic()
    done = run(mark, "absent", "1")
    one_line(done, "rank 1 of 3 did not connect within 3 s")
    assert time.monotonic() - began < 10.5


def test_rank_0_that_never_connects(mark: str, private: Path) -> None:
    done = run(mark, "absent", "0", size=2)
    assert "rank 0 never connected" in done.stderr
    assert done.exit_code == 5


@pytest.mark.mpi
def test_mpi_agrees(mark: str) -> None:
    done = run(mark, "mpi_meet", launcher="mpi")
    assert (done.exit_code, done.stderr) == (0, "")
    assert {line["launcher"] for line in said(done)} == {"mpich"}


def test_timeout(mark: str, private: Path) -> None:
    key, value = mark.split("=")
    done = launch(["sleep"], 2, module=WORKER, env=environment(**{key: value}), timeout_s=2,
                  capture=True)  # fmt: skip
    assert done.stderr == "commbench: not finished within 2 s; all ranks were killed\n"
    assert done.exit_code == 5


def test_module_that_is_not_there(mark: str) -> None:
    done = launch([], 2, module="commbench.no_such", timeout_s=20, capture=True)
    assert done.exit_code == 1
    assert "No module named commbench.no_such" in done.stderr


def test_no_mpiexec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ChannelUnavailable, match=r"pip install 'commbench\[mpich\]'"):
        mpiexec()


# ---------------------------------------------------------------------- signals


def outer(launcher: str, name: str) -> list[str]:
    """A process of its own that calls launch(): the one that gets the signal."""
    code = (
        "import sys; from commbench.harness.launch import launch; sys.exit("
        f"launch([{name!r}], 2, launcher={launcher!r}, module={WORKER!r}).exit_code)"
    )
    return [sys.executable, "-c", code]


def wait_for_ranks(process: subprocess.Popen[str], count: int = 2) -> None:
    assert process.stdout is not None
    for _ in range(count):
        assert "pid" in process.stdout.readline()


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_all(launcher: str, number: int, mark: str) -> None:
    process = start(outer(launcher, "sleep"), **dict([mark.split("=")]))
    wait_for_ranks(process)
    process.send_signal(number)
    done = finish(process, 10)
    one_line(done, "interrupted")


def test_second_signal_kills(mark: str) -> None:
    process = start(outer("process", "deaf"), **dict([mark.split("=")]))
    wait_for_ranks(process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    threading.Timer(0.3, process.send_signal, (signal.SIGINT,)).start()
    one_line(finish(process, 10), "interrupted")
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_killed_launcher_leaves_nobody(launcher: str, mark: str, tmp_path: Path) -> None:
    key, value = mark.split("=")
    process = start(outer(launcher, "sleep"), **{key: value, "TMPDIR": str(tmp_path)})
    wait_for_ranks(process)
    process.kill()
    finish(process)  # the mark's fixture looks for orphans


# ---------------------------------------------------------------------- foreign launchers


@pytest.mark.mpi
def test_mpich_by_pmi(mark: str) -> None:
    """The rendezvous through PMI_FD; MPI_Init works afterwards."""
    done = finish(start([mpiexec(), "-n", "3", *command("mpi_meet")], **dict([mark.split("=")])))
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line["rank"] for line in said(done)] == [0, 1, 2]
    assert {line["launcher"] for line in said(done)} == {"mpich"}
    # not the local launch: addresses that another host could reach, where there are any
    assert len({line["address"] for line in said(done)}) == 1


@pytest.mark.mpi
def test_ranks_that_never_touch_mpi_end_in_order_under_mpich(mark: str) -> None:
    """hydra kills the rest when one exits that said ``init`` and never ``finalize``."""
    words = ["run", "latency", "-C", "tcp", "-m", "64", "-i", "20", "-x", "0"]
    argv = [mpiexec(), "-n", "4", sys.executable, "-m", "commbench", *words]
    done = finish(start(argv, **dict([mark.split("=")])))
    assert done.exit_code == 0, done.stderr
    assert "Killed" not in done.stdout + done.stderr


@pytest.mark.mpi
def test_mpich_and_a_killed_rank(mark: str) -> None:
    began = time.monotonic()
    done = finish(start([mpiexec(), "-n", "3", *command("stuck", "1")], **dict([mark.split("=")])))
    assert done.exit_code != 0
    assert time.monotonic() - began < 10


@pytest.mark.mpi
def test_mpich_and_a_failing_rank(mark: str) -> None:
    """hydra kills the rest as soon as one exits; each must have said its line by then."""
    done = finish(
        start([mpiexec(), "-n", "3", *command("failing", "2")], **dict([mark.split("=")]))
    )
    assert done.exit_code != 0
    assert sorted(done.stderr.splitlines()) == sorted(
        ["commbench: the disk is full"] + [f"commbench: rank 1 on {HOST}: the disk is full"] * 2
    )


@pytest.mark.mpi
def test_open_mpi(mark: str) -> None:
    """No PMI-1: one MPI broadcast through mpi4py, with the launcher's own libmpi."""
    if not os.access(OPEN_MPI, os.X_OK):
        pytest.skip("no Open MPI: apt install openmpi-bin")
    words = [OPEN_MPI, "--allow-run-as-root", "--oversubscribe", "-n", "2", *command("mpi_meet")]
    done = finish(start(words, **dict([mark.split("=")])))
    assert done.exit_code == 0, done.stderr
    assert [line["launcher"] for line in said(done)] == ["openmpi"] * 2


@pytest.mark.mpi
def test_hydra_with_the_wrong_library(mark: str) -> None:
    """Without PMI_FD (as under a launcher of another MPI) the broadcast sees two worlds of one."""
    alone = ["env", "-u", "PMI_FD", "PMI_RANK=0", "PMI_SIZE=2", *command("meet")]
    done = finish(start(alone, **dict([mark.split("=")])))
    assert done.exit_code == 4
    assert "sees rank 0 of 1" in done.stderr
    assert "rank 0 of 2" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("scheduler", ["slurm", "flux"])
def test_job_file_in_a_shared_folder(scheduler: str, tmp_path: Path, mark: str) -> None:
    processes = []
    for rank in range(2):
        env = {
            "slurm": {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7",
                      "SLURM_STEP_ID": "0", "SLURM_SUBMIT_DIR": str(tmp_path)},
            "flux": {"FLUX_TASK_RANK": str(rank), "FLUX_JOB_SIZE": "2", "FLUX_JOB_ID": "f7",
                     "SLURM_SUBMIT_DIR": str(tmp_path)},
        }[scheduler]  # fmt: skip
        processes.append(start(command("meet"), **env, **dict([mark.split("=")])))
    for process in processes:
        done = finish(process)
        assert (done.exit_code, done.stderr) == (0, "")
    assert list(tmp_path.glob(".commbench-*")) == []


@pytest.mark.netns
@pytest.mark.mpi
@pytest.mark.parametrize("name", ["meet", "mpi_meet"])
def test_two_hosts(name: str, tmp_path: Path, mark: str) -> None:
    """mpiexec over two network namespaces: nothing may assume 127.0.0.1."""
    with netns.two_hosts() as hosts:
        script = hosts.launcher_exec(tmp_path)
        hydra = ["-launcher", "ssh", "-launcher-exec", str(script), "-localhost",
                 hosts.addresses[0], "-hosts", ",".join(hosts.addresses), "-n", "2"]  # fmt: skip
        words = [*hosts.inside(0), mpiexec(), *hydra, *command(name)]
        done = finish(start(words, **dict([mark.split("=")])))
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line["address"] for line in said(done)] == list(hosts.addresses)


@pytest.mark.netns
def test_two_hosts_and_two_shells(tmp_path: Path, mark: str) -> None:
    token = str(tmp_path / "token")
    with netns.two_hosts() as hosts:
        extra = dict([mark.split("=")])
        server = start([*hosts.inside(1), *command("serve", hosts.interface, token)], **extra)
        assert server.stdout is not None
        line = server.stdout.readline().split()
        assert line[:3] == ["commbench", "run", "--peer"]
        assert line[3].startswith(hosts.addresses[1] + ":")
        runner = start([*hosts.inside(0), *command("dial", line[3], token)], **extra)
        ends = [finish(runner), finish(server)]
    assert [(done.exit_code, done.stderr) for done in ends] == [(0, "")] * 2
    assert [said(done)[0]["address"] for done in ends] == list(hosts.addresses)
    assert shutil.which("ip")
