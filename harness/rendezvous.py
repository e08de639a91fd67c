"""Becoming a rank: find the hub, prove the token, and learn who the others are."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from commbench.errors import TransferError, UsageError
from commbench.harness import contact as contacts
from commbench.harness import interfaces
from commbench.harness.client import GRACE_S, Rendezvous, failure, leave, tell
from commbench.harness.contact import Contact, Meeting
from commbench.harness.hub import Hub
from commbench.harness.wire import JSON, Frames, Message, encode
from commbench.harness.world import UNKNOWN, World, detect

__all__ = ["GRACE_S", "JOIN_TIMEOUT_S", "JSON", "Rendezvous", "enter", "join", "leave", "tell"]

JOIN_TIMEOUT_S = 30.0
_VERDICT_S = 3.0  # the hub's own deadline first, so that its line names the missing ranks


def join(
    rendezvous: str | None = None,
    interface: str | None = None,
    token_file: str | None = None,
    join_timeout_s: float | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[World, Rendezvous]:
    """This process's world and its connection; started alone: a world of one.

    Arguments are the flags; None: COMMBENCH_RENDEZVOUS, COMMBENCH_TOKEN_FILE and
    COMMBENCH_JOIN_TIMEOUT, or the defaults. Raises UsageError, ChannelUnavailable, TransferError;
    within the join timeout on every rank, naming the ranks that are missing.
    """
    environ = os.environ if environ is None else environ
    world = detect(environ) or World(0, 1, 0, 1, "none")
    world = replace(world, interface=interface)
    timeout_s = join_timeout(join_timeout_s, environ)
    if world.size == 1:
        return _meet(world, _Alone(), timeout_s)
    explicit = rendezvous or environ.get("COMMBENCH_RENDEZVOUS")
    secret = token_file or environ.get("COMMBENCH_TOKEN_FILE")
    meeting = contacts.choose(world, explicit, secret, environ, timeout_s)
    try:
        if isinstance(meeting, contacts.FixedMeeting):
            return _meet_at(world, meeting.find(0), timeout_s)
        return _meet(world, meeting, timeout_s, local="COMMBENCH_LAUNCH_DIR" in environ)
    finally:
        meeting.close()


def join_timeout(flag: float | None, environ: Mapping[str, str]) -> float:
    """Seconds, from the flag, COMMBENCH_JOIN_TIMEOUT or the default. Raises UsageError."""
    text = environ.get("COMMBENCH_JOIN_TIMEOUT", "")
    try:
        value = flag if flag is not None else float(text or JOIN_TIMEOUT_S)
    except ValueError:
        value = -1.0
    if not 0 < value <= 86400:
        raise UsageError(
            f"--join-timeout {text if flag is None else flag}: must be seconds, "
            f"above 0 and at most 86400"
        )
    return value


class _Alone:
    """A world of one has nobody to tell."""

    def publish(self, contact: Contact) -> None: ...

    def find(self, deadline: float) -> Contact:
        raise AssertionError("rank 0 never looks")

    def close(self) -> None: ...


def _meet(
    world: World, meeting: Meeting, timeout_s: float, local: bool = False
) -> tuple[World, Rendezvous]:
    deadline = time.monotonic() + timeout_s
    if world.rank != 0:
        return enter(world, lambda: meeting.find(deadline), deadline)
    addresses = contacts.addresses_to_listen(world.interface, local or world.size == 1)
    listeners = contacts.listen(addresses, 0, "--interface")
    contact = Contact(contacts.endpoints(listeners), contacts.new_token())
    hub = Hub(listeners, contact.token, world.size, join_timeout_s=timeout_s)
    try:
        meeting.publish(contact)
        return enter(world, lambda: contact, deadline, hub)
    except BaseException:
        hub.close(0)
        raise


def _meet_at(world: World, contact: Contact, timeout_s: float) -> tuple[World, Rendezvous]:
    """HOST:PORT: rank 0 listens there, and only there."""
    deadline = time.monotonic() + timeout_s
    hub = None
    if world.rank == 0:
        ((host, port),) = contact.endpoints
        hub = Hub(
            contacts.listen([numeric(host, "--rendezvous")], port, "--rendezvous"),
            contact.token,
            world.size,
            join_timeout_s=timeout_s,
        )
    try:
        return enter(world, lambda: contact, deadline, hub)
    except BaseException:
        if hub is not None:
            hub.close(0)
        raise


def numeric(host: str, flag: str) -> str:
    """The address of a host by its name. Raises UsageError naming ``flag``."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise UsageError(f"{flag} {host}: {error.strerror}") from None


# ---------------------------------------------------------------------- entering


def enter(
    world: World, find: Callable[[], Contact], deadline: float, hub: Hub | None = None
) -> tuple[World, Rendezvous]:
    """Connect to the hub, join, and wait for the welcome."""
    source = interfaces.resolve(world.interface) if world.interface else None
    connection, contact = contacts.connect(find, source, deadline)
    frames = Frames()
    try:
        connection.sendall(
            contact.token.encode()
            + encode(
                {"op": "join", "rank": world.rank, "size": world.size, "host": socket.gethostname()}
            )
        )
        welcome, rest = _welcome(connection, frames, contact, deadline + _VERDICT_S)
    except BaseException:
        connection.close()
        raise
    made = Rendezvous(connection, frames, world.rank, welcome, contact.token, hub, rest)
    return _complete(world, made.hosts), made


def _welcome(
    connection: socket.socket, frames: Frames, contact: Contact, deadline: float
) -> tuple[Message, list[Message]]:
    data: bytes | None = None
    with contextlib.suppress(OSError, ValueError):
        while (left := deadline - time.monotonic()) > 0 and data != b"":
            connection.settimeout(left)
            data = connection.recv(1 << 16)
            messages = frames.feed(data)
            if messages:
                return _admitted(messages[0]), messages[1:]
    if data is None and time.monotonic() >= deadline:
        raise TransferError(f"the rendezvous at {contact} accepted this rank but never answered")
    raise TransferError(
        f"the rendezvous at {contact} refused this rank: its token is not the "
        f"token of that run, or that run is over"
    )


def _admitted(message: Message) -> Message:
    if message["op"] == "welcome":
        return message
    if message["op"] == "refused":
        raise UsageError(f"the rendezvous refused this rank: {message['message']}")
    raise failure(
        {"rank": None, "host": "", "message": "the run ended before it began", "exit_code": 5}
        | message
    )


def _complete(world: World, hosts: tuple[str, ...]) -> World:
    here = [rank for rank, host in enumerate(hosts) if host == hosts[world.rank]]
    local_rank, local_size = world.local_rank, world.local_size
    if UNKNOWN in (local_rank, local_size):
        local_rank, local_size = here.index(world.rank), len(here)
    return replace(world, local_rank=local_rank, local_size=local_size, hosts=hosts)
