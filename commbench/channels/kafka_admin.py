"""What is asked of a Kafka cluster beside records: who is there, topics. By confluent_kafka."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from commbench.errors import ChannelUnavailable, Interrupted, TransferError, UsageError

if TYPE_CHECKING:
    from commbench.harness.stop import StopFlag

INSTALL = "pip install 'commbench[kafka]' (confluent-kafka with its librdkafka)"
CONNECT_S = 10.0  # a cluster that is there answers in far less
_LOOK_S = 0.5
_ADMIN = {"log_level": "0", "reconnect.backoff.max.ms": "500", "client.id": "commbench"}


def missing() -> str | None:
    """None when confluent_kafka is there, else what brings it."""
    there = importlib.util.find_spec("confluent_kafka") is not None
    return None if there else f"confluent-kafka is not installed: {INSTALL}"


def require() -> None:
    """Raises ChannelUnavailable unless confluent_kafka is there."""
    reason = missing()
    if reason is not None:
        raise ChannelUnavailable(f"kafka: {reason}")


class Admin:
    """A connection to a cluster for its administration; ``settings`` are librdkafka's.

    ``close`` it. Raises UsageError for a property that librdkafka refuses.
    """

    def __init__(self, settings: Mapping[str, str], stop: StopFlag | None = None) -> None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        self._servers = settings.get("bootstrap.servers", "")
        self._stop = stop
        self._trouble = ""
        self._refused = False
        conf: dict[str, Any] = {**_ADMIN, **settings, "error_cb": self._on_error}
        try:
            self._client = AdminClient(conf)
        except KafkaException as error:
            raise UsageError(f"kafka: {error.args[0].str()}") from None

    def _on_error(self, error: Any) -> None:
        from confluent_kafka import KafkaError

        if error.code() in (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED):
            self._refused = True
        if error.code() != KafkaError._ALL_BROKERS_DOWN or not self._trouble:
            self._trouble = error.str()

    # -- the cluster

    def brokers(self, timeout_s: float) -> int:
        """How many brokers answer for the cluster; 0 when none did in time."""
        found = self._metadata(timeout_s, None)
        return len(found.brokers) if found is not None else 0

    def connect(self, timeout_s: float = CONNECT_S) -> int:
        """Wait for the cluster; how many brokers it has.

        Raises ChannelUnavailable when it is not there, or when it refuses the credentials.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            count = self.brokers(min(_LOOK_S, timeout_s))
            if count:
                return count
            self._check()
        why = f": {self._trouble}" if self._trouble else ""
        raise ChannelUnavailable(
            f"kafka: no broker answers at {self._servers} within {timeout_s:g} s{why}"
        )

    def _check(self) -> None:
        if self._stop is not None and self._stop.is_set:
            raise Interrupted("the run was stopped")
        if self._refused:
            raise ChannelUnavailable(
                f"kafka: {self._servers} refuses the credentials: {self._trouble}"
            )

    def _metadata(self, timeout_s: float, topic: str | None) -> Any:
        from confluent_kafka import KafkaException

        try:
            return self._client.list_topics(topic, timeout_s)
        except KafkaException:
            return None
        finally:
            self._client.poll(0)  # where the error callback is called

    # -- topics

    def create(
        self,
        topic: str,
        partitions: int,
        replication: int,
        config: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        """Make a topic and wait until each partition has a leader that takes records.

        Raises UsageError for what the cluster will not have, TransferError when it is too late.
        """
        from confluent_kafka.cimpl import NewTopic

        new = NewTopic(topic, partitions, replication, config=dict(config))
        self._ask(self._client.create_topics([new], operation_timeout=timeout_s)[topic], timeout_s)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = self._metadata(_LOOK_S, topic)
            made = found.topics[topic].partitions.values() if found is not None else ()
            led = len(made) == partitions and all(each.leader >= 0 for each in made)
            if led and self._leads(topic, partitions):
                return
            self._check()
            time.sleep(0.02)
        raise TransferError(f"kafka: topic {topic} got no leaders within {timeout_s:g} s")

    def _leads(self, topic: str, partitions: int) -> bool:
        """Whether all leaders know that they are: a broker tells the metadata a moment before it
        takes records, and throws away those that come with acks=0 meanwhile."""
        from confluent_kafka import KafkaException, TopicPartition
        from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        wanted = {TopicPartition(topic, each): latest for each in range(partitions)}
        try:
            for future in self._client.list_offsets(wanted, request_timeout=_LOOK_S).values():
                future.result(_LOOK_S)
        except (KafkaException, TimeoutError):
            return False
        return True

    def delete(self, topic: str, timeout_s: float = CONNECT_S) -> None:
        """Remove a topic; one that is not there is fine, and so is a cluster that is not."""
        with contextlib.suppress(UsageError, TransferError):
            futures = self._client.delete_topics([topic], operation_timeout=timeout_s)
            self._ask(futures[topic], timeout_s)

    def _ask(self, future: Any, timeout_s: float) -> None:
        from confluent_kafka import KafkaException

        try:
            future.result(timeout_s)
        except KafkaException as error:
            raise UsageError(f"kafka: the cluster refuses: {error.args[0].str()}") from None
        except TimeoutError:
            raise TransferError(f"kafka: no answer within {timeout_s:g} s") from None

    def close(self) -> None:
        """Let go of the connection."""
        del self._client
