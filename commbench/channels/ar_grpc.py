"""``ar-grpc``: gRPC's request and reply over RDMA, with the ideas of AR-gRPC.

R. Biswas, X. Lu, D. K. Panda: *Accelerating TensorFlow with Adaptive RDMA-based gRPC*, HiPC 2018.
Its code is not public; docs/ar-grpc.md says what is from the paper and what is ours. The engine is
that of the rdma channel with the parts that only this one has: native/rdma/adapt.h and coalesce.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from commbench.channels.base import Capability, Option
from commbench.channels.rdma import BRINGS, RdmaChannel
from commbench.channels.rdma_loops import native_missing
from commbench.errors import UsageError
from commbench.units import parse_size

_SIZES = {"eager_max": 1 << 20, "chunk": 1 << 30, "coalesce": 1 << 20}  # and the most of each
_LEAST_CHUNK = 4096


class ArGrpcChannel(RdmaChannel):
    name = "ar-grpc"
    loops = ("native",)
    # every call of gRPC has an answer
    capabilities = Capability.REQUEST | Capability.WINDOW | Capability.IOVEC
    options: ClassVar[Mapping[str, Option]] = {
        "threshold": Option(
            "adaptive",
            "from which size on messages are read by their receiver: adaptive learns it from the "
            "round trips, fixed takes eager_max",
            ("adaptive", "fixed"),
        ),
        "eager_max": Option("64K", "a longer message is always read by its receiver"),
        "chunk": Option("512K", "bytes of one RDMA read; several are under way at once"),
        "coalesce": Option("4K", "runs of buffers up to this size are joined; 0: none are"),
        **{name: RdmaChannel.options[name] for name in ("inline", "tx_depth", "signal", "wait")},
        "rx_depth": Option("64", "frames that a peer may have sent ahead, a power of two"),
        **{
            name: RdmaChannel.options[name]
            for name in ("ib_dev", "ib_port", "gid_index", "mtu", "sl")
        },
    }

    @classmethod
    def check_options(cls, given: Mapping[str, str]) -> dict[str, str]:
        options = super().check_options(given)
        for name, most in _SIZES.items():
            value = 0 if options[name] == "0" else parse_size(options[name], f"-o {name}")
            least = _LEAST_CHUNK if name == "chunk" else 0
            if not least <= value <= most:
                raise UsageError(
                    f"-o {name}={options[name]}: allowed for channel {cls.name}: {least} to {most}"
                )
        return options

    @classmethod
    def missing(cls) -> str | None:
        lacking = native_missing()
        return f"{lacking}. {BRINGS}" if lacking else super().missing()

    @classmethod
    def engine_options(cls, options: Mapping[str, str]) -> dict[str, Any]:
        return super().engine_options({**options, "op": "read"})

    @classmethod
    def native_options(cls, options: Mapping[str, str]) -> dict[str, Any]:
        small = options["coalesce"]
        return super().native_options(options) | {
            "chunk": parse_size(options["chunk"], "-o chunk"),
            "coalesce": 0 if small == "0" else parse_size(small, "-o coalesce"),
            "adaptive": options["threshold"] == "adaptive",
        }

    def describe(self) -> dict[str, str | int | float]:
        """As of ``rdma``; ``rendezvous_from``: bytes, what was learnt so far, the least of all
        peers."""
        peers = (rank for rank in range(self._world.size) if rank != self._world.rank)
        engine: Any = self._engine  # the native one: there is no other
        least = min(engine.threshold(rank) for rank in peers)
        return {**super().describe(), "rendezvous_from": least if least < 1 << 63 else "none yet"}
