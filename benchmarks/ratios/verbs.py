"""reference/verbs_loops.c: perftest's loops, inside the two ranks that run ours."""

from __future__ import annotations

import ctypes

from benchmarks.ratios.references import Library, Place, stamps_of
from commbench.channels.rdma_devices import choose
from commbench.harness.loops import Stamps
from commbench.harness.sysfs import Tree

_LATENCY_DEPTH = 128  # perftest's default of a latency test


class _Endpoint(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("qpn", ctypes.c_uint32),
        ("rkey", ctypes.c_uint32),
        ("mtu", ctypes.c_uint32),
        ("lid", ctypes.c_uint32),
        ("gid", ctypes.c_uint8 * 16),
    )


class VerbsLoops:
    """A queue pair of its own to the other rank, with the ``op`` of the case: write or send."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.library = Library(place.libraries / "verbs_loops.so")
        self.pair = ctypes.c_void_p()
        case, endpoint = place.case, _Endpoint()
        address = choose(Tree(), local_rank=place.world.local_rank)
        depth = case.window if place.windowed else _LATENCY_DEPTH
        sends = int(case.options.get("op", "send") == "send")
        where = (address.port.device.encode(), address.port.number)
        gid = address.gid.index if address.gid else -1
        made = (ctypes.byref(self.pair), ctypes.byref(endpoint))
        self.library.call("reference_open", *where, gid, case.nbytes, depth, sends, *made)
        told = place.rendezvous.allgather(bytes(endpoint).hex())[1 - place.rank]
        there = _Endpoint.from_buffer_copy(bytes.fromhex(str(told)))
        self.library.call("reference_connect", self.pair, ctypes.byref(there))
        place.rendezvous.barrier()

    def block(self, count: int, stamps: Stamps) -> None:
        place = self.place
        if not place.asks:
            if not place.windowed:
                self.library.call("reference_pong", self.pair, count)
            place.rendezvous.barrier()
            return
        name = "reference_write" if place.windowed else "reference_ping"
        self.library.call(name, self.pair, count, *stamps_of(stamps))
        place.rendezvous.barrier()

    def close(self) -> None:
        self.library.call("reference_close", self.pair)
