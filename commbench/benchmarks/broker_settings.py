"""What the flags of the benchmark ``broker`` say, and how they are read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from commbench.benchmarks.broker import (
    CHANNEL_BUFFER,
    DESIGNS,
    LARGEST_BATCH,
    PARTS,
    RECORD_SIZE,
    REORDER,
    BrokerSpec,
)
from commbench.errors import UsageError
from commbench.units import format_size


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """What the flags say. ``producers`` None: all ranks that are nothing else, or 1; ``partitions``
    None: one for each broker. ``design_options``: (name, value) as given."""

    record_sizes: tuple[int, ...] = (RECORD_SIZE,)
    brokers: int = 1
    producers: int | None = None
    consumers: int = 0
    partitions: int | None = None
    replication: int = 1
    acks: str = "1"
    batch_size: int = 16384
    linger_ns: int = 0
    max_in_flight: int = 5
    buffer_memory: int = 0
    windows: tuple[int, ...] = (0,)
    flush_every: int = 0
    rate: float = 0.0
    arrivals: str = "constant"
    design: str = "kafka"
    design_options: tuple[tuple[str, str], ...] = field(default=())
    channel_buffer: int = CHANNEL_BUFFER
    handlers: int = 0
    records: int | None = None
    log_dir: str = ""

    @property
    def ranks(self) -> int:
        """How many our own launcher starts when nobody says how many."""
        return self.brokers + (self.producers or 1) + self.consumers

    def specs(self, ranks: int, inside: bool, elsewhere: bool = False) -> tuple[BrokerSpec, ...]:
        """One for each of ``windows``."""
        spec = self.spec(ranks, inside, elsewhere)
        return tuple(replace(spec, window=window) for window in self.windows)

    def spec(self, ranks: int, inside: bool, elsewhere: bool = False) -> BrokerSpec:
        """For so many ranks; ``inside``: over a channel that stays inside one rank; ``elsewhere``:
        the brokers are no ranks of ours, and how many there are is not known yet.

        Raises UsageError naming the flag.
        """
        if inside:
            raise UsageError(
                "-C: a channel inside one rank has no broker beside its producer; allowed for the "
                "benchmark broker: channels between ranks"
            )
        if self.replication > self.brokers and not elsewhere:
            raise UsageError(
                f"--replication {self.replication}: each replica is on a broker of its own and "
                f"--brokers is {self.brokers}; allowed: 1 to {self.brokers}"
            )
        producers = self._producers(ranks)
        spec = BrokerSpec(
            brokers=self.brokers,
            producers=producers,
            consumers=self.consumers,
            partitions=self.partitions or self.brokers,
            replication=self.replication,
            acks=self.acks,
            batch_size=self.batch_size,
            linger_ns=self.linger_ns,
            max_in_flight=self.max_in_flight,
            buffer_memory=self.buffer_memory,
            flush_every=self.flush_every,
            rate=self.rate,
            arrivals=self.arrivals,
            design=self.design,
            channel_buffer=self.channel_buffer,
            handlers=self.handlers,
            **self._design(),
        )
        self._check(spec)
        return spec

    def _producers(self, ranks: int) -> int:
        others = self.brokers + self.consumers
        if self.producers is None and ranks > others:
            return ranks - others
        if self.producers is None or others + self.producers > ranks:
            wanted = others + (self.producers or 1)
            raise UsageError(
                f"--brokers {self.brokers} --producers {self.producers or 1} --consumers "
                f"{self.consumers}: {wanted} ranks, but there are {ranks}; allowed: at most "
                f"{ranks} together"
            )
        return self.producers

    def _check(self, spec: BrokerSpec) -> None:
        if spec.handlers and "polling" not in spec.parts:
            raise UsageError(
                f"--handlers {spec.handlers}: without a polling thread one thread does all; "
                f"allowed with --design frieda or --design-option polling=on"
            )
        for window in self.windows:
            if window and (self.rate or spec.partitions > 1 or spec.brokers > 1):
                raise UsageError(
                    f"--records-in-flight {window}: of the tail model, which has one broker, one "
                    f"partition and a closed loop"
                )
        if self.consumers > spec.partitions:
            raise UsageError(
                f"--consumers {self.consumers}: each reads partitions of its own and there are "
                f"{spec.partitions}; allowed: 0 to {spec.partitions}, or more --partitions"
            )
        for size in self.record_sizes:
            if self.consumers and size < 8:
                raise UsageError(
                    f"--record-size {size}: with --consumers a record begins with its start in 8 "
                    f"bytes; allowed: 8 or more"
                )
            if spec.batch_nbytes(size) > LARGEST_BATCH:
                raise UsageError(
                    f"--record-size {size}: a batch has at most {format_size(LARGEST_BATCH)}"
                )

    def _design(self) -> dict[str, Any]:
        """Parts and reorder."""
        on = set(PARTS) if DESIGNS[self.design] else set()
        found: dict[str, Any] = {}
        for name, value in self.design_options:
            if name == "reorder":
                found["reorder"] = value
            elif value == "on":
                on.add(name)
            else:
                on.discard(name)
        return {"parts": tuple(name for name in PARTS if name in on), **found}


def parse_design_options(text: str, flag: str) -> tuple[tuple[str, str], ...]:
    """Lines or a list of ``NAME=on|off`` and ``reorder=client|broker``."""
    found = []
    for item in re.split(r"[\n,]", text):
        if not item:
            continue
        name, _, value = item.strip().partition("=")
        values = REORDER if name == "reorder" else ("on", "off")
        if name not in (*PARTS, "reorder") or value not in values:
            raise UsageError(
                f"{flag} {item}: allowed: {', '.join(PARTS)} with =on or =off, "
                f"reorder=client, reorder=broker"
            )
        found.append((name, value))
    return tuple(found)


def parse_flush(text: str, flag: str) -> int:
    """``none`` 0, ``every-record`` 1, ``every-N`` N."""
    match = re.fullmatch(r"every-([1-9][0-9]{0,11})", text)
    if text in ("none", "every-record"):
        return int(text == "every-record")
    if not match:
        raise UsageError(f"{flag} {text}: allowed: none, every-N such as every-1000, every-record")
    return int(match[1])


def parse_windows(text: str, flag: str) -> tuple[int, ...]:
    """Whole numbers of 1 to 99 separated by commas: up to there a window's p99 is its maximum."""
    items = text.split(",")
    if not all(re.fullmatch(r"[1-9][0-9]?", item) for item in items):
        raise UsageError(f"{flag} {text}: allowed: numbers of 1 to 99, such as 1,2,4,8,16,64")
    return tuple(map(int, items))


def parse_rate(text: str, flag: str) -> float:
    """Records per second, or ``max``: 0."""
    if text == "max":
        return 0.0
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([KM]?)", text)
    rate = float(match[1]) * {"": 1, "K": 1e3, "M": 1e6}[match[2]] if match else 0.0
    if rate <= 0:
        raise UsageError(f"{flag} {text}: allowed: max, or records per second such as 50000 or 50K")
    return rate


def parse_linger(text: str, flag: str) -> int:
    """Milliseconds as ns."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text):
        raise UsageError(f"{flag} {text}: allowed: milliseconds, 0 or more, such as 0, 5 or 0.5")
    return round(float(text) * 1e6)
