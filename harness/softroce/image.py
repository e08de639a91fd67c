"""What the machine is made of: QEMU, virtme-ng, a kernel with rdma_rxe, and the tools in it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from commbench.errors import MachineUnavailable

RXE = "kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko"  # with .xz or .zst on some distributions
SYSTEM_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # often not on a user's PATH

TOOLS = (
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("rdma", "iproute2"),
    ("setpriv", "util-linux"),
)


@dataclass(frozen=True, slots=True)
class Image:
    """Absolute paths of the programs that boot a machine, and of its kernel."""

    virtme_run: Path
    qemu: Path
    setpriv: Path
    kernel: Path
    version: str


def find(kernel: str | None = None, root: Path = Path("/")) -> Image:
    """What to boot. ``kernel``: a file or a version; None is the newest one with rdma_rxe.

    Raises MachineUnavailable: one line that says what is missing and what brings it.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise _unavailable(
            f"it runs the programs of an x86_64 Linux host; this is {sys.platform} on "
            f"{platform.machine()}"
        )
    tools = {name: _tool(name, package) for name, package in TOOLS}
    image, version = _newest(root) if kernel is None else _named(kernel, root)
    return Image(_virtme_run(), tools["qemu-system-x86_64"], tools["setpriv"], image, version)


def path_of(environ_path: str) -> str:
    """A PATH with the folders of ip and modprobe at its end."""
    folders = environ_path.split(os.pathsep) if environ_path else []
    return os.pathsep.join([*folders, *(each for each in SYSTEM_PATHS if each not in folders)])


def _tool(name: str, package: str) -> Path:
    found = shutil.which(name, path=path_of(os.environ.get("PATH", os.defpath)))
    if found is None:
        raise _unavailable(f"no {name} on PATH; apt-get install {package}")
    return Path(found).absolute()


def _virtme_run() -> Path:
    """The one beside this Python (a wheel's), else the one on PATH."""
    beside = Path(sys.executable).parent / "virtme-run"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("virtme-run")
    if found is None:
        raise _unavailable("no virtme-run on PATH; pip install 'commbench[vm]'")
    return Path(found).absolute()


def _installed(root: Path) -> Iterator[tuple[str, Path]]:
    """(version, image) of every kernel of the distribution."""
    for image in (root / "boot").glob("vmlinuz-*"):
        yield image.name.removeprefix("vmlinuz-"), image
    for image in (root / "lib/modules").glob("*/vmlinuz"):
        yield image.parent.name, image


def _newest(root: Path) -> tuple[Path, str]:
    fitting = [(version, image) for version, image in _installed(root) if _has_rxe(version, root)]
    if not fitting:
        there = sorted({version for version, _ in _installed(root)})
        raise _unavailable(
            f"no kernel with rdma_rxe (there: {', '.join(there) or 'none'}); "
            f"apt-get install linux-image-amd64"
        )
    version, image = max(fitting, key=lambda each: _natural(each[0]))
    return _readable(image), version


def _named(kernel: str, root: Path) -> tuple[Path, str]:
    image = dict(_installed(root)).get(kernel, Path(kernel))
    if not image.is_file():
        there = sorted({version for version, _ in _installed(root)})
        raise _unavailable(
            f"--kernel {kernel}: no such file or version; there: {', '.join(there) or 'none'}"
        )
    version = image.parent.name if image.name == "vmlinuz" else image.name.partition("-")[2]
    if not _has_rxe(version, root):
        raise _unavailable(
            f"--kernel {kernel}: no rdma_rxe among the modules of {version or image.name}; "
            f"apt-get install linux-image-amd64"
        )
    return _readable(image), version


def _has_rxe(version: str, root: Path) -> bool:
    return bool(version) and any((root / "lib/modules" / version).glob(f"{RXE}*"))


def _readable(image: Path) -> Path:
    if not os.access(image, os.R_OK):
        raise _unavailable(f"{image} cannot be read by this user; sudo chmod a+r {image}")
    return image.absolute()


def _natural(version: str) -> list[tuple[int, str]]:
    parts = re.findall(r"[0-9]+|[^0-9]+", version)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _unavailable(why: str) -> MachineUnavailable:
    return MachineUnavailable(f"vm: {why}")
