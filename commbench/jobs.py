"""From flags and TOML job files to a Plan. Both speak the same language: the long flag names.

A job file has a ``[global]`` table and one table per section (fio's idea)::

    [global]
    message-size = "1:64K"

    [small-latency]
    benchmark = "latency"
    channel = ["tcp", "mpi"]
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commbench.benchmarks import PS_MODES, BrokerSettings, PsSettings, parse_straggler
from commbench.benchmarks.broker import ACKS, ARRIVALS, DESIGNS
from commbench.benchmarks.broker_settings import (
    parse_design_options,
    parse_flush,
    parse_linger,
    parse_rate,
    parse_windows,
)
from commbench.errors import UsageError
from commbench.payloads.schemes import SchemeOptions, parse_categories, parse_ratio
from commbench.plan import ORDERS, Plan, Settings
from commbench.registry import ALL, every
from commbench.units import parse_count, parse_duration, parse_size, parse_sizes


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: the field it fills and how its text is read, given the flag for messages."""

    field: str
    parse: Callable[[str, str], Any]
    flag: str


def _words(text: str, flag: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not all(words) or len(set(words)) != len(words):
        raise UsageError(f"{flag} {text}: allowed: names separated by commas, each once")
    return words


def _switch(text: str, flag: str) -> bool:
    if text not in ("true", "false"):
        raise UsageError(f"{flag} {text}: allowed: true, false")
    return text == "true"


def _on_off(text: str, flag: str) -> bool:
    if text not in ("on", "off", "true", "false"):
        raise UsageError(f"{flag} {text}: allowed: on, off")
    return text in ("on", "true")


def _one_of(*allowed: str) -> Callable[[str, str], str]:
    def parse(text: str, flag: str) -> str:
        if text not in allowed:
            raise UsageError(f"{flag} {text}: allowed: {', '.join(allowed)}")
        return text

    return parse


def _count_or_none(text: str, flag: str) -> int:
    return parse_count(text, flag, least=0)


def _record_sizes(text: str, flag: str) -> tuple[int, ...]:
    return parse_sizes(text, flag, least=1)


def _straggler(text: str, flag: str) -> str:
    parse_straggler(text, flag)
    return text


def _seed(text: str, flag: str) -> int:
    seed = parse_count(text, flag, least=0)
    if seed >= 1 << 63:
        raise UsageError(f"{flag} {text}: allowed: 0 to 2^63 - 1")
    return seed


def _options(text: str, flag: str) -> tuple[tuple[str | None, str, str], ...]:
    return tuple(_option(line, flag) for line in text.split("\n") if line)


def _option(text: str, flag: str) -> tuple[str | None, str, str]:
    match = re.fullmatch(r"(?:([\w+.-]+):)?([\w.-]+)=(.*)", text)
    if not match:
        raise UsageError(f"{flag} {text}: allowed: KEY=VALUE or CHANNEL:KEY=VALUE")
    return match[1], match[2], match[3]


def _text(text: str, flag: str) -> str:
    return text


SETTINGS: Mapping[str, Setting] = {
    "benchmark": Setting("benchmarks", _words, "benchmark"),
    "channel": Setting("channels", _words, "-C/--channel"),
    "mode": Setting("modes", _words, "--mode"),
    "scheme": Setting("schemes", _words, "--scheme"),
    "message-size": Setting("sizes", parse_sizes, "-m/--message-size"),
    "iovec": Setting("scheme.iovec", parse_count, "--iovec"),
    "categories": Setting("scheme.categories", parse_categories, "--categories"),
    "small": Setting("scheme.small", parse_size, "--small"),
    "medium": Setting("scheme.medium", parse_size, "--medium"),
    "large": Setting("scheme.large", parse_size, "--large"),
    "skew-to": Setting("scheme.skew_to", _text, "--skew-to"),
    "skew-ratio": Setting("scheme.skew_ratio", parse_ratio, "--skew-ratio"),
    "seed": Setting("scheme.seed", _seed, "--seed"),
    "iterations": Setting("iterations", parse_count, "-i/--iterations"),
    "warmup": Setting("warmup", _count_or_none, "-x/--warmup"),
    "duration": Setting("duration_s", parse_duration, "-D/--duration"),
    "warmup-time": Setting("warmup_s", parse_duration, "--warmup-time"),
    "window": Setting("window", parse_count, "-W/--window"),
    "validate": Setting("validate", _switch, "-c/--validate"),
    "rtt": Setting("rtt", _switch, "--rtt"),
    "ps": Setting("ps.servers", parse_count, "--ps"),
    "workers": Setting("ps.workers", parse_count, "--workers"),
    "ps-mode": Setting("ps.mode", _one_of(*PS_MODES), "--ps-mode"),
    "shard": Setting("ps.shard", _switch, "--shard"),
    "per-tensor": Setting("ps.per_tensor", _on_off, "--per-tensor"),
    "straggler": Setting("ps.straggler", _straggler, "--straggler"),
    "producers": Setting("broker.producers", parse_count, "--producers"),
    "brokers": Setting("broker.brokers", parse_count, "--brokers"),
    "consumers": Setting("broker.consumers", _count_or_none, "--consumers"),
    "partitions": Setting("broker.partitions", parse_count, "--partitions"),
    "replication": Setting("broker.replication", parse_count, "--replication"),
    "acks": Setting("broker.acks", _one_of(*ACKS), "--acks"),
    "record-size": Setting("broker.record_sizes", _record_sizes, "--record-size"),
    "records": Setting("broker.records", parse_count, "--records"),
    "rate": Setting("broker.rate", parse_rate, "--rate"),
    "arrivals": Setting("broker.arrivals", _one_of(*ARRIVALS), "--arrivals"),
    "batch-size": Setting("broker.batch_size", parse_size, "--batch-size"),
    "linger-ms": Setting("broker.linger_ns", parse_linger, "--linger-ms"),
    "max-in-flight": Setting("broker.max_in_flight", parse_count, "--max-in-flight"),
    "buffer-memory": Setting("broker.buffer_memory", parse_size, "--buffer-memory"),
    "records-in-flight": Setting("broker.windows", parse_windows, "--records-in-flight"),
    "flush": Setting("broker.flush_every", parse_flush, "--flush"),
    "design": Setting("broker.design", _one_of(*DESIGNS), "--design"),
    "design-option": Setting("broker.design_options", parse_design_options, "--design-option"),
    "handlers": Setting("broker.handlers", parse_count, "--handlers"),
    "log-dir": Setting("broker.log_dir", _text, "--log-dir"),
    "loop": Setting("loop", _text, "--loop"),
    "timeout": Setting("timeout_s", parse_duration, "--timeout"),
    "option": Setting("options", _options, "-o/--option"),
}

# Flags that are options of every channel that has them: --ib-dev rxe0 is -o ib_dev=rxe0
DEVICE_FLAGS = ("ib-dev", "ib-port", "gid-index", "mtu", "sl", "bootstrap-servers", "kafka-config")


def settings(given: Mapping[str, str]) -> Settings:
    """Settings from long flag names and their texts. Raises UsageError."""
    values: dict[str, dict[str, Any]] = {"": {}, "scheme": {}, "ps": {}, "broker": {}}
    for name, text in _with_device(given).items():
        setting = SETTINGS[name]
        group, _, field = setting.field.rpartition(".")
        values[group][field] = setting.parse(text, setting.flag)
    if "broker" in values[""].get("benchmarks", ()):
        values["broker"] |= _of_broker(values[""])
    made = Settings(
        **values[""],
        scheme_options=SchemeOptions(**values["scheme"]),
        ps=PsSettings(**values["ps"]),
        broker=BrokerSettings(**values["broker"]),
    )
    return _all(made) if made.channels == (ALL,) else made


def _of_broker(values: dict[str, Any]) -> dict[str, Any]:
    """What the benchmark has in place of the channel; it is taken out of ``values``."""
    options = values.get("options", ())
    own = [each for each in options if each[:2] == (None, "buffer")]
    values["options"] = tuple(each for each in options if each not in own)
    return {"channel_buffer": parse_size(own[-1][2], "-o buffer", least=1)} if own else {}


def _with_device(given: Mapping[str, str]) -> dict[str, str]:
    """Device flags as the options that they are."""
    options = [f"{name.replace('-', '_')}={given[name]}" for name in DEVICE_FLAGS if name in given]
    others = {name: text for name, text in given.items() if name not in DEVICE_FLAGS}
    if options:
        others["option"] = "\n".join([*options, others.get("option", "")])
    return others


def _all(made: Settings) -> Settings:
    channels, left_out = every(made.modes, made.loop)
    if not channels:
        raise UsageError(f"-C {ALL}: no channel can run here with --mode {','.join(made.modes)}")
    return replace(made, channels=tuple(channels), left_out=tuple(left_out))


def make_plan(
    given: Mapping[str, str], job: Path | None = None, order: str = "blocks", order_seed: int = 0
) -> Plan:
    """The plan of these flags, over the sections of a job file when there is one."""
    if order not in ORDERS:
        raise UsageError(f"--shuffle {order}: allowed: {', '.join(ORDERS)}")
    sections = read_job(job) if job else [{}]
    plan = Plan(tuple(settings({**each, **given}) for each in sections), order, order_seed)
    for name in _with_device(given):
        setting = SETTINGS[name]
        group = setting.field.rpartition(".")[0]
        if group in ("ps", "broker") and not plan.has(group):
            raise UsageError(f"{setting.flag} {given[name]}: goes with the benchmark {group}")
    return plan


def read_job(path: Path) -> list[dict[str, str]]:
    """The sections of a TOML job file as texts by long flag name. Raises UsageError with a line."""
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"job file {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"job file {path}: is not UTF-8 text: {error.reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"job file {path}: {error}") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(
                f"job file {path}, line {_line(text, None, name)}: {name} stands outside a "
                f"section; put it under [global] or a section of its own"
            )
    sections = {
        name: {key: _value(path, text, name, key, value) for key, value in table.items()}
        for name, table in tables.items()
    }
    common = sections.pop("global", {})
    if not sections and not common:
        raise UsageError(f"job file {path}: has no section")
    return [{**common, **section} for section in sections.values()] or [common]


def _value(path: Path, text: str, section: str, key: str, value: object) -> str:
    where = f"job file {path}, line {_line(text, section, key)}"
    if key not in SETTINGS and key not in DEVICE_FLAGS:
        there = ", ".join((*SETTINGS, *DEVICE_FLAGS))
        raise UsageError(f"{where}: no setting {key}; there are: {there}")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and all(isinstance(each, str | int) for each in value):
        return ("\n" if key == "option" else ",").join(map(str, value))
    if isinstance(value, str | int | float):
        return str(value)
    raise UsageError(f"{where}: {key}: allowed: a text, a number, true, false or a list of them")


def _line(text: str, section: str | None, key: str) -> int:
    """The line where a key stands; of its section's header when it cannot be found."""
    current: str | None = None
    header = 1
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.match(r"\s*\[\s*\"?([^\]\"]+)\"?\s*\]", line):
            current = match[1].strip()
            header = number if current == section else header
        elif current == section and re.match(rf"\s*\"?{re.escape(key)}\"?\s*[=.]", line):
            return number
    return header
