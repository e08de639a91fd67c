"""A real Kafka: up, records from both loops, credentials, faults, down. One boot for most of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from commbench.channels import kafka_admin
from commbench.channels.kafka_admin import Admin
from commbench.channels.kafka_producer import open_producer
from commbench.channels.kafka_records import Delivered, Places, RecordBlock, Values
from commbench.channels.kafka_settings import KafkaSettings
from commbench.channels.kafka_site import Site
from commbench.errors import ChannelUnavailable, TransferError
from commbench.harness.block import Stamps
from commbench.harness.kafka import maven, perf, state
from commbench.harness.stop import StopFlag
from commbench.schema import mismatch
from tests.command import COMMBENCH, Running, cases, commbench, in_second_case, lines, until

USER, PASSWORD = "someone", "Secret123"
TOOL = {"acks": "1", "linger.ms": "0", "batch.size": "16384", "enable.idempotence": "false"}
LOGIN = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": USER}


def missing() -> str | None:
    """None where a cluster can be booted, else why not."""
    if shutil.which("java") is None:
        return "there is no java (Debian: default-jre-headless)"
    if maven.fetched(maven.VERSION) is None:
        return "Kafka's jars are not in the cache: commbench kafka fetch"
    return kafka_admin.missing()


pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.timeout(180),
]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What ``commbench kafka up`` made. ``servers``: where nobody has to log in."""

    folder: Path
    login: str
    servers: str

    def settings(self, **more: object) -> KafkaSettings:
        made = KafkaSettings(record_nbytes=100, bootstrap_servers=self.servers, timeout_s=20)
        return replace(made, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("kafka") / "run"
    sasl = folder.parent / "sasl"
    sasl.write_text(f"{USER}\n{PASSWORD}\n")
    try:
        command = [*COMMBENCH, "kafka", "up", "--dir", folder, "--sasl-file", sasl]
        # not by the helper of other tests: what stays behind is an orphan to it, and is killed
        ended = subprocess.run(command, capture_output=True, text=True, timeout=150)
        assert ended.returncode == 0, ended.stderr
        made = state.read(folder)
        assert made is not None
        assert ended.stdout == f"{made.client}\n", "the bootstrap servers are the only line"
        yield Cluster(folder, made.sasl_bootstrap, made.bootstrap)
    finally:
        commbench("kafka", "down", "--dir", folder)


def produce(site: Site, loop: str, count: int = 200, **more: object) -> Delivered:
    values = Values(site.settings.record_nbytes, 64, seed=1, sender=0, first=0)
    made = RecordBlock(count, values, partitions=site.settings.partitions, timeout_s=20)
    producer, reason = open_producer(site.settings.producer(site.servers), site.topic, loop)
    assert producer.loop == loop, reason
    with contextlib.closing(producer):
        return producer.run(replace(made, **more), Stamps(count), StopFlag())  # type: ignore[arg-type]


@pytest.mark.parametrize("loop", ["native", "python"])
@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_records_arrive_as_they_were_produced(cluster: Cluster, loop: str, acks: str) -> None:
    with contextlib.closing(Site(cluster.settings(acks=acks, partitions=2))) as site:
        values = Values(100, 64, seed=5, sender=2, first=1)
        places = Places(64)
        produce(site, loop, 64, values=values, places=places, window=16).check()
        assert site.read_back(values, places) == 64
        assert site.describe()["cluster"] == "kafka"


def test_the_topic_goes_with_the_site(cluster: Cluster) -> None:
    with contextlib.closing(Site(cluster.settings())) as site:
        topic = site.topic
    with contextlib.closing(Admin({"bootstrap.servers": cluster.servers})) as admin:
        until(lambda: topic not in admin._metadata(5, None).topics, "the topic is there", 10)


def test_up_status_and_a_second_up(cluster: Cluster, tmp_path: Path) -> None:
    status = commbench("kafka", "status", "--dir", cluster.folder).ok()
    assert status.stdout == f"{cluster.login}\n"
    second = commbench("kafka", "up", "--dir", cluster.folder)
    second.one_line(2, "a cluster is running", cluster.login)
    modes = [each.stat().st_mode & 0o77 for each in cluster.folder.rglob("server.properties")]
    assert modes == [0], "it has the password"


def test_credentials(cluster: Cluster) -> None:
    good = {**LOGIN, "sasl.password": PASSWORD}
    settings = cluster.settings(bootstrap_servers=cluster.login, given=good)
    with contextlib.closing(Site(settings)) as site:
        produce(site, "native").check()
        assert PASSWORD not in repr(site.describe()) + repr(settings)


@pytest.mark.parametrize("loop", ["native", "python"])
def test_wrong_credentials(cluster: Cluster, loop: str) -> None:
    bad = {**LOGIN, "sasl.password": "Wrong456"}
    settings = cluster.settings(bootstrap_servers=cluster.login, given=bad)
    began = time.monotonic()
    with pytest.raises(
        ChannelUnavailable, match=r"refuses the credentials: .*uthentication"
    ) as said:
        Site(settings)
    assert "Wrong456" not in str(said.value)
    with contextlib.closing(Site(cluster.settings())) as site:  # its topic is there
        values = Values(100, 1, seed=1, sender=0, first=0)
        producer, _ = open_producer(settings.producer(cluster.login), site.topic, loop)
        with contextlib.closing(producer), pytest.raises(ChannelUnavailable, match=r"credentials"):
            producer.run(RecordBlock(5, values, timeout_s=15), Stamps(5), StopFlag())
    assert time.monotonic() - began < 30


def login_file(folder: Path, password: str) -> Path:
    path = folder / "login.properties"
    given = {**LOGIN, "sasl.password": password}
    path.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    path.chmod(0o600)
    return path


def test_the_benchmark_logs_in_and_tells_nobody(cluster: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    argv = ["--bootstrap-servers", cluster.login, "--kafka-config", login_file(tmp_path, PASSWORD)]
    argv += ["--records", 2000, "--producers", 2, "--acks", "all", "--partitions", 2]
    commbench("run", "broker", "-C", "kafka", *argv, "--output", output).ok()
    (case,) = cases(output)
    assert mismatch("case", case) is None
    assert (case["n"], case["loop"]) == (4000, "native")
    assert case["validated_messages"] == 2 * 64
    assert case["channel_info"]["cluster"] == "kafka"
    assert PASSWORD not in output.read_text() and USER not in output.read_text()


def test_the_benchmark_with_wrong_credentials(cluster: Cluster, tmp_path: Path) -> None:
    argv = ["--bootstrap-servers", cluster.login, "--kafka-config", login_file(tmp_path, "Wrong4")]
    ended = commbench("run", "broker", "-C", "kafka", *argv)
    ended.one_line(4, "refuses the credentials")


def test_a_record_that_the_broker_refuses(cluster: Cluster) -> None:
    settings = cluster.settings(record_nbytes=5000)
    with (
        contextlib.closing(Site(settings)) as site,
        contextlib.closing(Admin({"bootstrap.servers": cluster.servers})) as admin,
    ):
        admin.create(f"{site.topic}-small", 1, 1, {"max.message.bytes": "2000"}, 20)
        site.topic, made = f"{site.topic}-small", site.topic
        told = produce(site, "native", 10)
        assert (told.acked, told.failed) == (0, told.produced)
        with pytest.raises(TransferError, match=r"records were not acknowledged: .*too large"):
            told.check()
        admin.delete(site.topic)
        site.topic = made


def test_more_replicas_than_the_cluster_has_brokers(cluster: Cluster) -> None:
    """How many there are is the cluster's to say; the ranks of --brokers are none of them."""
    argv = ("--bootstrap-servers", cluster.servers, "--replication", 2)
    ended = commbench("run", "broker", "-C", "kafka", *argv)
    ended.one_line(2, "--replication 2: allowed: up to 1")


@pytest.mark.parametrize("loop", ["native", "python"])
def test_consumers_of_a_real_cluster(cluster: Cluster, loop: str, tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    argv = [
        "--bootstrap-servers",
        cluster.servers,
        "--loop",
        loop,
        "--acks",
        "0",
        "--records",
        2000,
    ]
    argv += ["--producers", 2, "--consumers", 1, "--partitions", 2, "-x", 100, "-c"]
    commbench("run", "broker", "-C", "kafka", *argv, "--output", output).ok()
    (case,) = cases(output)
    assert mismatch("case", case) is None
    assert (case["loop"], case["n"]) == (loop, 4000)
    assert case["broker"]["end_to_end_ns"]["min"] > 0


def test_the_channel_and_kafkas_own_tool_on_one_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """The same settings; the cluster has every record that either says was acknowledged."""
    records, output = 2000, tmp_path / "x.jsonl"
    argv = ["--bootstrap-servers", cluster.servers, "--records", records, "-x", 0, "--linger-ms", 0]
    commbench("run", "broker", "-C", "kafka", *argv, "--output", output).ok()
    (case,) = cases(output)
    assert (case["n"], case["broker"]["records"]) == (records, records)
    assert 0 < case["latency_ns"]["min"] <= case["latency_ns"]["p99"] <= case["elapsed_ns"]

    with contextlib.closing(Site(cluster.settings())) as site:
        told = perf.run(cluster.servers, site.topic, records, 100, properties=TOOL, timeout_s=60)
        assert ends(cluster.servers, site.topic, 1) == [records]
    assert told.records == records and told.records_per_s > 0
    assert told.mb_per_s == pytest.approx(told.records_per_s * 100 / (1 << 20), abs=0.01)
    assert 0 <= told.p50_ms <= told.p95_ms <= told.p99_ms <= told.p999_ms <= told.max_ms
    assert 0 < told.avg_ms <= told.max_ms
    print(f"# channel kafka: {case['ops_per_s']:.0f} records/s; Kafka's tool: {told}")


def ends(servers: str, topic: str, partitions: int) -> list[int]:
    """Where its partitions end."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": servers, "group.id": topic})
    try:
        found = [
            consumer.get_watermark_offsets(TopicPartition(topic, each), timeout=10)
            for each in range(partitions)
        ]
        return [high for _, high in found]
    finally:
        consumer.close()


def test_the_performance_tool_against_nobody() -> None:
    with pytest.raises(TransferError, match=r"did not send 10 records within 3 s"):
        perf.run("127.0.0.1:1", "topic", 10, 100, properties={}, timeout_s=3)


def test_an_up_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    running = Running(COMMBENCH, "kafka", "up", "--dir", tmp_path / "run")
    until(lambda: state.processes(tmp_path / "run"), "no process came", 30)
    running.process.send_signal(signal.SIGTERM)
    ended = running.end(40)
    assert (ended.exit_code, ended.stdout) == (5, "")
    assert "kafka up: stopped by SIGTERM" in ended.stderr
    assert not state.processes(tmp_path / "run")
    assert [each.name for each in (tmp_path / "run").iterdir()] == [state.LOCK]


def test_down_finds_what_a_killed_up_left(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = Running(COMMBENCH, "kafka", "up", "--dir", folder)
    until(lambda: state.processes(folder), "no process came", 30)
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.communicate()
    assert state.processes(folder)
    commbench("kafka", "down", "--dir", folder).ok()
    assert not state.processes(folder)


JOB = """
[global]
benchmark = "broker"
channel = "kafka"
bootstrap-servers = "{servers}"
rate = 2000
timeout = "4s"
[short]
records = 100
warmup = 0
[long]
duration = "5m"
"""


def test_a_broker_killed_in_mid_run(cluster: Cluster, tmp_path: Path) -> None:
    """The last test of this cluster: it takes its broker away, from a run and from a producer."""
    job, output = tmp_path / "kafka.toml", tmp_path / "x.jsonl"
    job.write_text(JOB.format(servers=cluster.servers))
    running = Running(COMMBENCH, "run", job, "--in-order", "--output", output)
    in_second_case(running, output)
    until(lambda: largest_log(cluster.folder) > 100_000, "the second case does not produce")

    settings = cluster.settings()
    site = Site(settings)
    producer, _ = open_producer(settings.producer(site.servers), site.topic, "native")
    with contextlib.closing(producer):
        values = Values(100, 64, seed=1, sender=0, first=0)
        stamps = Stamps(1 << 16)
        stamps.intended[:] = np.arange(stamps.capacity) * 50_000
        block = RecordBlock(1 << 16, values, open=True, timeout_s=2)
        killer = threading.Timer(0.5, kill, [cluster.folder, running])
        killer.start()
        began = time.monotonic()
        with pytest.raises(TransferError, match=r"(within 2 s|timed out): .*127\.0\.0\.1"):
            producer.run(block, stamps, StopFlag()).check()
        killer.join()
        assert time.monotonic() - began < 20
    acked = int((stamps.end > 0).sum())
    assert 0 < acked < 1 << 16

    running.end(40).one_line(5, "rank 1", "kafka: ", "acknowledge", "127.0.0.1")
    (case,) = cases(output)
    assert (case["n"], mismatch("case", case)) == (100, None), "what was measured before is there"
    assert not any(line["kind"] == "end" for line in lines(output))

    commbench("kafka", "status", "--dir", cluster.folder).one_line(4, "no cluster runs")
    commbench("kafka", "down", "--dir", cluster.folder).ok()
    assert [each.name for each in cluster.folder.iterdir()] == [state.LOCK]
    site._admin = None  # there is nobody to remove the topic from


def largest_log(folder: Path) -> int:
    """Bytes of the topic that has most."""
    sizes = [0]
    for log in folder.glob("node1/data/commbench-*-0/*.log"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(log.stat().st_size)
    return max(sizes)


def kill(folder: Path, running: Running) -> None:
    running.fault()
    for pid in state.processes(folder):
        os.kill(pid, signal.SIGKILL)
