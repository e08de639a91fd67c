"""``grpc-core``: gRPC C++ under the native loops. It measures gRPC without Python.

The engine is ``native/grpc``: the asynchronous generic API over one completion queue, driven by the
thread that runs the loop. Messages are gathered, a slice for each buffer. It speaks what ``grpc``
speaks. A call cannot be one-way, so every message is answered (``acked``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Self

from commbench.channels.base import Capability, Option
from commbench.channels.grpc_messages import credential_of
from commbench.channels.grpc_options import (
    ARGUMENT_OPTIONS,
    MODE,
    channel_arguments,
    check_all_came,
    check_numbers,
    check_path,
    check_size,
    own_address,
    place,
    quiet,
    whole,
)
from commbench.channels.native_only import NativeOnlyChannel
from commbench.errors import ChannelUnavailable, TransferError

if TYPE_CHECKING:
    from commbench._grpc_core import Engine
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.world import World

_MODULE = "commbench._grpc_core"
_TURN_S = 0.02  # of running the queue while connecting
_CONNECT_S = 15.0  # the engine gives up earlier, and says on whom
_REBUILD = "pip install --no-binary commbench --force-reinstall commbench (a checkout: make)"
_INSTALL = (
    "Debian: apt install libgrpc++-dev libprotobuf-dev protobuf-compiler pkg-config; "
    "elsewhere: conda install libgrpc pkg-config, spack load grpc"
)


class GrpcCoreChannel(NativeOnlyChannel):
    name = "grpc-core"
    capabilities = (
        Capability.REQUEST
        | Capability.UNORDERED
        | Capability.WINDOW
        | Capability.IOVEC
        | Capability.SERIALIZED
    )
    options: ClassVar[Mapping[str, Option]] = {
        "mode": MODE,
        "channels": Option("1", "connections to each rank, taken in turn"),
        **ARGUMENT_OPTIONS,
    }

    def __init__(self, engine: Engine, options: Mapping[str, str]) -> None:
        self._engine = engine
        self._options = dict(options)

    @classmethod
    def missing(cls) -> str | None:
        if find_spec(_MODULE) is None:
            return f"it was built without gRPC C++ 1.51 or newer. {_INSTALL}; then {_REBUILD}"
        quiet()
        try:
            import_module(_MODULE)
        except ImportError as error:  # built where the libraries were, run where they are not
            return f"{error}. {_INSTALL}; then {_REBUILD}"
        return None

    @classmethod
    def check_payload(cls, sizes: Sequence[int], serialized: bool) -> None:
        check_size(cls.name, sizes, serialized)

    @classmethod
    def check_options(cls, given: Mapping[str, str]) -> dict[str, str]:
        return check_numbers(cls.name, super().check_options(given), "channels")

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        quiet()
        from commbench._grpc_core import Engine

        connections = whole(cls.name, "channels", options["channels"], 1)
        arguments = channel_arguments(cls.name, options)
        try:
            engine = Engine(
                own_address(world, rendezvous),
                [credential_of(rendezvous.token, rank) for rank in range(world.size)],
                world.hosts,
                world.rank,
                serialized=options["mode"] == "serialized",
                channels=connections,
                arguments=arguments,
            )
        except RuntimeError as error:
            raise ChannelUnavailable(f"{cls.name}: {error}") from None
        channel = cls(engine, options)
        try:
            channel._connect(world, rendezvous, connections)
        except BaseException:
            channel.close()
            raise
        return channel

    def _connect(self, world: World, rendezvous: Rendezvous, connections: int) -> None:
        """Every rank runs its queue until all are connected: nobody else answers for it."""
        engine = self._engine
        addresses = [str(each) for each in rendezvous.allgather(engine.address)]
        try:
            engine.connect(addresses)
            for _ in range(round(_CONNECT_S / _TURN_S)):
                if all(rendezvous.allgather(engine.connected(_TURN_S))):
                    break
            else:
                raise TransferError(f"{self.name}: the ranks do not reach each other")
        except RuntimeError as error:
            raise TransferError(f"{self.name}: {error}") from None
        others = [rank for rank in range(world.size) if rank != world.rank]
        check_all_came(self.name, [rank for rank, _ in engine.came], others, connections)
        check_path(self.name, [*engine.came, *engine.went], addresses)

    def native(self) -> Engine:
        return self._engine

    def describe(self) -> dict[str, str | int | float]:
        from commbench import _grpc_core

        return {
            **{key: value for key, value in self._options.items() if value},
            **place(self._engine.address),
            "transport": "grpc++",
            "compression": "none",
            "grpc": _grpc_core.grpc_version(),
            "protobuf": _grpc_core.protobuf_version(),
        }

    def close(self) -> None:
        self._engine.close()
