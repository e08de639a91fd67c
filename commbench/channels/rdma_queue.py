"""The send queue of one queue pair: work requests counted, and what waits for their completion."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from commbench.channels.rdma_frames import Segment, pieces_of
from commbench.channels.rdma_memory import Regions
from commbench.channels.rdma_pyverbs import Device, Gather
from commbench.errors import PeerLost, TransferError
from commbench.payloads.buffers import Message

_WR_BITS = 40
_WR_MASK = (1 << _WR_BITS) - 1
_DRAIN_S = 5.0

After = Callable[[], None]


def rank_of(wr_id: int) -> int:
    return wr_id >> _WR_BITS


class Owner(Protocol):
    """Of the completion queues, which many queue pairs share."""

    def reap(self) -> None:
        """Take what completed, whose ever it is."""

    def check_stop(self) -> None:
        """Raises Interrupted."""


class SendQueue:
    """Only every n-th work request gives a completion, and none before others that were posted
    earlier: so the number of the last completed one says it all.

    Methods raise PeerLost when the peer is gone, and TransferError.
    """

    def __init__(self, device: Device, peer: int, qp: Any, owner: Owner) -> None:
        self._device = device
        self._peer = peer
        self._qp = qp
        self._owner = owner
        self._every = device.options.signal_every
        self._depth = device.options.tx_depth
        self._signalled_flag = device.enums.IBV_SEND_SIGNALED
        self._read = int(device.enums.IBV_WR_RDMA_READ)
        self._write = int(device.enums.IBV_WR_RDMA_WRITE)
        self._afters: deque[tuple[int, bool, After]] = deque()
        self._done = 0
        self._proven = 0  # up to here the peer has all that was sent: it has replied
        self._signalled = 0
        self.posted = 0
        self.replied = 0  # the last one that will bring a reply
        self.sent_nbytes = 0
        self.lost = False
        self.nowhere = (0, 0)  # a place that a write of nothing may go to

    def post(
        self,
        opcode: int,
        gather: Gather,
        remote: tuple[int, int],
        nbytes: int,
        flags: int = 0,
        signalled: bool = False,
    ) -> None:
        """``nbytes``: those that this end sends."""
        while self.posted - self._done >= self._depth:
            self._check()
            self._owner.check_stop()
            self._owner.reap()
        number = self.posted + 1
        if signalled or number - self._signalled >= self._every:
            flags |= self._signalled_flag
            self._signalled = number
        wr_id = self._peer << _WR_BITS | number
        try:
            self._device.send(self._qp, wr_id, opcode, flags, gather, remote)
        except OSError as error:
            self._check()
            raise TransferError(f"channel rdma: rank {self._peer}: {error.strerror}") from None
        self.posted = number
        self.sent_nbytes += nbytes

    def write(self, regions: Regions, message: Message, start: int, to: Segment) -> None:
        """What follows ``start`` of the message goes to memory of the peer."""
        for gather, nbytes, at in self._parts(regions, message, start, to):
            self.post(self._write, gather, (at, to.rkey), nbytes)

    def read(self, regions: Regions, message: Message, start: int, source: Segment) -> None:
        """The other way round. The last part is signalled."""
        end = source.address + source.nbytes
        for gather, nbytes, at in self._parts(regions, message, start, source):
            self.post(self._read, gather, (at, source.rkey), 0, signalled=at + nbytes == end)

    def _parts(
        self, regions: Regions, message: Message, start: int, theirs: Segment
    ) -> Iterator[tuple[Gather, int, int]]:
        """(gather list, bytes, address over there) of each work request that it takes."""
        limits = self._device.limits
        gather: list[tuple[int, int, int]] = []
        nbytes, at = 0, theirs.address
        for address, length in pieces_of(message.addresses, start, start + theirs.nbytes):
            key = regions.at(address, length).lkey
            while length:
                part = min(length, limits["max_msg_sz"] - nbytes)
                gather.append((address, part, key))
                nbytes, address, length = nbytes + part, address + part, length - part
                if len(gather) == limits["max_sge"] or nbytes == limits["max_msg_sz"]:
                    yield gather, nbytes, at
                    gather, nbytes, at = [], 0, at + nbytes
        if gather:
            yield gather, nbytes, at

    # -- completions

    def after(self, then: After, *, sent: bool = False) -> None:
        """Call it when the device is done with all that was posted so far; ``sent``: or when the
        peer has proved that it has that."""
        self._afters.append((self.posted, sent, then))

    @property
    def waits(self) -> bool:
        return bool(self._afters)

    def completed(self, completion: Any) -> None:
        if completion.status:
            self.failed(completion.status)
        self._done = completion.wr_id & _WR_MASK
        self._run()

    def prove(self, number: int) -> None:
        """The peer has taken what work request ``number`` sent."""
        if number > self._proven:
            self._proven = number
            self._run()

    def _run(self) -> None:
        """Posts nothing, or completions could come within."""
        while self._afters:
            number, sent, then = self._afters[0]
            if number > self._done and not (sent and number <= self._proven):
                return
            self._afters.popleft()
            then()

    def mark(self) -> None:
        """A write of nothing that completes, when something waits for what nobody tells about."""
        if self._afters:
            last = self._afters[-1][0]
            if last > self._signalled and last > self.replied:
                self._post_marker()

    def probe(self) -> None:
        """A write of nothing, unless something is on its way: a peer that is gone shows."""
        if self._signalled <= self._done:
            self._post_marker()

    def _post_marker(self) -> None:
        self.post(self._write, (), self.nowhere, 0, signalled=True)

    def drain(self) -> None:
        """Until the device is done with our memory, or the queue pair has failed."""
        deadline = time.monotonic() + _DRAIN_S
        with contextlib.suppress(TransferError):  # whoever is gone, this end has to be closed
            if self._signalled != self.posted and not self.lost:
                self._post_marker()
        while self._done != self.posted and not self.lost and time.monotonic() < deadline:
            with contextlib.suppress(TransferError):
                self._owner.reap()

    def failed(self, status: int) -> None:
        """A queue pair that failed flushes all that it has; what counts is the first reason."""
        device, flushed = self._device, self._device.enums.IBV_WC_WR_FLUSH_ERR
        while status == flushed and (more := device.sent(1)):
            if rank_of(more[0].wr_id) == self._peer and more[0].status:
                status = more[0].status
        self.lost = True
        why = device.status_text(status)
        if device.means_gone(status):
            port = "; our port is not active" if device.port_is_down else ""
            raise PeerLost(f"channel rdma: rank {self._peer} is gone ({why}){port}")
        raise TransferError(f"channel rdma: rank {self._peer} and this one failed: {why}")

    def _check(self) -> None:
        if self.lost:
            raise PeerLost(f"channel rdma: rank {self._peer} is gone")
