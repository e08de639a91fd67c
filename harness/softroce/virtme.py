"""What virtme-run is told about a machine, and what the guest finds in its folder."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import commbench
from commbench.errors import UsageError
from commbench.harness.softroce.image import Image, path_of
from commbench.harness.softroce.layout import HOST_FILES, ORDER, PORTS, Order

_QEMU = "qemu"
# else QEMU's main thread polls the 64 queues of each serial device all the time: a whole processor
_NO_EVENTFDS = ("-global", "virtio-serial-pci.ioeventfd=off")
_KERNEL = (
    "tsc=reliable",  # else it falls back to hpet
    "loglevel=7",  # all but debugging goes into the log
    # what udev would load for QEMU's devices, and nothing here needs: a third of the boot
    "module_blacklist=ahci,libata,sr_mod,kvm,i6300esb,iTCO_wdt,lpc_ich,i2c_i801,powernow_k8,"
    "acpi_cpufreq,aesni_intel,psmouse,evdev,button,joydev,serio_raw,qemu_fw_cfg,parport_pc,pcspkr",
)
_UNFIT = frozenset(' \t\n,="')  # virtme-run and the kernel's command line take these apart


@dataclass(frozen=True, slots=True)
class Machine:
    """``memory`` in bytes; ``loss`` in percent of packets; ``timeout_s`` from boot to power-off.

    ``disk``: a file that is the machine's ``/dev/vda``, written past the host's page cache.
    """

    image: Image
    cpus: int = 2
    memory: int = 4 << 30
    kvm: bool = False
    loss: float = 0.0
    timeout_s: float = 600.0
    writable: tuple[Path, ...] = ()
    disk: Path | None = None


def prepare(folder: Path, machine: Machine, command: Sequence[str]) -> None:
    """Fill the folder that machine and host share. Raises UsageError for one that cannot be."""
    for each in (Path.cwd(), folder, *machine.writable):
        _check(each)
    if machine.disk is not None:
        _check_disk(machine.disk)
    env = {**os.environ, "PATH": path_of(os.environ.get("PATH", os.defpath)), "TMPDIR": "/tmp"}
    cached = _cached(command[0], (Path.cwd(), *machine.writable))
    with_disk = machine.disk is not None
    order = Order(list(command), str(Path.cwd()), env, machine.loss, cached, with_disk)
    with open(folder / ORDER, "x", encoding="utf-8", opener=_private) as file:
        json.dump(asdict(order), file)
    wrapper = folder / _QEMU
    wrapper.write_text(f'#!/bin/sh\nexec {_dying(machine.image)} "$@"\n')
    wrapper.chmod(0o700)


def _cached(program: str, writable: Sequence[Path]) -> list[str]:
    """Folders that are only read: the system, this Python, commbench itself, which may lie in a
    checkout, and the command's own environment."""
    found = Path(shutil.which(program) or program).absolute().parent.parent
    ours = Path(commbench.__file__).parent
    folders = [Path("/usr"), Path(sys.base_prefix), Path(sys.prefix)]
    folders += [ours, ours / "harness", ours / "reports"]  # links in a checkout
    folders += [found] if (found / "pyvenv.cfg").exists() else []
    taken = {above for each in writable for above in (each, *each.parents)}
    return [str(each) for each in _outermost(folders) if each not in taken]


def _dying(image: Image) -> str:
    """QEMU, which nobody else would end when virtme-run is killed."""
    return shlex.join([str(image.setpriv), "--pdeathsig", "KILL", str(image.qemu)])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # the environment may hold secrets


def _check(folder: Path) -> None:
    if folder == Path("/"):
        raise UsageError(
            "vm: the folder it is run in is writable from the machine; allowed: any but /"
        )
    if _UNFIT & set(str(folder)):
        raise UsageError(
            f"vm: {folder}: allowed: a folder whose path has no space, comma, quote or equals sign"
        )


def _check_disk(file: Path) -> None:
    """It must be open to reads and writes past the page cache, which is what cache=none does."""
    if _UNFIT & set(str(file)):
        raise UsageError(
            f"--disk {file}: allowed: a path that has no space, comma, quote or equals sign"
        )
    if file.stat().st_size == 0:
        raise UsageError(f"--disk {file}: it is empty; allowed: e.g. truncate --size 1G {file}")
    try:
        os.close(os.open(file, os.O_RDWR | os.O_DIRECT))
    except OSError as error:
        why = error.strerror if error.errno != errno.EINVAL else "no O_DIRECT on its file system"
        raise UsageError(f"--disk {file}: {why}; allowed: a file on a disk, open to you") from None


def argv(folder: Path, machine: Machine, ports: Sequence[int]) -> list[str]:
    """Of virtme-run, and not of vng, which makes a shell line of all this.

    ``ports``: descriptors that take the command's two streams.
    """
    image = machine.image
    guest = [sys.executable, "-m", "commbench.harness.softroce.guest", str(folder)]
    words = [str(image.setpriv), "--pdeathsig", "KILL", str(image.virtme_run)]
    words += ["--kimg", str(image.kernel), "--mods", "auto"]
    words += ["--qemu-bin", str(folder / _QEMU), "--disable-microvm", "--force-9p"]
    words += ["--cpus", str(machine.cpus), "--memory", f"{machine.memory >> 20}M"]
    words += [] if machine.kvm else ["--disable-kvm"]
    words += ["--overlay-rwdir=/tmp"]
    words += [f"--rwdir={each}" for each in _outermost([folder, Path.cwd(), *machine.writable])]
    words += [f"--qemu-opt={word}" for word in (*_NO_EVENTFDS, *_cpu(machine), *_host_files())]
    words += [f"--qemu-opt={word}" for word in _disk(machine)]
    for name, write_end in zip(PORTS, ports, strict=True):
        words += [f"--qemu-opt={word}" for word in _port(name, write_end)]
    for option in _KERNEL:
        words += ["--kopt", option]
    return [*words, "--show-boot-console", "--script-sh", shlex.join(guest)]


def _cpu(machine: Machine) -> tuple[str, ...]:
    """An emulated ``rep movsb`` moves a byte at a time, and with ERMS every larger copy is one."""
    return () if machine.kvm else ("-cpu", "max,erms=off,fsrm=off")


def _host_files() -> tuple[str, ...]:
    """The host's files once more, for ``guest`` to mount with a cache."""
    host = "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"
    return "-fsdev", host, "-device", f"virtio-9p-pci,fsdev=host,mount_tag={HOST_FILES}"


def _disk(machine: Machine) -> tuple[str, ...]:
    """cache=none: a flush in the machine is one of the file, and no write stays with the host."""
    if machine.disk is None:
        return ()
    drive = f"file={machine.disk},if=none,id=disk,format=raw,cache=none"
    return "-drive", drive, "-device", "virtio-blk-pci,drive=disk"


def _port(name: str, write_end: int) -> tuple[str, ...]:
    """The command's streams have ports of their own: virtme-run's carry the kernel's log, too."""
    chardev = f"file,id={name},path=/proc/self/fd/{write_end}"
    port = f"virtserialport,name={name},chardev={name}"
    return "-chardev", chardev, "-device", "virtio-serial-pci", "-device", port


def _outermost(folders: Sequence[Path]) -> list[Path]:
    """Each once, without those that lie in another one."""
    found = {each.resolve() for each in folders}
    return sorted(each for each in found if not found & set(each.parents))
