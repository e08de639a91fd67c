"""The C loops and engines of commbench; see native/commbench_ops.h."""

from collections.abc import Sequence
from typing import Any


ABI_VERSION: int = 1

CAPSULE: str = 'commbench.engine.v1'

class StopFlag:
    """Ends every wait of this process, native or Python."""

    def __init__(self) -> None: ...

    def set(self) -> None: ...

    def clear(self) -> None: ...

    @property
    def is_set(self) -> bool: ...

    @property
    def address(self) -> int: ...

class Slots:
    """Messages as (address, nbytes) pairs; keeps owner alive."""

    def __init__(self, slots: Sequence[Sequence[tuple[int, int]]], owner: object) -> None: ...

    def __len__(self) -> int: ...

    def fill_gradients(self, slot: int, seed: int, sender: int, number: int, call: int) -> None: ...

    def fill(self, slot: int, seed: int, sender: int, number: int) -> None: ...

    def differs(self, slot: int, seed: int, sender: int, number: int) -> tuple[int, ...]:
        """(buffer, offset) of the first byte that differs, or ()."""

class Prepared:
    """An engine made ready for a case; OSError when it fails."""

    def __init__(self, capsule: object, peers: Sequence[int], window: int, reply_every: int, asks: bool, serves: bool, request: object, reply: object, incoming: object, answer_nbytes: int, stop: object, ncalls: int = 1) -> None: ...

    def copied(self) -> int:
        """Payload bytes that the engine has copied so far."""

    def finish(self) -> None: ...

class Parameters:
    """What a parameter server holds; see cb_parameters."""

    def __init__(self, first_worker: int, workers: int, calls: int, deferred: bool, weights: object) -> None: ...

class Outcome:
    """What a block did; error is 0 or an errno."""

    @property
    def error(self) -> int: ...

    @property
    def peer(self) -> int: ...

    @property
    def done(self) -> int: ...

    @property
    def served(self) -> int: ...

    @property
    def messages(self) -> int: ...

    @property
    def validated(self) -> int: ...

    @property
    def elements(self) -> int: ...

    @property
    def message(self) -> str: ...

def run_loop(kind: str, prepared: Prepared, *, handler: str | None, targets: Sequence[int], rank: int, count: int, batch: int, serve: int, seed: int, number: int, request_nbytes: int, reply_nbytes: int, verify_every: bool, verify_last: bool, ordered: bool, timeout_ns: int, intended: int, start: int, end: int, call_nbytes: Sequence[int], parameters: Parameters | None, stretch: float) -> Outcome:
    """
    One block through cb_loop() without the GIL; intended, start and end are addresses of int64 arrays of count elements.
    """

def now_ns() -> int:
    """CLOCK_MONOTONIC in ns: the clock of every stamp."""

def clock_pairs(n: int) -> list[int]:
    """n differences of two clock reads, in ns."""

class LoopbackEngine:
    """One process asks itself; see native/loopback.c."""

    def __init__(self, fault: str, fault_at: int) -> None: ...

    @property
    def capsule(self) -> object: ...

class TcpEngine:
    """Connected stream sockets by rank, -1: none; native/tcp.c."""

    def __init__(self, ask: Sequence[int], serve: Sequence[int], spin: bool) -> None: ...

    @property
    def capsule(self) -> object: ...

class MpiEngine:
    """The MPI library that mpi4py loaded, without mpi.h."""

    def __init__(self, files: Sequence[str], *, pointer: bool, comm: int, byte: int, request_null: int, status_nbytes: int, error_at: int, count_at: int, error_in_status: int, error_pending: int, undefined: int, mode: str, pack: bool) -> None: ...

    @property
    def capsule(self) -> object: ...

class GrpcMpiEngine:
    """TensorFlow's gRPC+MPI; its thread alone calls MPI during a case."""

    def __init__(self, files: Sequence[str], *, pointer: bool, comm: int, byte: int, info_null: int, any_source: int, source_at: int, status_nbytes: int, rank: int, optimal: bool, sleeps: bool) -> None: ...

    @property
    def capsule(self) -> object: ...

    def stop(self) -> bool:
        """Ends the thread, for good; False: it hangs in MPI, or a case was open."""

    def counters(self) -> dict[str, int]:
        """Messages sent by tag, tensors that came, bytes of payload copied."""

class KafkaOutcome:
    """What a block did; error is 0 or an errno."""

    @property
    def error(self) -> int: ...

    @property
    def produced(self) -> int: ...

    @property
    def acked(self) -> int: ...

    @property
    def failed(self) -> int: ...

    @property
    def full(self) -> int: ...

    @property
    def code(self) -> int: ...

    @property
    def message(self) -> str: ...

class KafkaProducer:
    """
    A producer over a librdkafka that is loaded; see native/kafka/producer.h. ValueError for a property that is wrong.
    """

    def __init__(self, file: str, settings: Sequence[tuple[str, str]], topic: str) -> None: ...

    def run(self, *, count: int, records: int, nrecords: int, record_nbytes: int, stride: int, stamped: bool, warmup: int, window: int, partitions: int, open: bool, duration_ns: int, timeout_ns: int, stop: int, intended: int, start: int, end: int, offset: int, partition: int) -> KafkaOutcome:
        """
        One block without the GIL. records and all from stop on are addresses; records, offset and partition may be 0.
        """

    @property
    def trouble(self) -> str:
        """What the library said last of its connections, or ""."""

    @property
    def version(self) -> str: ...

    def close(self) -> None: ...

class KafkaConsumer:
    """
    Reads partitions of a topic from their beginning; see native/kafka/consumer.h. ValueError for a property that is wrong.
    """

    def __init__(self, file: str, settings: Sequence[tuple[str, str]], topic: str, partitions: Sequence[int]) -> None: ...

    def read(self, *, until: Sequence[int], marks: int, record_nbytes: int, timeout_ns: int, stop: int, end_to_end: Times) -> tuple[int, int, str]:
        """
        Without the GIL, up to these offsets, or with none of them until so many marks have come in each partition: an errno or 0, records, why. stop is an address.
        """

    def close(self) -> None: ...

class KafkaMock:
    """librdkafka's mock cluster, in this process on loopback."""

    def __init__(self, file: str, brokers: int) -> None: ...

    @property
    def bootstrap_servers(self) -> str: ...

    def create_topic(self, topic: str, partitions: int, replicas: int) -> None: ...

    def set_down(self, broker: int) -> None:
        """Disconnects a broker (from 1; -1: all) and refuses connections."""

    def set_up(self, broker: int) -> None: ...

    def set_rtt(self, broker: int, rtt_ms: int) -> None:
        """Its answers are late by so many ms."""

    def close(self) -> None: ...

class RecordBatch:
    """
    A Kafka record batch that grows in a buffer; see native/broker/batch.h.
    """

    def __init__(self, buffer: bytearray | memoryview) -> None: ...

    def begin(self) -> None:
        """Begin again, with no record."""

    def add(self, timestamp: int, value: bytes | bytearray | memoryview) -> bool:
        """Append a record; False when the batch is full."""

    def seal(self, producer_id: int = -1, producer_epoch: int = -1, base_sequence: int = -1) -> int:
        """Write header and CRC; the bytes of the batch, 0 when it has no record."""

    @property
    def records(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

def batch_info(batch: bytes | bytearray | memoryview) -> dict[str, int]:
    """
    The header of a batch whose CRC is right. OSError: ENODATA not whole, EBADMSG not a batch.
    """

def batch_records(batch: bytes | bytearray | memoryview) -> list[tuple[int, int, bytes | None]]:
    """
    (offset, timestamp, value) of each record. OSError as batch_info(); the CRC is not checked.
    """

def crc32c(data: bytes | bytearray | memoryview, crc: int = 0, table: bool = False) -> int:
    """
    CRC-32C, going on from `crc`; by tables even where the processor has an instruction.
    """

def crc32c_kind() -> str:
    """What crc32c() runs on: sse4.2, armv8 or table."""

class LogRecovery:
    """What opening a log found and cut off."""

    @property
    def segments(self) -> int: ...

    @property
    def batches(self) -> int: ...

    @property
    def records(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def cut_nbytes(self) -> int: ...

    @property
    def lost_batches(self) -> int: ...

    @property
    def lost_records(self) -> int: ...

    @property
    def removed_segments(self) -> int: ...

    @property
    def reason(self) -> str: ...

class Log:
    """
    The log of a partition; OSError when a call fails. See native/broker/log.h.
    """

    def __init__(self, directory: str, *, segment_bytes: int = 1073741824, max_batch_bytes: int = 1048588, flush_every: int = 0) -> None: ...

    def append(self, batch: bytearray | memoryview) -> int:
        """
        Append one batch as its leader; its base offset, also set in the batch.
        """

    def append_replica(self, batches: bytes | bytearray | memoryview) -> int:
        """Append what a leader's read() gave; the next offset."""

    def flush(self) -> None:
        """fdatasync what is not flushed."""

    def read(self, buffer: bytearray | memoryview, offset: int, limit: int | None = None) -> tuple[int, int]:
        """
        Copy whole batches from `offset` on, below `limit`; (bytes, offset behind them).
        """

    def truncate(self, offset: int) -> int:
        """Drop every batch with a record at or behind `offset`; the next offset."""

    def close(self) -> None: ...

    @property
    def first_offset(self) -> int: ...

    @property
    def next_offset(self) -> int: ...

    @property
    def flushed_offset(self) -> int: ...

    @property
    def latest_timestamp(self) -> int: ...

    @property
    def high_watermark(self) -> int: ...

    @high_watermark.setter
    def high_watermark(self, arg: int, /) -> None: ...

    @property
    def recovery(self) -> LogRecovery: ...

    @property
    def counters(self) -> dict[str, int]: ...

BROKER_REQUEST: int = 16

BROKER_ANSWER: int = 32

BROKER_REASON: int = 200

BATCH_HEADER: int = 61

class Times:
    """Times in ns, counted in the bins of commbench.histogram."""

    def __init__(self) -> None: ...

    def add(self, ns: int) -> None: ...

    def to_json(self) -> dict[str, Any]: ...

class BrokerServer:
    """A broker of one pass; keep it until the case is finished."""

    def __init__(self, prepared: Prepared, logs: Sequence[Log | None], cluster: tuple[int, int, int, int, int], rank: int, design: int, handlers: int, channel_buffer: int, timeout_ns: int, fetch_wait_ns: int) -> None: ...

    @property
    def phase_address(self) -> int:
        """Of an int32: 0 idle, 1 appending, 2 replicating, 3 answering."""

    def serve(self) -> dict[str, Any]: ...

class BrokerClient:
    """A producer or consumer of one pass; keep it likewise."""

    def __init__(self, prepared: object, cluster: tuple[int, int, int, int, int], rank: int, timeout_ns: int) -> None: ...

    def produce(self, *, batches: int, acks: int, record_nbytes: int, batch_nbytes: int, linger_ns: int, max_in_flight: int, count: int, warmup: int, duration_ns: int, warmup_ns: int, schedule: int, seed: int, flags: int, latency: Times, delay: Times, response: Times, window: int, windows: Times, stamps: tuple[int, int, int], keep: int) -> dict[str, Any]: ...

    def offsets(self, partitions: Sequence[int]) -> list[int]: ...

    def consume(self, *, partitions: Sequence[int], offsets: Sequence[int], own: bool, record_nbytes: int, seed: int, verify: bool, stamped: bool, end_to_end: Times | None) -> dict[str, Any]: ...

    def round_trips(self, count: int, times: Times) -> dict[str, Any]: ...

    def end(self) -> dict[str, Any]: ...
