"""A TCP proxy on loopback that can break: cut all connections and refuse new ones, or keep them and pass nothing on."""

import contextlib
import socket
import threading
from collections.abc import Callable

from tests.servers import free_port

Connect = Callable[[], socket.socket]
_BLOCK_BYTES = 2**16


class Proxy:
    """Passes bytes on to whatever `connect` reaches."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self.port = free_port()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Every connection breaks; new ones are closed at once."""
        self._refusing = True
        with self._lock:
            broken, self._open = self._open, set()
        for end in broken:
            _shut(end)

    def stall(self) -> None:
        """Connections stay and bytes go nowhere, as when a cable is out."""
        self._flowing.clear()

    def mend(self) -> None:
        """As if nothing had been."""
        self._refusing = False
        self._flowing.set()

    def close(self) -> None:
        """Let go of everything."""
        self._listener.close()
        self.cut()
        self._flowing.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._refusing:
            _shut(client)
            return
        try:
            server = self._connect()
        except OSError:
            _shut(client)
            return
        with self._lock:
            self._open |= {client, server}
        back = threading.Thread(target=self._pass, args=(server, client), daemon=True)
        back.start()
        self._pass(client, server)
        back.join()
        with self._lock:
            self._open -= {client, server}
        for end in (client, server):
            end.close()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(_BLOCK_BYTES):
                self._flowing.wait()
                target.sendall(block)
        for end in (source, target):
            _shut(end)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def to_unix(path: str) -> Connect:
    """Connects to a socket file."""

    def connect() -> socket.socket:
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(5)
        end.connect(path)
        end.settimeout(None)
        return end

    return connect


def to_port(port: int) -> Connect:
    """Connects to a port of loopback."""

    def connect() -> socket.socket:
        end = socket.create_connection(("127.0.0.1", port), timeout=5)
        end.settimeout(None)
        return end

    return connect
