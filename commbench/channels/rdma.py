"""``rdma``: RC queue pairs.

Two engines open the device themselves: ``native/rdma`` for the native loops and ``rdma_python.py``
for the Python ones, in turn (``rdma_loops.py``). ``rdma_devices.py`` chooses the port and its
address, ``rdma_connect.py`` connects. What travels is written down in ``native/rdma/wire.h``.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from commbench.channels import rdma_cm, rdma_devices
from commbench.channels.base import Capability, Option
from commbench.channels.rdma_connect import (
    MTUS,
    QueuePairAddress,
    connect,
    path_mtu,
    published,
    records,
    same_port,
)
from commbench.channels.rdma_frames import SENDS
from commbench.channels.rdma_loops import RdmaLoops, native_missing, python_missing
from commbench.channels.rdma_proof import Counter, check_grown
from commbench.channels.rdma_python import PythonEngine
from commbench.channels.rdma_pyverbs import Options
from commbench.errors import (
    ChannelUnavailable,
    CommbenchError,
    Interrupted,
    PeerLost,
    TransferError,
    UsageError,
)
from commbench.harness import interfaces
from commbench.harness.sysfs import Tree
from commbench.units import parse_size

if TYPE_CHECKING:
    from commbench._rdma_core import Engine
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.world import World

BRINGS = (  # the native engine
    "Debian: apt install libibverbs-dev ibverbs-providers; elsewhere: rdma-core with its headers; "
    "then pip install --no-binary commbench --force-reinstall commbench (a checkout: make)"
)
_MOST_EAGER = 1 << 24
Records = Mapping[int, QueuePairAddress]  # by the rank at the other end
_FLAGS = ("ib_dev", "ib_port", "gid_index", "mtu", "sl")  # that the command line has, too


class RdmaChannel(RdmaLoops):
    name = "rdma"
    capabilities = Capability.REQUEST | Capability.ONE_WAY | Capability.WINDOW | Capability.IOVEC
    options: ClassVar[Mapping[str, Option]] = {
        "op": Option(
            "send",
            "how small messages travel; with read, large ones are read by their receiver, with "
            "all others written",
            ("send", "write", "write-imm", "read"),
        ),
        "eager_max": Option("16K", "a longer message takes the rendezvous"),
        "inline": Option("220", "bytes inside a work request, or fewer if the device has fewer"),
        "tx_depth": Option("128", "work requests of a queue pair in flight"),
        "rx_depth": Option("128", "frames that a peer may have sent ahead, a power of two"),
        "signal": Option("32", "every so many work requests one gives a completion"),
        "srq": Option(
            "off",
            "one receive queue of rx_depth frames for all peers instead of one for each",
            ("on", "off"),
        ),
        "connect": Option(
            "rendezvous",
            "how queue pairs find each other: addresses over the rendezvous, or rdma_cm",
            ("rendezvous", "cm"),
        ),
        "wait": Option("spin", "look all the time, or sleep on events", ("spin", "block")),
        "ib_dev": Option("", "device, or several by local rank: --ib-dev mlx5_0,mlx5_1"),
        "ib_port": Option("", "port of the device: --ib-port"),
        "gid_index": Option("", "entry of the port's GID table: --gid-index"),
        "mtu": Option("", "path MTU in bytes: --mtu", ("", *map(str, MTUS))),
        "sl": Option("0", "service level: --sl", tuple(map(str, range(16)))),
    }

    def __init__(
        self,
        world: World,
        rendezvous: Rendezvous,
        address: rdma_devices.Address,
        options: Mapping[str, str],
    ) -> None:
        super().__init__(rendezvous)
        self._world = world
        self._address = address
        self._options = dict(options)
        self._looped = False
        self._sent = 0  # bytes, by engines that were closed
        self._mtu = 0
        self._manager: rdma_cm.Manager | None = None
        self._counter = Counter.of(Tree(), address.port.device, address.port.number)

    @classmethod
    def missing(cls) -> str | None:
        native, python = native_missing(), python_missing()
        if native and python:
            return f"{native}. {BRINGS}. Or, for the Python loops alone: {python}"
        return rdma_devices.missing(Tree())

    @classmethod
    def check_options(cls, given: Mapping[str, str]) -> dict[str, str]:
        options = super().check_options(given)
        for name, least, most in (("inline", 0, 1024), ("tx_depth", 4, 1 << 14), ("signal", 1, 0)):
            _number(name, options[name], least, most or int(options["tx_depth"]) // 2)
        depth = _number("rx_depth", options["rx_depth"], 16, 1 << 14)
        if depth & (depth - 1):
            raise UsageError(f"-o rx_depth={depth}: allowed for channel rdma: a power of two")
        _eager(options)
        if options.get("op") == "write" and options["wait"] == "block":
            raise UsageError(
                "-o wait=block: op=write gives its receiver no events; allowed with op=send, "
                "write-imm and read"
            )
        if options.get("srq") == "on" and options["op"] not in SENDS:
            raise UsageError(
                f"-o srq=on: op={options['op']} writes its frames into a ring of each peer's own; "
                f"allowed with op=send and read"
            )
        for name in ("ib_port", "gid_index"):
            if options[name]:
                _number(name, options[name], 0, 1 << 16)
        return options

    @classmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        address = rdma_devices.choose(
            Tree(),
            device=options["ib_dev"],
            port=options["ib_port"],
            gid_index=options["gid_index"],
            local_rank=world.local_rank,
            addresses=_measured(world, rendezvous),
            named=world.interface is not None,
        )
        channel = cls(world, rendezvous, address, options)
        channel.begin("python" if native_missing() else "native")
        return channel

    def _open_engine(self, loop: str) -> Engine | PythonEngine:
        if loop == "python" and (lacking := python_missing()):
            raise ChannelUnavailable(f"channel rdma: --loop python: {lacking}")
        if loop == "python" and self._options["wait"] != "spin":
            raise UsageError(
                f"-o wait={self._options['wait']}: the Python loops of channel rdma always poll; "
                f"allowed with --loop python: spin"
            )
        if loop == "python" and self._options.get("srq") == "on":
            raise UsageError(
                "-o srq=on: the Python loops of channel rdma have a receive queue for each peer; "
                "allowed with --loop python: off"
            )
        engine = self._engine_of(loop)
        try:
            self._mtu = self._mtu or _path_mtu(engine, self._address, self._options["mtu"])
        except BaseException:
            engine.close()
            raise
        return engine

    @classmethod
    def engine_options(cls, options: Mapping[str, str]) -> dict[str, Any]:
        """Of either engine, from those of the channel."""
        return {
            "op": options["op"],
            "eager_max": _eager(options),
            "inline_max": int(options["inline"]),
            "tx_depth": int(options["tx_depth"]),
            "rx_depth": int(options["rx_depth"]),
            "signal_every": int(options["signal"]),
        }

    @classmethod
    def native_options(cls, options: Mapping[str, str]) -> dict[str, Any]:
        """Of the native engine alone."""
        return {"spin": options["wait"] == "spin", "srq": options.get("srq") == "on"}

    def _engine_of(self, loop: str) -> Engine | PythonEngine:
        port, world, more = self._address.port, self._world, self.engine_options(self._options)
        where = (port.device, port.number, world.rank, world.size)
        try:
            if loop == "python":
                return PythonEngine(Options(*where, **more), self._rendezvous.stop)
            from commbench._rdma_core import Engine

            return Engine(*where, **(more | self.native_options(self._options)))
        except OSError as error:
            raise ChannelUnavailable(f"channel {self.name}: {error.strerror}") from None

    def _closed(self, engine: Engine | PythonEngine) -> None:
        self._sent += engine.sent_bytes
        engine.close()
        self._part()

    def close(self) -> None:
        super().close()
        self._part()

    def _part(self) -> None:
        """From the peers that rdma_cm connected, when the queue pairs are gone."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _connect(self) -> None:
        world, rendezvous = self._world, self._rendezvous
        others = [rank for rank in range(world.size) if rank != world.rank]
        ours = {peer: self._record(peer) for peer in others}
        theirs = records(rendezvous.allgather(published(ours)), world.rank)
        if self._options.get("connect") == "cm":
            self._connect_by_manager(ours, theirs)
        else:
            self._connect_by_records(ours, theirs)
        self._mtu = min([self._mtu, *(path_mtu(ours[peer], theirs[peer]) for peer in others)])
        self._looped = any(same_port(ours[peer], theirs[peer]) for peer in others)
        rendezvous.barrier()

    def _connect_by_records(self, ours: Records, theirs: Records) -> None:
        for peer in ours:
            try:
                connect(self._engine, peer, ours[peer], theirs[peer], int(self._options["sl"]))
            except OSError as error:
                raise TransferError(
                    f"channel rdma: {error.strerror}; is rank {peer} on "
                    f"{self._world.hosts[peer]} in the same network?"
                ) from None

    def _connect_by_manager(self, ours: Records, theirs: Records) -> None:
        world, rendezvous = self._world, self._rendezvous
        address = self._address.ip or _measured(world, rendezvous)[0]
        self._manager = rdma_cm.listen(address, self._address.port.device, world.size)
        contacts = rendezvous.allgather([address, self._manager.port])
        meeting = rdma_cm.Meeting(
            self._manager,
            self._engine,
            world.rank,
            ours,
            theirs,
            rendezvous.token,
            int(self._options["sl"]),
        )
        try:
            meeting.run(contacts, rendezvous.check)
        except BaseException as error:
            self._part()
            if isinstance(error, OSError):
                raise TransferError(f"channel rdma: {error.strerror}") from None
            raise

    def _record(self, peer: int) -> QueuePairAddress:
        port, gid, limits = self._address.port, self._address.gid, self._engine.limits
        return QueuePairAddress(
            device=port.device,
            port=port.number,
            link_layer=port.link_layer,
            lid=limits["lid"],
            gid=str(gid.address) if gid else "",
            gid_index=gid.index if gid else 0,
            mtu=self._mtu,
            op=self.engine_options(self._options)["op"],
            max_rd_atomic=limits["max_rd_atomic"],
            **self._engine.endpoint(peer),
        )

    def settle(self, peers: Sequence[int], timeout_s: float) -> None:
        """Serves until each peer has ended its block: a rendezvous needs both sides."""
        try:
            self._engine.settle(list(peers), timeout_s)
        except OSError as error:
            raise _error(error) from None

    def describe(self) -> dict[str, str | int | float]:
        """Raises TransferError unless the device has counted what the engine gave it to send."""
        sent = self._sent + self._engine.sent_bytes
        proof = check_grown(self._counter, sent, self._mtu, looped=self._looped)
        limits = self._engine.limits
        return {
            **{key: value for key, value in self._options.items() if key not in _FLAGS},
            **self._address.describe(self._engine.firmware, limits["lid"]),
            "mtu": self._mtu,
            "sl": int(self._options["sl"]),
            "max_sge": limits["max_sge"],
            "inline_max": limits["max_inline"],
            "max_msg_sz": limits["max_msg_sz"],
            "more_buffers": f"packed: {limits['max_sge'] - 1} are gathered at most",
            "proof": proof,
        }


def _number(name: str, text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:9]) <= most:
        raise UsageError(f"-o {name}={text}: allowed for channel rdma: {least} to {most}")
    return int(text)


def _eager(options: Mapping[str, str]) -> int:
    value = parse_size(options["eager_max"], "-o eager_max")
    if value > _MOST_EAGER:
        raise UsageError(
            f"-o eager_max={options['eager_max']}: allowed for channel rdma: up to 16M"
        )
    return value


def _measured(world: World, rendezvous: Rendezvous) -> tuple[str, ...]:
    """Addresses of the interface that the user or the rendezvous chose."""
    named = world.interface
    chosen = interfaces.resolve(named) if named else rendezvous.local_address
    interface = interfaces.find(chosen)
    return interface.addresses if interface else (chosen,)


def _path_mtu(engine: Engine | PythonEngine, address: rdma_devices.Address, wanted: str) -> int:
    active = engine.limits["mtu"]
    if wanted and int(wanted) > active:
        raise UsageError(f"--mtu {wanted}: {address.port.name} has {active} at most")
    return int(wanted or active)


def _error(error: OSError) -> CommbenchError:
    kinds: dict[int, type[CommbenchError]] = {
        errno.ECANCELED: Interrupted,
        errno.ECONNRESET: PeerLost,
    }
    return kinds.get(error.errno or 0, TransferError)(f"channel rdma: {error.strerror}")
