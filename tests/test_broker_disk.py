"""A machine that loses its memory under load loses no record that was acknowledged.

SIGKILL of a broker leaves the page cache alive, so here the machine is killed: the logs lie on a
disk of its own, written past the host's cache.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker_disk import BROKERS, CONTROL, PARTITIONS, PRODUCERS, digest, values
from tests.command import COMMBENCH, Running
from tests.test_softroce import BOOT_S, bootable, qemu

ROOT = Path(__file__).parent.parent
ACKNOWLEDGED = 300  # batches, then the machine is killed
DISK_NBYTES = 256 << 20


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty file system in a file."""
    made = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if made is None:
        pytest.skip("no mkfs.ext4; apt-get install e2fsprogs")
    file = tmp_path / "disk"
    with file.open("xb") as empty:
        empty.truncate(DISK_NBYTES)
    try:
        os.close(os.open(file, os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip(f"the file system of {tmp_path} has no O_DIRECT; set --basetemp")
    subprocess.run([made, "-q", "-F", str(file)], check=True, timeout=60, capture_output=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return file


def boot(disk: Path, *words: object) -> Running:
    flags = ("--timeout", f"{BOOT_S}s", "--disk", disk)
    command = (sys.executable, "-m", "tests.broker_disk", *words)
    return Running(COMMBENCH, "vm", "run", *flags, "--", *command, PYTHONPATH=str(ROOT))


def said(running: Running) -> Iterator[bytes]:
    """Pieces of what the machine says, as they come."""
    assert running.process.stdout is not None
    descriptor, deadline = running.process.stdout.fileno(), time.monotonic() + BOOT_S
    while (left := deadline - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            piece = os.read(descriptor, 1 << 16)
            assert piece, running.end()
            yield piece
    raise AssertionError("the machine did not come so far")


def killed_under_load(disk: Path) -> list[list[str]]:
    """The words of each line that had left the machine before it died."""
    running, heard = boot(disk, "load"), b""
    for piece in said(running):
        heard += piece
        if heard.count(b"\n") >= 2 * ACKNOWLEDGED:
            break
    (pid,) = qemu(running)
    os.kill(pid, signal.SIGKILL)
    running.fault()
    ended = running.end(60)
    ended.one_line(5, "the machine ended before the command did")
    text = heard.decode() + ended.stdout
    return [line.split() for line in text[: text.rindex("\n")].splitlines()]


@bootable
@pytest.mark.slow
@pytest.mark.timeout(2 * BOOT_S + 60)
def test_every_acknowledged_record_is_there_after_the_machine_was_killed(
    disk: Path, tmp_path: Path
) -> None:
    """On the leader and on its follower, by content. A log beside them that is never flushed shows
    that the kill does tell them apart."""
    lines = killed_under_load(disk)
    boot(disk, "check", "found.json").end(BOOT_S + 20).ok()
    found = json.loads((tmp_path / "work" / "found.json").read_text())
    acknowledged = [[int(word) for word in words] for words in lines if words[0] != CONTROL]
    assert len(acknowledged) >= ACKNOWLEDGED / 2
    assert {words[2] for words in acknowledged} == set(PRODUCERS)
    assert {words[0] for words in acknowledged} == set(range(PARTITIONS))
    for partition, offset, producer, number in acknowledged:
        wanted = [digest(value) for value in values(producer, number)]
        for rank in range(BROKERS):
            there = found[f"{rank}-{partition}"]
            assert there[offset : offset + len(wanted)] == wanted, (rank, partition, offset)
    unflushed = max(int(words[1]) for words in lines if words[0] == CONTROL)
    assert found.get(f"{CONTROL} ends", 0) < unflushed
