"""The kafka consumers over librdkafka's mock cluster: offsets, ages, marks, faults. Both loops."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from commbench import _native
from commbench.channels import kafka_admin
from commbench.channels.kafka_consumer import Consumer, ends, open_consumer
from commbench.channels.kafka_producer import open_producer
from commbench.channels.kafka_records import Places, RecordBlock, Values
from commbench.channels.kafka_settings import KafkaSettings
from commbench.channels.kafka_site import Site
from commbench.errors import Interrupted, PayloadMismatch, TransferError
from commbench.harness.block import Stamps
from commbench.harness.stop import StopFlag

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(kafka_admin.missing() is not None, reason=str(kafka_admin.missing())),
]

SETTINGS = KafkaSettings(record_nbytes=100, partitions=2, timeout_s=20)
LOOPS = ("native", "python")


@contextlib.contextmanager
def reading(loop: str, partitions: Sequence[int] = (0, 1)) -> Iterator[tuple[Site, Consumer]]:
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(contextlib.closing(Site(SETTINGS)))
        connection = SETTINGS.connection(site.servers)
        consumer = open_consumer(connection, site.topic, partitions, loop == "native")
        stack.callback(consumer.close)
        assert consumer.loop == loop
        yield site, consumer


def produce(site: Site, count: int, **more: object) -> Stamps:
    """Records, and a mark in each partition."""
    values = Values(100, 64, seed=7, sender=3, first=1)
    block = replace(RecordBlock(count, values, partitions=2, timeout_s=20, stamped=True), **more)  # type: ignore[arg-type]
    stamps = Stamps(count)
    producer, _ = open_producer(SETTINGS.producer(site.servers), site.topic)
    with contextlib.closing(producer):
        producer.run(block, stamps, StopFlag()).check()
        producer.run(RecordBlock(2, None, partitions=2), Stamps(2), StopFlag()).check()
    return stamps


def read(consumer: Consumer, marks: int = 1, timeout_s: float = 20) -> tuple[int, dict[str, int]]:
    times = _native.Times()
    records = consumer.read((), marks, 100, timeout_s, StopFlag(), times)
    return records, times.to_json()


@pytest.mark.parametrize("loop", LOOPS)
def test_every_record_comes_once_and_its_age_is_that_of_its_stamp(loop: str) -> None:
    with reading(loop) as (site, consumer):
        first = produce(site, 40, warmup=10)
        produce(site, 20)
        records, told = read(consumer, marks=2)
        now = _native.now_ns()
    assert records == 60
    assert told["n"] == 50, "none of the warm-up"
    assert 0 < told["min"] <= told["max"] <= now - int(first.start[10])


@pytest.mark.parametrize("loop", LOOPS)
def test_a_consumer_of_one_partition_sees_no_other(loop: str) -> None:
    with reading(loop, (1,)) as (site, consumer):
        produce(site, 40)
        assert read(consumer)[0] == 20


@pytest.mark.parametrize("loop", LOOPS)
def test_up_to_an_offset_and_on_from_there(loop: str) -> None:
    with reading(loop) as (site, consumer):
        produce(site, 40)
        until = ends(SETTINGS.connection(site.servers), site.topic, (0, 1))
        assert until == [21, 21]
        times = _native.Times()
        assert consumer.read(until, 0, 100, 20.0, StopFlag(), times) == 40
        produce(site, 10)
        assert read(consumer)[0] == 10


@pytest.mark.parametrize("loop", LOOPS)
def test_a_record_of_another_length(loop: str) -> None:
    with reading(loop) as (site, consumer):
        produce(site, 4, values=Values(50, 4, seed=7, sender=3, first=1))
        with pytest.raises(PayloadMismatch, match=r"offset 0 has 50 bytes instead of 100"):
            read(consumer)


@pytest.mark.parametrize("loop", LOOPS)
def test_no_record_comes(loop: str) -> None:
    with reading(loop) as (_, consumer), pytest.raises(TransferError, match=r"within 0\.3 s"):
        read(consumer, timeout_s=0.3)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_stop_flag_ends_it(loop: str) -> None:
    stop = StopFlag()
    timer = threading.Timer(0.3, stop.set)
    with reading(loop) as (_, consumer):
        timer.start()
        with pytest.raises(Interrupted):
            consumer.read((), 1, 100, 20.0, stop, _native.Times())
        timer.join()


@pytest.mark.parametrize("acks", ["0", "1"])
def test_stamped_records_are_compared_but_for_their_stamp(acks: str) -> None:
    settings = replace(SETTINGS, acks=acks)
    with contextlib.closing(Site(settings)) as site:
        values, places = Values(100, 64, seed=7, sender=3, first=1), Places(64)
        block = RecordBlock(64, values, partitions=2, stamped=True, places=places)
        producer, _ = open_producer(settings.producer(site.servers), site.topic)
        with contextlib.closing(producer):
            producer.run(block, Stamps(64), StopFlag()).check()
        assert site.read_back(values, places, stamped=True) == 64
        if acks != "0":
            other = Values(100, 64, seed=8, sender=3, first=1)
            with pytest.raises(PayloadMismatch):
                site.read_back(other, places, stamped=True)
