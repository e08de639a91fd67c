"""Two shells instead of a launcher: ``commbench serve`` there, ``commbench run --peer`` here.

The serving side hosts the hub and is rank 1; the running side is rank 0, has the plan and prints.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from dataclasses import replace
from pathlib import Path

from commbench.errors import TransferError, UsageError
from commbench.harness import contact as contacts
from commbench.harness.contact import Contact
from commbench.harness.hub import Hub
from commbench.harness.rendezvous import Rendezvous, enter, join_timeout, numeric
from commbench.harness.world import UNKNOWN, World

SERVE_TIMEOUT_S = 3600.0
_RUNNER, _SERVER = 0, 1


class Serving:
    """A listening rank 1. ``line`` is what to type on the other host. Use ``close`` at the end.

    ``port`` 0: drawn. ``token_file`` None: a new one in the current folder; one that is there is
    used, one that is not is written, readable by its owner only.
    Raises UsageError: no such interface, port taken, unusable token file.
    """

    def __init__(
        self, interface: str | None = None, port: int = 0, token_file: str | None = None
    ) -> None:
        if not 0 <= port < 65536:
            raise UsageError(f"--port {port}: must be 1 to 65535, or 0 for any free one")
        self._interface = interface
        addresses = contacts.addresses_to_listen(interface, local=False)
        self._listeners = contacts.listen(addresses, port, "--port")
        self._contact = Contact(contacts.endpoints(self._listeners), "")
        self._hub: Hub | None = None
        try:
            self._secret = self._prepare_secret(token_file)
        except BaseException:
            contacts.close_all(self._listeners)
            raise

    def _prepare_secret(self, token_file: str | None) -> str:
        self._written = token_file is None or not Path(token_file).exists()
        self.token_file = token_file or f"commbench-{os.getpid()}.token"
        if self._written:
            contacts.write_secret(self.token_file)
        return contacts.read_token(self.token_file)

    @property
    def line(self) -> str:
        """The command for the other host; the token file must be copied there."""
        host, port = self._contact.endpoints[0]
        peer = contacts.show(host, port)
        return f"commbench run --peer {peer} --token-file {shlex.quote(self.token_file)}"

    def join(self, timeout_s: float = SERVE_TIMEOUT_S) -> tuple[World, Rendezvous]:
        """Wait for the runner; TransferError when none came in time."""
        contact = replace(self._contact, token=self._secret)
        hub = Hub(self._listeners, contact.token, 2, rank=_SERVER, join_timeout_s=timeout_s)
        self._hub = hub
        joined = enter(
            _world(_SERVER, self._interface), lambda: contact, time.monotonic() + timeout_s, hub
        )
        self._forget_secret()
        return joined

    def close(self) -> None:
        """Stop listening and remove the token file if it is ours; may be called twice."""
        if self._hub is not None:
            self._hub.close(0)
        contacts.close_all(self._listeners)
        self._forget_secret()

    def _forget_secret(self) -> None:
        """The file was for one run; one that was there before stays."""
        if self._written:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.token_file)


def dial(
    peer: str,
    token_file: str | None,
    interface: str | None = None,
    join_timeout_s: float | None = None,
) -> tuple[World, Rendezvous]:
    """Join a ``Serving`` as rank 0. Raises UsageError, TransferError."""
    host, port = contacts.parse_endpoint(peer, "--peer")
    if token_file is None:
        raise UsageError(f"--peer {peer}: needs --token-file FILE, the file that serve has written")
    contact = Contact(((numeric(host, "--peer"), port),), contacts.read_token(token_file))
    deadline = time.monotonic() + join_timeout(join_timeout_s, os.environ)
    try:
        return enter(_world(_RUNNER, interface), lambda: contact, deadline)
    except TransferError as error:
        reason = str(error).removeprefix("rank 0 never connected: ")
        raise TransferError(f"--peer {peer}: {reason}") from None


def _world(rank: int, interface: str | None) -> World:
    return World(rank, 2, UNKNOWN, UNKNOWN, "peer", interface=interface)
