"""``commbench kafka`` where nothing is booted: what is missing, what is wrong, what is read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from commbench.channels import kafka_admin
from commbench.errors import TransferError
from commbench.harness.kafka import maven, perf, state
from commbench.harness.kafka.properties import make_nodes, server_properties
from tests.command import commbench

# A first line and a last one of Kafka 4.1, and a last one of the trunk of October 2024.
WINDOW = "50000 records sent, 9999.0 records/sec (0.95 MB/sec), 3.5 ms avg latency, 212.0 ms max"
PERCENTILES = "1 ms 50th, 4 ms 95th, 27 ms 99th, 188 ms 99.9th."
FINAL = (
    f"{WINDOW} latency.\n"
    f"100000 records sent, 88417.329797 records/sec (8.43 MB/sec), 2.31 ms avg latency, "
    f"265.00 ms max latency, {PERCENTILES}\n"
)
STEADY = (
    f"90000 records sent steady state, 88417.3 records/sec (8.43 MB/sec), 2.31 ms avg latency, "
    f"265.00 ms max latency, {PERCENTILES}\n"
)


def test_the_closing_line_in_both_forms() -> None:
    got = perf.parse(FINAL)
    assert (got.records, got.records_per_s, got.mb_per_s) == (100000, 88417.329797, 8.43)
    assert (got.avg_ms, got.max_ms) == (2.31, 265.0)
    assert (got.p50_ms, got.p95_ms, got.p99_ms, got.p999_ms) == (1, 4, 27, 188)
    assert got.windows == (perf.Window(50000, 9999.0, 3.5, 212.0),)
    steady = perf.parse(FINAL + STEADY)
    assert (steady.records, steady.records_per_s) == (90000, 88417.3)


def test_a_run_that_came_to_no_end() -> None:
    with pytest.raises(TransferError, match=r"came to no end: .*TimeoutException: gone"):
        perf.parse(f"{WINDOW} latency.\norg.apache.kafka.common.errors.TimeoutException: gone\n")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["up", "--brokers", "5"], ["--brokers", "5", "1<=x<=4"]),
        (["up", "--version", "3.9.1"], ["--version 3.9.1", "4.0.0 or newer"]),
        (["up", "--version", "../x"], ["--version ../x", "allowed"]),
        (["up", "--heap", "1M"], ["--heap 1M", "allowed"]),
        (["up", "--timeout", "0"], ["--timeout 0", "allowed"]),
        (["up", "--sasl-file", "none"], ["--sasl-file none", "cannot be read"]),
    ],
)
def test_a_bad_flag_is_one_line(argv: list[str], words: list[str]) -> None:
    commbench("kafka", *argv).one_line(2, *words)


def test_nothing_runs(tmp_path: Path) -> None:
    for what in ("status", "down"):
        ended = commbench("kafka", what, "--dir", tmp_path)
        ended.one_line(4, f"no cluster runs in {tmp_path}")
    assert not any(tmp_path.iterdir()) or [each.name for each in tmp_path.iterdir()] == [state.LOCK]


@pytest.mark.skipif(kafka_admin.missing() is not None, reason=str(kafka_admin.missing()))
def test_no_java(tmp_path: Path) -> None:
    ended = commbench("kafka", "up", "--dir", tmp_path, PATH=str(tmp_path), JAVA_HOME="")
    ended.one_line(4, "there is no java", "default-jre-headless")


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)


@pytest.mark.skipif(kafka_admin.missing() is not None, reason=str(kafka_admin.missing()))
def test_a_java_that_is_too_old_and_no_maven(tmp_path: Path) -> None:
    found = {"PATH": str(tmp_path), "JAVA_HOME": "", "XDG_CACHE_HOME": str(tmp_path)}
    program(tmp_path, "java", """print('openjdk version "11.0.2" 2019-01-15')""")
    commbench("kafka", "up", **found).one_line(4, "is Java 11", "needs Java 17 or newer")
    program(tmp_path, "java", """print('openjdk version "21" 2023-09-19')""")
    commbench("kafka", "up", **found).one_line(4, "there is no mvn", "Debian: maven")


@pytest.mark.skipif(kafka_admin.missing() is not None, reason=str(kafka_admin.missing()))
def test_a_maven_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    program(tmp_path, "java", """print('openjdk version "21" 2023-09-19')""")
    program(tmp_path, "mvn", "import sys; print('[ERROR] no such artifact'); sys.exit(1)")
    found = {"PATH": str(tmp_path), "JAVA_HOME": "", "MAVEN_HOME": "", "XDG_CACHE_HOME": str(cache)}
    ended = commbench("kafka", "up", **found)
    ended.one_line(4, f"mvn cannot fetch Kafka {maven.VERSION}: no such artifact")
    assert list((cache / "commbench" / "kafka").iterdir()) == []


@pytest.mark.skipif(kafka_admin.missing() is not None, reason=str(kafka_admin.missing()))
def test_jars_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = """
import pathlib, sys
out = next(a for a in sys.argv if a.startswith("-DoutputDirectory=")).partition("=")[2]
pathlib.Path(out).mkdir()
(pathlib.Path(out) / "kafka-tools-4.1.1.jar").touch()
"""
    program(tmp_path, "mvn", fetch)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MAVEN_HOME", raising=False)
    first = maven.jars("4.1.1")
    assert [each.name for each in sorted(first.glob("*.jar"))] == ["kafka-tools-4.1.1.jar"]
    os.unlink(tmp_path / "mvn")
    assert maven.jars("4.1.1") == first
    assert [each.name for each in first.parent.iterdir()] == ["4.1.1"]


def test_a_folder_with_something_else_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    commbench("kafka", "down", "--dir", tmp_path).one_line(2, f"--dir {tmp_path}", "thesis.tex")
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("text", ["one\n", "a b\nc\n", "a\nb\nc\n", "a\nb;c\n"])
def test_a_bad_sasl_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "sasl"
    path.write_text(text)
    commbench("kafka", "up", "--sasl-file", path).one_line(2, f"--sasl-file {path}", "two lines")


def test_four_nodes_have_one_controller_and_ports_of_their_own() -> None:
    nodes = make_nodes(4, sasl=True)
    ports = {port for node in nodes for port in (node.port, node.sasl_port, node.controller_port)}
    assert len(ports) == 9
    texts = [server_properties(node, nodes, Path("/data"), None) for node in nodes]
    assert [text.count("process.roles=broker,controller\n") for text in texts] == [1, 0, 0, 0]
    for node, text in zip(nodes, texts, strict=True):
        assert f"controller.quorum.voters=1@127.0.0.1:{nodes[0].controller_port}\n" in text
        assert f"advertised.listeners=PLAINTEXT://127.0.0.1:{node.port}\n" in text
        assert "offsets.topic.replication.factor=3\n" in text
