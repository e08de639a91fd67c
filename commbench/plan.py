"""What a run will do, decided before it starts: settings -> cases -> blocks in their order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Self

from commbench.benchmarks import (
    BENCHMARKS,
    Benchmark,
    BrokerSettings,
    BrokerSpec,
    PsSettings,
    PsSpec,
    benchmark,
)
from commbench.errors import UsageError
from commbench.payloads.schemes import SchemeOptions, contiguous, make_spec
from commbench.payloads.spec import PayloadSpec
from commbench.units import parse_sizes

if TYPE_CHECKING:
    from commbench.channels.base import Channel

MODES = ("non-serialized", "serialized")
LOOPS = ("auto", "native", "python")
ORDERS = ("blocks", "in-order", "all")
DEFAULT_SIZES = "1:4M"
_PLAIN = ("contiguous",)

Load = Callable[[str], "type[Channel]"]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the report. ``key`` is what must match for two numbers to be compared."""

    benchmark: str
    channel: str
    mode: str
    payload: PayloadSpec
    ranks: int
    window: int
    options: Mapping[str, str]
    iterations: int
    warmup: int
    duration_s: float = 0.0  # > 0: run this long, after warmup_s, instead of the counts
    warmup_s: float = 0.0
    validation: str = "pass"  # "every": each message is filled and verified
    loop: str = "auto"
    rtt: bool = False
    timeout_s: float = 60.0
    order: int = 0
    ps: PsSpec | None = None  # of the benchmark ps
    broker: BrokerSpec | None = None  # of the benchmark broker
    log_dir: str = ""  # where its brokers keep their logs; "": in a temporary folder each

    @property
    def nbytes(self) -> int:
        return self.payload.nbytes

    @property
    def spec(self) -> PsSpec | BrokerSpec | None:
        """Who is what, where the benchmark has a spec of its own."""
        return self.ps or self.broker

    def key(self) -> dict[str, Any]:
        """The ``case`` object of the results file."""
        names = ("benchmark", "channel", "mode", "nbytes", "ranks", "window")
        payload = {**asdict(self.payload), "sizes": list(self.payload.sizes)}
        return {
            **{name: getattr(self, name) for name in names},
            "payload": payload,
            "options": dict(self.options),
            **({} if self.ps is None else {"ps": self.ps.to_json()}),
            **({} if self.broker is None else {"broker": self.broker.to_json()}),
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        payload = record["payload"]
        spec = PayloadSpec(payload["scheme"], tuple(payload["sizes"]), payload["seed"])
        ps = record["ps"] and PsSpec.from_json(record["ps"])
        broker = record["broker"] and BrokerSpec.from_json(record["broker"])
        return cls(**{**record, "payload": spec, "ps": ps, "broker": broker})


@dataclass(frozen=True, slots=True)
class Settings:
    """One section of a job file, or what the flags say. Raises UsageError naming the flag.

    ``options`` are (channel or None, key, value): without a channel an option goes to every
    channel that has it.
    """

    benchmarks: tuple[str, ...] = ("latency",)
    channels: tuple[str, ...] = ("tcp",)
    modes: tuple[str, ...] = ("non-serialized",)
    schemes: tuple[str, ...] = ("contiguous",)
    sizes: tuple[int, ...] | None = None
    scheme_options: SchemeOptions = field(default_factory=SchemeOptions)
    iterations: int | None = None
    warmup: int | None = None
    duration_s: float = 0.0
    warmup_s: float = 0.0
    window: int | None = None
    validate: bool = False
    rtt: bool = False
    loop: str = "auto"
    timeout_s: float = 60.0
    options: tuple[tuple[str | None, str, str], ...] = ()
    left_out: tuple[str, ...] = ()  # what -C all could not take, and why
    ps: PsSettings = field(default_factory=PsSettings)
    broker: BrokerSettings = field(default_factory=BrokerSettings)

    def __post_init__(self) -> None:
        for name in self.benchmarks:
            benchmark(name)
        _allowed("--mode", self.modes, MODES)
        _allowed("--loop", (self.loop,), LOOPS)
        if self.sizes is not None and "contiguous" not in self.schemes:
            raise UsageError(
                f"-m: sizes go with --scheme contiguous; given: --scheme {','.join(self.schemes)}"
            )
        if self.benchmarks == ("broker",) and (self.sizes is not None or self.schemes != _PLAIN):
            raise UsageError("-m/--message-size, --scheme: the broker has records: --record-size")
        if self.window is not None and self.benchmarks == ("broker",):
            raise UsageError(f"-W/--window {self.window}: the broker has --max-in-flight")
        if self.broker.records is not None and (self.iterations or self.duration_s):
            raise UsageError(
                f"--records {self.broker.records}: allowed without -i/--iterations and "
                f"-D/--duration"
            )
        if self.warmup_s and not self.duration_s:
            raise UsageError("--warmup-time: goes with -D/--duration; use -x/--warmup with counts")
        if self.duration_s and (self.iterations or self.warmup is not None):
            raise UsageError("-D/--duration: allowed without -i/--iterations and -x/--warmup")

    @property
    def local_ranks(self) -> int:
        """How many it needs on one host, where nobody says how many."""
        ps = self.ps.ranks if "ps" in self.benchmarks else 2
        return max(ps, self.broker.ranks if "broker" in self.benchmarks else 2)

    def payloads(self, name: str = "") -> Iterator[tuple[str, list[PayloadSpec]]]:
        """Each scheme with its messages, in ascending order of size; of the broker its records."""
        seed = self.scheme_options.seed
        if name == "broker":
            yield "contiguous", [contiguous(each, seed) for each in self.broker.record_sizes]
            return
        for scheme in self.schemes:
            if scheme == "contiguous":
                sizes = self.sizes or parse_sizes(DEFAULT_SIZES)
                yield scheme, [contiguous(nbytes, seed) for nbytes in sorted(set(sizes))]
            else:
                yield scheme, [make_spec(scheme, self.scheme_options)]

    def cases(self, load: Load, ranks: int) -> list[list[Case]]:
        """The cases by block (channel, benchmark, scheme, mode); every option has found a channel.

        ``load`` gives the class of a channel. Raises UsageError, ChannelUnavailable.
        """
        kinds = {name: load(name) for name in self.channels}
        options = self._options(kinds)
        for name, mode in product(self.channels, self.modes):
            kinds[name].check_mode(mode)
            kinds[name].check_loop(self.loop)
            check_ranks(kinds[name], ranks)
            for each in self.benchmarks:
                kinds[name].check_benchmark(each)
                for _, specs in self.payloads(each):
                    for spec in specs:
                        kinds[name].check_payload(spec.sizes, mode == "serialized")
        who = {name: (ranks, self._ps(kind, ranks)) for name, kind in kinds.items()}
        brokers = {name: self._brokers(kind, ranks, options[name]) for name, kind in kinds.items()}
        blocks = [
            [
                self._case(benchmark(kind), name, mode, spec, who[name], options[name], broker)
                for spec in specs
                for broker in (brokers[name] if kind == "broker" else (None,))
            ]
            for name, kind in product(self.channels, self.benchmarks)
            for (_, specs), mode in product(self.payloads(kind), self.modes)
        ]
        for case in (case for block in blocks for case in block):
            kinds[case.channel].check_case(case)
        return blocks

    def _case(
        self,
        kind: Benchmark,
        channel: str,
        mode: str,
        spec: PayloadSpec,
        who: tuple[int, PsSpec | None],
        options: Mapping[str, str],
        broker: BrokerSpec | None = None,
    ) -> Case:
        iterations, warmup = kind.counts(spec.nbytes)
        if broker is not None:
            iterations = self.broker.records or iterations
        return Case(
            benchmark=kind.name,
            channel=channel,
            mode=mode,
            payload=spec,
            ranks=who[0],
            window=broker.in_flight if broker else self._window(kind),
            options=options,
            iterations=self.iterations or iterations,
            warmup=warmup if self.warmup is None else self.warmup,
            duration_s=self.duration_s,
            warmup_s=self.warmup_s,
            validation="every" if self.validate else "pass",
            loop=self.loop,
            rtt=self.rtt,
            timeout_s=self.timeout_s,
            ps=self._steps(who[1], spec) if kind.name == "ps" else None,
            broker=broker,
            log_dir=self.broker.log_dir if broker else "",
        )

    def _window(self, kind: Benchmark) -> int:
        return (self.window or kind.window) if kind.windowed else kind.window

    def _brokers(
        self, kind: type[Channel], ranks: int, options: Mapping[str, str]
    ) -> Sequence[BrokerSpec]:
        if "broker" not in self.benchmarks:
            return ()
        return self.broker.specs(ranks, kind.ranks_inside, kind.brokers_elsewhere(options))

    def _ps(self, kind: type[Channel], ranks: int) -> PsSpec | None:
        return self.ps.spec(ranks, kind.ranks_inside) if "ps" in self.benchmarks else None

    def _steps(self, ps: PsSpec | None, payload: PayloadSpec) -> PsSpec | None:
        return ps and ps.with_payload(payload, self.ps.per_tensor)

    def _options(self, kinds: Mapping[str, type[Channel]]) -> dict[str, dict[str, str]]:
        """The options of each channel that differ from its defaults; all are checked."""
        given: dict[str, dict[str, str]] = {name: {} for name in kinds}
        for channel, key, value in self.options:
            takers = [name for name in kinds if channel in (name, None)]
            if channel is None and len(kinds) > 1:
                takers = [name for name in takers if key in kinds[name].own_options()]
            where = f"{channel}:" if channel else ""
            if not takers:
                raise UsageError(
                    f"-o {where}{key}={value}: no channel of -C {','.join(kinds)} takes it"
                )
            if any(key in {*kinds[name].options} - {*kinds[name].own_options()} for name in takers):
                raise UsageError(f"-o {where}{key}={value}: it is set by --{key} {value}")
            for name in takers:
                given[name][key] = value
        return {name: _changed(kind, given[name]) for name, kind in kinds.items()}


@dataclass(frozen=True, slots=True)
class Plan:
    """All sections of a run and the order of their blocks.

    ``order``: "blocks" shuffles blocks with ``order_seed`` (sizes ascend inside a block), "all"
    shuffles single cases, "in-order" nothing.
    """

    sections: tuple[Settings, ...]
    order: str = "blocks"
    order_seed: int = 0

    def blocks(self, load: Load, ranks: int, launch: int = 0) -> list[list[Case]]:
        """Blocks in the order in which this launch runs them; a channel is opened once for each."""
        blocks = [block for section in self.sections for block in section.cases(load, ranks)]
        if self.order == "all":
            blocks = [[case] for block in blocks for case in block]
        if self.order != "in-order":
            random.Random(self.order_seed + launch).shuffle(blocks)
        numbered = iter(range(sum(map(len, blocks))))
        return [[replace(case, order=next(numbered)) for case in block] for block in blocks]

    def channels(self) -> list[str]:
        """Names of all channels, each once."""
        return list(dict.fromkeys(name for each in self.sections for name in each.channels))

    def has(self, name: str) -> bool:
        """Whether a section runs this benchmark."""
        return any(name in each.benchmarks for each in self.sections)

    def ranks(self) -> int:
        """How many local ranks it needs, where nobody says how many."""
        return max(each.local_ranks for each in self.sections)

    def left_out(self) -> list[str]:
        """What ``-C all`` could not take, and why, each once."""
        return list(dict.fromkeys(line for each in self.sections for line in each.left_out))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_ranks(channel: type[Channel], ranks: int) -> None:
    """UsageError unless there is somebody to talk to."""
    if ranks < 2 and not channel.ranks_inside:
        raise UsageError(f"-n/--ranks {ranks}: channel {channel.name} needs at least 2 ranks")


def _changed(channel: type[Channel], given: Mapping[str, str]) -> dict[str, str]:
    checked = channel.check_options(given)
    return {key: checked[key] for key in given if checked[key] != channel.options[key].default}


def _allowed(flag: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for value in given:
        if value not in allowed:
            raise UsageError(f"{flag} {value}: allowed: {', '.join(allowed)}")


__all__ = ["BENCHMARKS", "LOOPS", "MODES", "ORDERS", "Case", "Plan", "Settings"]
