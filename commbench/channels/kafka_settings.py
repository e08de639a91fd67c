"""librdkafka's properties: which of them flags set, which are passed through, which are secret.

A secret comes from a file that only its owner may read, never from the command line: that is seen
by every user of the host, and recorded in the results file.
"""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from commbench.errors import UsageError

_REFUSALS = ("No such configuration property", "Invalid value")  # of one property by itself
REDACTED = "(redacted)"
ACKS = ("0", "1", "all")
MOCK = "mock"
_MOST_FILE = 64 << 10  # bytes of a file of properties
_OVERHEAD = 4 << 10  # bytes of a request around one record
_LIBRARY_LIMIT = 1_000_000  # bytes: librdkafka's default of message.max.bytes
_SECURITY = ("security.", "sasl.", "ssl.", "enable.ssl.")
_SECRET = re.compile(
    r"passw|secret|token|credential|username|jaas|oauthbearer|\.pem$|key(?!store\.location)",
    re.IGNORECASE,
)

# property -> the flag of the broker benchmark that sets it
SET_BY: Mapping[str, str] = MappingProxyType(
    {
        "acks": "--acks",
        "request.required.acks": "--acks",
        "batch.size": "--batch-size",
        "bootstrap.servers": "--bootstrap-servers",
        "delivery.timeout.ms": "--timeout",
        "linger.ms": "--linger-ms",
        "max.in.flight": "--max-in-flight",
        "max.in.flight.requests.per.connection": "--max-in-flight",
        "message.timeout.ms": "--timeout",
        "metadata.broker.list": "--bootstrap-servers",
        "queue.buffering.max.ms": "--linger-ms",
        "test.mock.num.brokers": "--brokers",
    }
)


def is_secret(name: str) -> bool:
    """Whether the value of this property must not be seen."""
    return _SECRET.search(name) is not None


def check_property(name: str, where: str) -> None:
    """Raises UsageError for a property that a flag sets."""
    if name in SET_BY:
        raise UsageError(f"{where}: {name} is set by {SET_BY[name]}")


def check_option(name: str, value: str) -> None:
    """What ``-o`` may not set. Raises UsageError; the value of a secret is not repeated."""
    if is_secret(name):
        raise UsageError(
            f"-o {name}: a secret, which every user of the host could see here; "
            f"allowed: a line of --kafka-config FILE"
        )
    check_property(name, f"-o {name}={value}")


def check_properties(options: Mapping[str, str]) -> None:
    """UsageError for an ``-o`` that librdkafka refuses; where it is not there nothing is known."""
    if not options or importlib.util.find_spec("confluent_kafka") is None:
        return
    from confluent_kafka import KafkaException, Producer

    for name, value in options.items():
        try:
            Producer({name: value, "log_level": "0"})
        except KafkaException as error:
            if (why := error.args[0].str()).startswith(_REFUSALS):
                raise UsageError(f"-o {name}={value}: {why}") from None


def read_config(path: Path) -> dict[str, str]:
    """``name=value`` lines; blank ones and those that begin with # say nothing. Raises UsageError.

    A file with a secret in it must be its owner's alone.
    """
    where = f"--kafka-config {path}"
    try:
        with path.open("rb") as file:
            others = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077
            text = file.read(_MOST_FILE + 1)
        lines = text.decode("utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where}: is not UTF-8 text") from None
    if len(text) > _MOST_FILE:
        raise UsageError(f"{where}: allowed: up to {_MOST_FILE} bytes")
    found: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[\w.]+", name.strip()):
            raise UsageError(f"{where}, line {number}: allowed: NAME=VALUE")
        check_property(name.strip(), f"{where}, line {number}")
        found[name.strip()] = value.strip()
    if others and any(map(is_secret, found)):
        raise UsageError(f"{where}: has a secret in it, and others may read it; chmod 600 {path}")
    return found


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """What a producer is told, in the words of the benchmark's flags.

    ``bootstrap_servers`` "": librdkafka's mock cluster of ``brokers``. ``given``: properties that
    are passed through, secrets among them. ``timeout_s``: how long a record may take.
    """

    record_nbytes: int
    bootstrap_servers: str = ""
    acks: str = "1"
    batch_nbytes: int = 16 << 10
    linger_ms: float = 0.0
    max_in_flight: int = 5
    partitions: int = 1
    replication: int = 1
    brokers: int = 1
    timeout_s: float = 60.0
    given: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.acks not in ACKS:
            raise UsageError(f"--acks {self.acks}: allowed: {', '.join(ACKS)}")

    @property
    def mock(self) -> bool:
        return not self.bootstrap_servers

    def connection(self, servers: str) -> dict[str, str]:
        """For a client that produces nothing. The mock cluster knows no security."""
        given = {
            name: value
            for name, value in self.given.items()
            if not (self.mock and name.startswith(_SECURITY))
        }
        return {**given, "bootstrap.servers": servers}

    def producer(self, servers: str) -> dict[str, str]:
        """For a producer; what was passed through comes over what has no flag."""
        limit = max(_LIBRARY_LIMIT, self.record_nbytes + _OVERHEAD)
        return {
            "log_level": "2",
            "client.id": "commbench",
            "socket.nagle.disable": "true",
            "message.max.bytes": str(limit),
            **self.connection(servers),
            "acks": self.acks,
            "batch.size": str(self.batch_nbytes),
            "linger.ms": f"{self.linger_ms:g}",
            "max.in.flight.requests.per.connection": str(self.max_in_flight),
            "message.timeout.ms": str(max(1, round(self.timeout_s * 1e3))),
        }

    def topic_config(self) -> dict[str, str]:
        """Of a topic that is made for the run: a large record must fit."""
        large = self.record_nbytes + _OVERHEAD > _LIBRARY_LIMIT
        return {"max.message.bytes": str(self.record_nbytes + _OVERHEAD)} if large else {}

    def shown(self) -> dict[str, str]:
        """For the results file: what was passed through, without the values of secrets."""
        return {
            name: REDACTED if is_secret(name) else value
            for name, value in sorted(self.given.items())
        }
