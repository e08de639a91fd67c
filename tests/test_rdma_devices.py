"""Which RDMA port and address a rank takes, on made-up trees: what no test machine has, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from commbench.channels import rdma_devices
from commbench.channels.rdma_connect import (
    QueuePairAddress,
    check_pair,
    connect,
    published,
    receiving,
    records,
    same_port,
    sending,
)
from commbench.channels.rdma_devices import choose, missing, ports
from commbench.channels.rdma_proof import Carriers, Counter, check_grown
from commbench.errors import ChannelUnavailable, TransferError, UsageError
from commbench.harness.sysfs import Tree

ZERO = ":".join(["0000"] * 8)
LOCAL = "fe80:0000:0000:0000:0202:c9ff:fe00:0001"


def mapped(a: int, b: int, c: int, d: int) -> str:
    return f"0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}"


class Made:
    """A tree that grows device by device."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = Tree(root)

    def put(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def port(
        self,
        device: str,
        number: int = 1,
        *,
        state: str = "4: ACTIVE",
        link_layer: str = "Ethernet",
        lid: str = "0x0",
        gids: Mapping[int, tuple[str, str]] | None = None,
        netdev: str = "",
    ) -> Made:
        where = f"sys/class/infiniband/{device}/ports/{number}"
        for name, text in {"state": state, "link_layer": link_layer, "lid": lid}.items():
            self.put(f"{where}/{name}", text)
        self.put(f"{where}/rate", "100 Gb/sec (4X EDR)")
        for index, (gid, kind) in (gids or {}).items():
            self.put(f"{where}/gids/{index}", gid)
            if kind:
                self.put(f"{where}/gid_attrs/types/{index}", kind)
                self.put(f"{where}/gid_attrs/ndevs/{index}", netdev)
        return self


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


ROCE = {
    0: (LOCAL, "IB/RoCE v1"),
    1: (LOCAL, "RoCE v2"),
    2: (mapped(192, 168, 7, 1), "IB/RoCE v1"),
    3: (mapped(192, 168, 7, 1), "RoCE v2"),
    4: (mapped(10, 0, 0, 9), "RoCE v2"),
    5: (ZERO, ""),
}


def test_no_device_says_what_brings_one(made: Made) -> None:
    assert "rdma link add" in str(missing(made.tree))
    with pytest.raises(ChannelUnavailable, match="no RDMA device"):
        choose(made.tree)


def test_roce_v2_with_ipv4_comes_before_v1_and_link_local(made: Made) -> None:
    made.port("mlx5_0", gids=ROCE, netdev="eth7")
    address = choose(made.tree)
    assert (address.gid and address.gid.index, address.kind) == (3, "RoCE v2")
    assert address.port.netdev == "eth7"


@pytest.mark.parametrize(
    ("gid", "kind", "ip"),
    [
        (mapped(10, 0, 0, 9), "RoCE v2", "10.0.0.9"),
        ("2001:0db8:0000:0000:0000:0000:0000:0007", "RoCE v2", "2001:db8::7"),
        (LOCAL, "RoCE v2", None),
    ],
)
def test_the_ip_address_in_a_gid(made: Made, gid: str, kind: str, ip: str | None) -> None:
    made.port("mlx5_0", gids={0: (gid, kind)})
    assert choose(made.tree).ip == ip


def test_the_address_of_the_measured_interface_comes_first(made: Made) -> None:
    made.port("mlx5_0", gids=ROCE)
    gid = choose(made.tree, addresses=("10.0.0.9",)).gid
    assert gid and gid.index == 4


def test_roce_v1_where_there_is_nothing_else(made: Made) -> None:
    made.port("mlx4_0", gids={0: (LOCAL, "IB/RoCE v1"), 1: (mapped(10, 1, 1, 1), "IB/RoCE v1")})
    address = choose(made.tree)
    assert (address.gid and address.gid.index, address.kind) == (1, "RoCE v1")


def test_an_interface_that_the_user_named_chooses_its_device(made: Made) -> None:
    made.port("mlx5_0", gids={0: (mapped(10, 0, 0, 1), "RoCE v2")})
    made.port("mlx5_1", gids={0: (mapped(10, 0, 1, 1), "RoCE v2")})
    named = choose(made.tree, addresses=("10.0.1.1",), named=True)
    assert named.port.device == "mlx5_1"
    assert choose(made.tree, addresses=("10.0.1.1",)).port.device == "mlx5_0"


def test_infiniband_is_reached_by_lid_unless_a_gid_is_named(made: Made) -> None:
    gids = {0: ("fe80:0000:0000:0000:0002:c903:0001:0002", "IB/RoCE v1")}
    made.port("mlx5_0", link_layer="InfiniBand", lid="0x2a", gids=gids)
    address = choose(made.tree)
    assert (address.kind, address.gid, address.port.lid) == ("InfiniBand LID", None, 42)
    assert choose(made.tree, gid_index="0").kind == "InfiniBand GID"


def test_ranks_of_one_host_take_devices_in_turn(made: Made) -> None:
    for number in (0, 1, 2):
        made.port(f"rxe{number}", gids={1: (mapped(10, 77, 0, number), "RoCE v2")})
    taken = [choose(made.tree, local_rank=rank).port.device for rank in range(4)]
    assert taken == ["rxe0", "rxe1", "rxe2", "rxe0"]
    named = [choose(made.tree, device="rxe2,rxe0", local_rank=r).port.device for r in range(3)]
    assert named == ["rxe2", "rxe0", "rxe2"]


def test_devices_that_are_down_are_left_out(made: Made) -> None:
    made.port("mlx5_0", state="1: DOWN", gids=ROCE).port("mlx5_1", gids=ROCE)
    assert choose(made.tree).port.device == "mlx5_1"
    with pytest.raises(ChannelUnavailable, match=r"mlx5_0 port 1 is 1: DOWN.*mlx5_1 port 1"):
        choose(made.tree, device="mlx5_0")


def test_the_active_port_of_a_device_is_taken(made: Made) -> None:
    made.port("mlx4_0", 1, state="1: DOWN", gids=ROCE).port("mlx4_0", 2, gids=ROCE)
    assert choose(made.tree).port.number == 2


def test_all_down_is_said(made: Made) -> None:
    made.port("mlx5_0", state="2: INIT", gids=ROCE)
    assert missing(made.tree) == "no RDMA port is active: mlx5_0 port 1 is 2: INIT"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"device": "mlx5_9"}, r"--ib-dev mlx5_9: no device mlx5_9 here; there are: mlx5_0"),
        ({"device": "mlx5_0,"}, r"--ib-dev mlx5_0,: no device  here"),
        ({"port": "3"}, r"--ib-port 3: mlx5_0 has no such port; it has: 1"),
        ({"gid_index": "5"}, r"--gid-index 5: mlx5_0 port 1 has no such GID; it has: 0 \(RoCE v1"),
    ],
)
def test_what_is_not_there_is_one_line_with_what_is(
    made: Made, flags: dict[str, Any], said: str
) -> None:
    made.port("mlx5_0", gids=ROCE)
    with pytest.raises(UsageError, match=said):
        choose(made.tree, **flags)


def test_a_port_without_a_gid_needs_an_address(made: Made) -> None:
    made.port("rxe0", gids={0: (ZERO, "")})
    with pytest.raises(ChannelUnavailable, match="has no GID"):
        choose(made.tree)


def test_gids_behind_a_few_unused_entries_are_found(made: Made) -> None:
    table = dict.fromkeys(range(20), (ZERO, "")) | {20: (mapped(10, 0, 0, 7), "RoCE v2")}
    made.port("mlx5_0", gids=table)
    gid = choose(made.tree).gid
    assert gid and gid.index == 20


def test_nonsense_in_sysfs_is_no_port_that_can_be_used(made: Made) -> None:
    made.port("odd", state="", lid="x", gids={0: ("no gid", "")})
    (port,) = ports(made.tree)
    assert (port.active, port.lid, port.gids) == (False, 0, ())


# ---------------------------------------------------------------------- addresses and states


def record(**changes: Any) -> QueuePairAddress:
    values: dict[str, Any] = {
        "device": "rxe0",
        "port": 1,
        "link_layer": "Ethernet",
        "lid": 0,
        "gid": "::ffff:10.77.0.1",
        "gid_index": 1,
        "mtu": 1024,
        "op": "send",
        "max_rd_atomic": 128,
        "qpn": 17,
        "psn": 99,
        "ring_address": 1 << 40,
        "ring_rkey": 0x1234,
        "ring_depth": 256,
        "ring_stride": 16448,
    }
    return QueuePairAddress(**{**values, **changes})


class Recorded:
    """Endpoints that note every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, dict[str, int], str]] = []

    def modify(self, peer: int, state: str, attributes: Mapping[str, int], gid: str = "") -> None:
        self.steps.append((state, dict(attributes), gid))

    def join(self, peer: int, endpoint: Mapping[str, int]) -> None:
        self.steps.append(("join", dict(endpoint), ""))


def test_queue_pairs_walk_from_init_to_rts() -> None:
    endpoints = Recorded()
    theirs = record(gid="::ffff:10.77.0.2", gid_index=3, qpn=18, psn=7, mtu=512)
    connect(endpoints, 1, record(), theirs, sl=2)
    (_, ring, _), (first, init, _), (second, rtr, gid), (third, rts, _) = endpoints.steps
    assert [first, second, third] == ["init", "rtr", "rts"]
    assert ring["ring_rkey"] == 0x1234
    assert init["port"] == 1
    assert gid == "::ffff:10.77.0.2"
    assert (rtr["qpn"], rtr["rq_psn"], rtr["mtu"], rtr["gid_index"], rtr["sl"]) == (
        18,
        7,
        512,
        1,
        2,
    )
    assert rtr["is_global"] == 1
    assert (rts["sq_psn"], rts["retry_cnt"], rts["max_rd_atomic"]) == (99, 6, 16)  # 7: for ever


def test_a_lid_needs_no_global_route() -> None:
    ours = record(link_layer="InfiniBand", lid=1, gid="")
    theirs = record(link_layer="InfiniBand", lid=2, gid="")
    step = receiving(ours, theirs, sl=5)
    assert (step["lid"], step["sl"], "is_global" in step) == (2, 5, False)
    assert sending(ours, theirs)["timeout"] == 16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"op": "write"}, "-o op=send: rank 1 has op=write"),
        ({"link_layer": "InfiniBand"}, "choose devices of one network"),
        ({"gid": ""}, "--gid-index"),
    ],
)
def test_ends_that_do_not_fit_say_so(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_pair(record(), record(**changes), 1)


def test_a_record_survives_the_rendezvous() -> None:
    ours = [
        {
            peer: record(qpn=10 * rank + peer, device=f"rxe{rank}")
            for peer in range(3)
            if peer != rank
        }
        for rank in range(3)
    ]
    gathered = json.loads(json.dumps([published(each) for each in ours]))
    for rank in range(3):
        others = [peer for peer in range(3) if peer != rank]
        assert records(gathered, rank) == {peer: ours[peer][rank] for peer in others}


@pytest.mark.parametrize(
    "wrong", [None, 5, {}, {"common": {}, "pairs": []}, {"common": {}, "pairs": {"0": [1]}}]
)
def test_a_strange_publication_is_refused(wrong: object) -> None:
    with pytest.raises(TransferError, match="rank 1 sent no queue pair address"):
        records([None, wrong], 0)


def test_ends_on_one_port_are_known() -> None:
    assert same_port(record(), record(qpn=3))
    assert not same_port(record(), record(gid="::ffff:10.77.0.2"))


@pytest.mark.parametrize(
    "wrong",
    [None, {}, [], "x", {**record().to_json(), "qpn": "5"}, {**record().to_json(), "psn": -1},
     {**record().to_json(), "gid": "nowhere"}, {**record().to_json(), "mtu": True}],
)  # fmt: skip
def test_a_strange_record_is_refused(wrong: object) -> None:
    with pytest.raises(TransferError, match="rank 3"):
        QueuePairAddress.from_json(wrong, 3)


# ---------------------------------------------------------------------- proof of path


@pytest.mark.parametrize(
    ("name", "enough"), [("counters/port_xmit_data", 2500), ("hw_counters/sent_pkts", 9)]
)
def test_the_device_must_have_counted_what_was_sent(made: Made, name: str, enough: int) -> None:
    path = f"sys/class/infiniband/rxe0/ports/1/{name}"
    made.put(path, "1000")
    counter = Counter.of(made.tree, "rxe0", 1)
    made.put(path, str(1000 + enough - 1))
    with pytest.raises(TransferError, match=f"instead of at least {enough}"):
        check_grown(counter, 10_000, 1024, patience_s=0)
    made.put(path, str(1000 + enough))
    assert check_grown(counter, 10_000, 1024) == name.rpartition("/")[2]


def test_ranks_that_share_a_port_need_no_proof(made: Made) -> None:
    """A card hands their bytes over inside; Soft-RoCE counts them all the same."""
    path = "sys/class/infiniband/mlx5_0/ports/1/counters/port_xmit_data"
    made.put(path, "5")
    counter = Counter.of(made.tree, "mlx5_0", 1)
    assert check_grown(counter, 4000, 1024, 0, looped=True).startswith("none: ranks share")
    made.put(path, "1005")
    assert check_grown(counter, 4000, 1024, looped=True) == "port_xmit_data"


def test_a_device_that_counts_nothing_is_said(made: Made) -> None:
    made.port("odd")
    assert check_grown(Counter.of(made.tree, "odd", 1), 10, 1024).startswith("none: ")


def test_devices_that_a_library_took_by_itself(made: Made) -> None:
    """What MPI chose shows in the counters; a few packets are those of the port's management."""
    assert Carriers(made.tree).describe() == {}
    counted = "sys/class/infiniband/{}/ports/1/counters/port_xmit_data"
    for name in ("mlx5_0", "mlx5_1"):
        made.port(name)
        made.put(counted.format(name), "5")
    carriers = Carriers(made.tree)
    made.put(counted.format("mlx5_0"), "20")
    assert carriers.describe() == {"rdma_devices": "none"}
    made.put(counted.format("mlx5_1"), "21")
    assert carriers.describe() == {"rdma_devices": "mlx5_1"}


def test_this_machine_can_be_asked() -> None:
    assert isinstance(rdma_devices.ports(Tree()), list)
