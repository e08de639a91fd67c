"""One rank of a run, from joining the others to the last line of the results file."""

from __future__ import annotations

import os
import re
import secrets
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from commbench import __version__
from commbench.benchmarks import benchmark
from commbench.errors import CommbenchError, Interrupted, PeerLost, TransferError, UsageError
from commbench.harness import doctor, interfaces, pmi
from commbench.harness.binding import Binding, bind, thread_masks
from commbench.harness.measure import memory_nbytes
from commbench.harness.metadata import collect
from commbench.harness.rendezvous import Rendezvous, leave, tell
from commbench.harness.runner import Runner, harness_floor_ns
from commbench.harness.signals import Signals
from commbench.harness.sysfs import format_cpus
from commbench.harness.world import World
from commbench.payloads.buffers import check_memory
from commbench.plan import Case, Plan
from commbench.record import Record
from commbench.registry import usable
from commbench.results import OnExists, ResultWriter
from commbench.units import format_size

_ECHO_S = 0.3  # where ranks fail at the same time, the first one's failure is that of all


@dataclass(frozen=True, slots=True)
class Output:
    """Where results go: ``path`` None keeps none. Launches after the first append to it."""

    path: Path | None = None
    on_exists: OnExists = "refuse"
    save_samples: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What a run has beside its plan. ``launch`` counts the repeats, of which ``repeat`` are."""

    output: Output = Output()
    percentiles: tuple[float, ...] = ()
    bind: str = "core"
    repeat: int = 1
    launch: int = 0
    started_ns: int = 0  # CLOCK_MONOTONIC when the command began
    argv: tuple[str, ...] = ()  # as typed

    @property
    def last(self) -> bool:
        return self.launch == self.repeat - 1


Show = Callable[[str], None]


def run(
    join: Callable[[], tuple[World, Rendezvous]],
    make_plan: Callable[[], Plan] | None,
    options: Options,
    show: Show,
    warn: Show,
) -> int:
    """This rank's part of the run; its exit code. Ends the process where it cannot return.

    ``make_plan`` is only called on rank 0; the others get its cases. ``show`` prints a line of
    results, ``warn`` one of remarks; rank 0 alone calls them.
    """
    try:
        world, rendezvous = join()
    except CommbenchError as error:
        tell(error)
        return error.exit_code
    signals = Signals(rendezvous.stop)
    try:
        Session(world, rendezvous, options, show, warn).run(make_plan)
        rendezvous.barrier()
        rendezvous.close()
        pmi.leave(os.environ)
        return 0
    except (CommbenchError, KeyboardInterrupt) as error:
        return end_badly(rendezvous, error)
    except Exception:
        rendezvous.fail("an unexpected error; its traceback stands on that host's stderr")
        traceback.print_exc()
        leave(TransferError.exit_code)
        raise
    finally:
        signals.close()


def end_badly(rendezvous: Rendezvous, error: CommbenchError | KeyboardInterrupt) -> int:
    """Tell the others and people why, and end the process: MPI would wait for the lost rank."""
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("interrupted")
    cause = rendezvous.cause(error)
    if cause is error and isinstance(error, PeerLost) and not error.remote:
        cause = error = PeerLost(_with_host(str(error), rendezvous.hosts))
    if cause is error and not error.remote:
        rendezvous.fail(str(error), error.exit_code)
        cause = rendezvous.cause(error, _ECHO_S)
    ours = cause is error and not error.remote
    if ours and isinstance(error, TransferError) and not isinstance(error, Interrupted):
        here = f"rank {rendezvous.rank} on {rendezvous.hosts[rendezvous.rank]}"
        cause = TransferError(f"{here}: {error}")  # as the others tell it
    tell(cause)
    rendezvous.close()
    leave(cause.exit_code)
    raise AssertionError("leave() does not return")


def _with_host(line: str, hosts: Sequence[str]) -> str:
    """Engines know ranks, people hosts: "rank 1 is gone" becomes "rank 1 on HOST is gone"."""
    return re.sub(
        r"\brank (\d+)(?= is gone)", lambda rank: f"{rank[0]} on {hosts[int(rank[1])]}", line
    )


class Session:
    """A rank that has joined."""

    def __init__(
        self, world: World, rendezvous: Rendezvous, options: Options, show: Show, warn: Show
    ) -> None:
        self.world = world
        self.rendezvous = rendezvous
        self.options = options
        self.show = show
        self.warn = warn

    def run(self, make_plan: Callable[[], Plan] | None) -> None:
        before = self.look()
        self.harness_threads = frozenset(thread_masks())
        binding = bind(self.options.bind, self.world, self.rendezvous)
        plan = make_plan() if self.world.rank == 0 and make_plan else None
        blocks = self.share_blocks(plan)
        hosts: list[Any] = self.rendezvous.allgather(self.host(binding, before))
        if self.world.rank != 0 or plan is None:
            self.runner().run(blocks)
        else:
            self.lead(plan, blocks, self.header(plan, hosts))

    def interfaces(self) -> tuple[str, ...]:
        """The one by which this rank meets the others: what its channels measure by default."""
        nic = interfaces.find(self.rendezvous.local_address)
        return (nic.name,) if nic else ()

    def look(self) -> list[str]:
        """What makes numbers unstable here, before this process pins itself.

        Whether the ranks have cores enough is the binding's to say: it knows all their masks.
        """
        return doctor.warnings(doctor.examine(1, self.interfaces(), self.options.bind))

    def host(self, binding: Binding, found: list[str]) -> dict[str, Any]:
        """Facts and warnings of this rank's host, for the first line of the results file."""
        return {
            **collect(*self.interfaces()),
            "rank": self.world.rank,
            "bind": {"policy": binding.policy, "mask": binding.mask},
            "warnings": [*binding.warnings, *found],
        }

    def share_blocks(self, plan: Plan | None) -> list[list[Case]]:
        """Rank 0's cases on every rank; all ranks fail alike when it finds something wrong."""
        blocks = plan.blocks(usable, self.world.size, self.options.launch) if plan else []
        sent: Any = [[case.to_json() for case in block] for block in blocks]
        received: Any = self.rendezvous.broadcast(sent)
        shared = [[Case.from_json(case) for case in block] for block in received]
        if self.world.local_rank == 0:  # the ranks of a host share its memory
            self.check_memory(case for block in shared for case in block)
        return shared

    def check_memory(self, cases: Iterable[Case]) -> None:
        """Raise UsageError before anything is measured when the buffers cannot fit."""
        case = max(cases, key=memory_nbytes)
        try:
            check_memory(memory_nbytes(case) * self.world.local_size // self.world.size)
        except UsageError as error:
            size = format_size(case.nbytes)
            raise UsageError(f"{case.benchmark} of {size} over {case.channel}: {error}") from None

    def runner(self, **leader: Any) -> Runner:
        return Runner(
            self.world,
            self.rendezvous,
            percentiles=self.options.percentiles,
            launch=self.options.launch,
            save_samples=self.options.output.save_samples,
            harness_threads=self.harness_threads,
            **leader,
        )

    def lead(self, plan: Plan, blocks: Sequence[Sequence[Case]], header: Mapping[str, Any]) -> None:
        """Rank 0: write the file and show the rows while all ranks measure."""
        from commbench.reports.kafka import closing_line
        from commbench.reports.side_by_side import side_by_side
        from commbench.reports.tables import StreamTable
        from commbench.reports.tail import tail_lines

        for line in dict.fromkeys(line for host in header["hosts"] for line in host["warnings"]):
            self.warn(line)
        for line in resting(blocks):
            self.warn(line)
        table = StreamTable({"kind": "run", **header}, self.options.percentiles)

        shown: list[Record] = []

        def row(record: Record) -> None:
            if (heading := table.header_for(record)) is not None:
                self.show(heading)
            self.show(table.row(record))
            if (closing := closing_line(record)) is not None:
                self.show(f"# {closing}")
            shown.append(record)
            for line in record["warnings"]:
                self.warn(line)

        writer = self.writer(header)
        try:
            runner = self.runner(sink=writer, show=row)
            runner.run(blocks)
            for line in [*side_by_side(shown), *tail_lines(shown)]:
                self.show(line)
            if (footer := table.footer()) is not None:
                self.show(footer)
            if writer is not None and self.options.last:
                writer.end(self.ending(runner))
        finally:
            if writer is not None:
                writer.close()

    def writer(self, header: Mapping[str, Any]) -> ResultWriter | None:
        output = self.options.output
        if output.path is None:
            return None
        if self.options.launch:
            return ResultWriter.reopen(output.path)
        writer = ResultWriter(output.path, output.on_exists)
        if writer.path != output.path:
            self.warn(f"--output {output.path}: exists; writing {writer.path}")
        writer.run(header)
        return writer

    def header(self, plan: Plan, hosts: list[Any]) -> dict[str, Any]:
        now = datetime.now(UTC)
        return {
            "run_id": f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}",
            "started": now.isoformat(timespec="seconds"),
            "argv": self.options.argv,
            "plan": plan.to_json(),
            "commbench": __version__,
            "launcher": self.world.launcher,
            "ranks": self.world.size,
            "repeat": self.options.repeat,
            "hosts": [
                {**host, "name": name} for host, name in zip(hosts, self.world.hosts, strict=True)
            ],
            "harness_floor_ns": {loop: harness_floor_ns(loop) for loop in ("native", "python")},
        }

    def ending(self, runner: Runner) -> dict[str, Any]:
        """Shares of the time: how much of it was measuring, and how long the start took."""
        span = runner.last_row_ns - runner.first_barrier_ns
        started = self.options.started_ns
        return {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "measured_ns": runner.summed_ns,
            "span_ns": span,
            "measured_share": runner.summed_ns / span if span else None,
            "startup_ns": runner.first_barrier_ns - started if started else None,
        }


def resting(blocks: Sequence[Sequence[Case]]) -> list[str]:
    """A line for each benchmark that has no part for some of the ranks."""
    lines = {}
    for case in (block[0] for block in blocks):
        role = benchmark(case.benchmark).role
        idle = [rank for rank in range(case.ranks) if not role(rank, case.ranks, case.spec).peers]
        if idle:
            lines[case.benchmark] = f"{case.benchmark}: {_resting(idle, case.ranks)} no part"
    return list(lines.values())


def _resting(idle: Sequence[int], ranks: int) -> str:
    which = format_cpus(frozenset(idle))
    return f"rank {which} of {ranks} takes" if len(idle) == 1 else f"ranks {which} of {ranks} take"
