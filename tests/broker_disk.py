"""What the machine of ``tests/test_broker_disk.py`` runs: ``-m tests.broker_disk WHAT FILE``.

``load``: two brokers with a replica of each partition on the machine's disk, acks=all, flush
every-record, and two producers that never end. A line on stdout for each acknowledged batch:
partition, base offset, producer, its number. A log without any flush grows beside them; its lines
say ``control`` and where it ends.

``check``: what the logs have after a boot, recovered, into FILE on the host as JSON.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commbench import _native
from commbench.harness.softroce.layout import DISK
from tests.broker_ranks import PRODUCE, WINDOW, Scene, batch, case, request

BROKERS, PRODUCERS, PARTITIONS = 2, (2, 3), 2
RECORDS, RECORD_NBYTES = 2, 100  # of each batch
CONTROL = "control"
_FOLDER = Path("/tmp/disk")
_SAYING = threading.Lock()


def values(producer: int, number: int) -> list[bytes]:
    """The content of the batch with this number, which the host computes as well."""
    draw = random.Random(f"{producer}-{number}")
    return [draw.randbytes(RECORD_NBYTES) for _ in range(RECORDS)]


def digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def mount() -> None:
    # nothing is written back but what is flushed: a record without a flush is lost for certain
    Path("/proc/sys/vm/dirty_writeback_centisecs").write_text("0")
    _FOLDER.mkdir()
    subprocess.run(["mount", "-t", "ext4", DISK, str(_FOLDER)], check=True, timeout=60)


def say(*words: object) -> None:
    line = (" ".join(map(str, words)) + "\n").encode()
    with _SAYING:
        assert os.write(1, line) == len(line)


def produce(scene: Scene, rank: int, control: _native.Log | None) -> None:
    """Five batches are in flight at all times."""
    raw = scene.raw(rank, tuple(range(BROKERS)))
    numbers = itertools.count()
    correlations = [itertools.count() for _ in range(BROKERS)]
    flying: dict[int, int] = {}

    def post(ticket: int) -> None:
        number = flying[ticket] = next(numbers)
        partition = number % PARTITIONS
        leader = partition % BROKERS
        body = batch(values(rank, number), producer=rank, sequence=number)
        raw.post(ticket, request(PRODUCE, next(correlations[leader]), partition, body, -1), leader)

    for ticket in range(WINDOW):
        post(ticket)
    while True:
        for ticket, answer in raw.poll():
            assert answer.error == 0, answer
            say(answer.partition, answer.offset, rank, flying[ticket])
            if control is not None:
                control.append(bytearray(batch(values(rank, flying[ticket]))))
                say(CONTROL, control.next_offset)
            post(ticket)


def load() -> None:
    wanted = case(
        brokers=str(BROKERS), replication=str(BROKERS), producers=str(len(PRODUCERS)),
        partitions=str(PARTITIONS), acks="all", flush="every-record", max_in_flight=str(WINDOW),
        timeout="60s",
    )  # fmt: skip
    control = _native.Log(str(_FOLDER / CONTROL), flush_every=0)
    with Scene(BROKERS + len(PRODUCERS)) as scene:
        bodies: list[Callable[[], Any]] = [
            lambda: scene.serve(0, wanted, _FOLDER, flush_every=1),
            lambda: scene.serve(1, wanted, _FOLDER, flush_every=1),
            lambda: produce(scene, 2, control),
            lambda: produce(scene, 3, None),
        ]
        threads = [threading.Thread(target=ending, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def ending(body: Callable[[], Any]) -> None:
    """None of them may end: the machine is killed before."""
    try:
        body()
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def check(out: Path) -> None:
    found: dict[str, Any] = {}
    for folder in sorted(_FOLDER.iterdir()):
        if folder.name == "lost+found":
            continue
        log = _native.Log(str(folder), flush_every=0 if folder.name == CONTROL else 1)
        found[folder.name] = [] if folder.name == CONTROL else digests(log)
        found[f"{folder.name} ends"] = log.next_offset
        log.close()
    out.write_text(json.dumps(found))


def digests(log: _native.Log) -> list[str]:
    """Of each record, by offset."""
    memory, offset, found = bytearray(1 << 20), 0, []
    while offset < log.next_offset:
        nbytes, offset = log.read(memory, offset)
        at = 0
        while at < nbytes:
            view = memoryview(memory)[at:nbytes]
            for where, _, value in _native.batch_records(view):
                assert where == len(found) and value is not None
                found.append(digest(value))
            at += _native.batch_info(view)["nbytes"]
    return found


if __name__ == "__main__":
    mount()
    if sys.argv[1] == "load":
        load()
    else:
        check(Path(sys.argv[2]))
