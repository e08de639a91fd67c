"""A port of an RDMA device, opened through pyverbs (rdma-core's binding for Python).

All of pyverbs that commbench uses is called here. Its work requests and their lists of buffers
are freed by ``close()`` alone, so they are made, posted and closed in one place; ``PD.pd`` crashes
the interpreter (version 44) and is not touched.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from commbench.channels.rdma_frames import SENDS
from commbench.channels.rdma_memory import Keys, cannot_register, error_code

Gather = Sequence[tuple[int, int, int]]  # (address, bytes, lkey) of each buffer of a work request

_NEEDED = {
    "pyverbs.addr": ("AHAttr", "GID", "GlobalRoute"),
    "pyverbs.cq": ("CQ", "cqe_status_to_str"),
    "pyverbs.device": ("Context",),
    "pyverbs.mr": ("MR",),
    "pyverbs.pd": ("PD",),
    "pyverbs.qp": ("QP", "QPAttr", "QPCap", "QPInitAttr"),
    "pyverbs.wr": ("RecvWR", "SGE", "SendWR"),
    "pyverbs.pyverbs_error": ("PyverbsError",),
}
_INSTALL = (
    "Debian: apt install python3-pyverbs, and an environment of the system's Python that sees it: "
    "/usr/bin/python3 -m venv --system-site-packages"
)
_MOST_SGE = 32
_MOST_MESSAGE = 1 << 30
_MOST_ENTRIES = 32768 - 16
_STATES = {"init": "INIT", "rtr": "ready to receive", "rts": "ready to send"}
# of commbench/channels/rdma_connect.py, and what pyverbs and its masks call them
_PLAIN = {
    "pkey_index": ("pkey_index", "PKEY_INDEX"),
    "mtu": ("path_mtu", "PATH_MTU"),
    "qpn": ("dest_qp_num", "DEST_QPN"),
    "rq_psn": ("rq_psn", "RQ_PSN"),
    "sq_psn": ("sq_psn", "SQ_PSN"),
    "max_dest_rd_atomic": ("max_dest_rd_atomic", "MAX_DEST_RD_ATOMIC"),
    "max_rd_atomic": ("max_rd_atomic", "MAX_QP_RD_ATOMIC"),
    "min_rnr_timer": ("min_rnr_timer", "MIN_RNR_TIMER"),
    "timeout": ("timeout", "TIMEOUT"),
    "retry_cnt": ("retry_cnt", "RETRY_CNT"),
    "rnr_retry": ("rnr_retry", "RNR_RETRY"),
}


def missing() -> str | None:
    """None when pyverbs can be used, else one line: what is wrong and what brings it."""
    if find_spec("pyverbs") is None:
        return f"no pyverbs for {sys.executable}. {_INSTALL}"
    for module, names in _NEEDED.items():
        try:
            found = import_module(module)
        except ImportError as error:  # built for another Python, or without its libraries
            return f"pyverbs cannot be imported ({error}). {_INSTALL}"
        for name in names:
            if not hasattr(found, name):
                return f"pyverbs at {found.__file__} is another version: no {name}. {_INSTALL}"
    return None


def _load() -> Any:
    """All that is needed, by its names, and ``enums``."""
    found = {
        name: getattr(import_module(module), name)
        for module, names in _NEEDED.items()
        for name in names
    }
    return SimpleNamespace(**found, enums=import_module("pyverbs.enums"))


@dataclass(frozen=True, slots=True)
class Options:
    """As the native engine takes them; depths in work requests, the rest in bytes."""

    device: str
    port: int
    rank: int
    size: int
    op: str
    eager_max: int
    inline_max: int
    tx_depth: int
    rx_depth: int
    signal_every: int


class Device:
    """The port, its protection domain and completion queues. OSError when the device refuses."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.name = options.device
        self._verbs = _load()
        self.enums = self._verbs.enums
        self._open: list[Any] = []  # in the order of opening
        try:
            self._context = self._make("be opened", self._verbs.Context, name=options.device)
            self._look()
            self._pd = self._make("give a protection domain", self._verbs.PD, self._context)
            peers = max(1, options.size - 1)
            self._sends = self._queue(peers * options.tx_depth + 16)
            self._receives = self._queue(peers * options.rx_depth + 16)
            self._sges = [self._verbs.SGE(0, 0, 0) for _ in range(self.limits["max_sge"])]
        except BaseException:
            self.close()
            raise

    # -- opening

    def _make(self, what: str, kind: Any, *args: Any, **named: Any) -> Any:
        try:
            made = kind(*args, **named)
        except self._verbs.PyverbsError as error:
            code = error_code(error)
            raise OSError(code, f"the RDMA device {self.name} cannot {what}: {error}") from None
        self._open.append(made)
        return made

    def _queue(self, entries: int) -> Any:
        entries = min(entries, _MOST_ENTRIES)
        what = f"give a completion queue of {entries} entries"
        return self._make(what, self._verbs.CQ, self._context, entries, None, None, 0)

    def _look(self) -> None:
        options, device = self.options, self._context.query_device()
        port = self._context.query_port(options.port)
        sge = device.max_sge
        if options.op == "read" and 0 < device.max_sge_rd < sge:
            sge = device.max_sge_rd
        self.firmware = str(device.fw_version)
        self.limits = {
            "max_sge": min(sge, _MOST_SGE),
            "max_inline": options.inline_max,
            "max_msg_sz": min(port.max_msg_sz or _MOST_MESSAGE, _MOST_MESSAGE),
            "max_rd_atomic": min(device.max_qp_rd_atom, device.max_qp_init_rd_atom),
            "mtu": 128 << port.active_mtu,
            "lid": port.lid,
            "state": port.state,
        }
        for name, wanted in (("rx_depth", options.rx_depth), ("tx_depth", options.tx_depth)):
            if wanted > device.max_qp_wr:
                raise OSError(
                    errno.EINVAL, f"{name}={wanted}: {self.name} has room for {device.max_qp_wr}"
                )

    def queue_pair(self) -> Any:
        """In state RESET. With as much room in a work request as asked for, halved until the device
        takes it: no call says how much that is."""
        inline, sge = self.limits["max_inline"], self.limits["max_sge"]
        while True:
            try:
                made = self._queue_pair(inline, sge)
            except self._verbs.PyverbsError as error:
                if inline:
                    inline //= 2
                elif sge > 4:
                    sge //= 2
                else:
                    raise OSError(
                        error_code(error), f"{self.name} gives no queue pair: {error}"
                    ) from None
                continue
            self._open.append(made)
            self.limits["max_inline"], self.limits["max_sge"] = inline, sge
            return made

    def _queue_pair(self, inline: int, sge: int) -> Any:
        options, v = self.options, self._verbs
        receives = 1 if options.op == "write" else options.rx_depth
        room = v.QPCap(
            max_send_wr=options.tx_depth,
            max_recv_wr=receives,
            max_send_sge=sge,
            max_recv_sge=1,
            max_inline_data=inline,
        )
        kind = self.enums.IBV_QPT_RC
        wanted = v.QPInitAttr(qp_type=kind, scq=self._sends, rcq=self._receives, cap=room)
        return v.QP(self._pd, wanted)

    def register(self, address: int, nbytes: int) -> Keys:
        e = self.enums
        access = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
        try:
            region = self._verbs.MR(self._pd, nbytes, access, address=address)
        except self._verbs.PyverbsError as error:
            raise cannot_register(nbytes, self.name, error_code(error)) from None
        return Keys(region.lkey, region.rkey, region.close)

    def modify(
        self, qp: Any, peer: int, state: str, attributes: Mapping[str, int], gid: str
    ) -> None:
        """One step of ``rdma_connect``."""
        attr, mask = self._verbs.QPAttr(), self.enums.IBV_QP_STATE
        attr.qp_state = getattr(self.enums, f"IBV_QPS_{state.upper()}")
        for name, value in attributes.items():
            if name in _PLAIN:
                field, bit = _PLAIN[name]
                setattr(attr, field, value.bit_length() - 8 if name == "mtu" else value)
                mask |= getattr(self.enums, f"IBV_QP_{bit}")
        if "remote_access" in attributes:
            e = self.enums
            attr.qp_access_flags = e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
            attr.port_num = attributes["port"]
            mask |= e.IBV_QP_ACCESS_FLAGS | e.IBV_QP_PORT
        if "lid" in attributes:
            attr.ah_attr = self._route(attributes, gid)
            mask |= self.enums.IBV_QP_AV
        try:
            qp.modify(attr, mask)
        except self._verbs.PyverbsError as error:
            code = error_code(error)
            raise OSError(
                code,
                f"{self.name}: the queue pair to rank {peer} does not become {_STATES[state]}: "
                f"{os.strerror(code)}",
            ) from None

    def _route(self, attributes: Mapping[str, int], gid: str) -> Any:
        v, route = self._verbs, None
        if gid:
            route = v.GlobalRoute(
                dgid=v.GID(ipaddress.IPv6Address(gid).exploded),
                sgid_index=attributes["gid_index"],
                hop_limit=attributes["hop_limit"],
            )
        return v.AHAttr(
            dlid=attributes["lid"],
            sl=attributes["sl"],
            is_global=1 if gid else 0,
            port_num=attributes["port"],
            gr=route,
        )

    # -- work requests

    def send(
        self, qp: Any, wr_id: int, opcode: int, flags: int, gather: Gather, remote: tuple[int, int]
    ) -> None:
        """``remote``: (address, rkey) of what is written or read."""
        for sge, (address, nbytes, lkey) in zip(self._sges, gather, strict=False):
            sge.addr, sge.length, sge.lkey = address, nbytes, lkey
        wr = self._verbs.SendWR(
            wr_id=wr_id,
            opcode=opcode,
            num_sge=max(1, len(gather)),  # it takes no fewer
            sg=self._sges,
            send_flags=flags,
        )
        try:
            wr.num_sge = len(gather)
            wr.set_wr_rdma(remote[1], remote[0])
            qp.post_send(wr)
        except self._verbs.PyverbsError as error:
            raise OSError(
                error_code(error), f"{self.name} takes no work request: {error}"
            ) from None
        finally:
            wr.close()

    def receive_request(self, wr_id: int, address: int, nbytes: int, lkey: int) -> Any:
        """To be posted any number of times, and closed by the caller."""
        sge = self._sges[0]
        sge.addr, sge.length, sge.lkey = address, nbytes, lkey
        return self._verbs.RecvWR(wr_id=wr_id, num_sge=1, sg=[sge])

    def receive(self, qp: Any, request: Any) -> None:
        try:
            qp.post_recv(request)
        except self._verbs.PyverbsError as error:
            text = f"{self.name} takes no receive request: {error}"
            raise OSError(error_code(error), text) from None

    def sent(self, most: int = 16) -> Sequence[Any]:
        """Completions of work requests: ``wr_id``, ``status``."""
        found: Sequence[Any] = self._sends.poll(most)[1]
        return found

    def received(self, most: int = 16) -> Sequence[Any]:
        """Of receive requests: ``byte_len``, too."""
        found: Sequence[Any] = self._receives.poll(most)[1]
        return found

    def means_gone(self, status: int) -> bool:
        e = self.enums
        return status in (
            e.IBV_WC_RETRY_EXC_ERR,
            e.IBV_WC_RNR_RETRY_EXC_ERR,
            e.IBV_WC_WR_FLUSH_ERR,
            e.IBV_WC_REM_ABORT_ERR,
            e.IBV_WC_RESP_TIMEOUT_ERR,
        )

    def status_text(self, status: int) -> str:
        return str(self._verbs.cqe_status_to_str(status))

    @property
    def port_is_down(self) -> bool:
        state = self._context.query_port(self.options.port).state
        return bool(state != self.enums.IBV_PORT_ACTIVE)

    @property
    def frame_opcode(self) -> int:
        """How a frame travels."""
        e = self.enums
        if self.options.op in SENDS:
            return int(e.IBV_WR_SEND)
        writes = {"write": e.IBV_WR_RDMA_WRITE, "write-imm": e.IBV_WR_RDMA_WRITE_WITH_IMM}
        return int(writes[self.options.op])

    def close(self) -> None:
        """What was opened last goes first; registered memory was released before."""
        for sge in getattr(self, "_sges", ()):
            sge.close()
        self._sges = []
        while self._open:
            self._open.pop().close()
