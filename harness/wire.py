"""The rendezvous on the wire: a token of fixed length, then length-prefixed JSON, bounded."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Message: TypeAlias = "dict[str, JSON]"

TOKEN_NBYTES = 64  # hex digits; the first bytes of every connection
FRAME_LIMIT = 16 << 20
_HEADER = struct.Struct(">I")


def encode(message: Message, limit: int = FRAME_LIMIT) -> bytes:
    """One frame. Raises ValueError when it is longer than ``limit``."""
    body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > limit:
        raise ValueError(f"a message of {len(body)} bytes; at most {limit}")
    return _HEADER.pack(len(body)) + body


class Frames:
    """Cuts a byte stream into messages; ValueError ends the stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages completed by these bytes."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEADER.size:
            (nbytes,) = _HEADER.unpack_from(self._buffer)
            if nbytes > FRAME_LIMIT:
                raise ValueError(f"a frame of {nbytes} bytes; at most {FRAME_LIMIT}")
            end = _HEADER.size + nbytes
            if len(self._buffer) < end:
                break
            messages.append(_decode(bytes(self._buffer[_HEADER.size : end])))
            del self._buffer[:end]
        return messages


def _decode(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message
