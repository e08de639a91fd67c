"""The gRPC C++ completion-queue spike as a channel: native loops only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Self

import _grpc_cq

from commbench.channels.base import Capability, Channel, Done, Exchange, Incoming
from commbench.errors import TransferError
from commbench.harness.rendezvous import Rendezvous
from commbench.harness.world import World
from commbench.payloads.buffers import Message


class GrpcCqChannel(Channel):
    name = "grpc-cq"
    capabilities = Capability.REQUEST | Capability.UNORDERED | Capability.WINDOW | Capability.IOVEC

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        credentials = [f"{rendezvous.token}:{rank}" for rank in range(world.size)]
        engine = _grpc_cq.Engine(rendezvous.local_address, credentials, world.rank)
        engine.connect([str(address) for address in rendezvous.allgather(engine.address)])
        for _ in range(500):
            if all(rendezvous.allgather(engine.connected(0.02))):
                return cls(engine)
        raise TransferError("grpc-cq: the ranks do not reach each other")

    def native(self) -> Any:
        return self._engine

    def describe(self) -> dict[str, str | int | float]:
        return {"transport": "grpc++", "address": str(self._engine.address)}

    def close(self) -> None:
        self._engine.close()

    def prepare(self, exchange: Exchange) -> None:
        self._native_only()

    def finish(self) -> None:
        self._native_only()

    def post(self, peer: int, ticket: int, request: Message, reply: Message | None) -> bool:
        self._native_only()

    def poll(self, timeout_s: float) -> Sequence[Done]:
        self._native_only()

    def exchange(self, peer: int, request: Message, reply: Message, timeout_s: float) -> int:
        self._native_only()

    def accept(self, limit: int, timeout_s: float) -> Sequence[Incoming]:
        self._native_only()

    def answer(self, ticket: int, answer: Message) -> None:
        self._native_only()

    def progress(self, timeout_s: float) -> bool:
        self._native_only()

    def _native_only(self) -> NoReturn:
        raise TransferError("grpc-cq has native loops only")
