"""What runs in the machine: ``python -m commbench.harness.softroce.guest FOLDER``.

It sets up two Soft-RoCE devices and runs the command of ``FOLDER/order.json``; how that ended is in
``FOLDER/ended.json``: ``{"status": 7}``, or ``{"error": "..."}`` when the machine is not as it must
be. Two devices on a veth pair, because one that talks to itself bypasses the queueing discipline
(no packet could be lost), and the rxe of Linux 6.1 does not work in network namespaces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from commbench.harness.softroce.layout import (
    DISK,
    ENDED,
    ENDS,
    HOST,
    HOST_FILES,
    IN_MACHINE,
    ORDER,
    PORTS,
    Order,
)
from commbench.harness.softroce.loss import set_loss
from commbench.harness.sysfs import Tree

_MODULES = ("rdma_rxe", "ib_uverbs", "rdma_ucm", "veth", "sch_netem")
_CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"
_MIRROR = Path("/run/commbench")
_ACTIVE_WITHIN_S = 20.0
_STEP_S = 60.0  # the longest that one ip or modprobe may take


class _NotReady(Exception):
    """Why the machine cannot be used, in one line."""


def main(folder: Path) -> int:
    order = Order(**json.loads((folder / ORDER).read_text("utf-8")))
    os.environ["PATH"] = order.env["PATH"]
    try:
        _cache(order.cached)
        _set_up(order.loss)
        if order.disk:
            _find_disk()
        ended: dict[str, Any] = {"status": _run(order)}
    except _NotReady as error:
        ended = {"error": str(error)}
    (folder / f"{ENDED}.new").write_text(json.dumps(ended), "utf-8")
    (folder / f"{ENDED}.new").rename(folder / ENDED)  # there as a whole or not at all
    return 0


def _cache(folders: list[str]) -> None:
    """Read these folders through a cache; virtme-ng mounts without, and each ``import`` shows it.

    Files that the host changes meanwhile may then be seen as they were.
    """
    _MIRROR.mkdir()
    how = "ro,trans=virtio,version=9p2000.L,access=any,msize=524288,cache=loose"
    _do("mount", "-t", "9p", "-o", how, HOST_FILES, str(_MIRROR))
    for folder in folders:
        _do("mount", "--bind", f"{_MIRROR}{folder}", folder)


def _set_up(loss: float) -> None:
    clock = Tree().text(_CLOCK)
    if clock != "tsc":  # a clock read would cost 950 ns instead of 70
        raise _NotReady(f"its clock source is {clock}, not tsc: its times would mean nothing")
    Path("/proc/sys/kernel/hostname").write_text(HOST)
    _do("modprobe", "-a", *_MODULES)
    _do("ip", "link", "set", "lo", "up")
    first, second = ENDS
    _do("ip", "link", "add", first.interface, "type", "veth", "peer", "name", second.interface)
    for name in ("all", "default", first.interface, second.interface):
        # both ends are in one namespace: what comes in has an address of this host as its source
        Path(f"/proc/sys/net/ipv4/conf/{name}/accept_local").write_text("1")
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
    # reads are answered faster than an emulated processor takes packets in: none is to be dropped
    Path("/proc/sys/net/core/netdev_max_backlog").write_text("65536")
    for end in ENDS:
        _do("ip", "addr", "add", f"{end.address}/24", "dev", end.interface)
        _do("ip", "link", "set", end.interface, "up")
        _do("rdma", "link", "add", end.device, "type", "rxe", "netdev", end.interface)
    for end in ENDS:
        _wait_for_port(end.device)
    if loss:
        set_loss(loss)


def _find_disk() -> None:
    _do("modprobe", "virtio_blk")
    if not Path(DISK).is_block_device():
        raise _NotReady(f"it has no {DISK}")


def _wait_for_port(device: str) -> None:
    deadline = time.monotonic() + _ACTIVE_WITHIN_S
    while "ACTIVE" not in (state := _state(device)):
        if time.monotonic() > deadline:
            raise _NotReady(f"the port of {device} is {state or 'not there'}, not ACTIVE")
        time.sleep(0.05)


def _state(device: str) -> str:
    return Tree().text(f"sys/class/infiniband/{device}/ports/1/state") or ""


def _do(*words: str) -> None:
    print("commbench:", *words, flush=True)  # into the console's log
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_STEP_S, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NotReady(f"{' '.join(words)}: {error}") from None
    if done.returncode:
        why = " ".join(done.stderr.split()) or f"exit {done.returncode}"
        raise _NotReady(f"{' '.join(words)}: {why}")


def _run(order: Order) -> int:
    """The command's status as a shell gives it: 126, 127 it cannot be run, 128 + n signal n."""
    env = {**order.env, IN_MACHINE: "1"}
    with open(_port(PORTS[0]), "wb", 0) as out, open(_port(PORTS[1]), "wb", 0) as err:
        try:
            status = subprocess.run(
                order.argv,
                cwd=order.cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                check=False,
            ).returncode
        except OSError as error:
            line = f"commbench: vm: {error.filename or order.argv[0]}: {error.strerror}\n"
            err.write(os.fsencode(line))
            return 127 if isinstance(error, FileNotFoundError) else 126
    return 128 - status if status < 0 else status


def _port(name: str) -> Path:
    """The device of a virtio port: ``/dev/vport2p1``."""
    for each in Path("/sys/class/virtio-ports").iterdir():
        if (each / "name").read_text().strip() == name:
            return Path("/dev", each.name)
    raise _NotReady(f"no virtio port {name}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
