"""The memory of a rank of ``broker``: what it sends from, and what arrives in."""

from __future__ import annotations

from commbench import _native
from commbench.benchmarks import BrokerSpec
from commbench.channels.base import Exchange
from commbench.harness.stop import StopFlag
from commbench.payloads.buffers import Message, allocate

REPLY_NBYTES = _native.BROKER_ANSWER + _native.BROKER_REASON
_LEAST = 1024  # of a request slot


def exchange_of(spec: BrokerSpec, rank: int, record_nbytes: int, stop: StopFlag) -> Exchange:
    """What the channel is told of this rank's part in a pass."""
    role = spec.role(rank)
    whole = spec.request_nbytes(record_nbytes)
    if spec.is_broker(rank):
        followed = len(spec.followed(rank))
        request, reply = slots(whole, followed), slots(whole, followed)
    else:
        request, reply = client_slots(spec, rank, record_nbytes)
    return Exchange(
        peers=role.peers,
        window=spec.channel_window,
        reply_every=1,
        asks=bool(role.targets),
        serves=bool(role.sources),
        request=request,
        reply=reply,
        incoming=slots(whole, spec.channel_window * len(role.peers) if role.sources else 0),
        answer_nbytes=whole if role.sources else 0,
        stop=stop,
    )


def client_slots(
    spec: BrokerSpec, rank: int, record_nbytes: int
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """A producer's batches, and for their answers little room but for the one that reads back; a
    consumer has one of each for every partition it reads."""
    whole = spec.request_nbytes(record_nbytes)
    if spec.is_consumer(rank):
        count = len(spec.consumed(rank))
        return slots(_LEAST, count), slots(whole, count)
    batches = spec.batches(record_nbytes)
    request = max(_native.BROKER_REQUEST + spec.batch_nbytes(record_nbytes), _LEAST)
    return slots(request, batches), (*slots(whole, 1), *slots(REPLY_NBYTES, batches))


def slots(nbytes: int, count: int) -> tuple[Message, ...]:
    return tuple(allocate((nbytes,), count)) if count else ()
