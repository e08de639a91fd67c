"""Kill a broker at chosen moments: ``python -m tests.broker_kill SEED MOMENTS FOLDER``.

For each moment a leader, its follower and a producer run as processes of their own, acks=all with
flush every-record. A thread of the leader waits until it is in the wanted phase and sends SIGKILL
to its process. Then both logs are opened and compared with what was acknowledged, record by record;
the next moment goes on with the same logs. A line of JSON for each moment.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commbench import _native
from commbench.channels.tcp import UdsChannel
from commbench.harness.broker import ACKS as WIRE_ACKS
from commbench.harness.broker import FETCH_WAIT_NS, BrokerRun, shape
from commbench.payloads.buffers import Message
from commbench.plan import Case
from tests.broker_ranks import case

PHASES = ("append", "flush", "replicate", "answer")
LEADER, FOLLOWER, PRODUCER, SIZE = 0, 1, 2, 3
RECORD_NBYTES = 100
IN_FLIGHT = 16
_TICK = struct.pack("ll", 0, 100_000)
_GIVE_UP_S = 3.0  # then the moment is any

Wires = dict[tuple[int, int], tuple[socket.socket, socket.socket]]


class Wired:
    """What a role needs of a channel: the engine of sockets that are connected already."""

    name = "uds"
    capabilities = UdsChannel.capabilities

    def __init__(self, rank: int, wires: Wires) -> None:
        ask, serve = [-1] * SIZE, [-1] * SIZE
        for (asker, server), (near, far) in wires.items():
            if asker == rank:
                ask[server] = near.fileno()
            elif server == rank:
                serve[asker] = far.fileno()
            if asker != rank:
                near.close()
            if server != rank:
                far.close()
        self.engine = _native.TcpEngine(ask, serve, False)

    def native(self) -> _native.TcpEngine:
        return self.engine


class Alone:
    """What a role needs of a rendezvous."""

    def __init__(self) -> None:
        self.stop = _native.StopFlag()


def connected() -> Wires:
    wires: Wires = {}
    for asker in range(SIZE):
        for server in set(range(SIZE)) - {asker}:
            pair = socket.socketpair()
            for end in pair:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TICK)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TICK)
            wires[asker, server] = pair
    return wires


def role(rank: int, wanted: Case, wires: Wires) -> tuple[BrokerRun, _native.Prepared]:
    run = BrokerRun(wanted, Wired(rank, wires), Alone(), rank)  # type: ignore[arg-type]
    prepared = run.prepare()
    assert prepared is not None
    return run, prepared


def kill_in(phase: str, after: int, address: int, log: _native.Log, tell: int) -> None:
    """Wait for the phase, behind ``after`` batches, and end this process."""
    doing = ctypes.c_int32.from_address(address)
    code = {"append": 1, "flush": 1, "replicate": 2, "answer": 3}[phase]
    deadline = time.monotonic() + _GIVE_UP_S
    while log.counters["batches"] < after and time.monotonic() < deadline:
        pass
    while time.monotonic() < deadline:
        if doing.value != code:
            continue
        if code != 1:
            break
        counted = log.counters
        if (counted["batches"] > counted["fdatasyncs"]) == (phase == "flush"):
            break
    else:
        phase = "none"
    os.write(tell, phase.encode())
    os.kill(os.getpid(), signal.SIGKILL)


def be_broker(
    rank: int, wanted: Case, wires: Wires, folder: Path, tell: int, phase: str, after: int
) -> None:
    run, prepared = role(rank, wanted, wires)
    log = _native.Log(str(folder / f"{rank}"), flush_every=1)
    spec = run.spec
    design = 4 | 8 if "overlapped" in spec.parts else 0
    server = _native.BrokerServer(
        prepared, [log], shape(spec), rank, design, 0, 1 << 16, run.patience_ns(), FETCH_WAIT_NS
    )
    if rank == LEADER:
        arguments = (phase, after, server.phase_address, log, tell)
        threading.Thread(target=kill_in, args=arguments, daemon=True).start()
    server.serve()


def be_producer(wanted: Case, wires: Wires, tell: int) -> None:
    run, prepared = role(PRODUCER, wanted, wires)
    spec = run.spec
    client = _native.BrokerClient(prepared, shape(spec), PRODUCER, run.patience_ns())
    times = [_native.Times() for _ in range(4)]
    facts = client.produce(
        batches=IN_FLIGHT, acks=WIRE_ACKS[spec.acks], record_nbytes=RECORD_NBYTES,
        batch_nbytes=spec.batch_nbytes(RECORD_NBYTES), linger_ns=0, max_in_flight=IN_FLIGHT,
        count=1 << 40, warmup=0, duration_ns=0, warmup_ns=0, schedule=0,
        seed=wanted.payload.seed, flags=1, latency=times[0], delay=times[1], response=times[2],
        window=0, windows=times[3],
        stamps=(0, 0, 0), keep=0,
    )  # fmt: skip
    os.write(tell, json.dumps({name: facts[name] for name in ("records", "acked")}).encode())


def fork(body: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(3)
    return child


def check(log_folder: Path, began: int, wanted: Case) -> dict[str, Any]:
    """How many records of this moment the log has, each as it was produced and in order."""
    log = _native.Log(str(log_folder), flush_every=1)
    memory, offset, found, bad = bytearray(1 << 20), began, 0, 0
    expected = Message([memoryview(bytearray(RECORD_NBYTES))])
    while offset < log.next_offset:
        nbytes, offset = log.read(memory, offset)
        at = 0
        while at < nbytes:
            info = _native.batch_info(memoryview(memory)[at:nbytes])
            for _, _, value in _native.batch_records(memoryview(memory)[at:nbytes]):
                expected.fill(wanted.payload.seed, PRODUCER, found)
                bad += value != bytes(expected.views[0])
                found += 1
            at += info["nbytes"]
    cut = log.recovery.cut_nbytes
    log.close()
    return {"found": found, "bad": bad, "cut": cut}


def next_offset(log_folder: Path) -> int:
    log = _native.Log(str(log_folder))
    try:
        return log.next_offset
    finally:
        log.close()


def moment(index: int, draw: random.Random, folder: Path) -> dict[str, Any]:
    phase, after = PHASES[index % len(PHASES)], draw.randrange(3, 40)
    overlapped = "on" if index % 8 < 4 else "off"
    wanted = case(
        brokers="2", replication="2", partitions="1", acks="all", flush="every-record",
        batch_size="1", max_in_flight=str(IN_FLIGHT), seed=str(1000 + index),
        record_size=str(RECORD_NBYTES), design_option=f"overlapped={overlapped}\nreorder=broker",
        timeout="10s",
    )  # fmt: skip
    # A leader that comes back may have been ahead of its follower: both begin where each ends.
    began = [next_offset(folder / str(rank)) for rank in (LEADER, FOLLOWER)]
    wires = connected()
    told, tell = os.pipe()
    seen, see = os.pipe()
    children = [
        fork(lambda: be_broker(LEADER, wanted, wires, folder, see, phase, after)),
        fork(lambda: be_broker(FOLLOWER, wanted, wires, folder, see, phase, after)),
        fork(lambda: be_producer(wanted, wires, tell)),
    ]
    for pair in wires.values():
        for end in pair:
            end.close()
    os.close(tell)
    os.close(see)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    facts = json.loads(os.read(told, 1 << 16) or b"{}")
    result = {
        "moment": index,
        "wanted": phase,
        "phase": os.read(seen, 64).decode(),
        "killed": os.WIFSIGNALED(statuses[0]) and os.WTERMSIG(statuses[0]) == signal.SIGKILL,
        "behind": began[0] - began[1],
        **facts,
        "leader": check(folder / str(LEADER), began[0], wanted),
        "follower": check(folder / str(FOLLOWER), began[0], wanted),
    }
    os.close(told)
    os.close(seen)
    return result


def main() -> None:
    seed, moments, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    draw = random.Random(seed)
    for index in range(moments):
        print(json.dumps(moment(index, draw, folder)), flush=True)


if __name__ == "__main__":
    main()
