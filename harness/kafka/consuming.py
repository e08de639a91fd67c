"""What a consumer's rank does in a case of the channel ``kafka``."""

from __future__ import annotations

from collections.abc import Mapping

from commbench import _native
from commbench.benchmarks import BrokerSpec
from commbench.channels.kafka_consumer import Consumer, ends
from commbench.errors import TransferError
from commbench.harness.measure import Share
from commbench.harness.stop import StopFlag
from commbench.plan import Case


class Consuming:
    """One consumer of one case, which reads every offset of its partitions once and in order."""

    def __init__(
        self,
        case: Case,
        spec: BrokerSpec,
        rank: int,
        stop: StopFlag,
        consumer: Consumer,
        connection: Mapping[str, str],
        topic: str,
        mock: bool,
    ) -> None:
        self.mock = mock
        self.case, self.spec, self.stop = case, spec, stop
        self.partitions = spec.consumed(rank)
        self.consumer, self.connection, self.topic = consumer, connection, topic
        self.share = Share()

    def close(self) -> None:
        self.consumer.close()

    def verified(self) -> None:
        """Up to the end of what producers have read back: now it waits for records, connected."""
        until = ends(self.connection, self.topic, self.partitions)
        self.read(until, 0, self.case.timeout_s, _native.Times())

    def timed(self) -> None:
        """Until every producer has marked its end in every partition."""
        times = _native.Times()
        records = self.read((), self.spec.producers, self.patience_s(), times)
        self.share.broker = {
            "role": "consumer",
            "consumed": records,
            "end_to_end": times.to_json(),
        }

    def read(
        self, until: tuple[int, ...] | list[int], marks: int, wait_s: float, times: _native.Times
    ) -> int:
        try:
            return self.consumer.read(until, marks, self.case.nbytes, wait_s, self.stop, times)
        except TransferError as error:
            if not self.mock or "out of range" not in str(error):
                raise
            raise TransferError(
                "kafka: the mock cluster has dropped records that this consumer had not read: it "
                "keeps a few MB of a partition; give a lower --rate, or --bootstrap-servers"
            ) from None

    def patience_s(self) -> float:
        """Between two records; in an open loop the next one may be due at any time of the run."""
        case, spec = self.case, self.spec
        if not spec.rate:
            return case.timeout_s
        planned_s = (case.warmup + case.iterations) * spec.producers / spec.rate
        return case.timeout_s + (case.warmup_s + case.duration_s if case.duration_s else planned_s)
