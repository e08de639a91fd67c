"""A broker whose loop is Python, for channels without an engine: as ``native/broker/broker.c``."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from commbench import _native
from commbench.benchmarks import BrokerSpec
from commbench.channels.base import Incoming
from commbench.errors import TransferError
from commbench.harness import broker_wire as wire
from commbench.harness.broker_wire import PythonCase, Request
from commbench.payloads.buffers import EMPTY, Message

_ACCEPT = 16
_KINDS = {errno.EBADMSG: wire.CORRUPT, errno.EMSGSIZE: wire.TOO_LARGE}


@dataclass(slots=True, eq=False)
class Taken:
    """A request that was taken and is not answered."""

    incoming: Incoming
    request: Request
    end: int = 0  # PRODUCE: the offset behind its records
    until_ns: int = 0
    answer: Message | None = None  # ready


@dataclass(slots=True)
class Connection:
    """A rank that asks us. ``queue``: arrived, by correlation; ``answers``: PRODUCE taken up."""

    expected: int = 0
    queue: dict[int, Taken] = field(default_factory=dict)
    answers: deque[Taken] = field(default_factory=deque)
    unsent: int = 0  # PRODUCE taken up whose answer has not left
    ended: bool = False


@dataclass(slots=True)
class Leading:
    """A partition that this rank leads."""

    log: _native.Log
    began: int
    mark: int  # the high watermark
    confirmed: dict[int, int]  # by follower
    through: set[int] = field(default_factory=set)  # followers that know of the end
    acks: deque[Taken] = field(default_factory=deque)
    fetches: list[Taken] = field(default_factory=list)


@dataclass(slots=True)
class Following:
    """A partition that this rank follows."""

    partition: int
    leader: int
    log: _native.Log
    since_ns: int = 0
    asking: bool = False
    done: bool = False


class PythonServer:
    """Serves one pass; ``serve`` says what it counted."""

    def __init__(
        self, case: PythonCase, logs: Sequence[_native.Log | None], spec: BrokerSpec, rank: int,
        timeout_ns: int, fetch_wait_ns: int,
    ) -> None:  # fmt: skip
        self.case, self.channel, self.exchange = case, case.channel, case.exchange
        self.spec, self.rank = spec, rank
        self.timeout_ns, self.fetch_wait_ns = timeout_ns, fetch_wait_ns
        self.overlapped = "overlapped" in spec.parts
        self.eager = "eager-flush" in spec.parts
        self.connections = {peer: Connection() for peer in self.exchange.peers}
        self.leading: dict[int, Leading] = {}
        self.following: list[Following] = []
        for partition, log in enumerate(logs):
            if log is not None:
                self.hold(partition, log)
        self.correlations = [0] * spec.brokers
        self.outbox: list[Taken] = []
        self.boxed = 0
        self.producers_left = spec.producers
        self.clients_left = spec.producers + spec.consumers
        self.waiting = 0
        self.now_ns = self.quiet_ns = _native.now_ns()
        names = ["produced", "fetched", "refused", "records", "deferred", "copied", "allocated"]
        names += ["overtook", "most_waiting", "error"]
        self.facts: dict[str, Any] = dict.fromkeys(names, 0)

    def hold(self, partition: int, log: _native.Log) -> None:
        first, *others = self.spec.replicas(partition)
        if first == self.rank:
            mark = log.high_watermark if others else log.next_offset
            self.leading[partition] = Leading(log, log.next_offset, mark, dict.fromkeys(others, 0))
        else:
            self.following.append(Following(partition, first, log))

    def serve(self) -> dict[str, Any]:
        while not self.is_done():
            self.case.check_stop()
            self.turn()
            self.look()
        self.facts.update(rss_half=0, rss_end=0)  # Python's memory says nothing of a broker
        return self.facts

    def is_done(self) -> bool:
        return (
            self.clients_left == 0
            and self.waiting == 0
            and all(each.done for each in self.following)
            and all(len(each.through) == len(each.confirmed) for each in self.leading.values())
        )

    def turn(self) -> None:
        fetches = any(each.fetches for each in self.leading.values())
        wait = self.fetch_wait_ns / 2e9 if fetches else wire.TICK_S
        self.ask_leaders()
        if self.following:
            self.channel.progress(wait)
            self.take_answers()
            wait = 0.0
        arrived = self.channel.accept(_ACCEPT, wait)
        self.now_ns = _native.now_ns()
        for incoming in arrived:
            self.take(incoming)
        while sum(self.take_up(each) for each in self.connections.values() if each.queue):
            self.empty_channel_buffer()
        for leading in self.leading.values():
            if leading.fetches:
                self.wake(leading)
        self.empty_channel_buffer()

    # -- requests

    def take(self, incoming: Incoming) -> None:
        request = wire.read_request(incoming.message)
        if request is None:
            stray = Message([memoryview(bytearray(wire.ANSWER.size))])
            self.facts["refused"] += 1
            answer = wire.put_answer(stray, -1, wire.INVALID, 0, -1, -1, -1, 0)
            self.channel.answer(incoming.ticket, answer)
            return
        connection = self.connections[incoming.peer]
        ahead = request.correlation - connection.expected
        if not 0 <= ahead < self.exchange.window or request.correlation in connection.queue:
            raise TransferError(
                f"rank {incoming.peer} sent request {request.correlation} where "
                f"{connection.expected} comes next"
            )
        if "buffer-pool" not in self.spec.parts:
            request.body = memoryview(bytearray(request.body))
            self.facts["copied"] += request.body.nbytes
            self.facts["allocated"] += 1
        here = sum(other < request.correlation for other in connection.queue)
        self.facts["overtook"] += here < ahead
        connection.queue[request.correlation] = Taken(incoming, request)
        self.waiting += 1
        self.facts["most_waiting"] = max(self.facts["most_waiting"], self.waiting)
        if incoming.peer >= self.spec.brokers:
            self.quiet_ns = self.now_ns

    def take_up(self, connection: Connection) -> int:
        """Handle the requests whose turn it is; how many."""
        handled = 0
        while (taken := connection.queue.get(connection.expected)) is not None:
            produce = taken.request.api == wire.PRODUCE
            if produce and connection.unsent and not self.overlapped:
                break
            connection.unsent += produce
            del connection.queue[connection.expected]
            connection.expected += 1
            if produce:
                connection.answers.append(taken)
            self.handle(taken)
            handled += 1
        return handled

    def handle(self, taken: Taken) -> None:
        request = taken.request
        if request.error:
            self.refuse(taken, request.error)
        elif request.api == wire.END:
            self.on_end(taken)
        elif not 0 <= request.partition < self.spec.partitions:
            self.refuse(taken, wire.UNKNOWN_PARTITION)
        elif request.partition not in self.leading:
            self.refuse(taken, wire.NOT_LEADER)
        else:
            leading = self.leading[request.partition]
            if request.api == wire.PRODUCE:
                self.on_produce(taken, leading)
            elif request.api == wire.FETCH:
                self.on_fetch(taken, leading)
            elif request.api == wire.OFFSETS:
                self.ready(taken, offset=leading.began, mark=leading.mark)
            else:
                self.refuse(taken, wire.UNSUPPORTED)

    def on_produce(self, taken: Taken, leading: Leading) -> None:
        request = taken.request
        if request.acks not in (-1, 0, 1):
            return self.refuse(taken, wire.INVALID_ACKS)
        try:
            base = leading.log.append(request.body)
        except OSError as error:
            why = str(error.strerror)
            return self.refuse(taken, _KINDS.get(error.errno or 0, wire.STORAGE), why)
        taken.end = leading.log.next_offset
        self.facts["produced"] += 1
        self.facts["records"] += taken.end - base
        if request.acks == -1 and leading.confirmed:
            taken.until_ns = self.now_ns + self.timeout_ns
            self.facts["deferred"] += 1
            leading.acks.append(taken)
        else:
            self.ready(taken, offset=base, mark=leading.mark)
        if not leading.confirmed:
            self.move_mark(leading)

    def on_fetch(self, taken: Taken, leading: Leading) -> None:
        request, peer = taken.request, taken.incoming.peer
        self.facts["fetched"] += 1
        if not leading.log.first_offset <= request.offset <= leading.log.next_offset:
            self.ready(taken, wire.OUT_OF_RANGE, leading.log.next_offset, leading.mark)
            return
        if peer in leading.confirmed:
            leading.confirmed[peer] = request.offset
            self.move_mark(leading)
        taken.until_ns = self.now_ns + self.fetch_wait_ns
        leading.fetches.append(taken)  # woken in this turn when there is something

    def on_end(self, taken: Taken) -> None:
        peer = taken.incoming.peer
        connection = self.connections[peer]
        if connection.ended or self.spec.is_broker(peer):
            return self.refuse(taken, wire.INVALID)
        connection.ended = True
        self.clients_left -= 1
        self.producers_left -= self.spec.is_producer(peer)
        self.ready(taken)

    # -- fetches and the high watermark

    def limit(self, leading: Leading, peer: int) -> int:
        return leading.log.next_offset if self.spec.is_broker(peer) else leading.mark

    def is_over(self, leading: Leading, peer: int) -> bool:
        return self.producers_left == 0 and self.limit(leading, peer) == leading.log.next_offset

    def wake(self, leading: Leading) -> None:
        waiting, leading.fetches = leading.fetches, []
        for taken in waiting:
            peer = taken.incoming.peer
            found = taken.request.offset < self.limit(leading, peer)
            if found or self.is_over(leading, peer) or taken.until_ns <= self.now_ns:
                self.answer_fetch(taken, leading)
            else:
                leading.fetches.append(taken)

    def answer_fetch(self, taken: Taken, leading: Leading) -> None:
        request, peer = taken.request, taken.incoming.peer
        if (
            peer in leading.confirmed
            and self.is_over(leading, peer)
            and request.offset == leading.log.next_offset
        ):
            leading.through.add(peer)
        slot = self.exchange.incoming[0].nbytes
        room = min(slot - wire.ANSWER.size, max(0, request.most))
        body = bytearray(room)
        nbytes = 0
        if request.offset < self.limit(leading, peer):
            nbytes, _ = leading.log.read(body, request.offset, self.limit(leading, peer))
        self.facts["copied"] += nbytes
        over = wire.ENDED if self.producers_left == 0 else 0
        self.ready(
            taken, wire.OK, leading.log.next_offset, leading.mark, over, bytes(body[:nbytes])
        )

    def move_mark(self, leading: Leading) -> None:
        mark = min([leading.log.next_offset, *leading.confirmed.values()])
        if mark <= leading.mark:
            return
        leading.mark = leading.log.high_watermark = mark
        while leading.acks and leading.acks[0].end <= mark:
            taken = leading.acks.popleft()
            base = taken.end - _records(taken)
            self.ready(taken, offset=base, mark=mark)

    # -- answers

    def refuse(self, taken: Taken, error: int, why: str = "") -> None:
        self.ready(taken, error, -1, -1, 0, why.encode()[: _native.BROKER_REASON])

    def ready(
        self, taken: Taken, error: int = 0, offset: int = 0, mark: int = 0, flags: int = 0,
        body: bytes = b"",
    ) -> None:  # fmt: skip
        """The answer of a request is whole; it leaves when it is its turn."""
        request = taken.request
        slot = Message([memoryview(bytearray(wire.ANSWER.size + len(body)))])
        slot.views[0][wire.ANSWER.size :] = body
        taken.answer = wire.put_answer(
            slot, request.correlation, error, flags, request.partition, offset, mark, len(body)
        )
        self.facts["refused"] += error != 0
        if request.api == wire.PRODUCE and request.acks == 0:
            taken.answer = EMPTY
        if request.api != wire.PRODUCE:
            return self.release(taken)
        answers = self.connections[taken.incoming.peer].answers
        if self.overlapped and self.spec.reorder == "client":
            answers.remove(taken)
            return self.release(taken)
        while answers and answers[0].answer is not None:
            self.release(answers.popleft())

    def release(self, taken: Taken) -> None:
        if self.eager:
            self.send(taken)
        else:
            assert taken.answer is not None
            self.outbox.append(taken)
            self.boxed += taken.answer.nbytes
            if self.boxed >= self.spec.channel_buffer:
                self.empty_channel_buffer()

    def empty_channel_buffer(self) -> None:
        for taken in self.outbox:
            self.send(taken)
        self.outbox.clear()
        self.boxed = 0

    def send(self, taken: Taken) -> None:
        assert taken.answer is not None
        self.channel.answer(taken.incoming.ticket, taken.answer)
        self.waiting -= 1
        if taken.request.api == wire.PRODUCE:
            self.connections[taken.incoming.peer].unsent -= 1

    # -- following

    def ask_leaders(self) -> None:
        for at, each in enumerate(self.following):
            if each.asking or each.done:
                continue
            reply = self.exchange.reply[at]
            request = wire.put_fetch(
                self.exchange.request[at], self.correlations[each.leader], each.partition,
                each.log.next_offset, reply.nbytes - wire.ANSWER.size,
            )  # fmt: skip
            if self.channel.post(each.leader, at, request, reply):
                self.correlations[each.leader] += 1
                each.asking, each.since_ns = True, self.now_ns

    def take_answers(self) -> None:
        for done in self.channel.poll(0):
            self.replicate(self.following[done.ticket], done.ticket, done.reply_nbytes)

    def replicate(self, each: Following, at: int, nbytes: int) -> None:
        answer = wire.read_answer(self.exchange.reply[at], nbytes)
        each.asking = False
        if answer is None:
            raise TransferError(
                f"rank {each.leader} answered a FETCH with {nbytes} bytes of nonsense"
            )
        if answer.error == wire.OUT_OF_RANGE:
            each.log.truncate(answer.offset)
            return
        if answer.error:
            raise TransferError(
                f"rank {each.leader} refused a FETCH of partition {each.partition}: "
                f"{wire.NAMES.get(answer.error, answer.error)}"
            )
        try:
            if answer.body.nbytes:
                each.log.append_replica(answer.body)
        except OSError as error:
            raise TransferError(f"partition {each.partition}: {error.strerror}") from None
        mark = min(answer.high_watermark, each.log.next_offset)
        if mark > each.log.high_watermark:
            each.log.high_watermark = mark
        each.done = bool(answer.flags & wire.ENDED) and each.log.next_offset == answer.offset

    # -- standstill

    def look(self) -> None:
        seconds = self.timeout_ns / 1e9
        for partition, leading in self.leading.items():
            if leading.acks and leading.acks[0].until_ns <= self.now_ns:
                wanted = leading.acks[0].end
                rank = min(leading.confirmed, key=lambda each: leading.confirmed[each])
                raise TransferError(
                    f"acks=all: follower rank {rank} has not confirmed offset {wanted - 1} of "
                    f"partition {partition} within {seconds:g} s"
                )
        for each in self.following:
            if each.asking and self.now_ns - each.since_ns > self.timeout_ns + self.fetch_wait_ns:
                raise TransferError(
                    f"leader rank {each.leader} has not answered a FETCH of partition "
                    f"{each.partition} within {seconds:g} s"
                )
        if self.now_ns - self.quiet_ns > self.timeout_ns:
            raise TransferError(f"no request of a producer or consumer within {seconds:g} s")


def _records(taken: Taken) -> int:
    return _native.batch_info(taken.request.body)["records"]
