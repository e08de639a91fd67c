"""The contract between a loop and a transport, in Python.

The same verbs, in the same words, as ``native/commbench_ops.h``: a channel knows no clock, keeps
no statistics and prints nothing. The loops are in ``commbench.harness.loops``.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from commbench.errors import UsageError

if TYPE_CHECKING:
    from commbench.harness.rendezvous import Rendezvous
    from commbench.harness.stop import StopFlag
    from commbench.harness.world import World
    from commbench.payloads.buffers import Message
    from commbench.plan import Case


class Capability(enum.Flag):
    """What a channel can do; benchmarks name what they need."""

    REQUEST = enum.auto()  # request with a reply from a remote handler
    ONE_WAY = enum.auto()  # complete without any answer; otherwise every message is acknowledged
    COLLECTIVE = enum.auto()
    WINDOW = enum.auto()  # more than one message in flight
    IOVEC = enum.auto()  # gathers on the wire; otherwise packing is inside the timing
    UNORDERED = enum.auto()  # requests in flight to one peer may arrive in any order
    SERIALIZED = enum.auto()  # has a serialized mode beside raw bytes


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a channel is told before the clock starts (``cb_case``).

    Every buffer used until ``finish`` is in one of the slots, so a channel can pin, register or
    build datatypes for them in ``prepare``. Slots may be the same object several times.

    ``peers``: ranks exchanged with. ``window``: most messages in flight to one peer.
    ``reply_every``: 1: every message has a reply; W: the last of each W; counted per peer.
    ``calls``: message k to or from a peer is call k mod ``calls`` of a step, each of which has a
    length of its own.
    """

    peers: tuple[int, ...]
    window: int
    reply_every: int
    asks: bool
    serves: bool
    request: Sequence[Message]
    reply: Sequence[Message]
    incoming: Sequence[Message]
    answer_nbytes: int
    stop: StopFlag
    calls: int = 1


@dataclass(frozen=True, slots=True)
class Done:
    """A finished ``post``: bytes of the reply that arrived (0 for one-way)."""

    ticket: int
    reply_nbytes: int


@dataclass(slots=True)  # not frozen: making one is part of every message in Python
class Incoming:
    """A request that arrived in ``message``; with ``wants_reply`` it must be answered."""

    ticket: int
    peer: int
    wants_reply: bool
    message: Message


class Answer(enum.Enum):
    """What a handler may return instead of a message."""

    DEFER = "defer"
    LATER = "later"  # inline only: the next handler's; until then the channel keeps it as arrived


class Handler(Protocol):
    """What a server does with a request (``cb_handler_ops``)."""

    def on_request(self, incoming: Incoming) -> Message | Answer:
        """The answer, or ``Answer.DEFER`` when ``next_ready`` will hand it out later.

        Called inline, it may come from several threads at once.
        """

    def next_ready(self) -> tuple[int, Message] | None:
        """A deferred ticket whose answer is ready now, or None."""


class NativeEngine(Protocol):
    """Holds the PyCapsule ``commbench.engine.v1`` and keeps its owner alive."""

    @property
    def capsule(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Option:
    """One ``-o name=value`` of a channel: its default and what is allowed."""

    default: str
    help: str
    choices: tuple[str, ...] = field(default=())


class Channel(ABC):
    """One way to move messages between ranks."""

    name: ClassVar[str]
    capabilities: ClassVar[Capability]
    options: ClassVar[Mapping[str, Option]] = {}
    launcher: ClassVar[str] = "process"  # "mpi": its ranks must be started by an MPI launcher
    threads: ClassVar[bool] = False  # True: threads of its own move data
    ranks_inside: ClassVar[bool] = False  # True: one rank asks and serves itself (loopback)
    loops: ClassVar[tuple[str, ...]] = ("native", "python")  # that it may have
    benchmarks: ClassVar[tuple[str, ...]] = ()  # that it is for; (): for all

    @classmethod
    def missing(cls) -> str | None:
        """None if usable on this machine, else one line: what is missing and what brings it."""
        return None

    @classmethod  # noqa: B027 - most have no limit
    def check_payload(cls, sizes: Sequence[int], serialized: bool) -> None:
        """Raises UsageError, naming the limit, when a message of these buffers cannot be sent."""

    @classmethod
    @abstractmethod
    def open(cls, world: World, rendezvous: Rendezvous, options: Mapping[str, str]) -> Self:
        """Connect to every other rank. Collective. ``options`` went through ``check_options``.

        Raises ChannelUnavailable, UsageError (an option that cannot be), TransferError.
        """

    def begin(self, loop: str) -> None:  # noqa: B027 - most have nothing to do
        """The next cases of this rank run in this loop, "native" or "python". Collective, between
        cases and before any: where it matters, the channel must ask the other ranks."""

    @abstractmethod
    def prepare(self, exchange: Exchange) -> None:
        """Get ready for one case; undone by ``finish``. A barrier follows each."""

    @abstractmethod
    def finish(self) -> None:
        """End the case: nothing is in flight, no buffer is referenced any more."""

    @abstractmethod
    def post(self, peer: int, ticket: int, request: Message, reply: Message | None) -> bool:
        """Start sending; False when the window is full. ``reply`` None: one-way."""

    @abstractmethod
    def poll(self, timeout_s: float) -> Sequence[Done]:
        """Finished operations in any order; empty when none came in time."""

    @abstractmethod
    def exchange(self, peer: int, request: Message, reply: Message, timeout_s: float) -> int:
        """One blocking round trip with nothing else in flight; bytes of the reply."""

    @abstractmethod
    def accept(self, limit: int, timeout_s: float) -> Sequence[Incoming]:
        """Arrived requests, any peer; empty when none came in time."""

    @abstractmethod
    def answer(self, ticket: int, answer: Message) -> None:
        """Answer a ticket that wants a reply, at any time and in any order."""

    @abstractmethod
    def progress(self, timeout_s: float) -> bool:
        """Wait until ``poll`` or ``accept`` has something; False when nothing came in time."""

    def settle(self, peers: Sequence[int], timeout_s: float) -> None:  # noqa: B027 - most need none
        """Called on every rank of a case after each block, before any other wait.

        A library that moves data only inside its own calls waits here until each of ``peers`` has
        ended its block too; otherwise what it still has to send would wait for ever. Raises
        TransferError when one did not within ``timeout_s``, Interrupted when the run was stopped.
        """

    def serve_inline(self, handler: Handler | None) -> bool:
        """Call ``handler`` on the channel's own threads from now on (None: stop doing so).

        One call at a time: ``on_request`` for each request, and ``next_ready`` after one that was
        deferred until there is no more. False (the default): this channel serves through
        ``accept`` and ``answer`` only.
        """
        return False

    def copied(self) -> int:
        """Payload bytes that this rank's channel and its framing have copied so far, in Python:
        packing, unpacking, serializing. What a kernel or a library does inside its own calls is not
        known and not in it; an engine counts its own (``cb_channel_ops.copied``)."""
        return 0

    def native(self) -> NativeEngine | None:
        """The engine that a native loop drives, or None."""
        return None

    @abstractmethod
    def describe(self) -> dict[str, str | int | float]:
        """Device, link layer, MTU, library versions and every option in force."""

    @abstractmethod
    def close(self) -> None:
        """Free everything; may be called twice."""

    @classmethod
    def check_options(cls, given: Mapping[str, str]) -> dict[str, str]:
        """All options with their defaults filled in; UsageError names what is wrong."""
        for key, value in given.items():
            if key not in cls.options:
                allowed = ", ".join(sorted(cls.own_options())) or "none"
                raise UsageError(
                    f"-o {key}={value}: channel {cls.name} has no such option; it has: {allowed}"
                )
            choices = cls.options[key].choices
            if choices and value not in choices:
                allowed = ", ".join(choice or "nothing" for choice in choices)
                raise UsageError(f"-o {key}={value}: allowed for channel {cls.name}: {allowed}")
        return {key: given.get(key, option.default) for key, option in cls.options.items()}

    @classmethod
    def own_options(cls) -> Mapping[str, Option]:
        """Those that ``-o`` sets: not ``mode`` where ``--mode`` does."""
        if Capability.SERIALIZED not in cls.capabilities:
            return cls.options
        return {key: option for key, option in cls.options.items() if key != "mode"}

    @classmethod
    def check_loop(cls, loop: str) -> None:
        """UsageError for what ``--loop`` may not be here."""
        if loop not in ("auto", *cls.loops):
            raise UsageError(
                f"--loop {loop}: channel {cls.name} has {cls.loops[0]} loops only; "
                f"allowed: auto, {cls.loops[0]}"
            )

    @classmethod
    def check_benchmark(cls, benchmark: str) -> None:
        """UsageError unless the channel is for this benchmark."""
        if cls.benchmarks and benchmark not in cls.benchmarks:
            raise UsageError(
                f"-C {cls.name}: allowed for the benchmark {', '.join(cls.benchmarks)}; given: "
                f"{benchmark}"
            )

    @classmethod  # noqa: B027 - most can do every case
    def check_case(cls, case: Case) -> None:
        """UsageError, naming the flag, for a case that the channel cannot do; its options, mode,
        loop, payload and benchmark are checked."""

    @classmethod
    def brokers_elsewhere(cls, options: Mapping[str, str]) -> bool:
        """Whether the brokers of the benchmark ``broker`` are no ranks of the run."""
        return False

    @classmethod
    def check_mode(cls, mode: str) -> None:
        """UsageError unless the channel has this mode."""
        if mode == "serialized" and Capability.SERIALIZED not in cls.capabilities:
            raise UsageError(
                f"--mode {mode}: channel {cls.name} has no serialized mode; "
                f"allowed for it: non-serialized"
            )
