"""``grpc+verbs``: TensorFlow's gRPC+Verbs, with its messages.

gRPC swaps the addresses of queue pairs and says that a block is over (``grpc_control.py``).
Tensors go by RDMA: the rank that wants one asks its owner for it, over message buffers of
registered memory, and the owner writes it (``native/verbs/engine.c``). No Python data path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Self

from commbench.channels import rdma_devices
from commbench.channels.base import Capability, Option
from commbench.channels.grpc_options import own_address, quiet
from commbench.channels.grpc_verbs_set_up import (
    GET_REMOTE_ADDRESS,
    check_numbers,
    connect,
    read_record,
    record,
    with_environment,
)
from commbench.channels.native_only import NativeOnlyChannel
from commbench.channels.rdma_connect import MTUS, QueuePair, same_port
from commbench.channels.rdma_proof import Counter, check_grown
from commbench.errors import ChannelUnavailable, TransferError, UsageError
from commbench.harness import interfaces
from commbench.harness.sysfs import Tree

if TYPE_CHECKING:
    from commbench._verbs_core import VerbsEngine
    from commbench.channels.grpc_control import StepControl
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.world import World

_MODULE = "commbench._verbs_core"
_CONNECT_S = 10.0  # TensorFlow's: five tries, two seconds apart
_PLACE = ("ib_dev", "ib_port", "gid_index", "mtu")  # options whose outcome has another name


class GrpcVerbsChannel(NativeOnlyChannel):
    name = "grpc+verbs"
    threads = True
    capabilities = Capability.REQUEST | Capability.ONE_WAY | Capability.WINDOW
    options: ClassVar[Mapping[str, Option]] = {
        "protocol": Option(
            "v2",
            "v2: a tensor is written into the memory of who asked for it; gdr: it is read from its "
            "owner; v1: it goes through tensor buffers",
            ("v2", "gdr", "v1"),
        ),
        "wait": Option(
            "block",
            "of the thread that takes completions: sleep until an event, or look all the time",
            ("block", "spin"),
        ),
        "depth": Option("1024", "receive requests, and work requests, of a queue pair"),
        "timeout": Option("14", "until a packet is sent again: 4.096 us x 2^timeout"),
        "retry_count": Option("7", "how often before the peer counts as gone"),
        "pkey_index": Option("0", "entry of the port's partition table"),
        "traffic_class": Option("0", "of the packets' global route"),
        "ib_dev": Option("", "device, or several by local rank: --ib-dev mlx5_0,mlx5_1"),
        "ib_port": Option("", "port of the device: --ib-port"),
        "gid_index": Option("", "entry of the port's GID table: --gid-index"),
        "mtu": Option("", "path MTU in bytes: --mtu", ("", *map(str, MTUS))),
        "sl": Option("0", "service level: --sl"),
    }

    _control: StepControl

    def __init__(
        self, engine: VerbsEngine, address: rdma_devices.Address, options: Mapping[str, str]
    ) -> None:
        self._engine = engine
        self._address = address
        self._options = dict(options)
        self._mtu = _port_mtu(engine, address, options["mtu"])
        self._counter = Counter.of(Tree(), address.port.device, address.port.number)
        self._theirs: dict[int, bytes] = {}
        self._looped = False

    # -- life

    @classmethod
    def missing(cls) -> str | None:
        from commbench.channels.rdma import RdmaChannel

        if not find_spec("grpc"):
            return 'grpcio is missing: pip install "commbench[grpc]"'
        if line := RdmaChannel.missing():
            return line
        try:
            import_module(_MODULE)
        except ImportError as error:
            return str(error)
        return None

    @classmethod
    def check_options(cls, given: Mapping[str, str]) -> dict[str, str]:
        options = super().check_options(with_environment(given))
        check_numbers(cls.name, options)
        return options

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        quiet()
        address = rdma_devices.choose(
            Tree(),
            device=options["ib_dev"],
            port=options["ib_port"],
            gid_index=options["gid_index"],
            local_rank=world.local_rank,
            addresses=_measured(world, rendezvous),
            named=world.interface is not None,
        )
        engine = _open_engine(world, address, options)
        try:
            channel = cls(engine, address, options)
            channel._meet(world, rendezvous)
        except BaseException:
            engine.close()
            raise
        return channel

    def _meet(self, world: World, rendezvous: Rendezvous) -> None:
        """Swap addresses over gRPC, connect the queue pairs, and try them with a ping."""
        from commbench.channels.grpc_control import StepControl

        others = [rank for rank in range(world.size) if rank != world.rank]
        ours = {peer: self._queue_pair(peer) for peer in others}
        records = {peer: record(pair, self._engine.endpoint(peer)) for peer, pair in ours.items()}

        def swap(rank: int, theirs: bytes) -> bytes:
            self._theirs[rank] = theirs
            return records[rank]

        self._control = StepControl(
            self.name,
            own_address(world, rendezvous),
            rendezvous.token,
            world.rank,
            world.hosts,
            {GET_REMOTE_ADDRESS: swap},
            rendezvous.stop,
        )
        self._control.dial([str(each) for each in rendezvous.allgather(self._control.address)])
        above = {peer: records[peer] for peer in others if peer > world.rank}
        self._theirs |= self._control.call(GET_REMOTE_ADDRESS, above, _CONNECT_S)
        rendezvous.barrier()
        for peer in others:
            self._connect(peer, world.hosts[peer], ours[peer])
        rendezvous.barrier()
        self._ping()
        rendezvous.barrier()  # whoever still waits for its ping would lose a first request

    def _queue_pair(self, peer: int) -> QueuePair:
        gid, endpoint = self._address.gid, self._engine.endpoint(peer)
        return QueuePair(
            port=self._address.port.number,
            lid=self._engine.limits["lid"],
            gid=str(gid.address) if gid else "",
            gid_index=gid.index if gid else 0,
            mtu=self._mtu,
            max_rd_atomic=1,
            qpn=endpoint["qpn"],
            psn=endpoint["psn"],
        )

    def _connect(self, peer: int, host: str, ours: QueuePair) -> None:
        theirs, rx = read_record(self._theirs[peer], peer)
        try:
            mtu = connect(self._engine, peer, ours, theirs, rx, self._options)
        except OSError as error:
            raise TransferError(
                f"channel {self.name}: {error.strerror}; is rank {peer} on {host} in the same "
                f"network?"
            ) from None
        self._mtu = min(self._mtu, mtu)
        self._looped = self._looped or same_port(ours, theirs)

    def _ping(self) -> None:
        try:
            self._engine.ping(_CONNECT_S)
        except OSError as error:
            raise TransferError(f"channel {self.name}: {error.strerror}") from None

    # -- a case

    def native(self) -> VerbsEngine:
        return self._engine

    def settle(self, peers: Sequence[int], timeout_s: float) -> None:
        """Until each peer has ended its block, tensors may still be asked for."""
        self._control.end_step(peers, timeout_s)

    def counters(self) -> dict[str, int]:
        """Since it was opened: messages sent by kind, tensors that came, payload bytes copied."""
        return self._engine.counters()

    def describe(self) -> dict[str, str | int | float]:
        """Raises TransferError unless the device has counted what the engine gave it to send."""
        proof = check_grown(self._counter, self._engine.sent_bytes, self._mtu, looped=self._looped)
        limits = self._engine.limits
        return {
            **{key: value for key, value in self._options.items() if key not in _PLACE},
            **self._address.describe(self._engine.firmware, limits["lid"]),
            "mtu": self._mtu,
            "max_msg_sz": limits["max_msg_sz"],
            "proof": proof,
            "grpcio": version("grpcio"),
        }

    def close(self) -> None:
        self._engine.close()
        self._control.close()


def _measured(world: World, rendezvous: Rendezvous) -> tuple[str, ...]:
    """Addresses of the interface that the user or the rendezvous chose."""
    chosen = own_address(world, rendezvous)
    interface = interfaces.find(chosen)
    return interface.addresses if interface else (chosen,)


def _open_engine(
    world: World, address: rdma_devices.Address, options: Mapping[str, str]
) -> VerbsEngine:
    from commbench._verbs_core import VerbsEngine

    try:
        return VerbsEngine(
            address.port.device,
            address.port.number,
            world.rank,
            world.size,
            protocol=options["protocol"],
            depth=int(options["depth"]),
            spin=options["wait"] == "spin",
        )
    except OSError as error:
        raise ChannelUnavailable(f"channel grpc+verbs: {error.strerror}") from None


def _port_mtu(engine: VerbsEngine, address: rdma_devices.Address, wanted: str) -> int:
    active = engine.limits["mtu"]
    if wanted and int(wanted) > active:
        raise UsageError(f"--mtu {wanted}: {address.port.name} has {active} at most")
    return int(wanted or active)
