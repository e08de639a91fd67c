"""The rdma channel where no device is: its options and flags, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commbench.channels import rdma
from commbench.channels.rdma import RdmaChannel
from commbench.channels.rdma_devices import missing
from commbench.errors import UsageError
from commbench.harness.sysfs import Tree
from commbench.jobs import make_plan
from commbench.plan import Case
from commbench.registry import load
from tests.command import commbench


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"op": "atomic"}, "-o op=atomic: allowed for channel rdma: send, write, write-imm, read"),
        ({"eager_max": "17M"}, "-o eager_max=17M: allowed for channel rdma: up to 16M"),
        ({"eager_max": "much"}, "-o eager_max much"),
        ({"inline": "-1"}, "-o inline=-1: allowed for channel rdma: 0 to 1024"),
        ({"tx_depth": "1"}, "-o tx_depth=1: allowed for channel rdma: 4 to 16384"),
        ({"signal": "65"}, "-o signal=65: allowed for channel rdma: 1 to 64"),
        ({"rx_depth": "100"}, "-o rx_depth=100: allowed for channel rdma: a power of two"),
        ({"rx_depth": "8"}, "-o rx_depth=8: allowed for channel rdma: 16 to 16384"),
        ({"op": "write", "wait": "block"}, "-o wait=block: op=write gives its receiver no events"),
        ({"srq": "yes"}, "-o srq=yes: allowed for channel rdma: on, off"),
        ({"srq": "on", "op": "write"}, "-o srq=on: op=write writes its frames into a ring of each"),
        ({"srq": "on", "op": "write-imm"}, "allowed with op=send and read"),
        ({"mtu": "1500"}, "-o mtu=1500: allowed for channel rdma: nothing, 256, 512, 1024"),
        ({"sl": "16"}, "-o sl=16: allowed for channel rdma: 0, 1"),
        ({"ib_port": "one"}, "-o ib_port=one"),
        ({"gid_index": "-3"}, "-o gid_index=-3"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        RdmaChannel.check_options(options)
    assert said in str(caught.value)


def planned(channel: str = "rdma", job: Path | None = None, **flags: str) -> list[Case]:
    given = {"benchmark": "latency", "channel": channel, "message-size": "1", **flags}
    plan = make_plan({} if job else given, job)
    return [case for block in plan.blocks(load, 2) for case in block]


def test_device_flags_are_options_of_the_channels_that_have_them() -> None:
    flags: dict[str, Any] = {"ib-dev": "mlx5_0,mlx5_1", "gid-index": "3", "option": "op=write"}
    by_channel = {case.channel: dict(case.options) for case in planned("tcp,rdma", **flags)}
    assert by_channel == {
        "tcp": {},
        "rdma": {"ib_dev": "mlx5_0,mlx5_1", "gid_index": "3", "op": "write"},
    }


def test_device_flags_are_settings_of_a_job(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[a]\nchannel = "rdma"\nmessage-size = "1"\nmtu = 2048\nsl = 3\nib-port = 2\n')
    (case,) = planned(job=job)
    assert dict(case.options) == {"mtu": "2048", "sl": "3", "ib_port": "2"}


def test_a_device_flag_without_a_channel_that_takes_it_is_refused() -> None:
    with pytest.raises(UsageError, match=r"-o ib_dev=rxe0: .*tcp"):
        planned("tcp", **{"ib-dev": "rxe0"})


def test_either_engine_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is usable with one; without any it says what each needs."""
    monkeypatch.setattr(rdma.rdma_devices, "missing", lambda _: None)
    for native, python in ((None, "no pyverbs"), ("no libibverbs", None)):
        monkeypatch.setattr(rdma, "native_missing", lambda: native)  # noqa: B023 - called at once
        monkeypatch.setattr(rdma, "python_missing", lambda: python)  # noqa: B023
        assert RdmaChannel.missing() is None
    monkeypatch.setattr(rdma, "python_missing", lambda: "no pyverbs")
    said = RdmaChannel.missing()
    assert said and said.startswith("no libibverbs. ") and said.endswith(": no pyverbs")


@pytest.mark.skipif(missing(Tree()) is None, reason="this host has an RDMA device")
def test_a_host_without_a_device_says_so() -> None:
    listed = commbench("channels").ok().stdout.splitlines()
    (line,) = [each for each in listed if each.startswith("rdma ")]
    why = line.partition("not usable: ")[2]
    assert why
    if "built without" not in why:
        assert "rdma link add" in why or "is active" in why
    commbench("run", "latency", "-C", "rdma").one_line(4, "channel rdma", why)
