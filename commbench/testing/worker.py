"""One rank of a contract run: ``python -m commbench.testing.worker`` under a launcher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from commbench.errors import CommbenchError
from commbench.harness.rendezvous import join
from commbench.registry import load_path, usable
from commbench.testing.scenarios import NAMES, SCENARIOS, Context


@click.command()
@click.option("--channel", required=True)
@click.option("--loops", required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--option", "options", multiple=True)
@click.option("--only", multiple=True, type=click.Choice(NAMES))
def main(
    channel: str, loops: str, out: Path, options: tuple[str, ...], only: tuple[str, ...]
) -> None:
    """Run the scenarios over one channel; rank 0 writes the name of each that passed to OUT."""
    kind = load_path(channel, channel) if ":" in channel else usable(channel)
    given = dict(option.split("=", 1) for option in options)
    world, rendezvous = join()
    opened = kind.open(world, rendezvous, kind.check_options(given))
    scenarios = [each for each in SCENARIOS if not only or each.__name__ in only]
    for loop in loops.split(","):
        for scenario in scenarios:
            run(Context(world, rendezvous, opened, loop), scenario)
            if world.rank == 0:
                with out.open("a") as finished:
                    print(f"{scenario.__name__}/{loop}", file=finished)
    opened.close()
    opened.close()  # allowed twice
    rendezvous.barrier()
    rendezvous.close()


def run(ctx: Context, scenario: Callable[[Context], None]) -> None:
    """The first failure ends the run on every rank, saying where and why."""
    try:
        scenario(ctx)
    except CommbenchError as error:
        ctx.rendezvous.fail(f"{scenario.__name__}/{ctx.loop}: {type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
