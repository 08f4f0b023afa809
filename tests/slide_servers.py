"""Servers on loopback that slides are fetched from, well behaved and not."""

import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answering = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One request; answered by what its server holds under the path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802
        """Answer."""
        server: SlideServer = self.server.owner
        path = self.path.partition("?")[0]
        server.asked[path] += 1
        server.headers.append(self.headers)
        self.close_connection = True
        content = server.content.get(path)
        try:
            if callable(content):
                content(self)
            elif content is None:
                self.head(404, {"Content-Length": "0"})
            else:
                self.head(200, {"Content-Length": str(len(content))})
                self.wfile.write(content)
        except OSError:
            server.cut_off.set()

    def head(self, status: int, headers: dict[str, str]) -> None:
        """Send status and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silent."""


class SlideServer:
    """What is served by path, and what was asked.

    Attributes:
        content: path → bytes, or what answers.
        url, place: `http://127.0.0.1:{port}`, `127.0.0.1:{port}`.
        asked: requests by path. headers: of all of them.
        cut_off: a client has hung up. go: handlers that wait go on.
    """

    def __init__(self, server: ThreadingHTTPServer):
        self.port = server.server_port
        self.place = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.place}"
        self.content: dict[str, bytes | Answering] = {}
        self.asked: Counter[str] = Counter()
        self.headers: list[Message] = []
        self.cut_off, self.go = threading.Event(), threading.Event()

    def held(self, content: bytes) -> Answering:
        """Half of it, and the rest when `go` is set."""

        def answer(handler: Handler) -> None:
            handler.head(200, {"Content-Length": str(len(content))})
            handler.wfile.write(content[: len(content) // 2])
            self.go.wait(20)
            handler.wfile.write(content[len(content) // 2 :])

        return answer


@contextmanager
def slide_server(secure: ssl.SSLContext | None = None) -> Iterator[SlideServer]:
    """A server until the context ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if secure is not None:
        server.socket = secure.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None
    server.owner = owner = SlideServer(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield owner
    finally:
        owner.go.set()
        server.shutdown()
        server.server_close()
        thread.join()


def cut(content: bytes) -> Answering:
    """Promises more than it sends."""

    def answer(handler: Handler) -> None:
        handler.head(200, {"Content-Length": str(len(content) + 1000)})
        handler.wfile.write(content)

    return answer


def chunked(content: bytes, end: bool = True) -> Answering:
    """In chunks, with or without the last."""

    def answer(handler: Handler) -> None:
        handler.head(200, {"Transfer-Encoding": "chunked"})
        for start in range(0, len(content), 5000):
            piece = content[start : start + 5000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if end:
            handler.wfile.write(b"0\r\n\r\n")

    return answer


def endless(pause_s: float, piece: bytes = b"x") -> Answering:
    """Pieces for ever."""

    def answer(handler: Handler) -> None:
        handler.head(200, {"Transfer-Encoding": "chunked"})
        while True:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            time.sleep(pause_s)

    return answer


def slow_head(handler: Handler) -> None:
    """A header a while, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X-More: 1\r\n")
        time.sleep(0.1)


def status(code: int, **headers: str) -> Answering:
    """A status and nothing else."""
    return lambda handler: handler.head(code, {"Content-Length": "0", **headers})


def series(instances: Sequence[bytes], boundary: str = "part", tail: bytes = b"--", kind: str = "application/dicom",
           content_type: str | None = None, part_head: bytes = b"") -> Answering:  # fmt: skip
    """A WADO-RS origin server's answer (PS3.18 §10.4), or one that is wrong in a way."""

    def answer(handler: Handler) -> None:
        if "multipart/related" not in handler.headers["Accept"] or "transfer-syntax=*" not in handler.headers["Accept"]:
            return handler.head(406, {"Content-Length": "0"})
        head = b"\r\n--%s\r\nContent-Type: %s\r\n%s\r\n" % (boundary.encode(), kind.encode(), part_head)
        body = b"".join(head + instance for instance in instances) + b"\r\n--%s%s" % (boundary.encode(), tail)
        form = content_type or f'multipart/related; type="application/dicom"; boundary="{boundary}"'
        handler.head(200, {"Content-Type": form, "Content-Length": str(len(body))})
        handler.wfile.write(body)
        return None

    return answer
