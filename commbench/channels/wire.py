"""Messages on a stream socket, in Python: the same bytes as ``native/tcp_wire.h`` defines.

A header of 16 bytes, little endian (payload bytes, the asker's slot, kind), then the payload.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from commbench.errors import PeerLost
from commbench.payloads.buffers import Message

TICK_S = 0.1  # SO_RCVTIMEO and SO_SNDTIMEO of the sockets: how long one call may block
REQUEST, ONE_WAY, REPLY = 0x63623101, 0x63623102, 0x63623103
_HEADER = struct.Struct("<QII")
_IOV_MAX = 1024
_NOW = socket.MSG_DONTWAIT


@dataclass(frozen=True, slots=True)
class Header:
    """What comes before each payload; ``slot`` is the asker's, a reply brings it back."""

    nbytes: int
    slot: int
    kind: int


Place = Callable[[Header], Message]  # where a message goes; raises TransferError to refuse it


class Stream:
    """One connection to rank ``peer``: whole messages in any pieces that the kernel likes.

    Every method raises PeerLost when the peer is gone.
    """

    def __init__(self, sock: socket.socket, peer: int) -> None:
        self.sock = sock
        self.peer = peer
        self._raw = memoryview(bytearray(_HEADER.size))
        self._header: Header | None = None
        self._into: list[memoryview] = [self._raw]  # what is still to be filled
        self._out: deque[tuple[int, list[memoryview]]] = deque()  # slot, what is still to be sent

    @property
    def sending(self) -> bool:
        return bool(self._out)

    @property
    def receiving(self) -> bool:
        """In the middle of a message."""
        return self._header is not None or len(self._into[0]) < _HEADER.size

    def send(self, message: Message, slot: int, kind: int) -> None:
        """Queue a message; ``flush`` sends it."""
        header = memoryview(_HEADER.pack(message.nbytes, slot, kind))
        self._out.append((slot, [header, *(view for view in message.views if view.nbytes)]))

    def flush(self) -> list[int]:
        """Send what the kernel takes now; the slots of messages that left with this call."""
        left = []
        while self._out:
            slot, views = self._out[0]
            sent = self._write(views[:_IOV_MAX])
            if sent == 0:
                break
            views[:] = _behind(views, sent)
            if not views:
                self._out.popleft()
                left.append(slot)
        return left

    def receive(self, place: Place, wait: bool) -> Header | None:
        """The header of the next message when all of it is in its place, else None.

        ``wait``: for at most a tick per system call, otherwise not at all.
        """
        while self._into:
            got = self._read(self._into[:_IOV_MAX], 0 if wait else _NOW)
            if got == 0:
                return None
            self._into = _behind(self._into, got)
            if not self._into and self._header is None:
                self._header = Header(*_HEADER.unpack(self._raw))
                target = place(self._header).cut(self._header.nbytes)
                self._into = [view for view in target.views if view.nbytes]
        header, self._header, self._into = self._header, None, [self._raw]
        return header

    def _write(self, views: Sequence[memoryview]) -> int:
        try:
            return self.sock.sendmsg(views, (), _NOW | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lost(error.strerror) from error

    def _read(self, views: Sequence[memoryview], flags: int) -> int:
        try:
            got = self.sock.recvmsg_into(views, 0, flags)[0]
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lost(error.strerror) from error
        if got == 0:
            raise self._lost("it closed the connection")
        return got

    def _lost(self, why: str | None) -> PeerLost:
        return PeerLost(f"rank {self.peer} is gone ({why})")


def _behind(views: Sequence[memoryview], nbytes: int) -> list[memoryview]:
    """What is left of ``views`` after their first ``nbytes`` bytes."""
    for index, view in enumerate(views):
        if nbytes < view.nbytes:
            return [view[nbytes:], *views[index + 1 :]]
        nbytes -= view.nbytes
    return []
