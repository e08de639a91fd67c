"""A device in this process, for the Python data path of ``rdma``: it forbids what must not be.

It moves the bytes where work requests say, and refuses what a real device would end a queue pair
for: memory that is not registered, and a receiver that is not ready.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from commbench.channels.rdma_frames import SENDS
from commbench.channels.rdma_memory import Keys
from commbench.channels.rdma_pyverbs import Gather, Options

_READ, _WRITE, _WRITE_IMM, _SEND = 4, 0, 1, 2
_SIGNALED, _INLINE = 2, 8
_LOCK = threading.RLock()
_NUMBERS = itertools.count(1)
_PAIRS: dict[int, Pair] = {}


@dataclass
class Pair:
    """A queue pair; ``other`` is set by rtr."""

    device: FabricDevice
    qp_num: int
    other: int = 0
    receives: deque[tuple[int, int, int, int]] = field(default_factory=deque)


class FabricDevice:
    """As ``rdma_pyverbs.Device``."""

    enums = SimpleNamespace(
        IBV_SEND_SIGNALED=_SIGNALED,
        IBV_SEND_INLINE=_INLINE,
        IBV_WR_RDMA_READ=_READ,
        IBV_WR_RDMA_WRITE=_WRITE,
        IBV_WC_WITH_IMM=2,
        IBV_WC_WR_FLUSH_ERR=5,
    )
    firmware = "fabric"

    def __init__(self, options: Options) -> None:
        self.options = options
        self.name = options.device
        self.limits = {"max_sge": 8, "max_inline": options.inline_max, "max_msg_sz": 50_000}
        self.limits |= {"max_rd_atomic": 16, "mtu": 4096, "lid": 0, "state": 4}
        self.regions: dict[int, tuple[int, int]] = {}
        self.refused: list[str] = []
        self._sent: deque[Any] = deque()
        self._received: deque[Any] = deque()

    def queue_pair(self) -> Pair:
        pair = Pair(self, next(_NUMBERS))
        _PAIRS[pair.qp_num] = pair
        return pair

    def register(self, address: int, nbytes: int) -> Keys:
        key = next(_NUMBERS)
        self.regions[key] = (address, address + nbytes)
        return Keys(key, key, lambda: self.regions.pop(key) and None)

    def modify(
        self, qp: Pair, peer: int, state: str, attributes: Mapping[str, int], gid: str
    ) -> None:
        if state == "rtr":
            qp.other = attributes["qpn"]

    def receive_request(self, wr_id: int, address: int, nbytes: int, lkey: int) -> Any:
        return SimpleNamespace(where=(wr_id, address, nbytes, lkey), close=lambda: None)

    def receive(self, qp: Pair, request: Any) -> None:
        with _LOCK:
            qp.receives.append(request.where)

    def send(
        self, qp: Pair, wr_id: int, opcode: int, flags: int, gather: Gather, remote: tuple[int, int]
    ) -> None:
        with _LOCK:
            assert len(gather) <= self.limits["max_sge"], "too many buffers"
            assert sum(part for _, part, _ in gather) <= self.limits["max_msg_sz"], "too long"
            if not flags & _INLINE:
                for address, nbytes, lkey in gather:
                    self._check(lkey, address, nbytes)
            self._do(_PAIRS[qp.other], opcode, gather, remote)
            if flags & _SIGNALED:
                self._sent.append(SimpleNamespace(wr_id=wr_id, status=0))

    def _do(self, to: Pair, opcode: int, gather: Gather, remote: tuple[int, int]) -> None:
        nbytes = sum(part for _, part, _ in gather)
        address, rkey = remote
        if opcode in (_SEND, _WRITE_IMM):
            assert to.receives, "the receiver is not ready"
            wr_id, entry, room, lkey = to.receives.popleft()
            if opcode == _SEND:
                to.device._check(lkey, entry, nbytes)
                assert nbytes <= room
                address, rkey = entry, lkey
            done = SimpleNamespace(wr_id=wr_id, status=0, byte_len=nbytes, imm_data=0)
            done.wc_flags = self.enums.IBV_WC_WITH_IMM if opcode == _WRITE_IMM else 0
            to.device._received.append(done)
        if nbytes:
            to.device._check(rkey, address, nbytes)
        for here, part, _ in gather:
            there, source = (here, address) if opcode == _READ else (address, here)
            ctypes.memmove(there, source, part)
            address += part

    def _check(self, key: int, address: int, nbytes: int) -> None:
        start, end = self.regions[key]
        assert start <= address and address + nbytes <= end, "memory that is not registered"

    def sent(self, most: int = 16) -> Sequence[Any]:
        return self._some(self._sent, most)

    def received(self, most: int = 16) -> Sequence[Any]:
        return self._some(self._received, most)

    def _some(self, queue: deque[Any], most: int) -> Sequence[Any]:
        with _LOCK:
            return [queue.popleft() for _ in range(min(most, len(queue)))]

    @property
    def frame_opcode(self) -> int:
        op = self.options.op
        return _SEND if op in SENDS else {"write": _WRITE, "write-imm": _WRITE_IMM}[op]

    def close(self) -> None:
        assert not self.regions, "memory is still registered"
