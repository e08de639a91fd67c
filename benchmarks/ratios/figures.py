"""The figures that are measured in one launch, and their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.ratios.statistics import Target
from commbench.jobs import make_plan
from commbench.plan import Case
from commbench.registry import load
from commbench.units import format_size

LATENCY, RATE = Target(1.05, at_most=True), Target(0.97, at_most=False)
TCP_RATE = GRPC_RATE = PS_RATE = RDMA_RATE = Target(0.95, at_most=False)
GATHERED = Target(1.0, at_most=True)  # to a reference that joins the buffers of a message
BESIDE = ("pyverbs",)
SKEW_NBYTES = 6 * (1 << 20) + 3 * (10 << 10) + 10  # of --scheme skew with its ten buffers


@dataclass(frozen=True, slots=True)
class Figure:
    """One ratio. ``target`` None: printed beside, nothing is asked of it.

    ``iterations`` of a block, where OSU's would take too long, or too short to tell a rate.
    ``workers``: of one parameter server, whose figure is RPC/s (with one worker, the round trip).
    ``option``: one, or several with a comma between them.
    ``beside``: other loops whose ratio to the reference is printed with it; they run after each
    ``beside_every``-th quad.
    """

    channel: str
    benchmark: str
    nbytes: int
    target: Target | None
    option: str = ""
    iterations: int | None = None
    beside: tuple[str, ...] = ()
    beside_every: int = 1
    scheme: str = ""  # instead of one contiguous buffer
    workers: int = 0
    against: str = ""  # the reference, where it is not the one of the channel

    @property
    def name(self) -> str:
        workers = f"{self.workers} worker{'s' * (self.workers > 1)}" if self.workers else ""
        size = self.scheme or format_size(self.nbytes)
        words = (self.channel, self.option, self.benchmark, workers, size)
        return " ".join(word for word in words if word)

    @property
    def ranks(self) -> int:
        return 1 + self.workers if self.workers else 2

    @property
    def unit(self) -> str:
        if self.workers > 1:
            return "1/s"
        return "B/s" if self.windowed else "ns"

    @property
    def reference(self) -> str:
        """The loop that it is compared with (see references.loop_named)."""
        if self.against:
            return self.against
        name = "tcp-ps" if self.workers else self.channel
        return f"{name}-spin" if self.option == "wait=spin" else name

    @property
    def windowed(self) -> bool:
        return self.benchmark not in ("latency", "ps")

    def case(self, shrink: int = 1) -> Case:
        """As the command line makes it; ``shrink`` divides the iterations, for a try."""
        texts = {
            "channel": self.channel,
            "benchmark": self.benchmark,
        }
        texts |= {"scheme": self.scheme} if self.scheme else {"message-size": str(self.nbytes)}
        if self.option:
            texts["option"] = self.option.replace(",", "\n")
        if self.workers:
            texts["workers"] = str(self.workers)
        ((case,),) = make_plan(texts, None, "in-order", 0).blocks(load, self.ranks)
        iterations = (self.iterations or case.iterations) // shrink
        return replace(case, iterations=max(2, iterations))


def _mpi() -> list[Figure]:
    latency = [
        Figure("mpi", "latency", n, LATENCY, beside=("osu_latency", "mpi4py"))
        for n in (1, 1024, 65536)
    ]
    bandwidth = [Figure("mpi", "bandwidth", n, RATE, iterations=80) for n in (65536, 1 << 20)]
    return [*latency, *bandwidth, Figure("mpi", "message-rate", 1, RATE, iterations=1000)]


def _rdma() -> list[Figure]:
    """The window is perftest's depth; frames up to the size of the figure are sent eagerly, since
    perftest asks its receiver for nothing either. Its latency is that of one buffer, so our ring
    is one that caches hold."""
    latency = [
        Figure(
            *("rdma", "latency", n, LATENCY, f"op={op},rx_depth=32", count),
            beside=(f"ib_{op}_lat", "pyverbs"),
            beside_every=5,  # launches and Python take longer than all blocks of a quad
            against="verbs",
        )
        for op in ("write", "send")
        for n, count in ((2, 1000), (4096, 400))
    ]
    rate = Figure(
        *("rdma", "bandwidth", 65536, RDMA_RATE, "op=write,eager_max=64K", 8),
        beside=("ib_write_bw",),
        beside_every=5,
        against="verbs",
    )
    return [*latency, rate]


FIGURES: dict[str, Sequence[Figure]] = {
    "mpi": _mpi(),
    "tcp": (
        Figure("tcp", "latency", 64, LATENCY, "wait=block", 2000),
        Figure("tcp", "latency", 64, None, "wait=spin", 5000),
        Figure("tcp", "bandwidth", 1 << 20, None),
    ),
    "grpc": [
        Figure("grpc", "latency", n, LATENCY, "", count, ("grpc-bare",))
        for n, count in ((64, 500), (65536, 500), (1 << 20, 150))
    ],
    "grpc-core": [
        *(
            Figure("grpc-core", "latency", n, LATENCY, "", count)
            for n, count in ((1, 2000), (65536, 1000), (1 << 20, 200))
        ),
        Figure("grpc-core", "bandwidth", 1 << 20, GRPC_RATE, iterations=15),
        Figure("grpc-core", "latency", SKEW_NBYTES, GATHERED, "", 100, scheme="skew"),
    ],
    "rdma": _rdma(),
    "rdma-grpc": [
        Figure(channel, "latency", n, None, "", count, against="channel grpc-core")
        for channel in ("ar-grpc", "grpc+verbs")
        for n, count in ((64, 300), (65536, 100), (1 << 20, 20))
    ],
    "ps": [Figure("tcp", "ps", 1024, PS_RATE, "wait=block", 5000, workers=2)],
    "ps-alone": [
        Figure("tcp", "ps", 1024, None, f"wait={wait}", 5000, workers=1)
        for wait in ("block", "spin")
    ],
}


def chosen(group: str, only: str) -> list[Figure]:
    """The figures of a group whose name contains ``only``."""
    return [figure for figure in FIGURES[group] if only in figure.name]
