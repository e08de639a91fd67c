"""The loops of reference/grpc_echo.cc as an object."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from benchmarks.ratios.references import Library, Place, stamps_of
from commbench.channels.grpc_messages import credential_of
from commbench.harness.loops import Stamps
from commbench.payloads.buffers import Message


class GrpcCoreLoops:
    """grpc_echo.cc, in the gRPC library that the engine has loaded already."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.library = Library(place.libraries / "grpc_echo.so")
        self.handle = ctypes.c_void_p()
        rendezvous, echoes = place.rendezvous, int(not place.windowed)
        credential = credential_of(rendezvous.token, 0).encode()
        out, into = (_addresses(each) for each in place.out_and_in())
        sizes = _words(place.case.payload.sizes)
        count = len(place.case.payload.sizes)
        here = ctypes.create_string_buffer(256)
        if not place.asks:
            listen = (rendezvous.local_address.encode(), credential, into, sizes, count, echoes)
            self.call("reference_listen", ctypes.byref(self.handle), *listen, here, 255)
        address = str(rendezvous.allgather(here.value.decode())[1]).encode()
        if place.asks:
            ends = (address, credential, out, into, sizes, count, echoes)
            self.call("reference_connect", ctypes.byref(self.handle), *ends)
        else:
            self.call("reference_serve", self.handle, 1)

    def call(self, name: str, *arguments: Any) -> None:
        self.library.call(name, *arguments)

    def block(self, count: int, stamps: Stamps) -> None:
        window = self.place.case.window
        if not self.place.asks:
            self.call("reference_serve", self.handle, count * window)
        elif self.place.windowed:
            self.call("reference_windows", self.handle, window, count, *stamps_of(stamps))
        else:
            self.call("reference_ping", self.handle, count, *stamps_of(stamps))

    def close(self) -> None:
        self.call("reference_disconnect" if self.place.asks else "reference_unlisten", self.handle)


def _addresses(message: Message) -> Any:
    return _words([address for address, _ in message.addresses])


def _words(values: Sequence[int]) -> Any:
    return (ctypes.c_uint64 * len(values))(*values)
