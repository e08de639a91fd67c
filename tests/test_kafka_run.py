"""``commbench run broker -C kafka`` as people use it, on the mock cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commbench.channels import kafka_admin
from commbench.harness.kafka.properties import free_ports
from commbench.schema import mismatch
from tests.command import cases, commbench

pytestmark = pytest.mark.skipif(
    kafka_admin.missing() is not None, reason=str(kafka_admin.missing())
)


def ran(output: Path, *argv: object) -> dict[str, Any]:
    commbench("run", "broker", "-C", "kafka", *argv, "--output", output).ok()
    (case,) = cases(output)
    assert mismatch("case", case) is None
    return case


@pytest.mark.parametrize("loop", ["native", "python"])
def test_every_record_is_acknowledged_and_read_back(loop: str, tmp_path: Path) -> None:
    argv = ("--records", 500, "-x", 20, "--producers", 2, "--partitions", 2, "--loop", loop, "-c")
    case = ran(tmp_path / "x.jsonl", *argv)
    assert (case["n"], case["messages"], case["loop"]) == (1000, 1000, loop)
    assert case["nbytes_total"] == 1000 * 100
    assert case["validated_messages"] == 2 * (64 + 520)
    assert case["broker"]["records"] == 2 * 520
    assert [each["role"] for each in case["broker"]["roles"]] == ["none", "producer", "producer"]
    assert case["response_ns"] == case["latency_ns"] and case["delay_ns"]["max"] == 0
    assert case["channel_info"]["cluster"] == "mock"


@pytest.mark.parametrize("acks", ["0", "all"])
def test_replicas_and_an_open_loop(acks: str, tmp_path: Path) -> None:
    who = ("--brokers", 3, "--replication", 3, "--acks", acks)
    case = ran(tmp_path / "x.jsonl", *who, "--records", 300, "-x", 0, "--rate", 2000)
    assert case["n"] == 300 and case["broker"]["offered_per_s"] == 2000
    assert case["response_ns"]["max"] >= case["latency_ns"]["max"]
    assert [each["role"] for each in case["broker"]["roles"]] == ["none"] * 3 + ["producer"]


def test_a_run_by_duration(tmp_path: Path) -> None:
    case = ran(tmp_path / "x.jsonl", "-D", "300ms", "--warmup-time", "100ms", "--record-size", "1K")
    assert case["n"] > 0 and case["nbytes_total"] == 1024 * case["n"]


@pytest.mark.parametrize(
    ("loop", "more"), [("native", ()), ("python", ("-c",)), ("native", ("-c",))]
)
def test_consumers_read_every_record_in_order(
    loop: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    who = ("--producers", 2, "--consumers", 2, "--partitions", 3)
    argv = ("--records", 400, "-x", 50, "--loop", loop, "--rate", 2000, *more)
    case = ran(tmp_path / "x.jsonl", *who, *argv)
    assert (case["n"], case["loop"]) == (800, loop)
    assert case["validated_messages"] == 2 * (64 + (450 if more else 0))
    told = case["broker"]["end_to_end_ns"]
    assert 0 < told["min"] <= told["p50"] < 60e9, "an age, and not a clock reading"
    roles = [each["role"] for each in case["broker"]["roles"]]
    assert roles == ["none", "producer", "producer", "consumer", "consumer"]


def test_consumers_of_a_run_by_duration(tmp_path: Path) -> None:
    argv = ("-D", "500ms", "--warmup-time", "100ms", "--consumers", 1, "--acks", "all")
    case = ran(tmp_path / "x.jsonl", *argv, "--rate", 1000)
    assert 0 < case["broker"]["end_to_end_ns"]["min"] < 60e9
    assert case["broker"]["records"] > case["n"] > 0


def test_what_is_passed_through_is_seen_and_secrets_are_not(tmp_path: Path) -> None:
    config = tmp_path / "login"
    config.write_text("sasl.username=someone\nsasl.password=hunter2\n")
    config.chmod(0o600)
    output = tmp_path / "x.jsonl"
    argv = ("--records", 50, "-o", "compression.type=lz4", "--kafka-config", config)
    case = ran(output, *argv)
    assert case["case"]["options"]["compression.type"] == "lz4"
    assert case["channel_info"]["compression.type"] == "lz4"
    assert case["channel_info"]["sasl.password"] == "(redacted)"
    assert "hunter2" not in output.read_text() and "someone" not in output.read_text()
    assert json.loads(output.read_text().splitlines()[-1])["kind"] == "end"


def test_a_kafka_that_is_not_there() -> None:
    servers = f"127.0.0.1:{free_ports(1)[0]}"
    argv = ("--bootstrap-servers", servers, "--timeout", "1s")
    ended = commbench("run", "broker", "-C", "kafka", *argv)
    ended.one_line(4, f"no broker answers at {servers}")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["latency", "-C", "kafka"], ["-C kafka: allowed for the benchmark broker"]),
        (["broker", "-C", "kafka", "--replication", "2"], ["--replication 2"]),
        (["broker", "-C", "kafka", "--consumers", "2"], ["--consumers 2", "allowed: 0 to 1"]),
        (
            ["broker", "-C", "kafka", "--records-in-flight", "4"],
            ["--records-in-flight 4", "allowed"],
        ),
        (["broker", "-C", "kafka", "--flush", "every-record"], ["--flush every-record", "allowed"]),
        (["broker", "-C", "kafka", "--design", "frieda"], ["--design frieda", "allowed"]),
        (["broker", "-C", "kafka", "--design-option", "polling=on"], ["polling", "allowed"]),
        (["broker", "-C", "kafka", "--log-dir", "logs"], ["--log-dir logs", "allowed"]),
        (
            ["broker", "-C", "kafka", "--log-dir", "logs", "--dry-run"],
            ["--log-dir logs", "allowed"],
        ),
        (["broker", "-C", "kafka", "--bootstrap-servers", "host"], ["--bootstrap-servers host"]),
        (["broker", "-C", "kafka", "-o", "nodots=1"], ["-o nodots=1", "bootstrap_servers"]),
        (["broker", "-C", "kafka", "-o", "acks=1.5"], ["acks"]),
        (["broker", "-C", "kafka", "-o", "linger.ms=5"], ["-o linger.ms=5", "--linger-ms"]),
        (
            ["broker", "-C", "kafka", "-o", "no.such=1"],
            ["-o no.such=1", "No such configuration property"],
        ),
        (["broker", "-C", "kafka", "-o", "sasl.password=x"], ["sasl.password", "--kafka-config"]),
        (["broker", "-C", "kafka", "--kafka-config", "none"], ["--kafka-config none"]),
    ],
)
def test_what_cannot_be_is_one_line(argv: list[str], words: list[str]) -> None:
    commbench("run", *argv).one_line(2, *words)


def test_a_record_that_the_library_refuses() -> None:
    argv = ("--record-size", "4K", "-o", "message.max.bytes=2000", "--records", 10)
    ended = commbench("run", "broker", "-C", "kafka", *argv)
    ended.one_line(5, "records were not acknowledged", "too large")
