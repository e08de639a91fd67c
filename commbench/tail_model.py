"""The tail-latency model of Frieda: what of a tail is the network's, and what is not.

M. H. Javed, X. Lu, D. K. Panda, *Cutting the Tail: Designing High Performance Message Brokers to
Reduce Tail Latencies in Stream Processing*, CLUSTER'18, equations 1 to 5. L is the latency and B
the bandwidth of the network, M the bytes of a message, W how many are in flight.

L is the median round trip of an empty request that is answered with an acknowledgement, not half of
it: the latency of a record ends with its acknowledgement, too. Percentiles are of nearest rank, so
that the 99th of fewer than 100 values is the greatest. Times are nanoseconds.

The paper defines its overhead O(W, R) for each window; one figure for many windows is their median
here. The p99 over windows, as in equation 4, would hold the tail of the network itself against the
number of messages in flight, also with W = 1, where the model says that there is no overhead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from commbench.histogram import Int64Array, rank_of

TAIL = 0.99
MOST_RESIDUAL = 0.10  # of L + M/B, with one message of one producer in flight


@dataclass(frozen=True, slots=True)
class Network:
    """``latency_ns``: L, a round trip. ``bytes_per_s``: B, more than 0. Both of the same run."""

    latency_ns: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not (self.latency_ns >= 0 and self.bytes_per_s > 0):
            raise ValueError(f"L = {self.latency_ns} ns, B = {self.bytes_per_s} bytes/s")

    def transfer_ns(self, nbytes: float) -> float:
        """M/B."""
        return nbytes / self.bytes_per_s * 1e9

    def message_ns(self, nbytes: float) -> float:
        """L + M/B: a message that has the network for itself."""
        return self.latency_ns + self.transfer_ns(nbytes)


def nearest_rank(values: Sequence[float] | Int64Array, q: float = TAIL) -> float:
    """The value of nearest rank. Raises ValueError for none."""
    ordered = np.sort(np.asarray(values))
    if ordered.size == 0:
        raise ValueError("a percentile of no values")
    return float(ordered[rank_of(q, ordered.size) - 1])


# ---------------------------------------------------------------------- one after the other


def sequential_average_ns(network: Network, sizes: Sequence[int]) -> float:
    """T_avg, equation 1: messages of these bytes, each sent when the one before is answered."""
    return float(np.mean([network.message_ns(nbytes) for nbytes in sizes]))


def sequential_tail_ns(network: Network, sizes: Sequence[int]) -> float:
    """T_tail, equation 2: only their sizes make their latencies differ."""
    return nearest_rank([network.message_ns(nbytes) for nbytes in sizes])


# ---------------------------------------------------------------------- W in flight


def amortized_average_ns(network: Network, windows: Sequence[Sequence[int]]) -> float:
    """T'_avg, equation 3: windows of messages of these bytes.

    The time of a window over its messages: what one costs, not how long one takes (amortized).
    """
    return float(np.mean([network.message_ns(sum(sizes)) / len(sizes) for sizes in windows]))


def window_tails_ns(latency_ns: Int64Array, window: int) -> Int64Array:
    """The p99 within each window of as many consecutive messages of one producer.

    ``latency_ns``: one for each message, in the order in which they were sent. Messages behind the
    last whole window are left out. Raises ValueError for a window below 1.
    """
    if window < 1:
        raise ValueError(f"a window of {window} messages")
    whole = latency_ns[: latency_ns.size // window * window].reshape(-1, window)
    tails: Int64Array = np.sort(whole, axis=1)[:, rank_of(TAIL, window) - 1]
    return tails


def overlapped_tail_ns(tails_ns: Int64Array) -> float:
    """T'_tail, equation 4: the p99 over windows of what ``window_tails_ns`` gave."""
    return nearest_rank(tails_ns)


# ---------------------------------------------------------------------- what is left


@dataclass(frozen=True, slots=True)
class Overhead:
    """O(W, R) of equation 5 for one size, window and number of producers."""

    window: int
    producers: int
    message_ns: float  # L + M/B
    in_window_ns: float  # the median over windows of the p99 within each
    queueing_ns: float  # (W - 1) M/B: the others of the window go over the same link

    @property
    def overhead_ns(self) -> float:
        """O: what a message of a window takes beyond L + M/B."""
        return self.in_window_ns - self.message_ns

    @property
    def residual_ns(self) -> float:
        """The contention residual: O without what queueing for the link explains."""
        return self.overhead_ns - self.queueing_ns


def overhead(
    network: Network, nbytes: int, latency_ns: Sequence[Int64Array], window: int
) -> Overhead:
    """Equation 5 solved for O, over the windows of all producers.

    ``latency_ns``: an array for each producer, as ``window_tails_ns`` takes it. Raises ValueError
    when no producer has a whole window.
    """
    tails = np.concatenate([window_tails_ns(each, window) for each in latency_ns])
    return Overhead(
        window,
        len(latency_ns),
        network.message_ns(nbytes),
        nearest_rank(tails, 0.5),
        (window - 1) * network.transfer_ns(nbytes),
    )


def why_no_fit(single: Overhead) -> str | None:
    """None when L + M/B explains a single message in flight to within 10 %; else why nothing can
    be said of more. Raises ValueError when ``single`` is not of W = 1 and one producer."""
    if (single.window, single.producers) != (1, 1):
        raise ValueError(f"W = {single.window} with {single.producers} producers is not alone")
    share = single.overhead_ns / single.message_ns
    if abs(share) < MOST_RESIDUAL:
        return None
    return (
        f"no fit: with one message of one producer in flight, O is {share:+.1%} of L + M/B "
        f"({single.in_window_ns / 1e3:.4g} us instead of {single.message_ns / 1e3:.4g} us; "
        f"allowed: less than {MOST_RESIDUAL:.0%})"
    )
