"""Where the records of a run go: a topic of its own, on a real cluster or on librdkafka's mock."""

from __future__ import annotations

import secrets

from commbench import _native
from commbench.channels.kafka_admin import CONNECT_S, Admin
from commbench.channels.kafka_producer import library_file, library_version
from commbench.channels.kafka_read import read_back
from commbench.channels.kafka_records import Places, Values
from commbench.channels.kafka_settings import MOCK, KafkaSettings
from commbench.errors import ChannelUnavailable, UsageError
from commbench.harness.stop import StopFlag


class Site:
    """A topic that is made and removed again; one rank of a run has it, the others connect to
    ``servers`` and produce into ``topic``.

    Raises ChannelUnavailable (no cluster, or it refuses the credentials), UsageError, Interrupted.
    """

    def __init__(self, settings: KafkaSettings, stop: StopFlag | None = None) -> None:
        self.settings = settings
        self._stop = stop or StopFlag()
        self.topic = f"commbench-{secrets.token_hex(6)}"
        self._mock: _native.KafkaMock | None = None
        self._admin: Admin | None = None
        self._made = False
        if settings.replication > settings.brokers and settings.mock:
            raise _few(settings.replication, settings.brokers)
        if settings.mock:
            self._mock = start_mock(settings.brokers)
            self.servers = self._mock.bootstrap_servers
            self._mock.create_topic(self.topic, settings.partitions, settings.replication)
            self.brokers = settings.brokers
            return
        self.servers = settings.bootstrap_servers
        self._admin = Admin(settings.connection(self.servers), stop)
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        assert self._admin is not None
        self.brokers = self._admin.connect(min(CONNECT_S, self.settings.timeout_s))
        if self.settings.replication > self.brokers:
            raise _few(self.settings.replication, self.brokers)
        self._admin.create(
            self.topic,
            self.settings.partitions,
            self.settings.replication,
            self.settings.topic_config(),
            self.settings.timeout_s,
        )
        self._made = True

    @property
    def mock(self) -> _native.KafkaMock:
        """The mock cluster, to make it fail on purpose."""
        assert self._mock is not None
        return self._mock

    def describe(self) -> dict[str, str | int | float]:
        """For the results file: what was produced into. Never a secret."""
        return {
            "cluster": MOCK if self.settings.mock else "kafka",
            "address": self.servers,
            "brokers": self.brokers,
            "librdkafka": library_version(),
            **self.settings.shown(),
        }

    def read_back(self, values: Values, places: Places, stamped: bool = False) -> int:
        """See ``kafka_read.read_back``."""
        connection = self.settings.connection(self.servers)
        return read_back(connection, self.topic, values, places, self._stop, stamped)

    def close(self) -> None:
        """Remove the topic, end the mock cluster; may be called twice."""
        if self._admin is not None:
            if self._made:
                self._admin.delete(self.topic)
            self._admin.close()
        if self._mock is not None:
            self._mock.close()
        self._admin = self._mock = None


def start_mock(brokers: int) -> _native.KafkaMock:
    """librdkafka's mock cluster in this process. Raises ChannelUnavailable."""
    file = library_file()
    if file is None:
        raise ChannelUnavailable(
            "kafka: this confluent-kafka hides its librdkafka, so there is no mock cluster; "
            "give --bootstrap-servers"
        )
    try:
        return _native.KafkaMock(file, brokers)
    except RuntimeError as error:
        raise ChannelUnavailable(f"kafka: no mock cluster: {error}") from None


def _few(replication: int, brokers: int) -> UsageError:
    return UsageError(
        f"--replication {replication}: allowed: up to {brokers}, the brokers there are"
    )
