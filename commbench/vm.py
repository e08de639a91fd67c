"""``commbench vm``: a command in a virtual machine that has two Soft-RoCE devices."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from commbench.errors import UsageError

_LEAST_MEMORY = 512 << 20  # below it the kernel has no room for the initial file system
_MOST_CPUS = 255


@click.group(short_help="RDMA without a card: a command in a Soft-RoCE virtual machine.")
def vm() -> None:
    """RDMA without a card: a virtual machine with the kernel's own software RDMA.

    Its two devices, rxe0 at 10.77.0.1 and rxe1 at 10.77.0.2, are joined by a cable. It needs
    qemu-system-x86, busybox-static and linux-image-amd64 of Debian, and pip's virtme-ng.
    """


@vm.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option("--timeout", default="10m", show_default=True, metavar="TIME", help="Boot to end.")
@click.option("--cpus", type=click.IntRange(1, _MOST_CPUS), default=2, show_default=True)
@click.option("--memory", default="4G", show_default=True, metavar="SIZE")
@click.option("--kernel", metavar="FILE|VERSION", help="[the newest one with rdma_rxe]")
@click.option("--loss", type=float, default=0, metavar="PERCENT", help="Packets lost on each way.")
@click.option("--kvm", is_flag=True, help="Try KVM: faster, but on some hosts it hangs.")
@click.option(
    "--writable",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    metavar="FOLDER",
    help="What is written there comes back, as in the current folder. May be repeated.",
)
@click.option(
    "--disk",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    metavar="FILE",
    help="Its /dev/vda, read and written past the page cache.",
)
@click.option(
    "--keep-console",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The kernel's log.  [kept when the machine fails, which names it]",
)
def run(
    command: tuple[str, ...],
    timeout: str,
    cpus: int,
    memory: str,
    kernel: str | None,
    loss: float,
    kvm: bool,
    writable: tuple[Path, ...],
    disk: Path | None,
    keep_console: Path | None,
) -> None:
    """Boot, run COMMAND with this folder and environment, power off.

    \b
    Exit codes: the command's own; 2 usage, 4 the machine cannot be booted here,
    5 it failed, or --timeout passed: the line names its console's log.
    """
    from commbench.harness.softroce import image, machine, virtme
    from commbench.units import parse_duration, parse_size

    if not 0 <= loss <= 100:
        raise UsageError(f"--loss {loss:g}: allowed: 0 to 100 percent")
    nbytes = parse_size(memory, "--memory", least=_LEAST_MEMORY)
    timeout_s = parse_duration(timeout, "--timeout")
    asked = virtme.Machine(image.find(kernel), cpus, nbytes, kvm, loss, timeout_s, writable, disk)
    sys.exit(machine.run(asked, command, keep_console))


@vm.command()
def check() -> None:
    """Say whether the machine can be booted here; exit code 4 and what is missing if not."""
    from commbench.harness.softroce import image

    found = image.find()
    click.echo(f"the machine can be booted: {found.qemu}, kernel {found.version}")
