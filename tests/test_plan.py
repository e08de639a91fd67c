"""Plans and job files: what is run, in which order, and how a wrong setting is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commbench import registry
from commbench.channels.loopback import LoopbackChannel
from commbench.errors import UsageError
from commbench.jobs import make_plan, read_job
from commbench.plan import Case, Plan


def load(name: str) -> type[LoopbackChannel]:
    return LoopbackChannel


def cases(*, order: str = "in-order", order_seed: int = 0, **flags: str) -> list[list[Case]]:
    flags = {name.replace("_", "-"): text for name, text in flags.items()}
    return make_plan(flags, order=order, order_seed=order_seed).blocks(load, 2)


def test_sizes_ascend_inside_a_block_with_osu_defaults() -> None:
    (block,) = cases(channel="loopback", message_size="64K,1,8K", benchmark="latency")
    assert [case.nbytes for case in block] == [1, 8192, 65536]
    counts = [(case.iterations, case.warmup) for case in block]
    assert counts == [(10_000, 100), (10_000, 100), (1_000, 10)]
    assert {case.window for case in block} == {1}


def test_bandwidth_defaults_are_osus() -> None:
    (block,) = cases(channel="loopback", message_size="1,1M", benchmark="bandwidth")
    shapes = [(case.iterations, case.warmup, case.window) for case in block]
    assert shapes == [(100, 10, 64), (20, 2, 64)]


def test_default_sweep_has_every_power_of_two() -> None:
    (block,) = cases(channel="loopback")
    assert [case.nbytes for case in block] == [1 << k for k in range(23)]


def test_blocks_are_channel_benchmark_scheme_and_mode() -> None:
    blocks = cases(channel="a,b", benchmark="latency,bibw", scheme="contiguous,skew")
    names = [(b[0].channel, b[0].benchmark, b[0].payload.scheme) for b in blocks]
    assert len(names) == len(set(names)) == 8


@given(st.integers(0, 2**31), st.integers(0, 3))
def test_shuffling_is_by_seed_and_launch_and_loses_nothing(seed: int, launch: int) -> None:
    plan = make_plan({"channel": "a,b", "benchmark": "latency,bibw"}, order="all", order_seed=seed)
    once, again = (plan.blocks(load, 2, launch) for _ in range(2))
    assert once == again
    inorder = Plan(plan.sections, "in-order").blocks(load, 2)
    assert {case_id(c) for b in once for c in b} == {case_id(c) for b in inorder for c in b}
    assert [case.order for block in once for case in block] == list(range(len(once)))


def case_id(case: Case) -> tuple[str, str, int]:
    return case.benchmark, case.channel, case.nbytes


def test_a_case_survives_the_way_to_the_other_ranks() -> None:
    for block in cases(channel="loopback", scheme="skew,contiguous", duration="2s"):
        for case in block:
            assert Case.from_json(case.to_json()) == case


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"benchmark": "ltency"}, "benchmark ltency: no such benchmark"),
        ({"mode": "binary"}, "--mode binary: allowed: non-serialized, serialized"),
        ({"mode": "serialized"}, "has no serialized mode"),
        ({"scheme": "zipf"}, "--scheme zipf"),
        ({"scheme": "skew", "message_size": "64"}, "-m: sizes go with --scheme contiguous"),
        ({"message_size": "4M:1"}, "4M:1"),
        ({"message_size": "-3"}, "-3"),
        ({"iterations": "0"}, "-i/--iterations 0"),
        ({"warmup": "-1"}, "-x/--warmup -1"),
        ({"window": "none"}, "-W/--window none"),
        ({"loop": "rust"}, "--loop rust: allowed: auto, native, python"),
        ({"warmup_time": "2s"}, "--warmup-time: goes with -D/--duration"),
        ({"duration": "2s", "iterations": "5"}, "-D/--duration: allowed without -i"),
        ({"duration": "0"}, "-D/--duration 0"),
        ({"option": "fault"}, "-o/--option fault: allowed: KEY=VALUE"),
        ({"option": "speed=9"}, "-o speed=9: channel loopback has no such option"),
        ({"option": "fault=melt"}, "-o fault=melt: allowed for channel loopback"),
        ({"option": "mpi:fault=flip"}, "no channel of -C loopback takes it"),
        ({"channel": "a,,b"}, "-C/--channel a,,b: allowed: names"),
        ({"seed": "x"}, "--seed x"),
    ],
)
def test_bad_settings_name_flag_value_and_what_is_allowed(flags: dict[str, str], why: str) -> None:
    with pytest.raises(UsageError) as raised:
        cases(**{"channel": "loopback", **flags})
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"channel": "grpc", "option": "mode=serialized"}, "it is set by --mode serialized"),
        ({"channel": "tcp,grpc", "option": "mode=no"}, "no channel of -C tcp,grpc takes it"),
        ({"channel": "tcp,grpc", "loop": "native"}, "--loop native: channel grpc has python loops"),
        ({"channel": "grpc-core", "loop": "python"}, "channel grpc-core has native loops only"),
    ],
)
def test_what_a_channel_cannot_is_said_before_anything_starts(
    flags: dict[str, str], why: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(why)):
        make_plan(flags).blocks(registry.load, 2)


def test_an_option_goes_to_the_channels_that_have_it() -> None:
    block, *_ = cases(channel="loopback", option="fault=flip\nloopback:fault_at=3")
    assert block[0].options == {"fault": "flip", "fault_at": "3"}


JOB = """
[global]
channel = ["loopback"]
iterations = 7

[small]
message-size = "1:4"

[skewed]
scheme = "skew"
validate = true
"""


def test_job_file_sections_share_global_and_flags_override(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    plan = make_plan({"iterations": "9"}, path, "in-order")
    small, skewed = plan.blocks(load, 2)
    assert [case.nbytes for case in small] == [1, 2, 4]
    assert {case.iterations for case in small + skewed} == {9}
    assert skewed[0].validation == "every"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[a]\n\nchanel = 'tcp'\n", "line 3: no setting chanel"),
        ("[a]\nchannel = 'tcp'\n[b]\nsize = 4\n", "line 4: no setting size"),
        ("channel = 'tcp'\n", "line 1: channel stands outside a section"),
        ("[a]\nchannel = {x = 1}\n", "line 2: channel: allowed"),
        ("[a\n", "line 1"),
        ("", "has no section"),
    ],
)
def test_bad_job_files_name_the_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"job\.toml") as raised:
        read_job(path)
    assert why in str(raised.value)


def test_missing_job_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_job(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted(Path("jobs").glob("*.toml")), ids=str)
def test_shipped_jobs_are_read(path: Path) -> None:
    assert make_plan({}, path).sections


def test_all_channels_beside_another_name() -> None:
    with pytest.raises(UsageError, match="-C all stands alone"):
        list(make_plan({"channel": "all,tcp"}).blocks(registry.load, 2))


def test_all_is_every_channel_that_runs_here_and_says_what_it_leaves_out() -> None:
    plan = make_plan({"channel": "all", "mode": "serialized"})
    assert "tcp" not in plan.channels()
    said = " ".join(plan.left_out())
    assert "channel tcp has no serialized mode" in said
    assert "channel loopback has no serialized mode" in said
    plan = make_plan({"channel": "all"})
    assert {"tcp", "uds"} <= set(plan.channels())
    assert "loopback" not in plan.channels()
    assert "channel loopback stays inside one process" in plan.left_out()


@pytest.mark.parametrize(
    ("channel", "option", "words"),
    [
        ("tcp", "buf=huge", ["-o buf huge"]),
        ("uds", "buf=0", ["-o buf 0"]),
        ("grpc", "workers=many", ["-o workers=many"]),
        ("grpc", "max_frame_size=big", ["-o max_frame_size=big"]),
        ("grpc-core", "channels=0", ["-o channels=0"]),
        ("loopback", "fault_at=-1", ["-o fault_at=-1"]),
        ("rdma", "eager_max=1G", ["-o eager_max=1G"]),
        ("ar-grpc", "chunk=1", ["-o chunk=1"]),
    ],
)
def test_what_an_option_may_not_be_is_known_to_the_plan(
    channel: str, option: str, words: list[str]
) -> None:
    """Before any rank is started, and to --dry-run."""
    with pytest.raises(UsageError) as caught:
        make_plan({"channel": channel, "option": option}).blocks(registry.load, 2)
    assert [word for word in words if word not in str(caught.value)] == []
