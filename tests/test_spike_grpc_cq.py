"""The proof that the ABI fits gRPC: a C++ completion-queue engine passes the same contract.

It is built here, from ``tests/spike/grpc_cq``, and not installed.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from commbench.testing import ChannelContract

SOURCE = Path(__file__).parent / "spike" / "grpc_cq"
BUILD_S = 300.0


def lacking() -> str | None:
    """What the build needs and this machine has not."""
    for tool in ("cmake", "pkg-config", "c++"):
        if shutil.which(tool) is None:
            return f"{tool} is missing"
    found = subprocess.run(["pkg-config", "--exists", "grpc++"], timeout=30).returncode == 0
    return None if found else "gRPC C++ is missing: apt install libgrpc++-dev"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(lacking() is not None, reason=lacking() or ""),
]


@pytest.fixture(scope="module", name="built")
def _built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the extension module."""
    folder = tmp_path_factory.mktemp("grpc_cq")
    for command in (
        ["cmake", "-S", str(SOURCE), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", str(folder), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.timeout(2 * BUILD_S)
class TestGrpcCq(ChannelContract):
    channel = "grpc_cq:GrpcCqChannel"
    loops = ("native",)
    environment: ClassVar[dict[str, str]] = {}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _find(cls, built: Path) -> None:
        cls.environment["PYTHONPATH"] = os.pathsep.join((str(built), str(SOURCE)))


@pytest.fixture(name="engine")
def _engine(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(built))
    engines: list[Any] = []

    def make(rank: int, token: str) -> Any:
        module = importlib.import_module("_grpc_cq")
        credentials = [f"{token}:{each}" for each in (0, 1)]
        engines.append(module.Engine("127.0.0.1", credentials, rank))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.timeout(2 * BUILD_S)
def test_wrong_token_is_refused(engine: Any) -> None:
    one, other = engine(0, "right"), engine(1, "wrong")
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            other.connected(0.02)

    server = threading.Thread(target=serve)
    server.start()
    try:
        one.connect([one.address, other.address])
        with pytest.raises(RuntimeError, match="rank 1: no token of this run"):
            for _ in range(500):
                one.connected(0.02)
    finally:
        over.set()
        server.join()


@pytest.mark.timeout(2 * BUILD_S)
def test_address_that_is_not_here(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(built))
    module = importlib.import_module("_grpc_cq")
    with pytest.raises(RuntimeError, match=r"cannot listen on 192\.0\.2\.1"):
        module.Engine("192.0.2.1", ["a", "b"], 0)
