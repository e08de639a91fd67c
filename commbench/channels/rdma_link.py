"""One queue pair of the ``rdma`` channel and its ring: frames out and in, whatever they mean."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from commbench.channels import rdma_frames as frames
from commbench.channels.rdma_frames import Credits, Ring, Tail
from commbench.channels.rdma_memory import Pages, Regions
from commbench.channels.rdma_pyverbs import Device
from commbench.channels.rdma_queue import Owner, SendQueue
from commbench.errors import TransferError
from commbench.payloads.buffers import EMPTY, Message


class _Came(NamedTuple):
    """What the completion of a frame says. ``nbytes``: of a SEND."""

    nbytes: int
    bare: bool


class Link:
    """One queue pair and its ring, from ``join`` to ``close``: frames, whatever they mean."""

    def __init__(
        self,
        device: Device,
        peer: int,
        qp: Any,
        memory: Pages,
        start: int,
        owner: Owner,
    ) -> None:
        self.device = device
        self.peer = peer
        self.qp = qp
        self.queue = SendQueue(device, peer, qp, owner)
        self.copied = 0
        self._memory = memory
        self._start = start
        self._stride = frames.stride_for(device.options.eager_max)
        self._came: deque[_Came] | None = None if device.options.op == "write" else deque()
        self._next = self._heard = Tail(0, 0, 0, 0, 0, 0, 0)
        self._sends = device.options.op in frames.SENDS
        self._opcode = device.frame_opcode
        self._requests: list[Any] = []
        self._pages: list[Pages] = []
        self._stage: Pages | None = None
        self._tails: Pages | None = None
        if self._came is None:
            for entry in range(device.options.rx_depth):
                end = start + (entry + 1) * self._stride
                frames.mark_untouched(memory.view, end, entry + 1)

    @property
    def address(self) -> int:
        return self._memory.address + self._start

    def join(self, ring: Ring) -> None:
        """OSError when memory cannot be registered."""
        self.ring = ring
        self.credits = Credits(self.device.options.rx_depth, ring.depth)
        self.queue.nowhere = (ring.address, ring.rkey)
        self._tails = self._more_pages(ring.depth * frames.TAIL_NBYTES)

    def close(self) -> None:
        for request in self._requests:
            request.close()
        for pages in self._pages:
            pages.close()
        self._requests, self._pages = [], []

    def _more_pages(self, nbytes: int) -> Pages:
        self._pages.append(Pages(self.device.register, nbytes))
        return self._pages[-1]

    # -- out

    @property
    def eager_max(self) -> int:
        return min(self.device.options.eager_max, self.ring.most_payload)

    def send(
        self, regions: Regions, kind: int, slot: int, nbytes: int, payload: Message = EMPTY
    ) -> bool:
        """One frame; there must be credits. True: ``payload`` may be changed at once."""
        limits, addresses = self.device.limits, payload.addresses
        whole = payload.nbytes + frames.TAIL_NBYTES
        fits = len(addresses) < limits["max_sge"]
        if fits and whole <= limits["max_inline"]:
            gather = [(address, length, 0) for address, length in addresses if length]
            self._frame(gather, kind, slot, nbytes, payload.nbytes, inline=True)
            return True
        if not fits:
            gather = self._staged(b"".join(payload.views))
            self.copied += payload.nbytes
        else:
            regions.adopt(payload)
            gather = [
                (address, length, regions.at(address, length).lkey)
                for address, length in addresses
                if length
            ]
        self._frame(gather, kind, slot, nbytes, payload.nbytes)
        return not fits

    def send_list(self, kind: int, slot: int, nbytes: int, listed: bytes, more: bool) -> None:
        """A frame whose payload is a list of segments."""
        self._frame(self._staged(listed), kind, slot, nbytes, len(listed), more=more)

    def _staged(self, data: bytes) -> list[tuple[int, int, int]]:
        if self._stage is None:
            self._stage = self._more_pages(self.ring.stride * self.ring.depth)
        at = self.credits.next_out * self.ring.stride
        self._stage.view[at : at + len(data)] = data
        return [(self._stage.address + at, len(data), self._stage.region.lkey)]

    def _frame(
        self,
        gather: list[tuple[int, int, int]],
        kind: int,
        slot: int,
        nbytes: int,
        payload: int,
        *,
        more: bool = False,
        inline: bool = False,
    ) -> None:
        assert self._tails is not None, "join() comes first"
        entry = self.credits.next_out
        consumed, seq = self.credits.stamp()
        at, whole = entry * frames.TAIL_NBYTES, payload + frames.TAIL_NBYTES
        Tail(nbytes, slot, kind, payload, consumed, more, seq).pack_into(self._tails.view, at)
        gather.append((self._tails.address + at, frames.TAIL_NBYTES, self._tails.region.lkey))
        remote = (self.ring.target(entry, whole), self.ring.rkey)
        flags = self.device.enums.IBV_SEND_INLINE if inline else 0
        self.queue.post(self._opcode, gather, remote, whole, flags)

    # -- in

    def post_receives(self) -> None:
        """From INIT on a queue pair takes them, and must have them before its peer sends."""
        if self._came is None:
            return
        for entry in range(self.device.options.rx_depth):
            start = self.address + entry * self._stride
            lkey = self._memory.region.lkey
            request = self.device.receive_request(self.peer, start, self._stride, lkey)
            self._requests.append(request)
            self.device.receive(self.qp, request)

    def received(self, completion: Any) -> None:
        if completion.status:
            self.queue.failed(completion.status)
        assert self._came is not None
        told = completion.wc_flags & self.device.enums.IBV_WC_WITH_IMM and completion.imm_data
        self._came.append(_Came(completion.byte_len, bool(told)))

    def next_frame(self, window: int) -> tuple[Tail, memoryview] | None:
        """The next frame and its payload, in the ring until ``took``; None: there is none.

        ``window``: slots of the case.
        """
        start = self._start + self.credits.next_in * self._stride
        end, bare = start + self._stride, self._bare()
        if bare is None:
            return None
        if self._came is not None and self._sends:
            end = start + self._came[0].nbytes
        at = end if bare else end - frames.TAIL_NBYTES
        if at < start:
            raise self._out_of_step()
        tail = self._heard.followed(window) if bare else Tail.unpack_from(self._memory.view, at)
        if (
            tail.seq != self.credits.awaited
            or tail.payload > at - start
            or not self.credits.hear(tail.consumed)
        ):
            raise self._out_of_step()
        self._next = tail
        return tail, self._memory.view[at - tail.payload : at]

    def _bare(self) -> bool | None:
        """Whether the next frame has no tail; None: there is no frame."""
        if self._came is not None:
            return self._came[0].bare if self._came else None
        end = self._start + (self.credits.next_in + 1) * self._stride
        return frames.written(self._memory.view, end, self.credits.awaited)

    def took(self) -> None:
        """The frame's entry is the peer's again."""
        if self._came is not None:
            self._came.popleft()
            self.device.receive(self.qp, self._requests[self.credits.next_in])
        else:
            end = self._start + (self.credits.next_in + 1) * self._stride
            seq = self.credits.awaited + self.device.options.rx_depth
            frames.mark_untouched(self._memory.view, end, seq)
        self._heard = self._next
        self.credits.take()

    def _out_of_step(self) -> TransferError:
        return TransferError(f"channel rdma: rank {self.peer} sent something that is no frame")
