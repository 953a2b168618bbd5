"""What a download is measured against: one file over HTTP by sendfile, and nothing else."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serve_file(path: Path) -> Iterator[int]:
    """A port of loopback that answers every request with the file."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, path.open("rb") as file:
                connection.recv(65536)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {path.stat().st_size}\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode())
                connection.sendfile(file)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
