"""A server on this machine that answers as it is told, or does not."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# From the number of the request and its JSON: a status, headers and a body; None: the connection is reset.
Answer = Callable[[int, Any], tuple[int, dict[str, str], bytes] | None]


class Server:
    """What was asked, in order, and at which address."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most_at_once = 0


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    lock, under_way = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.headers.append(dict(self.headers))
                server.times.append(time.monotonic())
                under_way[0] += 1
                server.most_at_once = max(server.most_at_once, under_way[0])
            try:
                given = answer(number, body)
                if given is None:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    self.close_connection = True
                    return
                status, headers, content = given
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                # Who asked has gone.
                self.close_connection = True
            finally:
                with lock:
                    under_way[0] -= 1

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing to say."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A connection that was reset."""

    listening = Quiet(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listening.server_port}/score")
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()


def says(value: Any, *, status: int = 200, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return status, {name.replace("_", "-"): text for name, text in headers.items()}, json.dumps(value).encode()


def lengths(number: int, body: Any) -> tuple[int, dict[str, str], bytes]:
    """Scores every response by its length."""
    return says([len(text) for text in body["responses"]])
