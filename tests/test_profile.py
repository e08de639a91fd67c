"""commbench profile with a real PyTorch: Debian's, where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest

from tests.command import Ended, commbench

DEBIAN = Path("/usr/lib/python3/dist-packages/torch")

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(5, 5)
        self.last = nn.Linear(8, 2)
        self.first = nn.Conv2d(3, 8, 3)

    def forward(self, images):
        return self.last(self.first(images).mean((2, 3)))

def net():
    return Net()

def with_input():
    return Net(), torch.zeros(2, 3, 16, 16)

def no_model():
    return 7

def fails():
    raise RuntimeError("no such weights")
"""


@pytest.fixture(name="path", scope="module")
def _path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What PYTHONPATH must be for the models above and a torch."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "nets.py").write_text(MODELS)
    if importlib.util.find_spec("torch") is None:
        if not DEBIAN.exists() or sys.version_info[:2] != (3, 11):
            pytest.skip("no PyTorch: pip install torch, or Debian 12's python3-torch")
        (folder / "torch").symlink_to(DEBIAN)  # alone: what else Debian has is not the venv's
    return str(folder)


def profile(path: str, *words: str) -> Ended:
    return commbench("profile", *words, PYTHONPATH=path)


def refused(done: Ended, *words: str) -> None:
    """As ``Ended.one_line``, after what an old PyTorch says of a new numpy."""
    last = done.stderr.splitlines()[-1]
    assert done.exit_code == 2 and last.startswith("commbench: "), done.stderr
    assert [word for word in words if word not in last] == [], last


@pytest.mark.parametrize("words", [("nets:net", "--input", "2x3x16x16"), ("nets:with_input",)])
def test_all_parameters_in_the_order_of_the_forward_pass(
    path: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "net.csv"
    done = profile(path, *words, "--output", str(file))
    assert done.exit_code == 0, done.stderr
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [(row["tensor"], row["shape"], int(row["nbytes"])) for row in rows] == [
        ("first.weight", "8x3x3x3", 864),
        ("first.bias", "8", 32),
        ("last.weight", "2x8", 64),
        ("last.bias", "2", 8),
        ("unused.weight", "5x5", 100),
        ("unused.bias", "5", 20),
    ]
    for row in rows[0], rows[2]:
        assert int(row["forward_ns"]) > 0 and int(row["backward_ns"]) > 0
    for row in rows[1], rows[3], *rows[4:]:
        assert row["forward_ns"] == row["backward_ns"] == ""


def test_the_table_is_a_payload(path: str, tmp_path: Path) -> None:
    file = tmp_path / "net.csv"
    profile(path, "nets:with_input", "--output", str(file))
    done = commbench("run", "-C", "uds", "--scheme", f"trace:{file}", "-i", "20")
    assert "1088" in done.ok().stdout  # 4 bytes of each of the 272 parameters


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nets",), "MODULE:CALLABLE"),
        (("nets:nothing",), "cannot be loaded"),
        (("nowhere:net",), "cannot be loaded"),
        (("nets:no_model",), "returned int"),
        (("nets:fails",), "RuntimeError: no such weights"),
        (("nets:net",), "--input"),
        (("nets:net", "--input", "2y3"), "--input 2y3"),
        (("nets:net", "--input", "2x5x16x16"), "a pass failed"),
    ],
)
def test_what_cannot_be_profiled(path: str, words: tuple[str, ...], says: str) -> None:
    refused(profile(path, *words), says)


def test_a_table_is_never_overwritten(path: str, tmp_path: Path) -> None:
    file = tmp_path / "net.csv"
    file.write_text("mine")
    refused(profile(path, "nets:with_input", "--output", str(file)), "--output", "exists")
    assert file.read_text() == "mine"
