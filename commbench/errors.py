"""The one exception tree. Each class knows its exit code; only ``cli.py`` prints and exits."""

from __future__ import annotations

from typing import ClassVar


class CommbenchError(Exception):
    """Base of everything that commbench raises on purpose. The message is one line for people."""

    exit_code: ClassVar[int] = 5
    remote: bool = (
        False  # told by another rank: under our launcher, that rank or it prints the line
    )


class UsageError(CommbenchError):
    """A flag, field or file is wrong: names it, the value and what is allowed."""

    exit_code = 2


class NotComparable(CommbenchError):
    """Two results differ in something that must match."""

    exit_code = 3


class ChannelUnavailable(CommbenchError):
    """A channel cannot run here: says why and what to install."""

    exit_code = 4


class MachineUnavailable(CommbenchError):
    """The Soft-RoCE machine cannot be booted here: says what is missing and what brings it."""

    exit_code = 4


class MachineFailed(CommbenchError):
    """The Soft-RoCE machine did not come to the end of the command."""


class ClusterFailed(CommbenchError):
    """A local Kafka did not come up, or does not go down: says what it said last."""


class TransferError(CommbenchError):
    """The transport failed, timed out or answered nonsense."""


class PeerLost(TransferError):
    """A rank is gone: names rank and host."""


class PayloadMismatch(TransferError):
    """What arrived is not what was sent: names message, buffer and offset."""


class Interrupted(TransferError):
    """The run was stopped (Ctrl-C or another rank's failure)."""
