"""Kafka's design against Frieda's, part by part: a row for each set of parts.

python benchmarks/broker_designs.py [-C tcp] [--producers 8] [--records 20000] [--launches 6]

Every launch runs all sets, in an order of its own, so that what the machine does meanwhile meets
all of them. A figure is the median over launches with its 95 % interval by ranks (none below 6).
Figures of two rows differ when their intervals are apart. On a machine with fewer cores than ranks
nothing is pinned, and the figures say more of the scheduler than of the designs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import click

from benchmarks.ratios.statistics import Spread
from commbench.benchmarks.broker import PARTS
from commbench.record import Record
from commbench.results import read

_FIGURES = {
    "rec/s": lambda r: r["ops_per_s"],
    "p50 us": lambda r: _us(r, "p50"),
    "p99 us": lambda r: _us(r, "p99"),
    "p99.9 us": lambda r: _us(r, "p99.9"),
}


def sets() -> Iterator[tuple[str, list[str], str]]:
    """Name, parts that are on, and where answers are put in order: all off, each alone, all, all
    but each, and all with the broker putting answers in order."""
    yield "kafka", [], "client"
    for part in PARTS:
        yield f"+{part}", [part], "client"
    yield "frieda", list(PARTS), "client"
    for part in PARTS:
        yield f"frieda -{part}", [each for each in PARTS if each != part], "client"
    yield "frieda reorder=broker", list(PARTS), "broker"


def job(channel: str, producers: int, records: int, more: Mapping[str, str]) -> str:
    """A section for each set."""
    common = "".join(f'{name} = "{value}"\n' for name, value in more.items())
    text = (
        f'[global]\nbenchmark = "broker"\nchannel = "{channel}"\nproducers = {producers}\n'
        f"records = {records}\n{common}"
    )
    for at, (_, parts, reorder) in enumerate(sets()):
        options = [f"{part}={'on' if part in parts else 'off'}" for part in PARTS]
        options.append(f"reorder={reorder}")
        text += f'[set-{at}]\ndesign-option = "{",".join(options)}"\n'
    return text


def measured(text: str, launches: int, timeout_s: float) -> list[Record]:
    """Raises click.ClickException with what the run said."""
    with tempfile.TemporaryDirectory(prefix="designs-") as folder:
        path, output = Path(folder, "designs.toml"), Path(folder, "x.jsonl")
        path.write_text(text)
        words = ["run", str(path), "--repeat", str(launches), "--bind", "none"]
        done = subprocess.run(
            [sys.executable, "-m", "commbench", *words, "--output", str(output)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode:
            raise click.ClickException(done.stderr.strip())
        return list(read(output).cases)


def rows(records: list[Record]) -> Iterator[str]:
    """The table, in the order of ``sets``."""
    yield f"# {'design':<24}" + "".join(f"{name:>32}" for name in _FIGURES)
    for name, parts, reorder in sets():
        mine = [
            record
            for record in records
            if set(record["case"]["broker"]["parts"]) == set(parts)
            and record["case"]["broker"]["reorder"] == reorder
        ]
        yield f"  {name:<24}" + "".join(f"{_cell(mine, each):>32}" for each in _FIGURES)


def _cell(records: list[Record], figure: str) -> str:
    found = [value for record in records if (value := _FIGURES[figure](record)) is not None]
    if not found:
        return "-"
    spread = Spread.of(found)
    if spread.low is None or spread.high is None:
        return f"{spread.median:.6g}"
    return f"{spread.median:.6g} ({spread.low:.6g}..{spread.high:.6g})"


def _us(record: Record, percentile: str) -> float | None:
    value = record["latency_ns"][percentile]
    return None if value is None else value / 1e3


@click.command()
@click.option("-C", "--channel", default="tcp", show_default=True)
@click.option("--producers", default=8, show_default=True)
@click.option("--records", default=20_000, show_default=True, help="Of each producer.")
@click.option("--launches", default=6, show_default=True)
@click.option(
    "--set", "more", multiple=True, metavar="NAME=VALUE", help="Other keys of a job file."
)
@click.option("--timeout", "timeout_s", default=1200.0, show_default=True)
def main(
    channel: str, producers: int, records: int, launches: int, more: tuple[str, ...],
    timeout_s: float,
) -> None:  # fmt: skip
    """Run all sets so often, and print the table."""
    others = dict(each.split("=", 1) for each in more)
    found = measured(job(channel, producers, records, others), launches, timeout_s)
    print(f"# {producers} producers, {records} records of each, {launches} launches")
    for line in rows(found):
        print(line)


if __name__ == "__main__":
    main()
