"""What ``grpc`` and ``grpc-core`` have in common: channel arguments, limits, the path they take.

Nothing here needs gRPC: every class is looked at on machines that have none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote

from commbench.channels.base import Option
from commbench.errors import ChannelUnavailable, TransferError, UsageError
from commbench.harness import interfaces

if TYPE_CHECKING:
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.world import World

Arguments = Sequence[tuple[str, str | int]]  # of a gRPC channel or server
LARGEST = (1 << 31) - 1  # bytes: gRPC counts a message's length and protobuf its own in an int
_FIELD_NBYTES = 6  # a tag and a length: what protobuf adds to a buffer at most

MODE = Option("non-serialized", "raw bytes, or protobuf", ("non-serialized", "serialized"))

# -o name -> gRPC's channel argument and what it does; "" leaves gRPC's own default
ARGUMENTS: Mapping[str, tuple[str, str]] = {
    "bdp_probe": ("grpc.http2.bdp_probe", "1: size windows by probing the bandwidth (default)"),
    "lookahead_bytes": ("grpc.http2.lookahead_bytes", "stream window in bytes, bdp_probe=0"),
    "max_frame_size": ("grpc.http2.max_frame_size", "HTTP/2 frame: 16384 to 16777215 bytes"),
    "minimal_stack": ("grpc.minimal_stack", "1: leave optional filters out"),
    "optimization_target": ("grpc.optimization_target", "latency, blend or throughput"),
    "tcp_read_chunk_size": ("grpc.experimental.tcp_read_chunk_size", "bytes"),
    "tcp_receive_buffer_size": ("grpc.tcp_receive_buffer_size", "SO_RCVBUF in bytes"),
    "tcp_zerocopy": ("grpc.experimental.tcp_tx_zerocopy_enabled", "1: MSG_ZEROCOPY"),
    "write_buffer_size": ("grpc.http2.write_buffer_size", "bytes per write"),
}
_CHOICES = {
    "bdp_probe": ("", "0", "1"),
    "minimal_stack": ("", "0", "1"),
    "optimization_target": ("", "latency", "blend", "throughput"),
    "tcp_zerocopy": ("", "0", "1"),
}
ARGUMENT_OPTIONS: Mapping[str, Option] = {
    name: Option("", text, _CHOICES.get(name, ())) for name, (_, text) in ARGUMENTS.items()
}


def channel_arguments(channel: str, options: Mapping[str, str]) -> list[tuple[str, str | int]]:
    """gRPC's channel arguments. Raises UsageError for what is no number."""
    arguments: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    for name, (key, _) in ARGUMENTS.items():
        value = options[name]
        if value:
            text = name == "optimization_target"
            arguments.append((key, value if text else whole(channel, name, value, 0)))
    return arguments


def check_numbers(channel: str, options: Mapping[str, str], threads: str) -> dict[str, str]:
    """UsageError for what is no number; ``threads``: the option that says how many there are."""
    whole(channel, threads, options[threads], 1)
    channel_arguments(channel, options)
    return dict(options)


def whole(channel: str, name: str, value: str, least: int) -> int:
    """The number of ``-o name=value``. Raises UsageError."""
    if not value.isdecimal() or not least <= int(value) < 1 << 31:
        raise UsageError(f"-o {name}={value}: allowed for channel {channel}: a number from {least}")
    return int(value)


def check_size(channel: str, sizes: Sequence[int], serialized: bool) -> None:
    """UsageError when gRPC cannot carry a message of these buffers."""
    framing = _FIELD_NBYTES * len(sizes) if serialized else 0
    if sum(sizes) + framing <= LARGEST:
        return
    raise UsageError(
        f"-m/--message-size or --scheme: {sum(sizes)} bytes; allowed for channel {channel}: "
        f"{LARGEST - framing} bytes (gRPC and protobuf count a message in 31 bits: 2 GiB)"
    )


def quiet() -> None:
    """Before gRPC is loaded: no log on stderr, no handlers for fork()."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


# ---------------------------------------------------------------------- the path


def own_address(world: World, rendezvous: Rendezvous) -> str:
    """Where this rank listens: on --interface, else where the ranks met."""
    return interfaces.resolve(world.interface) if world.interface else rendezvous.local_address


def place(address: str) -> dict[str, str | int | float]:
    """The interface of an address ("host:port") for ``describe``."""
    interface = interfaces.find(host_of(address))
    return {
        "interface": interface.name if interface else "",
        "mtu": interface.mtu if interface else 0,
        "address": address,
    }


def host_of(peer: str) -> str:
    """The host of "host:port", of "[host]:port" and of what gRPC calls a peer: "ipv4:host:port",
    "ipv6:%5Bhost%5D:port"."""
    text = unquote(peer).removeprefix("ipv4:").removeprefix("ipv6:")
    return text.rpartition(":")[0].strip("[]").removeprefix("::ffff:")


def check_path(channel: str, came: Iterable[tuple[int, str]], addresses: Sequence[object]) -> None:
    """ChannelUnavailable unless every connection came from the address at which its rank listens.

    ``came``: (rank, peer as gRPC names it). Nothing else says that the measured interface was used
    in both directions: gRPC binds a server, but lets the kernel choose where a client comes from.
    """
    for rank, peer in came:
        host, expected = host_of(peer), host_of(str(addresses[rank]))
        if host != expected:
            raise ChannelUnavailable(
                f"{channel}: rank {rank} listens on {expected} and its calls come from {host}; "
                f"choose an --interface whose route leads to the other ranks"
            )


def check_all_came(channel: str, came: Iterable[int], ranks: Iterable[int], each: int) -> None:
    """TransferError unless each of ``ranks`` made ``each`` connections."""
    found = list(came)
    for rank in ranks:
        if (count := found.count(rank)) != each:
            raise TransferError(f"{channel}: {count} connections of rank {rank} instead of {each}")
