"""Up, down, status of a local cluster: node 1 is broker and controller, the others are brokers.

The processes stay when ``up`` is over, in sessions of their own.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from commbench.channels.kafka_admin import Admin, require
from commbench.errors import ChannelUnavailable, ClusterFailed, UsageError
from commbench.harness.kafka import maven, state
from commbench.harness.kafka.properties import (
    Credentials,
    Node,
    bootstrap,
    make_nodes,
    server_properties,
)
from commbench.harness.kafka.state import State
from commbench.harness.stoppable import stoppable

MOST_BROKERS = 4
_LOG = "kafka.log"
_LOOK_S = 0.1
_TERM_S = 15.0  # after SIGTERM, before SIGKILL
_KILL_S = 10.0
# Kafka's own settings of the collector (bin/kafka-run-class.sh)
_JVM = (
    *("-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"),
    *("-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent"),
    *("-XX:MaxInlineLevel=15", "-Djava.awt.headless=true"),
)
_QUICK_JVM = ("-Xmx256M", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")


@dataclass(frozen=True, slots=True)
class Spec:
    """What ``up`` is asked for; ``folder`` is absolute. ``heap``: bytes at most of each node."""

    folder: Path
    brokers: int = 1
    version: str = maven.VERSION
    heap: int = 512 << 20
    credentials: Credentials | None = None
    timeout_s: float = 120.0


def default_folder() -> Path:
    """Where a cluster runs when nobody says where."""
    return maven.cache_folder() / "run"


def up(spec: Spec) -> State:
    """Start a cluster and wait until all its brokers answer.

    Raises UsageError when one is running there, ChannelUnavailable for what has to be installed,
    ClusterFailed when it does not come up in time; then nothing of it is left.
    """
    require()
    java = maven.find_java()
    with stoppable("kafka up"):
        libraries = maven.jars(maven.check_version(spec.version))
        with state.locked(spec.folder):
            _refuse_second(spec.folder)
            try:
                return _start(spec, java, libraries)
            except BaseException as error:
                why = _last_words(spec.folder)
                _stop(spec.folder)
                if isinstance(error, ClusterFailed) and why:
                    raise ClusterFailed(f"{error}: {why}") from None
                raise


def down(folder: Path) -> bool:
    """Stop the cluster and remove its data; False when there was none."""
    if not folder.is_dir():
        return False
    with state.locked(folder):
        there = state.read(folder) is not None
        _stop(folder)
        return there


def status(folder: Path) -> State:
    """The cluster in this folder. Raises ChannelUnavailable when none runs, or only a part."""
    found = state.read(folder) if folder.is_dir() else None
    alive = set(state.processes(folder).values())
    if found is None or not alive:
        raise ChannelUnavailable(f"kafka: no cluster runs in {folder}; commbench kafka up")
    if not found.ready:
        raise ChannelUnavailable(f"kafka: the cluster in {folder} is being started")
    lost = sorted(set(range(1, found.brokers + 1)) - alive)
    if lost:
        raise ChannelUnavailable(f"kafka: the cluster in {folder} has lost node {lost[0]}")
    return found


# ---------------------------------------------------------------------- start


def _refuse_second(folder: Path) -> None:
    found = state.read(folder)
    if found is not None and state.processes(folder):
        raise UsageError(
            f"kafka up: a cluster is running in {folder} ({found.client}); "
            f"allowed: one in each --dir; commbench kafka down ends it"
        )
    _stop(folder)


def _start(spec: Spec, java: str, libraries: Path) -> State:
    deadline = time.monotonic() + spec.timeout_s
    nodes = make_nodes(spec.brokers, spec.credentials is not None)
    running = State(
        version=spec.version,
        brokers=spec.brokers,
        bootstrap=bootstrap(nodes),
        sasl_bootstrap=bootstrap(nodes, sasl=True) if spec.credentials else "",
    )
    state.write(spec.folder, running)
    for node in nodes:
        _configure(spec, node, nodes)
    _format(spec, java, libraries, nodes, deadline)
    brokers = [_spawn(spec, java, libraries, node) for node in nodes]
    _wait(running, brokers, deadline, spec.timeout_s)
    running = replace(running, ready=True)
    state.write(spec.folder, running)
    return running


def _configure(spec: Spec, node: Node, nodes: Sequence[Node]) -> None:
    home = state.home(spec.folder, node.number)
    home.mkdir(mode=0o700)
    text = server_properties(node, nodes, home / "data", spec.credentials)
    file = os.open(home / "server.properties", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "w", encoding="utf-8") as properties:
        properties.write(text)


def _format(spec: Spec, java: str, libraries: Path, nodes: Sequence[Node], deadline: float) -> None:
    """Give the storage of all nodes the same cluster id; side by side, each is a JVM."""
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    cluster = f"c{cluster[1:]}"  # Kafka's tools take a leading - for an option
    command = [java, *_QUICK_JVM, "-cp", f"{libraries}/*", "kafka.tools.StorageTool"]
    command += ["format", "-t", cluster, "-c", "server.properties"]
    tools = [_java(command, state.home(spec.folder, node.number)) for node in nodes]
    for tool in tools:
        try:
            code = tool.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise _late(spec.timeout_s, "storage was not formatted") from None
        if code:
            raise ClusterFailed("kafka up: the storage cannot be formatted")


def _spawn(spec: Spec, java: str, libraries: Path, node: Node) -> subprocess.Popen[bytes]:
    heap = spec.heap >> 20
    command = [java, f"-Xms{min(256, heap)}M", f"-Xmx{heap}M", *_JVM]
    command += ["-cp", f"{libraries}/*", "kafka.Kafka", "server.properties"]
    return _java(command, state.home(spec.folder, node.number))


def _java(command: Sequence[str], home: Path) -> subprocess.Popen[bytes]:
    with (home / _LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait(
    running: State, brokers: Sequence[subprocess.Popen[bytes]], deadline: float, timeout_s: float
) -> None:
    """Until every broker is in the metadata; no longer, when one has ended."""
    with contextlib.closing(Admin({"bootstrap.servers": running.bootstrap})) as admin:
        while time.monotonic() < deadline:
            for number, process in enumerate(brokers, start=1):
                if process.poll() is not None:
                    raise ClusterFailed(f"kafka up: node {number} ended by itself")
            if admin.brokers(_LOOK_S * 5) == running.brokers:
                return
            time.sleep(_LOOK_S)
    raise _late(timeout_s, "brokers did not answer")


def _late(timeout_s: float, what: str) -> ClusterFailed:
    return ClusterFailed(f"kafka up: the {what} within {timeout_s:g} s (--timeout)")


def _last_words(folder: Path) -> str:
    """The line of a node's log that says best why it ended, or ""."""
    for log in sorted(folder.glob(f"*/{_LOG}")):
        with contextlib.suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            found = [line for line in lines if re.search(r"ERROR|FATAL|Exception|Error:", line)]
            if found:
                return found[0].strip()[:300]
    return ""


# ---------------------------------------------------------------------- stop


def _stop(folder: Path) -> None:
    """End all processes, the controller last, and remove what they wrote."""
    _end(folder, lambda number: number > 1)
    _end(folder, lambda number: True)
    state.clear(folder)


def _end(folder: Path, which: Callable[[int], bool]) -> None:
    for number, patience_s in ((signal.SIGTERM, _TERM_S), (signal.SIGKILL, _KILL_S)):
        for pid in _alive(folder, which):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while _alive(folder, which) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
    if left := _alive(folder, which):
        raise ClusterFailed(f"kafka down: process {left[0]} cannot be killed")


def _alive(folder: Path, which: Callable[[int], bool]) -> list[int]:
    return [pid for pid, node in state.processes(folder).items() if which(node)]
