"""perftest (ib_write_lat and its kin) as a reference: each rank starts its end of it.

So both ends have the CPUs that our own loops have, and run in the same launch, in turn with them.
https://github.com/linux-rdma/perftest
"""

from __future__ import annotations

import subprocess

from benchmarks.ratios import tools
from benchmarks.ratios.references import Place
from commbench.channels.rdma_devices import choose
from commbench.errors import TransferError
from commbench.harness.loops import Stamps
from commbench.harness.sysfs import Tree

_MIB = 1 << 20
_TYPICAL, _AVERAGE = 4, 3  # columns of a latency's and of a bandwidth's row


class Perftest:
    """``tool``: ib_write_lat, ib_send_lat, ib_write_bw. Raises ChannelUnavailable without it."""

    def __init__(self, place: Place, tool: str) -> None:
        self.place, self.tool = place, tools.program(tool)
        address = choose(Tree(), local_rank=place.world.local_rank)
        port, gid = address.port, address.gid
        self.words = [self.tool, "-F", "-d", port.device, "-i", str(port.number)]
        self.words += ["-x", str(gid.index)] if gid else []
        self.words += ["-s", str(place.case.nbytes)]
        if place.windowed:
            self.words += ["-t", str(place.case.window)]

    def block(self, count: int, stamps: Stamps) -> float:
        """ns of a round trip, or B/s, as the tool says it: it takes its own stamps."""
        place, rendezvous = self.place, self.place.rendezvous
        words = [*self.words, "-n", str(count * place.case.window)]
        port = str(rendezvous.allgather(None if place.asks else tools.free_port())[place.server])
        host = str(rendezvous.allgather(rendezvous.local_address)[place.server])
        words += ["-p", port]
        if place.asks:
            rendezvous.barrier()
            value = self.value(tools.output([*words, host]))
        else:
            with tools.running(words, quiet=True) as server:
                tools.wait_for(int(port))
                rendezvous.barrier()
                value = 0.0
                try:
                    server.wait(tools.TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    raise TransferError(f"{self.tool} does not end") from None
        rendezvous.barrier()
        return value

    def value(self, said: str) -> float:
        """Of the row of this size; latencies are halves of round trips in us, rates in MiB/s."""
        nbytes = str(self.place.case.nbytes)
        for columns in map(str.split, said.splitlines()):
            if columns[:1] != [nbytes]:
                continue
            if self.place.windowed:
                return float(columns[_AVERAGE]) * _MIB
            return float(columns[_TYPICAL]) * 2e3
        raise TransferError(f"{self.tool} printed no row for {nbytes} bytes: {said[-500:]}")

    def close(self) -> None:
        """Each block ends its processes."""
