"""The benchmark broker: real ranks and channels, every record of the verified pass read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commbench import _native
from commbench.benchmarks import BrokerSettings, BrokerSpec
from commbench.benchmarks.broker import PARTS
from commbench.errors import UsageError
from commbench.harness.broker_passes import schedule_ns
from commbench.histogram import Histogram
from commbench.jobs import make_plan
from commbench.registry import load
from commbench.reports.report import report
from commbench.reports.tables import broker_words
from commbench.reports.tail import tail_lines
from commbench.samples import load_samples
from commbench.schema import mismatch
from tests import usable
from tests.command import cases, commbench

CHANNELS = [
    "tcp",
    "uds",
    usable.channel("grpc-core"),
    usable.channel("mpi"),
    usable.channel("grpc+mpi"),
]


def ran(output: Path, *argv: object) -> dict[str, Any]:
    commbench("run", "broker", *argv, "--output", output).ok()
    (case,) = cases(output)
    assert mismatch("case", case) is None
    return case


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_record_is_acknowledged_and_read_back(channel: str, tmp_path: Path) -> None:
    """Under -c each record has content of its own and is read back through the channel."""
    argv = ("--records", 3000, "-x", 100, "--producers", 2, "-c", "--partitions", 3)
    case = ran(tmp_path / "x.jsonl", "-C", channel, *argv)
    assert BrokerSpec.from_json(case["case"]["broker"]).producers == 2
    assert (case["n"], case["messages"], case["loop"]) == (6000, 6000, "native")
    assert case["nbytes_total"] == 6000 * 100
    assert case["validated_messages"] == 2 * (64 + 3100)
    broker = case["broker"]
    assert broker["records"] == broker["log"]["records"] == 2 * 3100
    assert (broker["refused"], broker["offered_per_s"]) == (0, None)
    assert [each["role"] for each in broker["roles"]] == ["broker", "producer", "producer"]
    assert case["response_ns"] == case["latency_ns"]
    assert case["delay_ns"]["max"] == 0


@pytest.mark.parametrize(
    ("channel", "acks"), [("tcp", "all"), ("tcp", "0"), usable.channel("grpc", "1")]
)
def test_the_python_loop_does_the_same(channel: str, acks: str, tmp_path: Path) -> None:
    who = ("--brokers", 2, "--replication", 2, "--partitions", 3, "--producers", 2)
    argv = ("--acks", acks, "--records", 300, "-x", 0, "-c", "--consumers", 1, "--loop", "python")
    case = ran(tmp_path / "x.jsonl", "-C", channel, *who, *argv)
    assert case["loop"] == "python"
    assert case["validated_messages"] == 2 * 2 * (64 + 300)
    assert case["broker"]["log"]["records"] == 2 * 2 * 300


def test_open_loop_in_python(tmp_path: Path) -> None:
    argv = ("--rate", 2000, "--records", 500, "-x", 0, "--linger-ms", 1, "--loop", "python")
    case = ran(tmp_path / "x.jsonl", *argv)
    assert case["elapsed_ns"] > 0.2e9
    assert case["response_ns"]["p50"] >= case["latency_ns"]["p50"]


@pytest.mark.parametrize(
    ("channel", "acks"),
    [
        ("tcp", "0"),
        ("tcp", "1"),
        ("tcp", "all"),
        usable.channel("mpi", "all"),
        usable.channel("grpc-core", "all"),
    ],
)
def test_replicas(channel: str, acks: str, tmp_path: Path) -> None:
    who = ("--brokers", 3, "--replication", 3, "--partitions", 4, "--producers", 2)
    argv = ("--acks", acks, "--records", 1000, "-x", 0, "-c", "--batch-size", "1K")
    case = ran(tmp_path / "x.jsonl", "-C", channel, *who, *argv)
    broker = case["broker"]
    assert case["n"] == 2000
    assert case["validated_messages"] == 2 * (64 + 1000)
    assert broker["log"]["records"] == 3 * 2000  # on every replica
    assert (broker["deferred"] > 0) == (acks == "all")


def test_a_consumer_reads_everything_in_order(tmp_path: Path) -> None:
    who = ("--producers", 2, "--consumers", 2, "--partitions", 3)
    case = ran(tmp_path / "x.jsonl", *who, "--records", 2000, "-x", 0, "-c")
    assert case["broker"]["end_to_end_ns"]["max"] > 0
    # read back by their producers and by the consumers, in both passes
    assert case["validated_messages"] == 2 * 2 * (64 + 2000)


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_open_loop(arrivals: str, tmp_path: Path) -> None:
    argv = ("--rate", 4000, "--arrivals", arrivals, "--records", 1000, "-x", 0, "--producers", 2)
    case = ran(tmp_path / "x.jsonl", *argv)
    assert case["broker"]["offered_per_s"] == 4000
    assert case["elapsed_ns"] > 0.4e9  # 2000 records at 4000/s, less the last gaps
    for tail in ("min", "p50", "p99", "max"):
        assert case["response_ns"][tail] >= case["delay_ns"][tail] >= 0
        assert case["response_ns"][tail] >= case["latency_ns"][tail]


def test_more_than_can_be_is_not_sustained(tmp_path: Path) -> None:
    case = ran(tmp_path / "x.jsonl", "--rate", "900M", "--records", 20_000)
    assert case["broker"]["sustained"] is False
    assert any(line.startswith("not sustained: ") for line in case["warnings"])


def test_by_duration(tmp_path: Path) -> None:
    case = ran(tmp_path / "x.jsonl", "-D", "300ms", "--warmup-time", "100ms", "--acks", "all")
    assert 0.2e9 < case["elapsed_ns"] < 2e9
    assert case["n"] < case["broker"]["records"]


def test_every_flush_is_counted(tmp_path: Path) -> None:
    argv = ("--flush", "every-record", "--records", 50, "-x", 0, "--batch-size", 1)
    case = ran(tmp_path / "x.jsonl", *argv)
    log = case["broker"]["log"]
    assert log["fdatasyncs"] == log["batches"] == 50


@pytest.mark.parametrize(
    ("loop", "argv"), [("native", ()), ("native", ("--rate", 4000)), ("python", ("--rate", 4000))]
)
def test_the_samples_of_every_record(loop: str, argv: tuple[object, ...], tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    who = ("--producers", 2, "--records", 600, "-x", 100, "--loop", loop)
    case = ran(output, *who, *argv, "--save-samples")
    found = load_samples(output, 0)
    assert [len(found[name]) for name in ("intended", "start", "end")] == [1200] * 3
    assert int((found["end"] - found["start"]).max()) == case["latency_ns"]["max"]
    assert int((found["end"] - found["intended"]).max()) == case["response_ns"]["max"]
    assert int((found["end"] - found["start"]).min()) == case["latency_ns"]["min"]


def test_kafkas_closing_line(tmp_path: Path) -> None:
    ran(tmp_path / "x.jsonl", "--records", 5000)
    line = "5000 records sent, "
    (closing,) = [each for each in report([tmp_path / "x.jsonl"]).splitlines() if line in each]
    for word in (" records/sec (", " MB/sec), ", " us avg latency, ", " us 50th, ", " us 99th, "):
        assert word in closing


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_a_schedule_offers_the_rate(arrivals: str) -> None:
    spec = BrokerSpec(producers=4, rate=1000.0, arrivals=arrivals)
    due = [schedule_ns(spec, rank, 500, seed=7) for rank in range(1, 5)]
    for each in due:
        assert (np.diff(each) >= 0).all()
        assert 0 <= each[0] < each[-1] <= 2_000_000_000
    everyone = np.sort(np.concatenate(due))
    if arrivals == "constant":  # the producers take turns
        assert set(np.diff(everyone)) == {1_000_000}
    else:
        assert np.mean(np.diff(everyone)) == pytest.approx(1_000_000, rel=0.05)
        assert np.std(np.diff(everyone)) == pytest.approx(1_000_000, rel=0.2)
        assert not np.array_equal(due[0], due[1])
    assert np.array_equal(due[0], schedule_ns(spec, 1, 500, seed=7))


@pytest.mark.native
def test_times_are_counted_in_the_bins_of_the_histogram() -> None:
    values = [0, 1, 255, 256, 257, 511, 512, 1000, 123_456_789, (1 << 62) + 12345]
    values += [int(each) for each in np.random.default_rng(3).integers(0, 1 << 40, 1000)]
    times, histogram = _native.Times(), Histogram()
    for value in values:
        times.add(value)
    histogram.add(np.array(values, np.int64))
    assert Histogram.from_json(times.to_json()) == histogram


# ---------------------------------------------------------------------- the tail model


def test_the_tail_model_over_records_in_flight(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    argv = ("--records-in-flight", "1,4", "--records", 400, "-x", 0, "--in-order")
    ended = commbench("run", "broker", *argv, "--output", output).ok()
    assert "no B: run the benchmark bandwidth in the same run" in ended.stdout
    found = cases(output)
    assert [mismatch("case", case) for case in found] == [None, None]
    assert [case["tail"]["windows"] for case in found] == [400, 100]
    for case in found:
        assert case["tail"]["request_ns"] > 0
        assert case["tail"]["tail_ns"] >= case["tail"]["in_window_ns"] >= case["latency_ns"]["min"]
        assert case["broker"]["records_per_batch"] == 1


def test_the_table_of_the_tail_model() -> None:
    """L 100 us, B 1 GB/s, records of 1000 B: a window of 4 with one producer takes 110 us."""

    def case(window: int, in_window_ns: int) -> dict[str, Any]:
        key = {"benchmark": "broker", "channel": "tcp", "nbytes": 1000, "broker": {"producers": 1}}
        tail = {"window": window, "request_ns": 100_000, "tail_ns": 150_000, "windows": 10}
        return {"case": key, "tail": {**tail, "in_window_ns": in_window_ns}}

    fast = {"case": {"benchmark": "bandwidth", "channel": "tcp", "nbytes": 1}, "bytes_per_s": 1e9}
    lines = tail_lines([case(1, 105_000), case(4, 110_000), fast])
    assert lines[-1].split() == ["#", "4", "1", "101.00", "26.00", "150.00", "9.00", "3.00", "6.00"]
    assert any(line.startswith("# no fit: ") for line in tail_lines([case(1, 120_000), fast]))


# ---------------------------------------------------------------------- designs


@pytest.mark.parametrize(
    "options",
    [
        ("overlapped=on",),
        ("overlapped=on", "reorder=broker"),
        ("polling=on",),
        ("eager-flush=on", "buffer-pool=on", "overlapped=on"),
    ],
)
def test_each_part_keeps_the_promises(options: tuple[str, ...], tmp_path: Path) -> None:
    chosen = [word for option in options for word in ("--design-option", option)]
    who = ("--brokers", 2, "--replication", 2, "--acks", "all", "--partitions", 2)
    argv = ("--records", 1000, "-x", 0, "-c", "--batch-size", "1K")
    case = ran(tmp_path / "x.jsonl", *who, *argv, *chosen)
    assert case["validated_messages"] == 64 + 1000
    allocated = case["broker"]["allocated"]
    assert (allocated == 0) == ("buffer-pool=on" in options)
    if "reorder=broker" in options:
        assert case["broker"]["reordered"] == 0


def test_all_of_frieda(tmp_path: Path) -> None:
    who = ("--brokers", 2, "--replication", 2, "--acks", "all", "--partitions", 2)
    argv = ("--records", 1000, "-x", 0, "-c", "--batch-size", "1K", "--design", "frieda")
    case = ran(tmp_path / "x.jsonl", *who, *argv)
    assert case["case"]["broker"]["parts"] == list(PARTS)
    assert case["validated_messages"] == 64 + 1000
    crowded = any("polling thread has no processor" in line for line in case["warnings"])
    assert crowded == (len(case["affinity"][0].split(",")) == 1 and "-" not in case["affinity"][0])


@pytest.mark.parametrize(("handlers", "reorder"), [(1, "client"), (3, "client"), (3, "broker")])
def test_handlers_share_the_partitions(handlers: int, reorder: str, tmp_path: Path) -> None:
    """A producer's requests go to several threads; its answers are in order in the end."""
    who = ("--brokers", 2, "--replication", 2, "--partitions", 6, "--producers", 2)
    argv = ("--records", 2000, "-x", 0, "-c", "--batch-size", "1K", "--consumers", 1)
    design = ("--design", "frieda", "--handlers", handlers, "--design-option", f"reorder={reorder}")
    case = ran(tmp_path / "x.jsonl", *who, *argv, *design, "--acks", "all")
    assert case["broker"]["handlers"] == handlers
    assert case["validated_messages"] == 2 * 2 * (64 + 2000)
    if reorder == "broker":
        assert case["broker"]["reordered"] == 0


def test_how_many_handlers() -> None:
    spec = BrokerSpec(brokers=2, partitions=6, parts=("polling",))
    assert [spec.handler_threads(0, cpus) for cpus in (1, 2, 8, 64)] == [1, 1, 2, 3]
    assert replace(spec, handlers=2).handler_threads(0, 1) == 2
    assert replace(spec, parts=()).handler_threads(0, 64) == 0


# ---------------------------------------------------------------------- bad input


def plan(ranks: int | None = None, **flags: str) -> None:
    given = {name.replace("_", "-"): text for name, text in flags.items()}
    made = make_plan({"benchmark": "broker", **given})
    made.blocks(load, ranks or made.ranks())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"acks": "2"}, ["--acks 2", "allowed: 0, 1, all"]),
        ({"flush": "often"}, ["--flush often", "every-N"]),
        ({"rate": "0"}, ["--rate 0", "allowed: max"]),
        ({"linger_ms": "-1"}, ["--linger-ms -1", "milliseconds"]),
        ({"consumers": "2"}, ["--consumers 2", "--partitions"]),
        ({"consumers": "1", "record_size": "4"}, ["--record-size 4", "8 or more"]),
        ({"record_size": "2G"}, ["--record-size 2147483648", "at most 1G"]),
        ({"handlers": "2"}, ["--handlers 2", "polling=on"]),
        ({"design_option": "buffer=1K"}, ["--design-option buffer=1K", "eager-flush"]),
        ({"option": "buffer=0"}, ["-o buffer", "0"]),
        ({"option": "tcp:buffer=4K"}, ["buffer", "tcp"]),
        ({"design_option": "magic=on"}, ["--design-option magic=on", "eager-flush"]),
        ({"design_option": "reorder=on"}, ["--design-option reorder=on", "reorder=client"]),
        ({"message_size": "64"}, ["-m/--message-size", "--record-size"]),
        ({"window": "4"}, ["-W/--window 4", "--max-in-flight"]),
        ({"channel": "loopback"}, ["-C", "between ranks"]),
        ({"producers": "3", "ranks": 2}, ["--producers 3", "4 ranks", "at most 2"]),
        ({"records_in_flight": "1,100"}, ["--records-in-flight 1,100", "1 to 99"]),
        ({"records_in_flight": "1", "brokers": "2"}, ["--records-in-flight 1", "one broker"]),
        ({"records": "5", "duration": "1s"}, ["--records 5", "-D"]),
    ],
)
def test_bad_input_names_flag_value_and_what_is_allowed(
    flags: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        plan(**flags)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--replication", 2), ["--replication 2", "--brokers is 1", "allowed: 1 to 1"]),
        (("--log-dir", "/proc/nowhere", "--records", 10), ["--log-dir /proc/nowhere"]),
        (("--design", "frieda", "--loop", "python"), ["polling=on", "polling=off"]),
        (("--save-samples", "--output", "x", "-C", "kafka"), ["--save-samples", "kafka"]),
    ],
)
def test_bad_input_is_one_line(argv: tuple[object, ...], words: list[str]) -> None:
    commbench("run", "broker", *argv).one_line(2, *words)


def test_a_report_names_what_is_not_the_default() -> None:
    plain = BrokerSpec().to_json()
    assert broker_words({"broker": plain}) == ["brokers=1", "producers=1", "acks=1", "design=kafka"]
    other = BrokerSpec(acks="all", flush_every=1, rate=5.0, parts=("overlapped",)).to_json()
    words = broker_words({"broker": other})
    assert {"acks=all", "flush_every=1", "rate=5.0", "arrivals=constant"} <= set(words)
    assert words[-2:] == ["design=kafka+overlapped", "reorder=client"]


def test_the_channel_buffer_is_an_option_of_the_benchmark() -> None:
    made = make_plan({"benchmark": "broker", "option": "buffer=4K\ntcp:buf=64K"})
    ((case,),) = made.blocks(load, made.ranks())
    assert case.broker is not None
    assert (case.broker.channel_buffer, "buffer" in case.options) == (4096, False)
    with pytest.raises(UsageError, match="buffer"):
        other = make_plan({"benchmark": "latency", "option": "buffer=4K"})
        other.blocks(load, other.ranks())


def test_a_flag_of_the_broker_without_it() -> None:
    with pytest.raises(UsageError, match="--acks all: goes with the benchmark broker"):
        make_plan({"benchmark": "latency", "acks": "all"})


# ---------------------------------------------------------------------- plan


def test_a_job_file_has_the_same_keys() -> None:
    plan = make_plan({}, Path(__file__).parent.parent / "jobs" / "broker.toml")
    found = plan.blocks(load, plan.ranks())
    assert all(case.broker is not None for block in found for case in block)
    again = type(found[0][0]).from_json(found[0][0].to_json())
    assert again == found[0][0]


def test_roles() -> None:
    spec = BrokerSettings(brokers=3, producers=2, consumers=1, replication=2).spec(6, inside=False)
    assert spec.replicas(2) == (2, 0)
    roles = [spec.role(rank) for rank in range(7)]
    assert [role.targets for role in roles[:3]] == [(2,), (0,), (1,)]
    assert roles[0].sources == (1, 3, 4, 5)
    assert roles[5].targets == (0, 1, 2)
    assert roles[6].peers == ()
