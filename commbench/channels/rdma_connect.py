"""Connecting RC queue pairs: the address record that ranks exchange, and the states they walk.

The one place that knows both. Whatever owns the queue pairs, in whatever language, is an
``Endpoints``; what travels over them afterwards is written down in ``native/rdma/wire.h``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, Self

from commbench.errors import TransferError, UsageError

Numbers = Mapping[str, int]
MTUS = (256, 512, 1024, 2048, 4096)

_HOP_LIMIT = 64
# 4.096 us * 2^16 = 268 ms until a packet is sent again: with 2^14, as in perftest, Soft-RoCE gives
# up on a peer that answers the 16 reads of another rank first
_TIMEOUT = 16
_RETRIES = 6  # so a peer that is gone shows after about two seconds; 7 is for ever on Soft-RoCE
_RNR_RETRY = 7  # for ever; credits keep every receiver ready
_MIN_RNR_TIMER = 12  # 0.64 ms
_MOST_READS = 16  # in flight
_OWN = ("qpn", "psn", "ring_address")  # of each queue pair; the rest is the same for all of a rank


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePair:
    """One end of a connection. ``gid``: "" where the LID alone is the address."""

    port: int
    lid: int
    gid: str
    gid_index: int
    mtu: int
    max_rd_atomic: int
    qpn: int
    psn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePairAddress(QueuePair):
    """All that a peer of the rdma channel must know of one queue pair, as JSON in the rendezvous.

    ``op``: how frames travel. ``ring_*``: where the frames of the peer go.
    """

    device: str
    link_layer: str
    op: str
    ring_address: int
    ring_rkey: int
    ring_depth: int
    ring_stride: int

    def to_json(self) -> dict[str, str | int]:
        return asdict(self)

    @classmethod
    def from_json(cls, given: Any, rank: int) -> Self:
        """Raises TransferError unless it is a record of the same fields and types."""
        types = {each.name: str if each.type == "str" else int for each in fields(cls)}
        if not isinstance(given, dict) or set(given) != set(types):
            raise TransferError(f"rank {rank} sent no queue pair address; is it another version?")
        for name, kind in types.items():
            if type(given[name]) is not kind or (kind is int and not 0 <= given[name] < 1 << 64):
                raise TransferError(f"rank {rank}: {name} of its queue pair is {given[name]!r}")
        if given["gid"]:
            try:
                ipaddress.IPv6Address(given["gid"])
            except ValueError:
                raise TransferError(f"rank {rank}: {given['gid']} is no GID") from None
        return cls(**given)

    @property
    def endpoint(self) -> dict[str, int]:
        """What the data path needs of it."""
        names = ("qpn", "psn", "ring_address", "ring_rkey", "ring_depth", "ring_stride")
        return {name: getattr(self, name) for name in names}


class Endpoints(Protocol):
    """The queue pairs of one rank, one for each peer."""

    def modify(self, peer: int, state: str, attributes: Numbers, gid: str = "") -> None:
        """One step. OSError when the device refuses it."""

    def join(self, peer: int, endpoint: Numbers) -> None:
        """The ring of the peer, before the first frame."""


def path_mtu(ours: QueuePair, theirs: QueuePair) -> int:
    """Bytes; what both ports can."""
    return min(ours.mtu, theirs.mtu)


def same_port(ours: QueuePair, theirs: QueuePair) -> bool:
    """Whether a device may hand the bytes over inside, past the link and its counters."""
    return (ours.gid, ours.lid) == (theirs.gid, theirs.lid)


def check_pair(ours: QueuePairAddress, theirs: QueuePairAddress, peer: int) -> None:
    """UsageError when these two cannot speak to each other."""
    if ours.op != theirs.op:
        raise UsageError(f"-o op={ours.op}: rank {peer} has op={theirs.op}; both need the same")
    if ours.link_layer != theirs.link_layer:
        raise UsageError(
            f"--ib-dev {ours.device}: its link is {ours.link_layer}, and that of rank {peer} "
            f"({theirs.device}) is {theirs.link_layer}; choose devices of one network"
        )
    if bool(ours.gid) != bool(theirs.gid):
        raise UsageError(
            f"--gid-index: {'this rank' if ours.gid else f'rank {peer}'} is reached by a GID and "
            f"the other by its LID; give it for both or none"
        )
    if ours.mtu not in MTUS or theirs.mtu not in MTUS:
        raise TransferError(f"the MTU of rank {peer} is {theirs.mtu}, ours {ours.mtu} bytes")


def initialised(ours: QueuePair) -> dict[str, int]:
    """RESET to INIT: it takes receive requests."""
    return {"pkey_index": 0, "port": ours.port, "remote_access": 1}


def receiving(ours: QueuePair, theirs: QueuePair, sl: int) -> dict[str, int]:
    """INIT to RTR: it takes what the peer sends."""
    route = {"port": ours.port, "lid": theirs.lid, "sl": sl}
    if theirs.gid:
        route |= {"is_global": 1, "gid_index": ours.gid_index, "hop_limit": _HOP_LIMIT}
    return {
        **route,
        "mtu": path_mtu(ours, theirs),
        "qpn": theirs.qpn,
        "rq_psn": theirs.psn,
        "max_dest_rd_atomic": min(ours.max_rd_atomic, _MOST_READS),
        "min_rnr_timer": _MIN_RNR_TIMER,
    }


def sending(ours: QueuePair, theirs: QueuePair) -> dict[str, int]:
    """RTR to RTS."""
    return {
        "timeout": _TIMEOUT,
        "retry_cnt": _RETRIES,
        "rnr_retry": _RNR_RETRY,
        "sq_psn": ours.psn,
        "max_rd_atomic": min(ours.max_rd_atomic, theirs.max_rd_atomic, _MOST_READS),
    }


def connect(
    endpoints: Endpoints,
    peer: int,
    ours: QueuePairAddress,
    theirs: QueuePairAddress,
    sl: int,
) -> None:
    """RESET, INIT, RTR, RTS of one queue pair. Both ends must have done so before either sends.

    OSError when the device refuses a step; UsageError, TransferError: see ``check_pair``.
    """
    check_pair(ours, theirs, peer)
    endpoints.join(peer, theirs.endpoint)
    endpoints.modify(peer, "init", initialised(ours))
    endpoints.modify(peer, "rtr", receiving(ours, theirs, sl), theirs.gid)
    endpoints.modify(peer, "rts", sending(ours, theirs))


def published(ours: Mapping[int, QueuePairAddress]) -> dict[str, Any]:
    """The records for all peers, with what they have in common once: a rank's part of a gathering
    of hundreds of ranks is small."""
    every = [record.to_json() for record in ours.values()]
    common = {k: v for k, v in (every[0] if every else {}).items() if k not in _OWN}
    pairs = {str(peer): [getattr(ours[peer], name) for name in _OWN] for peer in ours}
    return {"common": common, "pairs": pairs}


def records(given: Sequence[Any], rank: int) -> dict[int, QueuePairAddress]:
    """Of what every rank published, the record of each one's queue pair for ``rank``."""
    found = {}
    for peer, each in enumerate(given):
        if peer != rank:
            found[peer] = QueuePairAddress.from_json(_for(each, rank), peer)
    return found


def _for(given: Any, rank: int) -> object:
    """One record out of ``published``; None when it is no such thing."""
    if not isinstance(given, dict):
        return None
    common, pairs = given.get("common"), given.get("pairs")
    if not isinstance(common, dict) or not isinstance(pairs, dict):
        return None
    own = pairs.get(str(rank))
    if not isinstance(own, list) or len(own) != len(_OWN):
        return None
    return common | dict(zip(_OWN, own, strict=True))
