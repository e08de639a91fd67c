"""Reading /proc and /sys, under a root that tests can point at a recorded tree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MOST = 1 << 20  # characters of one file: more is not a file that we know
_MOST_CPUS = 1 << 16


@dataclass(frozen=True, slots=True)
class Tree:
    """Files below ``root``. What is missing or cannot be read is None, never an error."""

    root: Path = Path("/")

    def text(self, path: str) -> str | None:
        """The content without surrounding white space."""
        try:
            with (self.root / path).open(encoding="utf-8", errors="replace") as file:
                return file.read(_MOST).strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """The content as a decimal number."""
        text = self.text(path) or ""
        return int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else None

    def names(self, path: str) -> list[str]:
        """What a folder holds, sorted; numbers in names sort as numbers."""
        try:
            found = [entry.name for entry in (self.root / path).iterdir()]
        except OSError:
            return []
        return sorted(found, key=_natural)

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def link(self, path: str) -> str | None:
        """The last part of where a symbolic link points."""
        try:
            return (self.root / path).readlink().name
        except OSError:
            return None

    def field(self, path: str, name: str) -> str | None:
        """The first value of ``name : value`` or ``name: value`` lines."""
        pattern = rf"^{re.escape(name)}[ \t]*:[ \t]*(.*?)[ \t]*$"
        found = re.search(pattern, self.text(path) or "", re.MULTILINE)
        return found[1] if found else None


def parse_cpus(text: str | None) -> frozenset[int]:
    """``0-3,8`` as the kernel writes CPU lists; what is no such list is empty."""
    cpus: set[int] = set()
    for part in (text or "").split(","):
        found = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part.strip())
        if found:
            first, last = int(found[1]), int(found[2] or found[1])
            cpus.update(range(first, min(last, first + _MOST_CPUS) + 1))
    return frozenset(cpus)


def format_cpus(cpus: frozenset[int]) -> str:
    """The inverse of ``parse_cpus``: ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
