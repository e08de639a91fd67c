"""What TensorFlow's gRPC+MPI left on gRPC: who the workers are, and that a step is over.

The calls are named after TensorFlow's: ``GetStatus`` returns the worker's name.
"""

from __future__ import annotations

from collections.abc import Sequence

from commbench.channels.grpc_control import CLEANUP_GRAPH, StepControl
from commbench.harness.stop import StopFlag

__all__ = ["CLEANUP_GRAPH", "GET_STATUS", "Control"]

GET_STATUS = "/commbench.Worker/GetStatus"


class Control(StepControl):
    """``name``: this worker's."""

    def __init__(
        self, address: str, token: str, rank: int, hosts: Sequence[str], name: str, stop: StopFlag
    ) -> None:
        answers = {GET_STATUS: lambda rank, request: name.encode()}
        super().__init__("grpc+mpi", address, token, rank, hosts, answers, stop)

    def connect(self, addresses: Sequence[str], timeout_s: float) -> dict[int, str]:
        """The names that the workers at these addresses (by rank) give; ours is not asked.

        Raises PeerLost, TransferError, Interrupted.
        """
        self.dial(addresses)
        others = dict.fromkeys((r for r in range(len(addresses)) if r != self._rank), b"")
        answers = self.call(GET_STATUS, others, timeout_s)
        return {rank: answer.decode() for rank, answer in answers.items()}
