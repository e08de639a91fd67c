"""Starting the scenes of ``tests.world_worker`` as real ranks, and looking for what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from commbench.harness.launch import Launched, launch

WORKER = "tests.world_worker"
_ROOT = Path(__file__).parent.parent


def environment(**more: str) -> dict[str, str]:
    """PYTHONPATH with this repository's tests, a short join timeout, and ``more``."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "COMMBENCH_JOIN_TIMEOUT": "3", **more}


def scene(name: str, *argv: str, size: int = 2, launcher: str = "process", **more: str) -> Launched:
    """Run a scene by our own launcher; ``more``: environment."""
    return launch([name, *argv], size, launcher=launcher, module=WORKER, env=environment(**more),
                  timeout_s=40, capture=True)  # fmt: skip


def command(name: str, *argv: str) -> list[str]:
    """What a foreign launcher starts as a rank."""
    return [sys.executable, "-m", WORKER, name, *argv]


def start(words: list[str], **more: str) -> subprocess.Popen[str]:
    """Any command with the environment of a rank and both streams piped."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("COMMBENCH_")}
    return subprocess.Popen(words, env={**clean, **environment(**more)}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def finish(process: subprocess.Popen[str], timeout_s: float = 30) -> Launched:
    """How it ended; killed when it does not."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"did not end in {timeout_s} s: {out}{err}") from None
    return Launched(process.returncode, out, err)


def said(launched: Launched) -> list[dict[str, Any]]:
    """The JSON lines of the ranks, by rank where they say it."""
    lines = [json.loads(line) for line in launched.stdout.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda line: int(line.get("rank", 0)))


def marked(mark: str) -> list[int]:
    """Processes whose environment has ``mark``: the ranks and guards of one launch."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
