"""A server that can be killed and started again in no time: what its clients connect to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.support.services import SwiftAccess
from tests.support.waiting import free_port

_HOST = "127.0.0.1"


class Relay:
    """Passes on what clients and the server behind it send.

    Killed, it ends all connections, as the kernel does for a server that is killed, and refuses
    new ones until it is started again. Other clients of the server notice nothing.
    """

    def __init__(self, port: int) -> None:
        """Prepare to pass on to the `port` of this machine."""
        self.port = free_port()
        self._server = (_HOST, port)
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Listen, also again."""
        self._listener = socket.create_server((_HOST, self.port), backlog=128)
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def kill(self) -> None:
        """End all connections, and refuse new ones."""
        with self._lock:
            if self._listener is not None:
                _end(self._listener)
                self._listener = None
            for one in self._open:
                _end(one)
            self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # killed
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._server)
                with self._lock:
                    self._open |= {client, server}
                    if self._listener is not listener:  # killed meanwhile
                        _end(client)
                        _end(server)
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):  # one of them has ended
            while data := one.recv(1 << 16):
                other.sendall(data)
        with self._lock:
            for end in (one, other):
                if end in self._open:
                    self._open.remove(end)
                    _end(end)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is not connected any more
        one.shutdown(socket.SHUT_RDWR)  # whoever waits for it returns
    one.close()


class MortalSwift:
    """A way to the Swift of the run that can be killed: see :class:`Relay`.

    Attributes:
        access: how to log in by this way.
    """

    def __init__(self, cluster: SwiftAccess) -> None:
        port = urlsplit(cluster["auth_url"]).port
        assert port is not None
        self._relay = Relay(port)
        url = cluster["auth_url"].replace(f":{port}/", f":{self._relay.port}/")
        self.access: SwiftAccess = {**cluster, "auth_url": url}
        self.start = self._relay.start
        self.kill = self._relay.kill


@pytest.fixture
def mortal_swift(swift_cluster: SwiftAccess) -> Iterator[MortalSwift]:
    """The Swift of the run, which the test may kill and start again: use containers of your own.

    What Swift tells its clients to use is what they asked, so all they do goes this way.
    """
    found = MortalSwift(swift_cluster)
    found.start()
    yield found
    found.kill()
