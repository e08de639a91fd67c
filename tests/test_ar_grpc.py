"""ar-grpc: how it learns its threshold, its options; and the channel itself in the machine."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import pytest

from commbench.channels.ar_grpc import ArGrpcChannel
from commbench.channels.base import Capability
from commbench.errors import UsageError
from commbench.testing import ChannelContract

if TYPE_CHECKING:
    from commbench._rdma_core import Adapter

MOST = 1 << 16  # bytes of a frame
NEVER = (1 << 64) - 1


@pytest.fixture
def adapter() -> Adapter:
    core = pytest.importorskip("commbench._rdma_core")
    made: Adapter = core.Adapter(8192)
    return made


def round_trip(nbytes: int, rendezvous: bool, noise: random.Random) -> float:
    """ns: copies cost by the byte, a rendezvous a fixed time; they are even at 25,000 bytes."""
    ns = 20_000 + 0.02 * nbytes if rendezvous else 8_000 + 0.5 * nbytes
    return ns * noise.uniform(0.8, 1.2)


def trained(adapter: Adapter, sizes: tuple[int, ...], rounds: int) -> int:
    """How many of them took the rendezvous."""
    noise, taken = random.Random(7), 0
    for _ in range(rounds):
        for nbytes in sizes:
            way = adapter.rendezvous(nbytes, MOST)
            adapter.learn(nbytes, way, round_trip(nbytes, way, noise))
            taken += way
    return taken


def test_before_anything_is_known_the_start_counts(adapter: Adapter) -> None:
    assert not adapter.rendezvous(8192, MOST)
    assert adapter.rendezvous(8193, MOST)
    assert adapter.threshold == 16384  # classes are powers of two


def test_the_faster_way_is_learnt_from_both_sides(adapter: Adapter) -> None:
    """From above (8 KiB would be announced at first) and from below."""
    sizes = (1 << 10, 9 << 10, 40 << 10)
    trained(adapter, sizes, 100)
    # 8 tries of the other way each, and at most one look again
    assert trained(adapter, sizes[:1], 500) <= 5
    assert trained(adapter, sizes[1:2], 500) <= 5
    assert trained(adapter, sizes[2:], 500) >= 495
    assert not adapter.rendezvous(9 << 10, MOST)
    assert adapter.threshold == 16384  # the class between was never seen: its start counts


def test_it_changes_its_mind_when_the_network_does(adapter: Adapter) -> None:
    trained(adapter, (32 << 10,), 2000)
    for _ in range(20_000):  # now copies are for nothing
        way = adapter.rendezvous(32 << 10, MOST)
        adapter.learn(32 << 10, way, 50_000.0 if way else 1_000.0)
    taken = sum(adapter.rendezvous(32 << 10, MOST) for _ in range(200))
    assert taken <= 2


def test_one_sample_of_the_scheduler_changes_nothing(adapter: Adapter) -> None:
    trained(adapter, (1024,), 100)
    adapter.learn(1024, False, 1e9)
    assert not adapter.rendezvous(1024, MOST)


def test_limits_come_before_learning(adapter: Adapter) -> None:
    assert adapter.rendezvous(MOST + 1, MOST)
    assert not adapter.rendezvous(0, MOST)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("eager_max", "2M", "0 to 1048576"),
        ("chunk", "1K", "4096 to"),
        ("coalesce", "2M", "0 to 1048576"),
        ("threshold", "low", "adaptive, fixed"),
        ("rx_depth", "100", "a power of two"),
        ("op", "write", "ar-grpc"),
    ],
)
def test_options_outside_their_limits(option: str, value: str, allowed: str) -> None:
    with pytest.raises(UsageError, match=allowed) as caught:
        ArGrpcChannel.check_options({option: value})
    assert value in str(caught.value) or option in str(caught.value)


def test_every_call_has_an_answer() -> None:
    assert Capability.ONE_WAY not in ArGrpcChannel.capabilities


@pytest.mark.rdma
@pytest.mark.timeout(400)
class TestArGrpc(ChannelContract):
    channel = "ar-grpc"
    loops = ("native",)
    ranks = 3  # more than the machine has processors, so they sleep
    deadline_s = 350.0
    options: ClassVar[Mapping[str, str]] = {"ib_dev": "rxe0,rxe1", "wait": "block"}
