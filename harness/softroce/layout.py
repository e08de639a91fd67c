"""What both sides of the machine know: names, addresses, and the order that travels in."""

from __future__ import annotations

from dataclasses import dataclass

IN_MACHINE = "COMMBENCH_SOFTROCE"  # set in the environment of the command
HOST = "softroce"  # what the machine calls itself
ORDER = "order.json"
ENDED = "ended.json"
DISK = "/dev/vda"
HOST_FILES = "commbench"  # the tag of the file system with the host's files
PORTS = ("commbench.stdout", "commbench.stderr")  # virtio ports of the command's streams


@dataclass(frozen=True, slots=True)
class End:
    """One end of the veth pair and its RDMA device."""

    device: str
    interface: str
    address: str


ENDS = (End("rxe0", "veth0", "10.77.0.1"), End("rxe1", "veth1", "10.77.0.2"))


@dataclass(frozen=True, slots=True)
class Order:
    """What to run in the machine: argv, folder, environment.

    ``loss`` in percent of packets; ``cached``: folders of the host that nobody changes meanwhile;
    ``disk``: there is to be a ``DISK``.
    """

    argv: list[str]
    cwd: str
    env: dict[str, str]
    loss: float
    cached: list[str]
    disk: bool
