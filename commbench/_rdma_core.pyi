"""The engine of the rdma channel; see native/rdma/wire.h."""

from collections.abc import Mapping, Sequence


class Adapter:
    """Eager or rendezvous, see native/rdma/adapt.h; for tests."""

    def __init__(self, start: int) -> None: ...

    def rendezvous(self, nbytes: int, most: int) -> bool:
        """Does the next message take it?"""

    def learn(self, nbytes: int, rendezvous: bool, ns: float) -> None: ...

    @property
    def threshold(self) -> int: ...

class Engine:
    """A device and a queue pair for each other rank; OSError when it fails."""

    def __init__(self, device: str, port: int, rank: int, size: int, *, op: str, eager_max: int, inline_max: int, tx_depth: int, rx_depth: int, signal_every: int, spin: bool, srq: bool = False, chunk: int = 0, coalesce: int = 0, adaptive: bool = False) -> None: ...

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

    def threshold(self, peer: int) -> int:
        """Bytes from which on messages to this peer take the rendezvous."""

    def endpoint(self, peer: int) -> dict[str, int]: ...

    def modify(self, peer: int, state: str, attributes: Mapping[str, int], gid: str = '') -> None: ...

    def join(self, peer: int, endpoint: Mapping[str, int]) -> None: ...

    def settle(self, peers: Sequence[int], timeout_s: float) -> None: ...

    def close(self) -> None: ...
