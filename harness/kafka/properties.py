"""What each node of a local cluster is told: a static KRaft quorum of which node 1 is all."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from commbench.errors import UsageError

HOST = "127.0.0.1"
LARGEST_RECORD = 16 << 20  # bytes; Kafka's own limit refuses a payload of 1 MiB


@dataclass(frozen=True, slots=True)
class Credentials:
    """User and password that clients must give (SASL/PLAIN)."""

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Node:
    """One process. ``sasl_port`` is 0 where nobody has to log in; node 1 has the controller."""

    number: int
    port: int
    controller_port: int
    sasl_port: int = 0

    @property
    def controls(self) -> bool:
        return self.number == 1


def make_nodes(brokers: int, sasl: bool) -> list[Node]:
    """Nodes with free ports of the loopback interface."""
    ports = free_ports(1 + brokers * (2 if sasl else 1))
    controller = ports.pop()
    return [
        Node(number, ports.pop(), controller, ports.pop() if sasl else 0)
        for number in range(1, brokers + 1)
    ]


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens at now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def bootstrap(nodes: Sequence[Node], sasl: bool = False) -> str:
    """The bootstrap servers: all nodes, so that a client finds those that are left."""
    return ",".join(f"{HOST}:{node.sasl_port if sasl else node.port}" for node in nodes)


def server_properties(
    node: Node, nodes: Sequence[Node], data: Path, credentials: Credentials | None
) -> str:
    """The text of the node's ``server.properties``."""
    few = min(3, len(nodes))
    client = f"PLAINTEXT://{HOST}:{node.port}"
    if credentials is not None:
        client += f",SASL_PLAINTEXT://{HOST}:{node.sasl_port}"
    controller = f"CONTROLLER://{HOST}:{node.controller_port}"
    lines = {
        "process.roles": "broker,controller" if node.controls else "broker",
        "node.id": node.number,
        "controller.quorum.voters": f"1@{HOST}:{node.controller_port}",
        "listeners": f"{client},{controller}" if node.controls else client,
        "advertised.listeners": client,
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": (
            "PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"
        ),
        "log.dirs": data,
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": few,
        "transaction.state.log.replication.factor": few,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": few,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "log.retention.check.interval.ms": 10_000,  # of topics that keep little: see parity.py
        "message.max.bytes": LARGEST_RECORD,
        "replica.fetch.max.bytes": LARGEST_RECORD,
    }
    if credentials is not None:
        lines["sasl.enabled.mechanisms"] = "PLAIN"
        lines["listener.name.sasl_plaintext.plain.sasl.jaas.config"] = _jaas(credentials)
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def _jaas(credentials: Credentials) -> str:
    user, password = json.dumps(credentials.user), json.dumps(credentials.password)
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    return f"{module} required user_{credentials.user}={password} username={user};"


def read_credentials(path: Path) -> Credentials:
    """User and password from the two lines of a file. Raises UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UsageError(f"--sasl-file {path}: cannot be read: {reason}") from None
    plain = all(line.isascii() and line.isalnum() and len(line) <= 64 for line in lines)
    if len(lines) != 2 or not plain:
        raise UsageError(
            f"--sasl-file {path}: allowed: two lines, a user and a password, "
            f"each of up to 64 letters and digits"
        )
    return Credentials(*lines)
