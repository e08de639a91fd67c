"""Connecting by librdmacm; see commbench/channels/rdma_cm.py."""

from collections.abc import Mapping


class Connector:
    """
    Listens on an address of an RDMA device; connections are told apart by numbers. OSError when something fails.
    """

    def __init__(self, address: str, backlog: int) -> None: ...

    @property
    def port(self) -> int: ...

    @property
    def device(self) -> str:
        """Which one has the address."""

    def resolve(self, address: str, port: int) -> int: ...

    def resolve_route(self, id: int) -> None: ...

    def connect(self, id: int, said: bytes, qpn: int, attributes: Mapping[str, int]) -> None: ...

    def accept(self, id: int, said: bytes, qpn: int, attributes: Mapping[str, int]) -> None: ...

    def establish(self, id: int) -> None: ...

    def reject(self, id: int) -> None: ...

    def forget(self, id: int) -> None: ...

    def attributes(self, id: int, state: str) -> tuple[dict[str, int], str]:
        """
        What a step of the queue pair needs to know of the path, and the peer's GID.
        """

    def next(self, timeout_s: float) -> tuple[str, int, int, bytes] | None:
        """The next event: name, id, status, what the peer said with it."""

    def close(self) -> None: ...
