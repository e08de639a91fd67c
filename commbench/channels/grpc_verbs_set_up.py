"""How two ends of grpc+verbs meet: TensorFlow's settings, and what ``GetRemoteAddress`` swaps.

A record is TensorFlow's ``Channel`` (lid, qpn, psn, and the GID as subnet prefix and interface
identifier) with the two memory regions of the message buffers, tx and rx. Ours has the port's MTU,
too: TensorFlow takes for granted that both are the same.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from typing import Any

from commbench.channels.rdma_connect import (
    MTUS,
    QueuePair,
    initialised,
    path_mtu,
    receiving,
    sending,
)
from commbench.errors import TransferError, UsageError

GET_REMOTE_ADDRESS = "/commbench.VerbsService/GetRemoteAddress"
# TensorFlow's environment: option -> variable
VARIABLES: Mapping[str, str] = {
    "ib_dev": "RDMA_DEVICE",
    "ib_port": "RDMA_DEVICE_PORT",
    "gid_index": "RDMA_GID_INDEX",
    "pkey_index": "RDMA_QP_PKEY_INDEX",
    "depth": "RDMA_QP_QUEUE_DEPTH",
    "timeout": "RDMA_QP_TIMEOUT",
    "retry_count": "RDMA_QP_RETRY_COUNT",
    "sl": "RDMA_QP_SL",
    "mtu": "RDMA_QP_MTU",
    "traffic_class": "RDMA_TRAFFIC_CLASS",
}
RANGES: Mapping[str, tuple[int, int]] = {
    "ib_port": (1, 255),
    "gid_index": (0, 1 << 16),
    "pkey_index": (0, (1 << 16) - 1),
    "depth": (8, 1 << 14),
    "timeout": (1, 31),
    "retry_count": (0, 7),
    "sl": (0, 15),
    "traffic_class": (0, 255),
}
_FIELDS = ("lid", "qpn", "psn", "snp", "iid")
_LOW = (1 << 64) - 1


def with_environment(given: Mapping[str, str]) -> dict[str, str]:
    """The options that were given, and TensorFlow's variables for those that were not."""
    return {
        **{key: os.environ[name] for key, name in VARIABLES.items() if os.environ.get(name)},
        **given,
    }


def check_numbers(channel: str, options: Mapping[str, str]) -> None:
    """UsageError for what is no number of its range; empty is allowed where it is the default."""
    for key, (least, most) in RANGES.items():
        text = options[key]
        if text and not (text.isascii() and text.isdecimal() and least <= int(text[:9]) <= most):
            raise UsageError(
                f"-o {key}={text} (or {VARIABLES[key]}): allowed for channel {channel}: "
                f"{least} to {most}"
            )


def record(ours: QueuePair, endpoint: Mapping[str, int]) -> bytes:
    """What the peer is told of our end."""
    gid = int(ipaddress.IPv6Address(ours.gid)) if ours.gid else 0
    channel = {
        "lid": ours.lid,
        "qpn": ours.qpn,
        "psn": ours.psn,
        "snp": gid >> 64,
        "iid": gid & _LOW,
    }
    regions = [
        {"remote_addr": endpoint[f"{each}_address"], "rkey": endpoint[f"{each}_rkey"]}
        for each in ("tx", "rx")
    ]
    return json.dumps({"channel": channel, "mr": regions, "mtu": ours.mtu}).encode()


def read_record(data: bytes, rank: int) -> tuple[QueuePair, dict[str, int]]:
    """The peer's end, and the region that our messages go to: its rx. Raises TransferError."""
    try:
        given: Any = json.loads(data)
        channel = {name: _number(given["channel"][name]) for name in _FIELDS}
        target = given["mr"][1]
        rx = {"rx_address": _number(target["remote_addr"]), "rx_rkey": _number(target["rkey"])}
        mtu = _number(given["mtu"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise TransferError(
            f"channel grpc+verbs: rank {rank} sent no queue pair address; is it another version?"
        ) from None
    if mtu not in MTUS:
        raise TransferError(f"channel grpc+verbs: the MTU of rank {rank} is {mtu} bytes")
    gid = channel["snp"] << 64 | channel["iid"]
    theirs = QueuePair(
        port=0,
        lid=channel["lid"],
        gid=str(ipaddress.IPv6Address(gid)) if gid else "",
        gid_index=0,
        mtu=mtu,
        max_rd_atomic=1,
        qpn=channel["qpn"],
        psn=channel["psn"],
    )
    return theirs, rx


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LOW:
        raise ValueError
    return value


def connect(
    endpoints: Any,
    peer: int,
    ours: QueuePair,
    theirs: QueuePair,
    rx: Mapping[str, int],
    options: Mapping[str, str],
) -> int:
    """RESET, INIT, RTR, RTS; the path MTU in bytes. OSError when the device refuses a step."""
    if bool(ours.gid) != bool(theirs.gid):
        raise UsageError(
            f"--gid-index: {'this rank' if ours.gid else f'rank {peer}'} is reached by a GID and "
            f"the other by its LID; give it for both or none"
        )
    sl, pkey = int(options["sl"]), int(options["pkey_index"])
    route = {"traffic_class": int(options["traffic_class"])} if theirs.gid else {}
    tries = {"timeout": int(options["timeout"]), "retry_cnt": int(options["retry_count"])}
    endpoints.join(peer, rx)
    endpoints.modify(peer, "init", initialised(ours) | {"pkey_index": pkey})
    endpoints.modify(peer, "rtr", receiving(ours, theirs, sl) | route, theirs.gid)
    endpoints.modify(peer, "rts", sending(ours, theirs) | tries)
    return path_mtu(ours, theirs)
