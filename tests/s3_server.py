"""An S3-compatible server for tests: moto in a child process on a loopback port, which can be told to fail.

    with S3Server() as server:
        artifacts = open_artifacts(server.url("results/here"))   # with server.environment in os.environ

Run as a module it is that child: it prints its port, and ends when its standard input does.
"""

import os
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

CONTROL = "/_test/"
KEY = "tests"


class S3Server:
    """A server with no buckets, gone when the block is left.

    Attributes:
        pid: of the child.
        endpoint: `http://127.0.0.1:{port}`.
    """

    def __enter__(self) -> "S3Server":
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.s3_server"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._child.pid
        self.endpoint = f"http://127.0.0.1:{int(self._child.stdout.readline())}"
        return self

    def __exit__(self, *_) -> None:
        self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()

    @property
    def environment(self) -> dict[str, str]:
        """What a client of this server has in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def url(self, place: str) -> str:
        """`bucket/prefix` as `s3://bucket/prefix`; the bucket is made when it is new."""
        self._ask("PUT", "/" + place.partition("/")[0])
        return f"s3://{place}"

    def fail(self, on: bool | str = True, status: int = 500) -> None:
        """Answer `status` to every request until switched off; a string fails only requests whose path contains it."""
        self._ask("POST", f"{CONTROL}fail?{status}{on if isinstance(on, str) else '/' if on else ''}")

    def requests(self) -> Counter:
        """How many requests of each method were answered since this was asked last."""
        lines = self._ask("POST", f"{CONTROL}requests").split()
        return Counter(dict(zip(lines[::2], map(int, lines[1::2]), strict=True)))

    def _ask(self, method: str, path: str) -> str:
        request = urllib.request.Request(self.endpoint + path, method=method, data=b"")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()


class Switch:
    """WSGI in front of moto: counts, and fails what it is told to."""

    def __init__(self, behind: Callable):
        self._behind = behind
        self._failing, self._status = "", "500"
        self._counts: Counter = Counter()

    def __call__(self, environ: dict[str, Any], start: Callable) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith(CONTROL):
            body = ""
            if path == f"{CONTROL}fail":
                self._status, self._failing = environ["QUERY_STRING"][:3], environ["QUERY_STRING"][3:]
            else:
                body = " ".join(f"{method} {count}" for method, count in self._counts.items())
                self._counts.clear()
            start("200 OK", [("Content-Length", str(len(body)))])
            return [body.encode()]
        self._counts[environ["REQUEST_METHOD"]] += 1
        if self._failing and self._failing in path:
            start(f"{self._status} Told to", [("Content-Length", "0")])
            return [b""]
        return self._behind(environ, start)


def main() -> None:
    """Serve until standard input ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            pass

    moto = Switch(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, moto, threaded=True, request_handler=Quiet)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
