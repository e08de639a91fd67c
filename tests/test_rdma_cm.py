"""``-o connect=cm``: who may connect, and what a queue pair is told. Managers are made up here; the
machine's tests have real ones."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from commbench.channels import rdma_cm
from commbench.channels.rdma_connect import QueuePairAddress
from commbench.channels.sockets import proof
from commbench.errors import ChannelUnavailable, TransferError, UsageError
from tests.test_rdma_devices import Recorded, record

TOKEN = "0123456789abcdef"
Event = tuple[str, int, int, bytes]


def never() -> None:
    """Nobody ends the run."""


@dataclass
class Scripted:
    """A manager whose events were written down before; notes what it is asked to do."""

    events: deque[Event] = field(default_factory=deque)
    done: list[tuple[str, Any]] = field(default_factory=list)
    path: dict[str, int] = field(default_factory=dict)
    gid: str = "::ffff:10.77.0.2"
    port: int = 4711
    device: str = "rxe0"

    def resolve(self, address: str, port: int) -> int:
        self.done.append(("resolve", (address, port)))
        return 1

    def resolve_route(self, id: int) -> None:
        self.done.append(("route", id))

    def connect(self, id: int, said: bytes, qpn: int, attributes: Mapping[str, int]) -> None:
        self.done.append(("connect", (said, qpn, dict(attributes))))

    def accept(self, id: int, said: bytes, qpn: int, attributes: Mapping[str, int]) -> None:
        self.done.append(("accept", (id, said)))

    def establish(self, id: int) -> None:
        self.done.append(("establish", id))

    def reject(self, id: int) -> None:
        self.done.append(("reject", id))

    def forget(self, id: int) -> None:
        self.done.append(("forget", id))

    def attributes(self, id: int, state: str) -> tuple[dict[str, int], str]:
        return {**self.path, "sl": 7}, self.gid if state == "rtr" else ""

    def next(self, timeout_s: float) -> Event | None:
        return self.events.popleft() if self.events else None

    def close(self) -> None: ...


def hello(label: str, rank: int, token: str = TOKEN) -> bytes:
    return struct.pack("<32sI", proof(f"cm {label}", token), rank) + bytes(20)


def meet(
    rank: int, events: list[Event], theirs: QueuePairAddress | None = None, **manager: Any
) -> tuple[Scripted, Recorded]:
    """Rank 0 or 1 of two."""
    made, endpoints, peer = Scripted(deque(events), **manager), Recorded(), 1 - rank
    meeting = rdma_cm.Meeting(
        made, endpoints, rank, {peer: record()}, {peer: theirs or record(qpn=18)}, TOKEN, 3
    )
    meeting.run([["10.77.0.1", 7], ["10.77.0.2", 8]], never, 0.2)
    return made, endpoints


ASKED = [("ADDR_RESOLVED", 1, 0, b""), ("ROUTE_RESOLVED", 1, 0, b"")]


def test_the_lower_rank_asks_and_the_path_comes_from_the_manager() -> None:
    events = [*ASKED, ("CONNECT_RESPONSE", 1, 0, hello("srv", 1))]
    manager, endpoints = meet(0, events, path={"hop_limit": 9, "sq_psn": 5, "qpn": 18})
    assert [what for what, _ in manager.done] == ["resolve", "route", "connect", "establish"]
    assert manager.done[0][1] == ("10.77.0.2", 8)
    said, qpn, attributes = manager.done[2][1]
    assert (said, qpn, attributes["rnr_retry"]) == (hello("ask", 0)[:36], record().qpn, 7)
    (_, ring, _), *steps = endpoints.steps
    assert ring["ring_rkey"] == 0x1234
    assert [state for state, _, _ in steps] == ["init", "rtr", "rts"]
    _, rtr, gid = steps[1]
    assert (gid, rtr["hop_limit"], rtr["qpn"]) == ("::ffff:10.77.0.2", 9, 18)
    assert (rtr["sl"], rtr["mtu"]) == (3, 1024)  # ours, as without it
    assert (steps[2][1]["sq_psn"], steps[2][1]["retry_cnt"]) == (5, 6)


def test_the_higher_rank_admits_who_proves_to_belong_to_the_run() -> None:
    strangers = (
        b"",
        hello("ask", 0, "another token 16"),
        hello("srv", 0),  # what a rank of the run said as an answer
        hello("ask", 1),  # a rank that does not ask this one
    )
    events: list[Event] = [("CONNECT_REQUEST", 10 + i, 0, s) for i, s in enumerate(strangers)]
    events += [("CONNECT_REQUEST", 5, 0, hello("ask", 0)), ("ESTABLISHED", 5, 0, b"")]
    events.insert(5, ("CONNECT_REQUEST", 6, 0, hello("ask", 0)))  # again
    manager, endpoints = meet(1, events)
    rejected = [id for what, id in manager.done if what == "reject"]
    assert rejected == [10, 11, 12, 13, 6]
    assert [id for what, id in manager.done if what == "accept"] == [(5, hello("srv", 1)[:36])]
    assert [state for state, _, _ in endpoints.steps] == ["join", "init", "rtr", "rts"]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], "rank 1 is not connected by rdma_cm within 0.2 s"),
        ([("ADDR_ERROR", 1, -113, b"")], r"rank 1 .* ADDR_ERROR \(No route to host\)"),
        ([*ASKED, ("REJECTED", 1, 28, b"")], "rank 1 is not reached by rdma_cm: REJECTED$"),
        ([*ASKED, ("CONNECT_RESPONSE", 1, 0, b"x" * 56)], "rank 1 does not belong to this run"),
    ],
)
def test_a_rank_that_is_not_reached_is_named(events: list[Event], said: str) -> None:
    with pytest.raises(TransferError, match=said):
        meet(0, events)


def test_another_queue_pair_than_that_of_the_record_is_refused() -> None:
    with pytest.raises(TransferError, match="rank 1 has another queue pair than it said"):
        meet(0, [*ASKED, ("CONNECT_RESPONSE", 1, 0, hello("srv", 1))], path={"qpn": 99})


def test_a_stranger_that_gives_up_is_forgotten() -> None:
    events: list[Event] = [("CONNECT_ERROR", 9, 0, b"")]
    events += [("CONNECT_REQUEST", 5, 0, hello("ask", 0)), ("ESTABLISHED", 5, 0, b"")]
    manager, _ = meet(1, events)
    assert manager.done[0] == ("forget", 9)


def test_ends_that_do_not_fit_are_told_before_anything_is_sent() -> None:
    with pytest.raises(UsageError, match="op=send: rank 1 has op=write"):
        meet(0, [], record(op="write"))


@pytest.mark.parametrize("contact", [None, "10.0.0.1", ["10.0.0.1"], ["10.0.0.1", 0], [1, 2]])
def test_a_strange_contact_is_refused(contact: object) -> None:
    meeting = rdma_cm.Meeting(Scripted(), Recorded(), 0, {1: record()}, {1: record()}, TOKEN, 0)
    with pytest.raises(TransferError, match="rank 1 sent no address of rdma_cm"):
        meeting.run([None, contact], never, 0.1)


def test_without_the_library_it_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdma_cm, "find_spec", lambda _: None)
    with pytest.raises(ChannelUnavailable, match=r"-o connect=cm: .*librdmacm-dev"):
        rdma_cm.listen("10.0.0.1", "rxe0", 2)
