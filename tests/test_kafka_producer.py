"""The kafka producers over librdkafka's mock cluster: stamps, content, faults. Both loops."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from commbench.channels import kafka_admin
from commbench.channels.kafka_producer import Producer, open_producer
from commbench.channels.kafka_records import Places, RecordBlock, Values
from commbench.channels.kafka_settings import KafkaSettings
from commbench.channels.kafka_site import Site
from commbench.errors import (
    ChannelUnavailable,
    Interrupted,
    PayloadMismatch,
    TransferError,
    UsageError,
)
from commbench.harness.block import Stamps
from commbench.harness.kafka.properties import free_ports
from commbench.harness.stop import StopFlag

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(kafka_admin.missing() is not None, reason=str(kafka_admin.missing())),
]

SETTINGS = KafkaSettings(record_nbytes=100, partitions=3, timeout_s=20)
LOOPS = ("native", "python")


@contextlib.contextmanager
def producing(settings: KafkaSettings, loop: str) -> Iterator[tuple[Site, Producer]]:
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(contextlib.closing(Site(settings)))
        producer, reason = open_producer(settings.producer(site.servers), site.topic, loop)
        stack.callback(producer.close)
        assert producer.loop == loop, reason
        yield site, producer


def values(count: int = 64, first: int = 1) -> Values:
    return Values(SETTINGS.record_nbytes, count, seed=7, sender=3, first=first)


def block(count: int, **more: object) -> RecordBlock:
    made = RecordBlock(count=count, values=values(), partitions=3, timeout_s=20)
    return replace(made, **more)  # type: ignore[arg-type]


def in_flight(stamps: Stamps, count: int) -> int:
    """The most records of which the report had not come when another was produced."""
    start, end = stamps.start[:count], np.sort(stamps.end[:count])
    before = np.arange(count)
    return int((before - np.searchsorted(end, start, side="right")).max()) + 1


@pytest.mark.parametrize("loop", LOOPS)
def test_a_closed_loop_stamps_every_record(loop: str) -> None:
    with producing(SETTINGS, loop) as (_, producer):
        stamps = Stamps(600)
        told = producer.run(block(500, window=20), stamps, StopFlag())
    assert (told.produced, told.acked, told.failed, told.reason) == (500, 500, 0, "")
    start, end = stamps.start[:500], stamps.end[:500]
    assert (np.diff(start) >= 0).all() and (end > start).all()
    assert (stamps.intended[:500] == start).all()
    assert (stamps.end[500:] == 1).all(), "stamps of other records are left alone"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("window", [1, 7])
def test_no_more_than_the_window_is_in_flight(loop: str, window: int) -> None:
    with producing(SETTINGS, loop) as (site, producer):
        site.mock.set_rtt(-1, 5)
        stamps = Stamps(40)
        producer.run(block(40, window=window), stamps, StopFlag())
    assert in_flight(stamps, 40) == window


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_what_arrived_is_what_was_produced(loop: str, acks: str) -> None:
    settings = replace(SETTINGS, acks=acks, brokers=3, replication=3)
    with producing(settings, loop) as (site, producer):
        for first in (1, 1001):
            places = Places(64)
            made = block(64, values=values(64, first), places=places)
            producer.run(made, Stamps(64), StopFlag()).check()
            assert places.partition.tolist() == [index % 3 for index in range(64)]
            assert site.read_back(made.values, places) == 64
            if acks != "0":
                with pytest.raises(PayloadMismatch):
                    site.read_back(values(64, first + 1), places)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_open_loop_keeps_to_its_schedule(loop: str) -> None:
    with producing(SETTINGS, loop) as (site, producer):
        site.mock.set_rtt(-1, 30)
        stamps = Stamps(50)
        stamps.intended[:] = np.arange(50) * 2_000_000
        producer.run(block(50, open=True), stamps, StopFlag()).check()
    assert (np.diff(stamps.intended) == 2_000_000).all()
    assert (stamps.start >= stamps.intended).all()
    assert (stamps.end - stamps.start >= 29_000_000).all(), "the broker answers after 30 ms"
    assert in_flight(stamps, 50) > 3, "records do not wait for the ones before"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_block_ends_when_its_time_is_up(loop: str) -> None:
    with producing(SETTINGS, loop) as (site, producer):
        site.mock.set_rtt(-1, 20)
        stamps = Stamps(100_000)
        told = producer.run(block(100_000, window=4, duration_s=0.3), stamps, StopFlag())
    assert 4 <= told.produced < 100_000
    assert told.acked == told.produced == int((stamps.end > 0).sum())
    assert (stamps.start[: told.produced] > 0).all()


@pytest.mark.parametrize("loop", LOOPS)
def test_waiting_for_room_in_the_queue_counts(loop: str) -> None:
    settings = replace(SETTINGS, given={"queue.buffering.max.messages": "10"})
    with producing(settings, loop) as (site, producer):
        site.mock.set_rtt(-1, 20)
        stamps = Stamps(40)
        told = producer.run(block(40), stamps, StopFlag())
    assert told.acked == 40 and told.full > 0
    assert in_flight(stamps, 40) == 11, "ten, and the one that waits"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_record_larger_than_the_limit(loop: str) -> None:
    settings = replace(SETTINGS, record_nbytes=5000)
    with contextlib.closing(Site(settings)) as site:
        conf = {**settings.producer(site.servers), "message.max.bytes": "2000"}
        with contextlib.closing(open_producer(conf, site.topic, loop)[0]) as producer:
            large = Values(5000, 4, seed=0, sender=0, first=0)
            stamps = Stamps(8)
            told = producer.run(block(8, values=large), stamps, StopFlag())
    assert (told.acked, told.failed) == (0, told.produced) and told.failed > 0
    assert (stamps.end == 0).all()
    with pytest.raises(TransferError, match=r"records were not acknowledged: .*too large"):
        told.check()


def test_a_mebibyte_fits() -> None:
    settings = replace(SETTINGS, record_nbytes=1 << 20)
    with producing(settings, "native") as (site, producer):
        large = Values(1 << 20, 2, seed=0, sender=0, first=0)
        places = Places(2)
        producer.run(block(2, values=large, places=places), Stamps(2), StopFlag()).check()
        assert site.read_back(large, places) == 2


def later(seconds: float, action: object, *arguments: object) -> threading.Timer:
    timer = threading.Timer(seconds, action, arguments)  # type: ignore[arg-type]
    timer.start()
    return timer


@pytest.mark.parametrize("loop", LOOPS)
def test_brokers_that_go_away(loop: str) -> None:
    with producing(SETTINGS, loop) as (site, producer):
        producer.run(block(10), Stamps(10), StopFlag()).check()
        site.mock.set_down(-1)
        stamps = Stamps(10)
        began = time.monotonic()
        with pytest.raises(TransferError, match=r"^kafka: no acknowledgement within 1 s: .+"):
            producer.run(block(10, timeout_s=1), stamps, StopFlag())
        assert time.monotonic() - began < 10
        assert (stamps.end == 0).all()
        site.mock.set_up(-1)
        after = producer.run(block(10), stamps, StopFlag())
        assert after.acked == 10, "reports of the block that was given up do not count"
        assert (stamps.end > stamps.start).all()


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_is_produced_after_a_record_timed_out(loop: str) -> None:
    """Reports of records that failed are no progress: a long run ends soon."""
    with producing(replace(SETTINGS, timeout_s=0.5), loop) as (site, producer):
        producer.run(block(10), Stamps(10), StopFlag()).check()
        site.mock.set_down(-1)
        stamps = Stamps(10_000)
        stamps.intended[:] = np.arange(10_000) * 10_000_000
        began = time.monotonic()
        told = producer.run(block(10_000, open=True), stamps, StopFlag())
    assert time.monotonic() - began < 10
    assert told.acked == 0 and 0 < told.failed == told.produced < 1000
    with pytest.raises(TransferError, match=r"not acknowledged: .*timed out: .+"):
        told.check()


@pytest.mark.parametrize("loop", LOOPS)
def test_the_stop_flag_ends_it(loop: str) -> None:
    stop = StopFlag()
    with producing(SETTINGS, loop) as (site, producer):
        site.mock.set_rtt(-1, 10_000)
        timer = later(0.3, stop.set)
        with pytest.raises(Interrupted):
            producer.run(block(10), Stamps(10), stop)
        timer.join()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("name", "value"), [("no.such.property", "1"), ("linger.ms", "?")])
def test_a_property_that_librdkafka_refuses(loop: str, name: str, value: str) -> None:
    conf = {"bootstrap.servers": "127.0.0.1:1", name: value}
    with pytest.raises(UsageError, match=r"such\.property|buffering\.max\.ms"):
        open_producer(conf, "topic", loop)


def test_a_kafka_that_is_not_there() -> None:
    port = free_ports(1)[0]
    settings = replace(SETTINGS, bootstrap_servers=f"127.0.0.1:{port}", timeout_s=1)
    with pytest.raises(ChannelUnavailable, match=rf"no broker answers at 127.0.0.1:{port}") as said:
        Site(settings)
    assert "refused" in str(said.value) and said.value.exit_code == 4
    assert "\n" not in str(said.value)


def test_more_replicas_than_brokers() -> None:
    with pytest.raises(UsageError, match=r"--replication 3: allowed: up to 2"):
        Site(replace(SETTINGS, replication=3, brokers=2))


def test_it_is_always_called_mock() -> None:
    with contextlib.closing(Site(SETTINGS)) as site:
        about = site.describe()
    assert about["cluster"] == "mock"
    assert str(about["address"]).startswith("127.0.0.1:")


def test_a_closed_producer_says_so() -> None:
    with producing(SETTINGS, "native") as (_, producer):
        producer.close()
        producer.close()
        with pytest.raises(ValueError, match=r"closed"):
            producer.run(block(1), Stamps(1), StopFlag())


def test_a_record_of_no_bytes() -> None:
    with producing(replace(SETTINGS, record_nbytes=0), "native") as (site, producer):
        empty = Values(0, 4, seed=0, sender=0, first=0)
        places = Places(4)
        producer.run(block(4, values=empty, places=places), Stamps(4), StopFlag()).check()
        assert site.read_back(empty, places) == 4
