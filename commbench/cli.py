"""The command line: flags -> Plan -> session; the only place that prints or exits.

Nothing heavy is imported before a command needs it: under mpirun every rank pays for it.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commbench import __version__
from commbench.errors import CommbenchError, UsageError
from commbench.kafka_cli import kafka
from commbench.vm import vm

if TYPE_CHECKING:
    from commbench.plan import Plan
    from commbench.session import Options

MAX_RANKS = 512  # on one host: more of them would measure the scheduler
MAX_REPEAT = 10_000
_SAY_S = 1.5  # for the first rank of a host to say what is wrong
LAUNCH_INDEX = "--launch-index"  # hidden; what our launcher adds begins with it

# long name, short name, metavar, help: the settings that a job file has too (commbench.jobs)
_SETTINGS = (
    ("channel", "-C", "NAMES", "Channels, e.g. tcp,mpi,grpc, or all.  [tcp]"),
    ("mode", None, "MODES", "non-serialized and/or serialized.  [non-serialized]"),
    (
        "scheme",
        None,
        "NAMES",
        "contiguous, uniform, random, skew, model:NAME, trace:FILE.  [contiguous]",
    ),
    ("message-size", "-m", "SIZES", "1:4M (powers of two) or 64,1K,64K, binary.  [1:4M]"),
    ("iovec", None, "N", "Buffers of a message of a scheme.  [10]"),
    ("categories", None, "NAMES", "Buffer categories.  [small,medium,large]"),
    ("small", None, "SIZE", "A small buffer, below 1K.  [10]"),
    ("medium", None, "SIZE", "A medium buffer, 1K to below 1M.  [10K]"),
    ("large", None, "SIZE", "A large buffer, 1M to 10M.  [1M]"),
    ("skew-to", None, "NAME", "Category that skew favours.  [large]"),
    ("skew-ratio", None, "RATIO", "Shares, the favoured first.  [60,30,10]"),
    ("seed", None, "N", "Seed of payloads.  [0]"),
    ("iterations", "-i", "N", "Operations of a case.  [as OSU: by benchmark and size]"),
    ("warmup", "-x", "N", "Operations before them.  [as OSU]"),
    ("duration", "-D", "TIME", "Run each case this long instead, e.g. 10s."),
    ("warmup-time", None, "TIME", "With -D: warm up so long before; not counted in -D.  [0]"),
    ("window", "-W", "N", "Messages of a bandwidth window.  [64]"),
    ("ps", None, "N", "ps: parameter servers, the first ranks.  [1]"),
    ("workers", None, "N", "ps: workers, the ranks after them.  [all others]"),
    ("ps-mode", None, "MODE", "ps: echo, push-pull (a barrier in each step) or async.  [echo]"),
    ("per-tensor", None, "on|off", "ps: each buffer is a call.  [on for model: and trace:]"),
    ("straggler", None, "RANK:2x", "ps: a worker whose steps take so many times as long."),
    ("brokers", None, "N", "broker: brokers, the first ranks.  [1]"),
    ("producers", None, "N", "broker: producers, the ranks after them.  [1, or all others]"),
    ("consumers", None, "N", "broker: consumers, the ranks after these.  [0]"),
    ("partitions", None, "N", "broker: partitions of the topic.  [one for each broker]"),
    ("replication", None, "N", "broker: replicas of a partition, at most brokers.  [1]"),
    ("acks", None, "0|1|all", "broker: who has a record when it is acknowledged.  [1]"),
    ("record-size", None, "SIZES", "broker: bytes of a record.  [100]"),
    ("records", None, "N", "broker: records of each producer.  [100000]"),
    ("rate", None, "R|max", "broker: records/s of all producers, by a schedule.  [max]"),
    ("arrivals", None, "HOW", "broker: with --rate: constant or poisson.  [constant]"),
    ("batch-size", None, "SIZE", "broker: most bytes of a batch.  [16K]"),
    ("linger-ms", None, "MS", "broker: how long a batch waits for more records.  [0]"),
    ("max-in-flight", None, "N", "broker: requests of a producer to a broker at once.  [5]"),
    ("buffer-memory", None, "SIZE", "broker: batches that a producer holds.  [what is in flight]"),
    ("records-in-flight", None, "LIST", "broker: single records instead of batches; tail model."),
    ("flush", None, "WHEN", "broker: none, every-N or every-record (fdatasync).  [none]"),
    ("design", None, "NAME", "broker: kafka or frieda.  [kafka]"),
    ("handlers", None, "N", "broker: threads with polling=on.  [by processors and partitions]"),
    ("log-dir", None, "DIR", "broker: keep the logs in DIR.  [temporary folders, removed]"),
    ("loop", None, "LOOP", "auto, native or python.  [auto]"),
    ("timeout", None, "TIME", "Longest wait without progress.  [60s]"),
    ("ib-dev", None, "NAMES", "RDMA: device, or several by local rank.  [active ones]"),
    ("ib-port", None, "N", "RDMA: its port.  [the first active]"),
    ("gid-index", None, "N", "RDMA: entry of the GID table.  [RoCE v2 before v1, IPv4 first]"),
    ("mtu", None, "BYTES", "RDMA: path MTU, 256 to 4096.  [the link's]"),
    ("sl", None, "N", "RDMA: service level, 0 to 15.  [0]"),
    ("bootstrap-servers", None, "HOST:PORT,...", "kafka: the cluster.  [librdkafka's mock]"),
    ("kafka-config", None, "FILE", "kafka: librdkafka's properties, secrets too."),
)


class _CtrlC(BaseException):
    """KeyboardInterrupt on its way past click, which would print an empty line for it."""


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _CtrlC from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="commbench")
def cli() -> None:
    """Which transport is faster, why, and did my change slow it down?

    \b
    Exit codes: 0 fine, 2 usage, 4 channel unavailable,
    5 transfer or validation error; planned: 1 regression, 3 not comparable.
    """


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, short, metavar, text in reversed(_SETTINGS):
        names = [f"--{name}"] + ([short] if short else [])
        several = name == "channel"  # -C tcp -C grpc is -C tcp,grpc
        command = click.option(*names, metavar=metavar, help=text, multiple=several)(command)
    return command


@cli.command(short_help="Run benchmarks: on own local ranks, or under mpirun or srun.")
@click.argument("what", nargs=-1, metavar="[BENCHMARK|JOB.toml]...")
@_with_settings
@click.option(
    "-o",
    "--option",
    "option",
    multiple=True,
    metavar="[CHANNEL:]KEY=VALUE",
    help="Option of a channel; see 'commbench channels'.",
)
@click.option(
    "--design-option",
    multiple=True,
    metavar="NAME=on|off",
    help="broker: a part of the design; see docs/broker.md.",
)
@click.option("-c", "--validate", is_flag=True, help="Fill and verify every message.")
@click.option("--shard", is_flag=True, help="ps: each server holds 1/P of the parameters.")
@click.option("--rtt", is_flag=True, help="Latency is the whole round trip, not half of it.")
@click.option("-z", "--percentiles", metavar="LIST", help="e.g. 50,99,99.9.")
@click.option(
    "-n",
    "--ranks",
    type=int,
    help="Local ranks, when no launcher gives them.  [2; ps, broker: as many as they need]",
)
@click.option(
    "--repeat", type=int, default=1, show_default=True, help="Launches of the whole plan."
)
@click.option(
    "--in-order", is_flag=True, help="Do not shuffle blocks; the same as --shuffle in-order."
)
@click.option("--shuffle", metavar="HOW", help="blocks, all (single cases) or in-order.  [blocks]")
@click.option("--order-seed", type=click.IntRange(0), help="Seed of the order.  [drawn, recorded]")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Results file (JSON Lines); never overwritten.",
)
@click.option(
    "--on-exists",
    type=click.Choice(["refuse", "number"]),
    default="refuse",
    show_default=True,
    help="When FILE exists: refuse, or write FILE.1.",
)
@click.option("--save-samples", is_flag=True, help="Keep raw stamps in an .npz beside FILE.")
@click.option(
    "--bind",
    default="core",
    show_default=True,
    metavar="core|numa|none|LIST",
    help="CPUs of the ranks.",
)
@click.option("--interface", metavar="NAME|ADDRESS", help="Network interface to measure.")
@click.option("--rendezvous", metavar="HOST:PORT|file:DIR", help="Where the ranks meet.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The run's secret, for --rendezvous HOST:PORT and --peer.",
)
@click.option("--join-timeout", type=float, metavar="S", help="Longest wait for all ranks.  [30]")
@click.option("--peer", metavar="HOST:PORT", help="Run with a 'commbench serve' there.")
@click.option("--dry-run", is_flag=True, help="Print the plan and end.")
@click.option(LAUNCH_INDEX, type=int, default=0, hidden=True)
@click.option("--started-ns", type=int, default=0, hidden=True)
def run(what: tuple[str, ...], **flags: Any) -> None:
    """Run benchmarks, e.g. 'commbench run latency,bandwidth -C tcp,mpi -m 1:64K'.

    Benchmarks: latency, bandwidth, bibw, message-rate, alltoall, ps, broker. Without mpirun or
    srun it starts its own local ranks.
    """
    started_ns = flags["started_ns"] or time.monotonic_ns()
    _check_flags(flags)
    from commbench.harness.world import detect

    world = detect(os.environ)
    alone = world is None and not flags["peer"]
    if flags["repeat"] > 1 and not alone and "COMMBENCH_LAUNCH_DIR" not in os.environ:
        raise UsageError(
            f"--repeat {flags['repeat']}: allowed where commbench starts its own ranks; under "
            f"another launcher and with --peer, run the command again, each time to a new --output"
        )
    if world is not None and flags["ranks"] not in (None, world.size):
        raise UsageError(
            f"-n/--ranks {flags['ranks']}: the launcher started {world.size}; -n is for runs "
            f"without a launcher"
        )
    plan = _plan(what, flags)
    flags["ranks"] = flags["ranks"] or (world.size if world else plan.ranks())
    _check_most(flags, "ranks", MAX_RANKS)
    if flags["save_samples"] and plan.has("ps"):
        raise UsageError(
            "--save-samples: keeps the stamps of rank 0, which serves in ps and has none; "
            "allowed without ps"
        )
    if flags["save_samples"] and "kafka" in plan.channels():
        raise UsageError("--save-samples: is not built for the channel kafka; allowed without it")
    if not flags["started_ns"] and (world is None or world.rank == 0):  # not by our own launcher
        for line in plan.left_out():
            _warn(f"-C all: left out: {line}")
    if flags["dry_run"]:
        from commbench.dryrun import table

        _show(table(plan, flags["ranks"]))
    elif alone:
        sys.exit(_launch(plan, flags, started_ns))
    else:
        sys.exit(_rank(plan, flags, started_ns))


def _check_flags(flags: dict[str, Any]) -> None:
    if flags["ranks"] is not None:
        _check_most(flags, "ranks", MAX_RANKS)
    _check_most(flags, "repeat", MAX_REPEAT)
    if flags["in_order"] and flags["shuffle"]:
        raise UsageError(f"--shuffle {flags['shuffle']}: allowed without --in-order")
    if flags["save_samples"] and not flags["output"]:
        raise UsageError("--save-samples: needs --output, the samples go beside it")
    if flags["percentiles"] is not None:
        from commbench.record import parse_percentiles

        parse_percentiles(flags["percentiles"])


def _check_most(flags: dict[str, Any], name: str, most: int) -> None:
    if not 1 <= flags[name] <= most:
        raise UsageError(f"--{name} {flags[name]}: allowed: 1 to {most}")


def _plan(what: tuple[str, ...], flags: dict[str, Any]) -> Plan:
    from commbench.jobs import make_plan

    jobs = [Path(each) for each in what if each.endswith(".toml")]
    names = [each for each in what if not each.endswith(".toml")]
    if len(jobs) > 1:
        raise UsageError(f"{' '.join(map(str, jobs))}: allowed: one job file")
    given = {name: flags[name.replace("-", "_")] for name, *_ in _SETTINGS}
    given["benchmark"] = ",".join(names) or None
    given["channel"] = ",".join(flags["channel"]) or None
    given["option"] = "\n".join(flags["option"]) or None
    given["design-option"] = "\n".join(flags["design_option"]) or None
    for switch in ("validate", "rtt", "shard"):
        given[switch] = "true" if flags[switch] else None
    order = "in-order" if flags["in_order"] else flags["shuffle"] or "blocks"
    texts = {name: text for name, text in given.items() if text is not None}
    return make_plan(texts, jobs[0] if jobs else None, order, _order_seed(flags))


def _order_seed(flags: dict[str, Any]) -> int:
    if flags["order_seed"] is None:
        import random

        flags["order_seed"] = random.SystemRandom().randrange(1 << 31)
    return int(flags["order_seed"])


def _launch(plan: Plan, flags: dict[str, Any], started_ns: int) -> int:
    """Start our own local ranks, once for each repeat."""
    from commbench.harness.launch import launch
    from commbench.registry import usable

    ranks = flags["ranks"]
    kinds = [usable(name) for name in plan.channels()]
    plan.blocks(usable, ranks)  # all that can be wrong with it is said before ranks are started
    launcher = "mpi" if any(kind.launcher == "mpi" for kind in kinds) else "process"
    output = ["--output", str(_free_output(flags))] if flags["output"] else []
    for index in range(flags["repeat"]):
        extra = [LAUNCH_INDEX, str(index), *output, "--order-seed", str(plan.order_seed)]
        extra += ["--started-ns", str(started_ns if index == 0 else time.monotonic_ns())]
        launched = launch([*sys.argv[1:], *extra], ranks, launcher=launcher)
        if launched.exit_code:
            return launched.exit_code
    return 0


def _free_output(flags: dict[str, Any]) -> Path:
    """Where the results go: said before ranks are started, and the same for every launch."""
    from commbench.results import free_path

    path: Path = free_path(flags["output"], flags["on_exists"])
    if path != flags["output"]:
        _warn(f"--output {flags['output']}: exists; writing {path}")
    return path


def _rank(plan: Plan, flags: dict[str, Any], started_ns: int) -> int:
    from commbench import session
    from commbench.harness.rendezvous import join

    options = _options(flags, started_ns)

    def enter() -> Any:
        if flags["peer"]:
            from commbench.harness.peer import dial

            token_file = flags["token_file"] and str(flags["token_file"])
            return dial(flags["peer"], token_file, flags["interface"], flags["join_timeout"])
        return join(
            rendezvous=flags["rendezvous"],
            interface=flags["interface"],
            token_file=flags["token_file"] and str(flags["token_file"]),
            join_timeout_s=flags["join_timeout"],
        )

    def make() -> Plan:
        return plan

    return session.run(enter, make, options, _show, _warn)


def _typed(argv: list[str]) -> list[str]:
    """What the user typed, without what our launcher added."""
    return argv[: argv.index(LAUNCH_INDEX)] if LAUNCH_INDEX in argv else argv


def _options(flags: dict[str, Any], started_ns: int) -> Options:
    from commbench.record import parse_percentiles
    from commbench.session import Options, Output

    return Options(
        output=Output(flags["output"], flags["on_exists"], flags["save_samples"]),
        percentiles=() if flags["percentiles"] is None else parse_percentiles(flags["percentiles"]),
        bind=flags["bind"],
        repeat=flags["repeat"],
        launch=flags["launch_index"],
        started_ns=started_ns,
        argv=("commbench", *_typed(sys.argv[1:])),
    )


def _show(line: str) -> None:
    try:
        click.echo(line)
    except OSError as error:
        from commbench.harness.streams import unwritable

        raise unwritable(sys.stdout, error) from None


def _warn(line: str) -> None:
    click.echo(f"# {line}", err=True)


@cli.command(short_help="Be the other end of one 'run --peer', on another host.")
@click.option("--interface", metavar="NAME|ADDRESS", help="Network interface to measure.")
@click.option("--port", type=int, default=0, help="Port to listen on.  [any free one]")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The run's secret; written unless it is there.  [a new file here]",
)
@click.option(
    "--bind", default="core", show_default=True, metavar="core|numa|none|LIST", help="CPUs."
)
@click.option("--wait", default="1h", show_default=True, metavar="TIME", help="For the other host.")
def serve(interface: str | None, port: int, token_file: Path | None, bind: str, wait: str) -> None:
    """Be the other end of one 'commbench run --peer', without a launcher.

    Prints the line to type on the other host, where the token file must be copied to. The plan
    comes from there.
    """
    from commbench import session
    from commbench.harness.peer import Serving
    from commbench.units import parse_duration

    patience = parse_duration(wait, "--wait")
    serving = Serving(interface, port, str(token_file) if token_file else None)
    try:
        _show(serving.line)
        options = session.Options(bind=bind)
        code = session.run(lambda: serving.join(patience), None, options, _show, _warn)
    finally:
        serving.close()
    sys.exit(code)


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format", "form", default="table", show_default=True, metavar="table|csv|json|markdown|osu"
)
@click.option("--png", type=click.Path(path_type=Path), metavar="FILE", help="Also draw a picture.")
@click.option("-z", "--percentiles", metavar="LIST", help="e.g. 50,99,99.9.")
def report(files: tuple[Path, ...], form: str, png: Path | None, percentiles: str | None) -> None:
    """Make a report again from results files."""
    from commbench.record import parse_percentiles
    from commbench.reports.report import report as make

    wanted = () if percentiles is None else parse_percentiles(percentiles)
    _show(make(files, form, png, wanted).removesuffix("\n"))


@cli.command()
@click.option("-v", "--verbose", is_flag=True, help="Also list every option.")
def channels(verbose: bool) -> None:
    """List every channel: usable or not, why, and what to install."""
    from commbench.registry import known, load

    for name in known():
        try:
            kind = load(name)
            missing = kind.missing()
        except CommbenchError as error:
            kind, missing = None, str(error)
        _show(f"{name:<10} {'usable' if missing is None else f'not usable: {missing}'}")
        if verbose and kind is not None:
            for key, option in kind.own_options().items():
                choices = f" ({'|'.join(c for c in option.choices if c)})" if option.choices else ""
                _show(f"    -o {key}={option.default}{choices}: {option.help}")


@cli.command("profile")
@click.argument("target", metavar="MODULE:CALLABLE")
@click.option("--input", "shape", metavar="SHAPE", help="Random input, e.g. 32x3x224x224.")
@click.option(
    "-i", "--iterations", type=click.IntRange(1, 10_000), default=5, show_default=True, metavar="N"
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="CSV file.  [stdout]"
)
def profile_model(target: str, shape: str | None, iterations: int, output: Path | None) -> None:
    """Write the parameter tensors of a PyTorch model with the time of each layer, as CSV.

    CALLABLE returns a torch.nn.Module, or a pair of it and its input. The file is a payload:
    'commbench run --scheme trace:FILE'.
    """
    from commbench.profile import parse_shape, profile

    if output is not None and output.exists():
        raise UsageError(f"--output {output}: exists; it is never overwritten")
    table = profile(target, None if shape is None else parse_shape(shape), iterations)
    if output is None:
        _show(table.removesuffix("\n"))
        return
    try:
        output.write_text(table, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written: {error.strerror}") from None


@cli.command()
def doctor() -> None:
    """Say what on this machine makes numbers unstable, and what to do."""
    from commbench.harness.doctor import examine

    findings = examine()
    for finding in findings:
        _show(f"{finding.what}\n    why: {finding.why}\n    do:  {finding.remedy}")
    _show(f"# {len(findings)} findings" if findings else "# nothing found")


cli.add_command(vm)
cli.add_command(kafka)


def _open_streams() -> None:
    """A closed one goes nowhere: its number must not become that of a socket or of the results."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no ±


def _another_says_it() -> bool:
    """Of the ranks that somebody else's launcher started on this host, all read the same flags and
    the first one says what is wrong. The others give it the time to: a launcher may end all ranks
    when the first one ends."""
    from commbench.harness.world import detect

    try:
        world = detect(os.environ)
    except CommbenchError:
        return False
    if world is None or world.rank == 0 or not world.local_rank:
        return False
    time.sleep(_SAY_S)
    return True


def main() -> None:
    """The console script: our errors and click's become one line and the documented exit code."""
    _open_streams()
    try:
        sys.exit(cli.main(prog_name="commbench", standalone_mode=False))
    except CommbenchError as error:
        code, line = error.exit_code, str(error)
    except click.exceptions.NoArgsIsHelpError as error:
        code, line = error.exit_code, ""
        error.show()
    except click.ClickException as error:
        code, line = error.exit_code, error.format_message()
    except (_CtrlC, click.Abort):
        raise KeyboardInterrupt from None
    if line and code == UsageError.exit_code and _another_says_it():
        line = ""
    if line:
        click.echo(f"commbench: {' '.join(line.split())}", err=True)
    sys.exit(code)
