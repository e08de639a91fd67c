"""A rank for the tests of launch and rendezvous: ``world_worker SCENE [ARG]``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from commbench.errors import CommbenchError, Interrupted, TransferError
from commbench.harness.binding import bind
from commbench.harness.peer import Serving, dial
from commbench.harness.rendezvous import Rendezvous, join, leave, tell
from commbench.harness.signals import Signals
from commbench.harness.sysfs import format_cpus
from commbench.harness.world import World


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def meet(world: World, rendezvous: Rendezvous, arg: str) -> None:
    values = rendezvous.allgather({"rank": world.rank, "pid": os.getpid()})
    plan = rendezvous.broadcast({"plan": world.rank}, root=world.size - 1)
    rendezvous.barrier()
    say(
        rank=world.rank,
        size=world.size,
        values=values,
        plan=plan,
        launcher=world.launcher,
        address=rendezvous.local_address,
        hosts=world.hosts,
        local_rank=world.local_rank,
        local_size=world.local_size,
    )


def stuck(world: World, rendezvous: Rendezvous, arg: str) -> None:
    """Rank ARG kills itself while the others are where no flag is looked at."""
    rendezvous.barrier()
    if world.rank == int(arg):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def waiting(world: World, rendezvous: Rendezvous, arg: str) -> None:
    """As ``stuck``, with the others at a barrier."""
    rendezvous.barrier()
    if world.rank == int(arg):
        os.kill(os.getpid(), signal.SIGKILL)
    rendezvous.barrier()


def failing(world: World, rendezvous: Rendezvous, arg: str) -> None:
    if world.rank == 1:
        leave_with = CommbenchError("the disk is full")
        rendezvous.fail(str(leave_with), int(arg))
        tell(leave_with)
        rendezvous.close()
        leave(int(arg))
    rendezvous.barrier()


def mpi_stuck(world: World, rendezvous: Rendezvous, arg: str) -> None:
    """Rank ARG dies; the others are in MPI_Recv."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    assert (comm.rank, comm.size) == (world.rank, world.size)
    rendezvous.barrier()
    if world.rank == int(arg):
        os.kill(os.getpid(), signal.SIGKILL)
    comm.recv(source=int(arg))


def mpi_meet(world: World, rendezvous: Rendezvous, arg: str) -> None:
    from mpi4py import MPI

    ranks = MPI.COMM_WORLD.allgather(world.rank)
    assert ranks == list(range(world.size)), ranks
    meet(world, rendezvous, arg)


def early(world: World, rendezvous: Rendezvous, arg: str) -> None:
    """Rank 1 leaves without a word and with exit code 0."""
    rendezvous.barrier()
    if world.rank == 1:
        os._exit(0)
    rendezvous.barrier()


def bound(world: World, rendezvous: Rendezvous, arg: str) -> None:
    binding = bind(arg, world, rendezvous)
    say(
        mask=binding.mask,
        warnings=binding.warnings,
        applied=format_cpus(frozenset(os.sched_getaffinity(0))),
    )


def sleep(world: World, rendezvous: Rendezvous, arg: str) -> None:
    signals = Signals(rendezvous.stop)
    try:
        rendezvous.barrier()
        say(pid=os.getpid())
        time.sleep(60)
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    finally:
        signals.close()


def deaf(world: World, rendezvous: Rendezvous, arg: str) -> None:
    """Ignores every signal but the last."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    rendezvous.barrier()
    say(pid=os.getpid())
    time.sleep(60)


def serve(interface: str, token_file: str) -> None:
    serving = Serving(interface, token_file=token_file)
    sys.stdout.write(serving.line + "\n")
    sys.stdout.flush()
    world, rendezvous = serving.join(20)
    meet(world, rendezvous, "")
    rendezvous.close()
    serving.close()


def enter(scene: str, arg: str) -> tuple[World, Rendezvous]:
    if scene == "absent" and os.environ["COMMBENCH_RANK"] == arg:
        time.sleep(60)
    return dial(arg, sys.argv[3]) if scene == "dial" else join()


def main() -> None:
    scene, arg = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    if scene == "serve":
        serve(arg, sys.argv[3])
        return
    rendezvous = None
    try:
        world, rendezvous = enter(scene, arg)
        globals()[{"dial": "meet", "absent": "meet"}.get(scene, scene)](world, rendezvous, arg)
    except CommbenchError as error:
        if rendezvous is not None:
            if isinstance(error, TransferError):
                rendezvous.fail(str(error), error.exit_code)
            tell(error)
            rendezvous.close()
        else:
            tell(error)
        leave(error.exit_code)
    rendezvous.close()


if __name__ == "__main__":
    main()
