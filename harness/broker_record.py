"""What a results file says of a case of ``broker`` beyond the fields of every case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from commbench.benchmarks import BrokerSpec
from commbench.benchmarks.broker import flush_word
from commbench.harness.broker_samples import MOST
from commbench.histogram import SUB_BITS, Histogram, rank_of
from commbench.record import Record, latency_ns
from commbench.tail_model import TAIL

MOST_PERCENTILES = (99.99,)  # on top of those of every case
SUSTAINED = 0.99  # of the offered rate
_CRC_STEP = 8  # bytes of a CRC instruction
_TOTALS = ("produced", "fetched", "refused", "deferred", "allocated", "overtook")


def broker_fields(
    spec: BrokerSpec, record: Record, shares: Sequence[Any], percentiles: Sequence[float]
) -> Record:
    """``delay_ns``, ``response_ns``, ``broker``, ``work`` and warnings, from the shares of all."""
    wanted = (*percentiles, *MOST_PERCENTILES)
    broker = facts(spec, record, shares)
    if spec.consumers:
        broker["end_to_end_ns"] = end_to_end(shares, wanted)
    tail = {"tail": tail_of(spec, shares)} if spec.window else {}
    return {
        **tail,
        **late_times(spec, record, shares, wanted),
        "broker": broker,
        "work": work(shares),
        "warnings": remarks(spec, broker, shares),
    }


def kafka_fields(
    spec: BrokerSpec, record: Record, shares: Sequence[Any], percentiles: Sequence[float]
) -> Record:
    """As ``broker_fields`` for the channel kafka: what its brokers do is not known."""
    wanted = (*percentiles, *MOST_PERCENTILES)
    broker = rates(spec, record, shares)
    if spec.consumers:
        broker["end_to_end_ns"] = end_to_end(shares, wanted)
    return {
        **late_times(spec, record, shares, wanted),
        "broker": broker,
        "warnings": remarks(spec, broker, shares),
    }


def late_times(
    spec: BrokerSpec, record: Record, shares: Sequence[Any], wanted: Sequence[float]
) -> Record:
    """``delay_ns`` and ``response_ns``."""
    latency = Histogram.from_json(record["histogram"])
    delay, response = Histogram(), Histogram()
    if spec.rate:
        delay, response = merged(shares, "delay"), merged(shares, "response")
    else:  # a closed loop means to send when it sends
        delay.merge(zeros(latency.n))
        response.merge(latency)
    return {"delay_ns": latency_ns(delay, wanted), "response_ns": latency_ns(response, wanted)}


def merged(shares: Sequence[Any], name: str) -> Histogram:
    """The samples of all ranks that have such."""
    histogram = Histogram()
    for share in shares:
        if name in share["broker"]:
            histogram.merge(Histogram.from_json(share["broker"][name]))
    return histogram


def zeros(n: int) -> Histogram:
    """``n`` times 0 ns."""
    bins: dict[str, list[int]] = {"index": [0] if n else [], "count": [n] if n else []}
    edge = 0 if n else None
    return Histogram.from_json(
        {"sub_bits": SUB_BITS, **bins, "n": n, "sum": 0, "min": edge, "max": edge}
    )


def facts(spec: BrokerSpec, record: Record, shares: Sequence[Any]) -> Record:
    """Counts of all brokers and producers, and what each rank used of its processor."""
    brokers, producers = with_role(shares, "broker"), with_role(shares, "producer")
    batches = total(producers, "batches")
    log: dict[str, int] = {}
    for each in brokers:
        for name, value in each["log"].items():
            log[name] = log.get(name, 0) + value
    return {
        **rates(spec, record, shares),
        "flush": flush_word(spec.flush_every),
        "batches": batches,
        "records_per_batch": total(producers, "records") / batches if batches else None,
        "reordered": total(producers, "reordered"),
        **{name: total(brokers, name) for name in _TOTALS},
        "most_waiting": max((each["most_waiting"] for each in brokers), default=0),
        "handlers": max((each["handlers"] for each in brokers), default=0),
        "rss_half_bytes": total(brokers, "rss_half"),
        "rss_end_bytes": total(brokers, "rss_end"),
        "log": log,
    }


def rates(spec: BrokerSpec, record: Record, shares: Sequence[Any]) -> Record:
    """What producers offered and reached, and the processor time of every rank."""
    producers = with_role(shares, "producer")
    offered = spec.rate or None
    reached = record["ops_per_s"]
    return {
        "offered_per_s": offered,
        "achieved_per_s": reached,
        "sustained": None if not offered else bool(reached and reached >= SUSTAINED * offered),
        "records": total(producers, "acked"),
        "blocked": total(producers, "blocked"),
        "roles": [role_of(share["broker"], record["n"]) for share in shares],
    }


def role_of(broker: Record, records: int) -> Record:
    """What a rank was and the processor time of its timed pass, of each counted record."""
    cpu_ns = broker["cpu_ns"]
    return {
        "role": broker.get("role", "none"),
        "cpu_ns": cpu_ns,
        "cpu_ns_per_record": cpu_ns / records if records else None,
    }


def end_to_end(shares: Sequence[Any], percentiles: Sequence[float]) -> Record | None:
    """From the call of produce to a consumer's hands; None where ranks read different clocks."""
    clocks = {share["broker"]["clock"] for share in shares}
    if len(clocks) > 1 or "" in clocks:
        return None
    return latency_ns(merged(shares, "end_to_end"), percentiles)


def tail_of(spec: BrokerSpec, shares: Sequence[Any]) -> Record:
    """What the tail model takes: windows of W consecutive records of a producer, W below 100, so
    that the p99 of a window is its greatest latency; and the round trip of an empty request."""
    windows = merged(shares, "windows")
    found = with_role(shares, "producer")
    return {
        "window": spec.window,
        "request_ns": max((each["request_ns"] for each in found), default=0),
        "windows": windows.n,
        "tail_ns": windows.at_rank(rank_of(TAIL, windows.n)) if windows.n else None,
        "in_window_ns": windows.at_rank(rank_of(0.5, windows.n)) if windows.n else None,
    }


def work(shares: Sequence[Any]) -> Record:
    """What brokers and producers did in the timed pass, warm-up included. ``int_ops``: steps of
    CRC-32C, one for 8 bytes. ``bytes``: read for CRCs and written to logs."""
    brokers, producers = with_role(shares, "broker"), with_role(shares, "producer")
    crc = total(producers, "nbytes") + sum(each["log"]["crc_nbytes"] for each in brokers)
    written = sum(each["log"]["nbytes"] for each in brokers)
    copied = sum(share["copied"] for share in shares)
    copied += total(brokers, "copied") + total(producers, "copied") + total(producers, "nbytes")
    return {
        "flops": 0,
        "int_ops": crc // _CRC_STEP,
        "bytes": crc + written,
        "copied_bytes": copied,
        "written_bytes": written,
    }


def remarks(spec: BrokerSpec, broker: Record, shares: Sequence[Any]) -> list[str]:
    """What makes the case doubtful, and what to do."""
    found = [line for share in shares for line in share["broker"].get("recovered", ())]
    if "polling" in spec.parts and any(each["cpus"] == 1 for each in with_role(shares, "broker")):
        found.append(
            "a broker's polling thread has no processor of its own; give the ranks more by --bind "
            "none or --bind LIST, or take --design-option polling=off"
        )
    if broker["sustained"] is False:
        reached, offered = broker["achieved_per_s"] or 0.0, broker["offered_per_s"]
        found.append(
            f"not sustained: {reached:.0f} of {offered:.0f} records/s were reached "
            f"({100 * reached / offered:.1f} %); the response time is that of a growing queue; "
            f"take a lower --rate"
        )
    if unsaved := sum(share["broker"].get("unsaved", 0) for share in shares):
        found.append(
            f"{unsaved} records are not in the samples, which have the first {MOST} of each "
            f"producer; take fewer --records or a shorter -D"
        )
    if spec.consumers and broker["end_to_end_ns"] is None:
        found.append(
            "producers and consumers read different clocks, so there is no end-to-end latency; "
            "run them on one host"
        )
    return found


def with_role(shares: Sequence[Any], role: str) -> list[Any]:
    return [share["broker"] for share in shares if share["broker"].get("role") == role]


def total(facts: Sequence[Any], name: str) -> int:
    return sum(each[name] for each in facts)
