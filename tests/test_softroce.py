"""``commbench vm run`` from outside: a whole boot, and how it ends when something goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from commbench.errors import MachineFailed, MachineUnavailable
from commbench.harness.softroce import image, machine, virtme
from tests.command import COMMBENCH, Running, commbench, until
from tests.ranks import marked

BOOT_S = 300  # under load; 20 on an idle machine


def _missing() -> str | None:
    try:
        image.find()
    except MachineUnavailable as error:
        return str(error)
    return None


MISSING = _missing()
bootable = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command is run in, and one for what the machine needs meanwhile."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it remembers
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def left(work: Path) -> list[str]:
    """What a run has left in the folder for temporary files."""
    return sorted(str(each.relative_to(work.parent)) for each in (work.parent / "tmp").rglob("*"))


# ---------------------------------------------------------------------- a whole boot

SCRIPT = """
import os, pathlib, subprocess, sys
pathlib.Path("back").write_text(os.environ["COMMBENCH_TEST_WORD"])
pathlib.Path(sys.argv[1], "also").write_text(repr(sys.argv[2:]))
pathlib.Path("/tmp/commbench-stays-inside").write_text("")
for end in ("veth0", "veth1"):
    assert b"loss 2.5%" in subprocess.check_output(["tc", "qdisc", "show", "dev", end])
os.write(2, b"to stderr\\n")
for number in range(1 << 18):
    print(number)
sys.exit(7)
"""


@bootable
@pytest.mark.slow
@pytest.mark.timeout(BOOT_S + 30)
def test_a_command_in_the_machine(work: Path, tmp_path: Path) -> None:
    """Its folder, arguments, environment, both streams and status are as without a machine."""
    (work / "script.py").write_text(SCRIPT)
    more = tmp_path / "more"
    more.mkdir()
    words = ["two  words", "$HOME", "'", "ünï", "--loss", ""]
    flags = ["--timeout", f"{BOOT_S}s", "--writable", more, "--keep-console", "console"]
    flags += ["--loss", "2.5"]
    command = [sys.executable, "script.py", more, *words]
    running = Running(COMMBENCH, "vm", "run", *flags, "--", *command, COMMBENCH_TEST_WORD="word")
    ended = running.end(BOOT_S + 20)
    assert (ended.exit_code, ended.stderr) == (7, "to stderr\n")
    assert ended.stdout == "".join(f"{number}\n" for number in range(1 << 18))
    assert (work / "back").read_text() == "word"
    assert (more / "also").read_text() == repr(words)
    assert not Path("/tmp/commbench-stays-inside").exists()
    assert "Power down" in (work / "console").read_text(errors="replace")
    assert left(work) == []


# ---------------------------------------------------------------------- no boot to the end


def booting(*flags: object) -> Running:
    """A machine whose QEMU runs."""
    running = Running(COMMBENCH, "vm", "run", *flags, "--", "true")
    until(lambda: qemu(running), running.process.args, 20)
    return running


def qemu(running: Running) -> list[int]:
    names = {pid: Path(f"/proc/{pid}/comm") for pid in marked(running.mark)}
    return [pid for pid, comm in names.items() if comm.exists() and "qemu" in comm.read_text()]


@bootable
def test_the_deadline(work: Path) -> None:
    """No process is left (``end`` looks for it); the console is, and the line names it."""
    running = booting("--timeout", "8s")
    running.fault()
    ended = running.end(30)
    ended.one_line(5, "not finished within 8 s (--timeout)", "console.log")
    (log,) = (each for each in left(work) if each.endswith("console.log"))
    assert ended.stderr.rstrip().endswith(str(work.parent / log))
    assert [each for each in left(work) if "commbench-vm-" in each] == [str(Path(log).parent), log]


@bootable
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal(work: Path, number: signal.Signals) -> None:
    running = booting()
    running.fault()
    running.process.send_signal(number)
    running.end(20).one_line(5, f"stopped by {number.name}")
    assert left(work) == []


@bootable
def test_killed(work: Path) -> None:
    """QEMU dies with it; ``end`` looks for what is left."""
    running = booting("--keep-console", "console")
    running.process.kill()
    assert running.end(20).exit_code == -signal.SIGKILL


@bootable
def test_a_kernel_that_is_none(work: Path, tmp_path: Path) -> None:
    """What QEMU has to say is in the log, and not between the command's lines."""
    version = image.find().version
    (work / f"vmlinuz-{version}").write_bytes(b"no kernel")
    ended = commbench("vm", "run", "--kernel", f"vmlinuz-{version}", "--", "true")
    ended.one_line(5, "the machine ended before the command did")
    log = Path(ended.stderr.split()[-1])
    assert "qemu" in log.read_text(errors="replace")


# ---------------------------------------------------------------------- a virtme-run that is none


def pretend(folder: Path, script: str) -> virtme.Machine:
    """A machine whose virtme-run is a shell script; its TMPDIR is what host and guest share."""
    program = folder / "virtme-run"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    setpriv = Path(shutil.which("setpriv") or "setpriv")
    none = Path("/bin/false")
    return virtme.Machine(image.Image(program, none, setpriv, none, "6.1.0"), timeout_s=20)


@pytest.mark.parametrize("status", [0, 1, 127, 255])
def test_the_status_is_the_commands(work: Path, tmp_path: Path, status: int) -> None:
    script = f"""echo '{{"status": {status}}}' > "$TMPDIR/ended.json"; exit 3"""
    assert machine.run(pretend(tmp_path, script), ["true"]) == status
    assert left(work) == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("""echo '{"error": "no tsc"}' > "$TMPDIR/ended.json" """, "no tsc"),
        ("""echo '{"status": "seven"}' > "$TMPDIR/ended.json" """, ".*seven.*"),
        ("""echo '[1]' > "$TMPDIR/ended.json" """, r"\[1\]"),
        ("""printf '{"sta' > "$TMPDIR/ended.json" """, "the machine ended before the command did"),
        ("exit 0", "the machine ended before the command did"),
    ],
)
def test_a_machine_that_failed(work: Path, tmp_path: Path, script: str, words: str) -> None:
    """The log holds what was said there; nothing else is left, and not the environment."""
    with pytest.raises(MachineFailed, match=rf"vm: {words}; the console is in ") as raised:
        machine.run(pretend(tmp_path, f"echo booting; mkdir $TMPDIR/junk; {script}"), ["true"])
    log = Path(str(raised.value).split()[-1])
    assert log.read_text() == "booting\n"
    assert list(log.parent.iterdir()) == [log]


def test_only_the_user_can_read_the_environment(work: Path, tmp_path: Path) -> None:
    script = """stat -c '%a' "$TMPDIR" "$TMPDIR/order.json" > modes; false"""
    with pytest.raises(MachineFailed):
        machine.run(pretend(tmp_path, script), ["true"])
    assert (work / "modes").read_text() == "700\n600\n"


# ---------------------------------------------------------------------- before any boot


def host(root: Path, *versions: str, without_rxe: tuple[str, ...] = ()) -> Path:
    """A made-up host with these kernels."""
    (root / "boot").mkdir()
    for version in (*versions, *without_rxe):
        (root / "boot" / f"vmlinuz-{version}").write_bytes(b"")
        module = root / "lib/modules" / version / f"{image.RXE}.xz"
        module.parent.mkdir(parents=True)
        if version in versions:
            module.write_bytes(b"")
    return root


@bootable
def test_the_newest_kernel_that_has_the_device(tmp_path: Path) -> None:
    root = host(tmp_path, "6.1.0-9-amd64", "6.1.0-56-amd64", without_rxe=("6.9.0-cloud-amd64",))
    found = image.find(root=root)
    assert (found.version, found.kernel) == ("6.1.0-56-amd64", root / "boot/vmlinuz-6.1.0-56-amd64")
    assert image.find("6.1.0-9-amd64", root).version == "6.1.0-9-amd64"
    assert image.find(str(root / "boot/vmlinuz-6.1.0-9-amd64"), root).version == "6.1.0-9-amd64"


@bootable
@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (None, ["no kernel with rdma_rxe", "6.9.0-cloud-amd64", "apt-get install linux-image"]),
        ("6.9.0-cloud-amd64", ["--kernel 6.9.0-cloud-amd64", "no rdma_rxe"]),
        ("5.0", ["--kernel 5.0", "no such file or version", "6.9.0-cloud-amd64"]),
    ],
)
def test_a_kernel_without_the_device(tmp_path: Path, kernel: str | None, words: list[str]) -> None:
    root = host(tmp_path, without_rxe=("6.9.0-cloud-amd64",))
    with pytest.raises(MachineUnavailable) as raised:
        image.find(kernel, root)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize("command", [("check",), ("run", "--", "true")])
@pytest.mark.parametrize(
    ("name", "package"),
    [each for each in image.TOOLS if each[0] in ("qemu-system-x86_64", "busybox", "setpriv")],
)
def test_a_missing_tool(tmp_path: Path, name: str, package: str, command: tuple[str, ...]) -> None:
    """One line that says which, and what brings it."""
    for tool, _ in image.TOOLS:
        if tool != name:
            (tmp_path / tool).symlink_to("/bin/true")
    ended = commbench("vm", *command, PATH=str(tmp_path))
    ended.one_line(4, f"no {name} on PATH", f"apt-get install {package}")


def test_no_virtme_ng(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool, _ in image.TOOLS:
        (tmp_path / tool).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MachineUnavailable, match=r"pip install 'commbench\[vm\]'"):
        image.find(root=host(tmp_path, "6.1.0-9-amd64"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--loss", "101"], ["--loss 101", "0 to 100"]),
        (["--loss", "nan"], ["--loss nan"]),
        (["--memory", "64K"], ["--memory 64K", "too small"]),
        (["--timeout", "soon"], ["--timeout soon"]),
        (["--cpus", "0"], ["--cpus"]),
        (["--writable", "nowhere"], ["--writable", "nowhere"]),
        (["--disk", "nowhere"], ["--disk", "nowhere"]),
    ],
)
def test_a_wrong_flag(flags: list[str], words: list[str]) -> None:
    commbench("vm", "run", *flags, "--", "true").one_line(2, *words)


def test_no_command() -> None:
    commbench("vm", "run").one_line(2, "COMMAND")


@bootable
def test_a_console_that_is_there(work: Path) -> None:
    (work / "log").write_text("precious")
    commbench("vm", "run", "--keep-console", "log", "--", "true").one_line(2, "log", "exists")
    assert (work / "log").read_text() == "precious"


@bootable
@pytest.mark.parametrize(
    ("name", "nbytes", "words"),
    [("empty", 0, ["it is empty", "truncate"]), ("a,b", 512, ["no space, comma"])],
)
def test_a_disk_that_cannot_be(work: Path, name: str, nbytes: int, words: list[str]) -> None:
    (work / name).write_bytes(bytes(nbytes))
    commbench("vm", "run", "--disk", name, "--", "true").one_line(2, "--disk", name, *words)


@bootable
@pytest.mark.parametrize("name", ["two words", "a,b", "a=b", 'a"b'])
def test_a_folder_that_cannot_be_shared(work: Path, name: str) -> None:
    (work / name).mkdir()
    os.chdir(work / name)  # the fixture goes back
    commbench("vm", "run", "--", "true").one_line(2, name, "allowed: ")


@bootable
def test_the_root_folder() -> None:
    os.chdir("/")
    commbench("vm", "run", "--", "true").one_line(2, "any but /")
