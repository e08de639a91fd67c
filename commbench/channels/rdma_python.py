"""The Python data path of the ``rdma`` channel: the verbs over pyverbs, with the engine's frames.

``PythonEngine`` has the methods that the connecting code asks of the native engine
(``native/rdma/module.cpp``), so either can be at each end, and the verbs of ``Channel``. It always
polls: pyverbs gives no completion channel that one could wait on with a deadline.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from commbench.channels import rdma_frames as frames
from commbench.channels.base import Done, Exchange, Incoming
from commbench.channels.rdma_frames import Ring
from commbench.channels.rdma_link import Link
from commbench.channels.rdma_memory import Pages, Regions
from commbench.channels.rdma_peer import Peer
from commbench.channels.rdma_pyverbs import Device, Options
from commbench.channels.rdma_queue import rank_of
from commbench.channels.rdma_sending import FREE, OPEN, Arrival, Flight, Progress
from commbench.errors import Interrupted, TransferError
from commbench.harness.stop import StopFlag
from commbench.payloads.buffers import Message

_REAP_EVERY = 64  # looks at which nobody waits for a completion of a work request
_PROBE_S = 1.0  # a rank that only waits asks so often whether its peers are there


class PythonEngine:
    """A device and a queue pair for each other rank. OSError when opening or connecting fails."""

    def __init__(self, options: Options, stop: StopFlag) -> None:
        self._stop = stop
        self._closed = False
        self._links: dict[int, Link] = {}
        self._psn: dict[int, int] = {}
        self._rings: Pages | None = None
        self._regions: Regions | None = None
        self._case: Exchange | None = None
        self._peers: dict[int, Peer] = {}
        self._looks = 0
        self._quiet_since = 0.0  # of all peers; 0: not yet
        self._device = Device(options)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        options = self._device.options
        self._stride = frames.stride_for(options.eager_max)
        others = [rank for rank in range(options.size) if rank != options.rank]
        nbytes = self._stride * options.rx_depth
        self._rings = Pages(self._device.register, nbytes * max(1, len(others)))
        for index, rank in enumerate(others):
            qp = self._device.queue_pair()
            start = index * nbytes
            self._links[rank] = Link(self._device, rank, qp, self._rings, start, self)
            self._psn[rank] = random.getrandbits(24)

    def close(self) -> None:
        """Frees everything; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self.finish()
        for link in self._links.values():
            link.close()
        if self._rings is not None:
            self._rings.close()
        self._device.close()

    # -- for the connecting code

    @property
    def limits(self) -> dict[str, int]:
        return self._device.limits

    @property
    def firmware(self) -> str:
        return self._device.firmware

    @property
    def sent_bytes(self) -> int:
        """Handed to the device for sending, framing included."""
        return sum(link.queue.sent_nbytes for link in self._links.values())

    @property
    def regions(self) -> int:
        return len(self._regions) if self._regions is not None else 0

    def endpoint(self, peer: int) -> dict[str, int]:
        link = self._link(peer)
        assert self._rings is not None
        return {
            "qpn": link.qp.qp_num,
            "psn": self._psn[peer],
            "ring_rkey": self._rings.region.rkey,
            "ring_depth": self._device.options.rx_depth,
            "ring_stride": self._stride,
            "ring_address": link.address,
        }

    def modify(self, peer: int, state: str, attributes: Mapping[str, int], gid: str = "") -> None:
        link = self._link(peer)
        self._device.modify(link.qp, peer, state, attributes, gid)
        if state == "init":
            link.post_receives()

    def join(self, peer: int, endpoint: Mapping[str, int]) -> None:
        names = ("address", "rkey", "depth", "stride")
        ring = Ring(**{name: endpoint[f"ring_{name}"] for name in names})
        if ring.problem():
            raise OSError(
                errno.EINVAL,
                f"rank {peer} has a ring of {ring.depth} entries of {ring.stride} bytes",
            )
        self._link(peer).join(ring)

    def _link(self, peer: int) -> Link:
        if peer not in self._links:
            raise OSError(errno.EINVAL, f"no queue pair for rank {peer}")
        return self._links[peer]

    # -- a case

    def prepare(self, exchange: Exchange) -> None:
        self.finish()
        self._stop = exchange.stop
        if exchange.serves and len(exchange.incoming) < exchange.window * len(exchange.peers):
            raise TransferError("channel rdma: each message in flight needs an incoming slot")
        self._case = exchange
        self._progress = Progress()
        self._given: deque[Arrival] = deque()
        regions = self._regions = Regions(self._device.register)
        try:
            regions.add([*exchange.request, *exchange.reply, *exchange.incoming])
        except OSError as error:
            self.finish()
            raise TransferError(f"channel rdma: {error.strerror}") from None
        for index, rank in enumerate(exchange.peers):
            self._peers[rank] = Peer(self._link(rank), exchange, index, regions, self._progress)

    def finish(self) -> None:
        """Until the device is done with the case's memory, which is released."""
        if self._regions is None:
            return
        for peer in self._peers.values():
            peer.link.queue.drain()
        self._regions.release()
        self._regions, self._case = None, None
        self._peers.clear()

    # -- asking

    def post(self, peer: int, ticket: int, request: Message, reply: Message | None) -> bool:
        return self._peers[peer].post(ticket, request, reply)

    def poll(self, timeout_s: float) -> Sequence[Done]:
        done = self._progress.done
        self._wait(lambda: bool(done), timeout_s)
        return [self._retire(done.popleft()) for _ in range(len(done))]

    def exchange(self, peer: int, request: Message, reply: Message, timeout_s: float) -> int:
        done = self._progress.done
        if done or not self.post(peer, 0, request, reply):
            raise TransferError("channel rdma: exchange with requests in flight")
        if not self._wait(lambda: bool(done), timeout_s):
            raise TransferError(f"channel rdma: no reply from rank {peer} within {timeout_s:g} s")
        return self._retire(done.popleft()).reply_nbytes

    def _retire(self, flight: Flight) -> Done:
        self._peers[flight.peer].retire(flight)
        return Done(flight.ticket, flight.reply_nbytes)

    # -- serving

    def accept(self, limit: int, timeout_s: float) -> Sequence[Incoming]:
        self._release_given()
        arrived = self._progress.arrived
        self._wait(lambda: bool(arrived), timeout_s)
        return [self._hand_out(arrived.popleft()) for _ in range(min(limit, len(arrived)))]

    def _hand_out(self, arrival: Arrival) -> Incoming:
        arrival.state = OPEN
        if not arrival.wants_reply:
            self._given.append(arrival)
        return Incoming(arrival.index, arrival.peer, arrival.wants_reply, arrival.message)

    def _release_given(self) -> None:
        """One-way requests that were handed out before."""
        while self._given:
            self._given.popleft().state = FREE

    def answer(self, ticket: int, answer: Message) -> None:
        case = self._case
        assert case is not None, "prepare() comes first"
        peer = self._peers[case.peers[ticket // case.window]]
        arrival = peer.arrivals[ticket % case.window]
        if arrival.state != OPEN or not arrival.wants_reply:
            raise TransferError(f"channel rdma: an answer to ticket {ticket}, which waits for none")
        peer.answer(arrival, answer)

    def progress(self, timeout_s: float) -> bool:
        self._release_given()
        done, arrived = self._progress.done, self._progress.arrived
        return self._wait(lambda: bool(done or arrived), timeout_s)

    def settle(self, peers: Sequence[int], timeout_s: float) -> None:
        self._release_given()
        mine = [self._peers[rank] for rank in peers]
        for peer in mine:
            peer.settle()
        if not self._wait(lambda: all(peer.settled for peer in mine), timeout_s):
            late = ", ".join(str(peer.link.peer) for peer in mine if not peer.settled)
            raise TransferError(
                f"channel rdma: rank {late} did not end its block within {timeout_s:g} s"
            )

    def copied(self) -> int:
        return sum(link.copied for link in self._links.values())

    # -- waiting

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """The clock is read only after a look that found nothing."""
        deadline = 0.0
        while not ready():
            if self._look():
                self._quiet_since = 0.0
                continue
            for peer in self._peers.values():
                peer.link.queue.mark()
            if ready():
                break
            self.check_stop()
            now = time.monotonic()
            self._probe(now)
            deadline = deadline or now + timeout_s
            if now >= deadline:
                return False
            os.sched_yield()
        return True

    def _probe(self, now: float) -> None:
        self._quiet_since = self._quiet_since or now
        if now - self._quiet_since >= _PROBE_S:
            self._quiet_since = now
            for peer in self._peers.values():
                peer.link.queue.probe()

    def _look(self) -> int:
        """One turn over everything; how much happened."""
        for completion in self._device.received():
            self._links[completion.wr_id].received(completion)
        taken = sum(peer.look() for peer in self._peers.values())
        self._looks += 1
        if any(peer.link.queue.waits for peer in self._peers.values()) or not (
            self._looks % _REAP_EVERY
        ):
            self.reap()
        return taken

    def reap(self) -> None:
        """Completions of work requests, of any peer."""
        for completion in self._device.sent():
            self._links[rank_of(completion.wr_id)].queue.completed(completion)

    def check_stop(self) -> None:
        if self._stop.is_set:
            raise Interrupted("channel rdma: the run was stopped")
