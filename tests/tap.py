"""A tap in a TCP connection: what goes through it can be looked at."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self


class Tap:
    """Listens on loopback and passes all connections on to ``target`` ("host:port")."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.sent = bytearray()  # towards the target
        self._sockets: list[socket.socket] = [self._listener]

    @property
    def upstream(self) -> int:
        return len(self.sent)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._sockets:
            _shut(each)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                came, _ = self._listener.accept()
                went = socket.create_connection(self._target, 10.0)
            except OSError:
                return
            self._sockets += [came, went]
            for one, other, keep in ((came, went, True), (went, came, False)):
                threading.Thread(target=self._pass, args=(one, other, keep), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, keep: bool) -> None:
        with suppress(OSError):
            while piece := one.recv(1 << 16):
                if keep:
                    self.sent += piece
                other.sendall(piece)
        for each in (one, other):
            _shut(each)


def _shut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
