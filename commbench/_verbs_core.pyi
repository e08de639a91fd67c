"""The engine of the grpc+verbs channel; see native/verbs/engine.c."""

from collections.abc import Mapping


class VerbsEngine:
    """A device and a queue pair for each other rank; OSError when it fails."""

    def __init__(self, device: str, port: int, rank: int, size: int, *, protocol: str, depth: int, spin: bool) -> None: ...

    @property
    def capsule(self) -> object: ...

    @property
    def limits(self) -> dict[str, int]: ...

    @property
    def firmware(self) -> str: ...

    @property
    def sent_bytes(self) -> int: ...

    @property
    def regions(self) -> int: ...

    def endpoint(self, peer: int) -> dict[str, int]: ...

    def modify(self, peer: int, state: str, attributes: Mapping[str, int], gid: str = '') -> None: ...

    def join(self, peer: int, endpoint: Mapping[str, int]) -> None: ...

    def ping(self, timeout_s: float) -> None: ...

    def counters(self) -> dict[str, int]:
        """Messages sent by kind, tensors that came, bytes of payload copied."""

    def close(self) -> None: ...

def write_message(type: int, name: str, step: int, index: int, address: int, rkey: int, nbytes: int) -> bytes:
    """A control message as it lies in a message buffer."""
