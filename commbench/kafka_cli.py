"""``commbench kafka``: a real Kafka cluster on this host, for as long as it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from commbench.errors import ChannelUnavailable

_LEAST_HEAP = 128 << 20  # below it a broker spends its time collecting garbage, or does not start


@click.group(short_help="A real Kafka on this host: KRaft brokers on loopback.")
def kafka() -> None:
    """A real Kafka on this host: KRaft brokers on the loopback interface.

    Maven fetches Kafka's jars once, into the user's cache. It needs Java 17 or newer and Maven
    (Debian: default-jre-headless maven), and pip install 'commbench[kafka]'.
    """


def _in_folder(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--dir",
        "folder",
        type=click.Path(file_okay=False, resolve_path=True, path_type=Path),
        metavar="FOLDER",
        help="Where it runs, with its data.  [the user's cache folder]",
    )(command)


@kafka.command()
@click.option(
    "--brokers", type=click.IntRange(1, 4), default=1, show_default=True, help="Processes."
)
@click.option("--version", metavar="X.Y.Z", help="Release of Kafka.  [4.1.1]")
@_in_folder
@click.option(
    "--heap", default="512M", show_default=True, metavar="SIZE", help="Most of each broker's Java."
)
@click.option(
    "--sasl-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="User and password, a line each: clients must log in (SASL/PLAIN).",
)
@click.option(
    "--timeout", default="2m", show_default=True, metavar="TIME", help="Until it answers."
)
def up(
    brokers: int,
    version: str | None,
    folder: Path | None,
    heap: str,
    sasl_file: Path | None,
    timeout: str,
) -> None:
    """Start a cluster; prints its bootstrap servers when all brokers answer.

    \b
    Exit codes: 0 it runs; 2 usage, or one is running there; 4 Java, Maven or a library is
    missing, or the jars cannot be had; 5 it did not come up, or was stopped.
    """
    from commbench.harness.kafka import cluster, maven
    from commbench.harness.kafka.properties import read_credentials
    from commbench.units import parse_duration, parse_size

    spec = cluster.Spec(
        folder=folder or cluster.default_folder(),
        brokers=brokers,
        version=maven.check_version(version or maven.VERSION),
        heap=parse_size(heap, "--heap", least=_LEAST_HEAP),
        credentials=read_credentials(sasl_file) if sasl_file else None,
        timeout_s=parse_duration(timeout, "--timeout"),
    )
    click.echo(cluster.up(spec).client)


@kafka.command()
@click.option("--version", metavar="X.Y.Z", help="Release of Kafka.  [4.1.1]")
def fetch(version: str | None) -> None:
    """Fetch Kafka's jars into the cache, as up does; prints their folder."""
    from commbench.harness.kafka import maven

    maven.find_java()
    click.echo(maven.jars(maven.check_version(version or maven.VERSION)))


@kafka.command()
@_in_folder
def down(folder: Path | None) -> None:
    """Stop the cluster and remove its data; exit code 4 when there is none."""
    from commbench.harness.kafka import cluster

    where = folder or cluster.default_folder()
    if not cluster.down(where):
        raise ChannelUnavailable(f"kafka: no cluster runs in {where}")


@kafka.command()
@_in_folder
def status(folder: Path | None) -> None:
    """Print the bootstrap servers of the cluster; exit code 4 when it does not run."""
    from commbench.harness.kafka import cluster

    click.echo(cluster.status(folder or cluster.default_folder()).client)
