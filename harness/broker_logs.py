"""The folders of a broker's logs: in a folder that the user named, or in a temporary one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from commbench import _native
from commbench.benchmarks import BrokerSpec
from commbench.errors import CommbenchError, TransferError, UsageError
from commbench.harness.loops import failure

TOPIC = "commbench"


class LogFolders:
    """``FOLDER/broker-RANK/commbench-PARTITION`` on a broker; nothing on other ranks.

    Without a folder of the user's they are temporary and removed in the end. ``recovered``: a line
    for each log of which something was cut off when it was opened.
    """

    def __init__(self, spec: BrokerSpec, rank: int, log_dir: str) -> None:
        self.spec = spec
        self.rank = rank
        self.kept = log_dir
        self.folder: Path | None = None
        self.logs: list[_native.Log | None] = []
        self.recovered: list[str] = []

    def __enter__(self) -> Self:
        if not self.spec.is_broker(self.rank):
            return self
        try:
            if self.kept:
                self.folder = Path(self.kept) / f"broker-{self.rank}"
                self.folder.mkdir(parents=True, exist_ok=True)
            else:
                self.folder = Path(tempfile.mkdtemp(prefix="commbench-broker-"))
        except OSError as error:
            raise UsageError(
                f"--log-dir {self.kept or tempfile.gettempdir()}: cannot be written: "
                f"{error.strerror}"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for log in self.logs:
            if log is not None:
                _close(log, quiet=True)
        if self.folder is not None and not self.kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    def open(self) -> Sequence[_native.Log | None]:
        """A log for each partition that this rank has a replica of, recovered; None for others."""
        self.logs = [self._open(partition) for partition in range(self.spec.partitions)]
        return self.logs

    def _open(self, partition: int) -> _native.Log | None:
        if self.folder is None or self.rank not in self.spec.replicas(partition):
            return None
        path = self.folder / f"{TOPIC}-{partition}"
        try:
            log = _native.Log(str(path), flush_every=self.spec.flush_every, max_batch_bytes=1 << 30)
        except OSError as error:
            raise _problem(error) from None
        found = log.recovery
        if found.reason:
            self.recovered.append(
                f"the log of partition {partition} on rank {self.rank} was cut: {found.reason}; "
                f"{found.cut_nbytes} bytes, {found.lost_records} whole records among them"
            )
        return log

    def close(self, facts: dict[str, Any]) -> None:
        """Close the logs; what they counted is added to ``facts``."""
        totals: dict[str, int] = {}
        logs, self.logs = self.logs, []
        for log in logs:
            if log is None:
                continue
            for name, value in log.counters.items():
                totals[name] = totals.get(name, 0) + value
            _close(log)
        if self.folder is not None:
            facts["log"] = totals
            facts["recovered"] = self.recovered


def _close(log: _native.Log, quiet: bool = False) -> None:
    try:
        log.close()
    except OSError as error:
        if not quiet:
            raise TransferError(f"{error.strerror}") from None


def _problem(error: OSError) -> CommbenchError:
    """A log that cannot be opened is the user's folder's fault."""
    line = f"--log-dir: {error.strerror}"
    return UsageError(line) if error.errno else failure(0, line)
