"""Kafka's own ``ProducerPerformance`` against a cluster, and what its lines say."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from commbench.errors import TransferError
from commbench.harness.kafka import maven

MB = 1 << 20  # what Kafka calls MB
_RATE = r"(\d+) records sent(?: steady state)?, ([\d.]+) records/sec \(([\d.]+) MB/sec\), "
_WINDOW = re.compile(_RATE + r"([\d.]+) ms avg latency, ([\d.]+) ms max latency\.")
_FINAL = re.compile(
    _RATE + r"([\d.]+) ms avg latency, ([\d.]+) ms max latency, "
    r"(\d+) ms 50th, (\d+) ms 95th, (\d+) ms 99th, (\d+) ms 99\.9th\."
)


@dataclass(frozen=True, slots=True)
class Window:
    """What it prints every 5 s; times in ms."""

    records: int
    records_per_s: float
    avg_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Performance:
    """Its closing line. Times are from the call of send, in whole milliseconds."""

    records: int
    records_per_s: float
    mb_per_s: float
    avg_ms: float
    max_ms: float
    p50_ms: int
    p95_ms: int
    p99_ms: int
    p999_ms: int
    windows: tuple[Window, ...] = ()


def parse(text: str) -> Performance:
    """The last closing line in ``text``, with or without "steady state", and the windows before.

    Raises TransferError when there is none.
    """
    finals = list(_FINAL.finditer(text))
    if not finals:
        line = next((line for line in text.splitlines() if re.search("ERROR|Exception", line)), "")
        raise TransferError(f"ProducerPerformance came to no end: {line.strip()[:300]}")
    records, rate, mb, avg, most, p50, p95, p99, p999 = finals[-1].groups()
    windows = tuple(
        Window(int(match[1]), float(match[2]), float(match[4]), float(match[5]))
        for match in _WINDOW.finditer(text)
    )
    return Performance(
        int(records),
        float(rate),
        float(mb),
        float(avg),
        float(most),
        int(p50),
        int(p95),
        int(p99),
        int(p999),
        windows,
    )


def run(
    bootstrap: str,
    topic: str,
    records: int,
    record_nbytes: int,
    *,
    properties: Mapping[str, str],
    throughput: float = -1,
    version: str = maven.VERSION,
    timeout_s: float = 300.0,
    prefix: tuple[str, ...] = (),
) -> Performance:
    """Produce ``records`` into ``topic`` at ``throughput`` per second (-1: as fast as it can).

    ``properties``: of Kafka's Java producer, such as acks. ``prefix``: a command before java, such
    as taskset. Raises ChannelUnavailable without Java or jars, TransferError when it fails.
    """
    command = [*prefix, maven.find_java(), "-Xmx512M", "-Duser.language=en", "-Duser.country=US"]
    command += ["-cp", f"{maven.jars(version)}/*", "org.apache.kafka.tools.ProducerPerformance"]
    command += ["--topic", topic, "--num-records", str(records)]
    command += ["--record-size", str(record_nbytes), "--throughput", f"{throughput:g}"]
    given = {**properties, "bootstrap.servers": bootstrap}
    command += ["--producer-props", *(f"{name}={value}" for name, value in given.items())]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise TransferError(
            f"ProducerPerformance did not send {records} records within {timeout_s:g} s"
        ) from None
    return parse(done.stdout)
