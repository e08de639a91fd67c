"""Two hosts on one machine: network namespaces joined by a bridge; needs root and ``ip``."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_PREFIX = "cbt"  # of every namespace, bridge and link that a test makes
_NETWORK = "10.91.7"


@dataclass(frozen=True, slots=True)
class Hosts:
    """``names[i]`` is a namespace with address ``addresses[i]`` on interface ``interface``."""

    names: tuple[str, str]
    addresses: tuple[str, str]
    interface: str

    def inside(self, index: int) -> list[str]:
        """What to put before a command to run it in a namespace."""
        return ["ip", "netns", "exec", self.names[index]]

    def launcher_exec(self, folder: Path) -> Path:
        """A script that mpiexec can use as its ssh: ``SCRIPT [-x] HOST COMMAND...``."""
        script = folder / "enter-namespace"
        script.write_text(
            f"#!{sys.executable}\n"
            "import os, sys\n"
            f"hosts = {dict(zip(self.addresses, self.names, strict=True))!r}\n"
            "words = [w for w in sys.argv[1:] if w != '-x']\n"
            "command = ' '.join(words[1:])\n"  # as ssh does: the far shell takes the quotes off
            "name = hosts[words[0]]\n"
            "os.execvp('ip', ['ip', 'netns', 'exec', name, 'sh', '-c', command])\n"
        )
        script.chmod(0o755)
        return script


def missing() -> str | None:
    """Why namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "no ip command: apt install iproute2"
    return None


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Make them, and remove them whatever happens; skips the test where it cannot."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    sweep()
    tag = f"{_PREFIX}{os.getpid() % 100000}"
    names = (f"{tag}a", f"{tag}b")
    try:
        _ip("link", "add", f"{tag}br", "type", "bridge")
        _ip("link", "set", f"{tag}br", "up")
        for index, name in enumerate(names):
            _host(name, f"{tag}br", f"{_NETWORK}.{index + 1}")
        yield Hosts(names, (f"{_NETWORK}.1", f"{_NETWORK}.2"), "eth0")
    finally:
        _remove(tag)


def sweep() -> None:
    """Remove what test processes that are gone left behind."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    names = [line.split()[0] for line in listed.stdout.splitlines() if line.startswith(_PREFIX)]
    for tag in {name[:-1] for name in names}:
        pid = tag.removeprefix(_PREFIX)
        if pid.isdigit() and not Path("/proc", pid).exists():
            _remove(tag)


def _host(name: str, bridge: str, address: str) -> None:
    _ip("netns", "add", name)
    _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", f"{name}v", "master", bridge, "up")
    for command in (
        ("addr", "add", f"{address}/24", "dev", "eth0", "nodad"),
        ("link", "set", "eth0", "up"),
        ("link", "set", "lo", "up"),
    ):
        _ip("-n", name, *[word for word in command if word != "nodad"])


def _remove(tag: str) -> None:
    for suffix in "ab":
        pids = subprocess.run(
            ["ip", "netns", "pids", f"{tag}{suffix}"], capture_output=True, text=True, check=False
        ).stdout.split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        _ip("netns", "del", f"{tag}{suffix}", check=False)
        _ip("link", "del", f"{tag}{suffix}v", check=False)
    _ip("link", "del", f"{tag}br", check=False)


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
