"""Kafka's design against Frieda's, part by part, and a real Kafka beside them: a row for each.

python benchmarks/broker_designs.py [-C tcp] [--producers 8] [--records 100000] [--launches 6]
    [--kafka] [--json FILE]

100 B, acks=1, flush none, unless --set says otherwise. Every launch runs all sets of parts, in an
order of its own, so that what the machine does meanwhile meets all of them. A figure is the median
over launches with its 95 % interval by ranks (none below 6); figures of two rows differ when their
intervals are apart. Nothing is pinned, and with fewer cores than ranks the figures say more of the
scheduler than of the designs.

Progress goes to stderr, case by case. FILE is written anew after every launch, so that what was
measured is kept when a later launch fails; the table then has the launches before.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import click

from benchmarks.ratios.kafka import broker
from benchmarks.ratios.statistics import Spread
from commbench.benchmarks.broker import PARTS
from commbench.errors import CommbenchError
from commbench.harness.hardware import cpu_model
from commbench.harness.sysfs import Tree
from commbench.jobs import make_plan
from commbench.record import Record
from commbench.registry import load
from commbench.results import read

REAL = "real Kafka"
LEAST_RATE, MOST_TAIL = 0.9, 1.1  # of a real Kafka: design kafka is no straw man
FIGURES: Mapping[str, Callable[[Record], float | None]] = {
    "rec/s": lambda record: record["ops_per_s"],
    "p50 us": lambda record: _us(record, "p50"),
    "p99 us": lambda record: _us(record, "p99"),
    "p99.9 us": lambda record: _us(record, "p99.9"),
}
RATE, TAIL = "rec/s", "p99.9 us"
_RECORD = 10  # bytes of a record beside its value, at most, in the bound of librdkafka's queue


def _us(record: Record, percentile: str) -> float | None:
    value = record["latency_ns"][percentile]
    return None if value is None else float(value) / 1e3


@dataclass(frozen=True, slots=True)
class Design:
    """A row: the parts that are on, and who puts answers in order."""

    name: str
    parts: tuple[str, ...]
    reorder: str = "client"

    def options(self) -> str:
        switches = [f"{part}={'on' if part in self.parts else 'off'}" for part in PARTS]
        return ",".join([*switches, f"reorder={self.reorder}"])

    def is_of(self, record: Record) -> bool:
        spec = record["case"]["broker"]
        return set(spec["parts"]) == set(self.parts) and spec["reorder"] == self.reorder


def designs() -> Iterator[Design]:
    """All off, each part alone, all, all but each; without the last part, which is to put answers
    in order at the client, the broker does so."""
    yield Design("kafka", ())
    for part in PARTS:
        yield Design(f"+{part}", (part,))
    yield Design("frieda", PARTS)
    for part in PARTS:
        yield Design(f"frieda -{part}", tuple(each for each in PARTS if each != part))
    yield Design("frieda reorder=broker", PARTS, "broker")


# ---------------------------------------------------------------------- running


@dataclass(frozen=True, slots=True)
class Load:
    """What all rows have in common; ``others``: other keys of a job file."""

    channel: str
    producers: int
    records: int
    others: Mapping[str, str]

    def job(self) -> str:
        """A section for each design."""
        sections = "".join(
            f'[set-{at}]\ndesign-option = "{each.options()}"\n' for at, each in enumerate(designs())
        )
        return self._common(self.channel) + f"records = {self.records}\n" + sections

    def kafka_job(self, servers: str, warmup_s: float, duration_s: float) -> str:
        """By time, since a Kafka has to warm up. Its producers may hold as many records as ours."""
        return self._common("kafka") + (
            f'bootstrap-servers = "{servers}"\n'
            f'option = "queue.buffering.max.messages={self.held()}"\n'
            f'duration = "{duration_s:g}s"\nwarmup-time = "{warmup_s:g}s"\n'
        )

    def held(self) -> int:
        """How many records a producer of ours has in memory at once."""
        given = {"benchmark": "broker", "producers": str(self.producers), **self.others}
        plan = make_plan(given)
        ((case, *_), *_) = plan.blocks(load, plan.ranks())
        assert case.broker is not None, "a case of broker has a spec"
        in_batch = case.broker.batch_nbytes(case.nbytes) // (case.nbytes + _RECORD)
        return case.broker.batches(case.nbytes) * max(1, in_batch)

    def _common(self, channel: str) -> str:
        others = "".join(f'{name} = "{value}"\n' for name, value in self.others.items())
        return (
            f'[global]\nbenchmark = "broker"\nchannel = "{channel}"\n'
            f"producers = {self.producers}\n{others}"
        )


def measured(job: str, timeout_s: float) -> list[Record]:
    """The cases of one launch; its rows go to stderr. Raises click.ClickException."""
    with tempfile.TemporaryDirectory(prefix="designs-") as folder:
        path, output = Path(folder, "designs.toml"), Path(folder, "x.jsonl")
        path.write_text(job)
        words = ["run", str(path), "--bind", "none", "--output", str(output)]
        command = [sys.executable, "-m", "commbench", *words]
        try:
            done = subprocess.run(command, stdout=sys.stderr.fileno(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise click.ClickException(f"a launch took more than {timeout_s:g} s") from None
        if done.returncode:
            raise click.ClickException(f"a launch failed with exit code {done.returncode}")
        return list(read(output).cases)


def named(records: Sequence[Record]) -> dict[str, dict[str, float | None]]:
    """The figures of each row."""
    found = {}
    for record in records:
        if record["case"]["channel"] == "kafka":
            name = REAL
        else:
            name = next(each.name for each in designs() if each.is_of(record))
        found[name] = {figure: of(record) for figure, of in FIGURES.items()}
    return found


# ---------------------------------------------------------------------- what is said

Launch = Mapping[str, Mapping[str, float | None]]  # figures by row


def spread(launches: Sequence[Launch], name: str, figure: str) -> Spread | None:
    values = [value for each in launches if (value := each.get(name, {}).get(figure)) is not None]
    return Spread.of(values) if values else None


def rows(launches: Sequence[Launch]) -> Iterator[str]:
    """The table, in the order of ``designs``."""
    yield f"# {'design':<24}" + "".join(f"{name:>32}" for name in FIGURES)
    for name in (*(each.name for each in designs()), REAL):
        if any(name in each for each in launches):
            cells = (_cell(spread(launches, name, figure)) for figure in FIGURES)
            yield f"  {name:<24}" + "".join(f"{cell:>32}" for cell in cells)


def _cell(found: Spread | None) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.median:.6g}"
    return f"{found.median:.6g} ({found.low:.6g}..{found.high:.6g})"


def verdicts(launches: Sequence[Launch]) -> Iterator[str]:
    """What frieda gains, and whether design kafka is comparable with a real Kafka."""
    for other in ("kafka", REAL):
        yield from _against(launches, other)
    rate, real_rate = (spread(launches, name, RATE) for name in ("kafka", REAL))
    tail, real_tail = (spread(launches, name, TAIL) for name in ("kafka", REAL))
    if not (rate and real_rate and tail and real_tail):
        return
    faster, longer = rate.median / real_rate.median, tail.median / real_tail.median
    fair = faster >= LEAST_RATE and longer <= MOST_TAIL
    yield (
        f"# design kafka to {REAL}: {faster:.3g} of its records/s (at least {LEAST_RATE}), "
        f"{longer:.3g} of its p99.9 (at most {MOST_TAIL}): {'' if fair else 'not '}comparable"
    )


def _against(launches: Sequence[Launch], other: str) -> Iterator[str]:
    for figure, below in ((TAIL, True), (RATE, False)):
        ours, theirs = spread(launches, "frieda", figure), spread(launches, other, figure)
        if not (ours and theirs):
            continue
        change = 100 * (ours.median / theirs.median - 1)
        yield f"# frieda to {other}: {figure} {change:+.0f} %, {_apart(ours, theirs, below)}"


def _apart(ours: Spread, theirs: Spread, below: bool) -> str:
    if ours.low is None or ours.high is None or theirs.low is None or theirs.high is None:
        return "no intervals"
    better = ours.high < theirs.low if below else ours.low > theirs.high
    worse = ours.low > theirs.high if below else ours.high < theirs.low
    return "better" if better else "worse" if worse else "intervals overlap"


# ---------------------------------------------------------------------- the command


def keep(path: Path | None, what: Load, launches: Sequence[Launch]) -> None:
    if path is None:
        return
    about: dict[str, Any] = {
        "format": 1,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(Tree()) or "unknown",
        "cpu_count": os.cpu_count(),
        "kernel": platform.release(),
        "channel": what.channel,
        "producers": what.producers,
        "records": what.records,
        "others": dict(what.others),
    }
    path.write_text(json.dumps({**about, "launches": launches}, indent=1) + "\n")


@click.command()
@click.option("-C", "--channel", default="tcp", show_default=True)
@click.option("--producers", default=8, show_default=True)
@click.option("--records", default=100_000, show_default=True, help="Of each producer.")
@click.option("--launches", default=6, show_default=True)
@click.option(
    "--set", "more", multiple=True, metavar="NAME=VALUE", help="Other keys of a job file."
)
@click.option("--kafka", is_flag=True, help="Boot a real Kafka and produce into it, too.")
@click.option("--kafka-warmup", default=10.0, show_default=True, help="Seconds dropped, each time.")
@click.option("--kafka-time", default=5.0, show_default=True, help="Seconds that count.")
@click.option("--json", "output", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Of a launch.")
def main(
    channel: str, producers: int, records: int, launches: int, more: tuple[str, ...], kafka: bool,
    kafka_warmup: float, kafka_time: float, output: Path | None, timeout_s: float,
) -> None:  # fmt: skip
    """Run all sets of parts so often, and print the table."""
    what = Load(channel, producers, records, dict(each.split("=", 1) for each in more))
    jobs = [what.job()]
    found: list[Launch] = []
    try:
        with contextlib.ExitStack() as stack:
            if kafka:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="designs-"))
                servers = stack.enter_context(broker(Path(folder)))
                jobs.append(what.kafka_job(servers, kafka_warmup, kafka_time))
            for at in range(launches):
                began = time.monotonic()
                found.append(named([each for job in jobs for each in measured(job, timeout_s)]))
                keep(output, what, found)
                spent = time.monotonic() - began
                print(f"# launch {at + 1} of {launches}: {spent:.0f} s", file=sys.stderr)
    except CommbenchError as error:
        raise click.ClickException(str(error)) from None
    finally:
        print(f"# {producers} producers, {records} records of each, {len(found)} launches")
        for line in (*rows(found), *verdicts(found)):
            print(line)


if __name__ == "__main__":
    main()
