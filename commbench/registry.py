"""Names of channels, their modules and what brings a missing one. Nothing is imported until named.

Third parties add channels through the entry-point group ``commbench.channels``
(``quic = "commbench_quic:QuicChannel"``); a built-in name cannot be replaced.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING

from commbench.errors import ChannelUnavailable, CommbenchError, UsageError

if TYPE_CHECKING:
    from commbench.channels.base import Channel

GROUP = "commbench.channels"
ALL = "all"  # -C all: see every()

# name -> "module:Class", in the order in which people read them
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "tcp": "commbench.channels.tcp:TcpChannel",
        "uds": "commbench.channels.tcp:UdsChannel",
        "ipoib": "commbench.channels.tcp:IpoibChannel",
        "mpi": "commbench.channels.mpi:MpiChannel",
        "grpc": "commbench.channels.grpc:GrpcChannel",
        "grpc-core": "commbench.channels.grpc_core:GrpcCoreChannel",
        "grpc+mpi": "commbench.channels.grpc_mpi:GrpcMpiChannel",
        "rdma": "commbench.channels.rdma:RdmaChannel",
        "grpc+verbs": "commbench.channels.grpc_verbs:GrpcVerbsChannel",
        "ar-grpc": "commbench.channels.ar_grpc:ArGrpcChannel",
        "kafka": "commbench.channels.kafka:KafkaChannel",
        "loopback": "commbench.channels.loopback:LoopbackChannel",
    }
)


def known() -> dict[str, str]:
    """All names with their "module:Class". Raises UsageError when a plug-in takes a name twice."""
    names = dict(BUILT_IN)
    for point in entry_points(group=GROUP):
        if point.name in names:
            raise UsageError(
                f"channel {point.name}: {point.value} takes a name that {names[point.name]} has; "
                f"uninstall one of them"
            )
        names[point.name] = point.value
    return names


def load(name: str) -> type[Channel]:
    """The class of a channel, usable or not.

    Raises UsageError for an unknown name, ChannelUnavailable when its module cannot be imported.
    """
    names = known()
    if name == ALL:
        raise UsageError("-C all stands alone: it is every channel that can run here")
    if name not in names:
        raise UsageError(f"-C {name}: no such channel; there are: {', '.join(names)}")
    return load_path(names[name], name)


def load_path(path: str, name: str) -> type[Channel]:
    """The class at "module:Class"; ``name`` is for the message of ChannelUnavailable."""
    module, _, attribute = path.partition(":")
    try:
        channel: type[Channel] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ChannelUnavailable(f"channel {name} cannot be loaded: {error}") from error
    return channel


def usable(name: str) -> type[Channel]:
    """As ``load``, but ChannelUnavailable (with the remedy) when it cannot run here."""
    channel = load(name)
    missing = channel.missing()
    if missing is not None:
        raise ChannelUnavailable(f"channel {name} cannot run here: {missing}")
    return channel


def every(modes: Sequence[str], loop: str) -> tuple[list[str], list[str]]:
    """What ``-C all`` means: the channels between ranks that run here with these modes and this
    loop; and a line for each of the others, with the reason."""
    found: list[str] = []
    left_out: list[str] = []
    for name in known():
        try:
            kind = usable(name)
            for mode in modes:
                kind.check_mode(mode)
            kind.check_loop(loop)
        except CommbenchError as error:
            left_out.append(str(error))
            continue
        if kind.benchmarks:
            left_out.append(f"channel {name} is for the benchmark {', '.join(kind.benchmarks)}")
        elif kind.ranks_inside:
            left_out.append(f"channel {name} stays inside one process")
        else:
            found.append(name)
    return found, left_out
