"""``kafka``: a Kafka cluster in the place of the brokers of the benchmark ``broker``.

Producers are librdkafka's. The cluster is the one of ``--bootstrap-servers``, or else librdkafka's
mock cluster, which is called "mock" wherever it is named. It moves records and no messages between
ranks, so the verbs of a channel are not there: ``commbench.harness.kafka.case`` drives it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from commbench.benchmarks.broker import flush_word
from commbench.channels import kafka_admin
from commbench.channels.base import Capability, Option
from commbench.channels.kafka_settings import check_option, check_properties, read_config
from commbench.channels.native_only import NativeOnlyChannel
from commbench.errors import UsageError

if TYPE_CHECKING:
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.world import World
    from commbench.plan import Case

SERVERS, CONFIG = "bootstrap_servers", "kafka_config"
_NAMED = {
    SERVERS: Option("", "HOST:PORT,... of a cluster (--bootstrap-servers); none: a mock cluster"),
    CONFIG: Option("", "file of librdkafka's properties, secrets too (--kafka-config)"),
}


class _Properties(Mapping[str, Option]):
    """The named options, and every property of librdkafka: a name with a dot in it."""

    def __getitem__(self, name: str) -> Option:
        if name not in _NAMED and "." not in name:
            raise KeyError(name)
        return _NAMED.get(name, Option("", "a property of librdkafka"))

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMED)

    def __len__(self) -> int:
        return len(_NAMED)


class KafkaChannel(NativeOnlyChannel):
    name = "kafka"
    capabilities = Capability(0)
    options: ClassVar[Mapping[str, Option]] = _Properties()
    threads = True
    loops = ("native", "python")
    benchmarks = ("broker",)

    def __init__(self, options: Mapping[str, str]) -> None:
        self.servers = options[SERVERS]
        file = options[CONFIG]
        self.given = {
            **(read_config(Path(file)) if file else {}),
            **{name: value for name, value in options.items() if name not in _NAMED},
        }
        self.about: dict[str, str | int | float] = {}  # what the last case produced into

    @classmethod
    def missing(cls) -> str | None:
        return kafka_admin.missing()

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        return cls(options)

    @classmethod
    def check_options(cls, given: Mapping[str, str]) -> dict[str, str]:
        for name, value in given.items():
            if name not in cls.options:
                raise UsageError(
                    f"-o {name}={value}: allowed for channel kafka: {', '.join(_NAMED)} and every "
                    f"property of librdkafka, such as compression.type"
                )
            if name not in _NAMED:
                check_option(name, value)
        _check_servers(given.get(SERVERS, ""))
        if given.get(CONFIG):
            read_config(Path(given[CONFIG]))
        return {**{name: option.default for name, option in _NAMED.items()}, **given}

    @classmethod
    def check_case(cls, case: Case) -> None:
        """What commbench's own broker has and a Kafka has not; properties that there are not."""
        check_properties({name: each for name, each in case.options.items() if name not in _NAMED})
        spec = case.broker
        assert spec is not None, "the channel is for the benchmark broker"
        flush = "the cluster's own matter (log.flush.interval.messages)"
        for given, what in (
            (
                spec.window,
                f"--records-in-flight {spec.window}: a request is a batch of librdkafka's",
            ),
            (spec.flush_every, f"--flush {flush_word(spec.flush_every)}: {flush}"),
            (spec.design != "kafka", f"--design {spec.design}: of commbench's own broker"),
            (spec.parts, f"--design-option {','.join(spec.parts)}: of commbench's own broker"),
            (case.log_dir, f"--log-dir {case.log_dir}: the cluster's own matter (log.dirs)"),
        ):
            if given:
                raise UsageError(f"{what}; allowed for channel kafka: without it")

    @classmethod
    def brokers_elsewhere(cls, options: Mapping[str, str]) -> bool:
        return bool(options.get(SERVERS))

    def describe(self) -> dict[str, str | int | float]:
        return dict(self.about)

    def close(self) -> None:
        """Connections live as long as a case."""


def _check_servers(text: str) -> None:
    for each in text.split(",") if text else ():
        match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:,\[\]/]+):(\d{1,5})", each.strip())
        if match is None or not 0 < int(match[1]) < 65536:
            raise UsageError(
                f"--bootstrap-servers {text}: allowed: HOST:PORT, several separated by commas"
            )
