"""A file behind https: whole, or not at all and said why."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.certificates import make_certificate
from tests.slide_servers import SlideServer, chunked, cut, endless, slide_server, slow_head, status
from worker.errors import BadRequest, SlideFetchFailed
from worker.fetch_https import fetch_file
from worker.outbound import Outbound
from worker.transfer import Transfer

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def server() -> Iterator[SlideServer]:
    with slide_server() as running:
        yield running


@pytest.fixture
def fetch(server: SlideServer, tmp_path: Path) -> Callable[..., Path]:
    def run(content, limit_bytes: int = 10**6, stall_s: float = 5.0, query: str = "") -> Path:
        server.content["/slide.svs"] = content
        target = tmp_path / "slide.svs"
        transfer = Transfer(limit_bytes, stall_s, tmp_path)
        with watching(transfer):
            fetch_file(Outbound(inside=(server.place,)), f"{server.url}/slide.svs{query}", target, transfer)
        assert transfer.done == target.stat().st_size
        return target

    return run


class watching:  # noqa: N801
    """Stops a transfer that stalls, as the gateway does."""

    def __init__(self, transfer: Transfer):
        self.transfer, self.over = transfer, threading.Event()

    def __enter__(self) -> None:
        self.watched = self.transfer.watched()
        self.watched.__enter__()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self) -> None:
        while not self.over.wait(0.05):
            if self.transfer.stalled():
                self.transfer.stop("too slow")

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        self.watched.__exit__(*error)


@pytest.mark.parametrize("content", [CONTENT, chunked(CONTENT)])
def test_a_file_comes_whole(fetch: Callable, content) -> None:
    assert fetch(content).read_bytes() == CONTENT


def test_the_query_goes_along_and_no_credentials_do(fetch: Callable, server: SlideServer) -> None:
    seen: list[str] = []

    def answer(handler) -> None:
        seen.append(handler.path)
        handler.head(200, {"Content-Length": "1"})
        handler.wfile.write(b"x")

    fetch(answer, query="?X-Amz-Signature=abc")
    assert seen == ["/slide.svs?X-Amz-Signature=abc"]
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "nothing at this address"),
        (status(302, Location="http://127.0.0.1:1/elsewhere"), "redirect.*not followed"),
        (status(403), "refuses access"),
        (status(500), "does not give the slide .500"),
        (status(206), "does not give the slide"),
        (cut(CONTENT), "broke off after 256000 of 257000"),
        (chunked(CONTENT, end=False), "broke off"),
        (lambda handler: handler.head(200, {}), "does not say how long"),
        (lambda handler: handler.head(200, {"Content-Length": "5", "Content-Encoding": "gzip"}), "packs"),
        (lambda handler: handler.wfile.write(b"SSH-2.0\r\n\r\n"), "did not answer in HTTP"),
        (lambda handler: None, "cannot be reached|did not answer"),
    ],
)
def test_what_does_not_come_whole_fails_and_says_why(fetch: Callable, server: SlideServer, content, why: str) -> None:
    if content is None:
        server.content.clear()
    with pytest.raises(SlideFetchFailed, match=why) as caught:
        fetch(content, query="?secret=abc")
    assert "abc" not in caught.value.message and "slide.svs" not in caught.value.message
    assert caught.value.field == "slide"


@pytest.mark.parametrize("content", [CONTENT, chunked(CONTENT), endless(0.0, b"x" * 1000)])
def test_too_large_ends_before_it_has_come(fetch: Callable, tmp_path: Path, content) -> None:
    with pytest.raises(SlideFetchFailed, match="larger than 100000 bytes"):
        fetch(content, limit_bytes=100_000)
    target = tmp_path / "slide.svs"
    assert not target.exists() or target.stat().st_size <= 100_000


@pytest.mark.parametrize("content", [endless(0.05), slow_head])
def test_a_server_that_only_keeps_the_line_open_is_left(fetch: Callable, server: SlideServer, content) -> None:
    began = time.monotonic()
    with pytest.raises(SlideFetchFailed, match="too slow"):
        fetch(content, stall_s=0.5)
    assert time.monotonic() - began < 5
    assert server.cut_off.wait(5), "the connection is closed"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_by_tls_the_certificate_must_be_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, certificate = make_certificate(tmp_path, "a.inside")
    with slide_server(context) as server:

        def fetch(host: str, name: str) -> bytes:
            rules, target = Outbound(inside=(host,)), tmp_path / name
            transfer = Transfer(10**6, 0.5, tmp_path)
            with watching(transfer):
                url = f"https://{host}:{server.port}/slide.svs"
                fetch_file(rules, url, target, transfer, resolve=lambda _host, _port: ["127.0.0.1"])
            return target.read_bytes()

        server.content["/slide.svs"] = CONTENT
        with pytest.raises(SlideFetchFailed, match="TLS: CERTIFICATE_VERIFY_FAILED"):
            fetch("a.inside", "unknown")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch("a.inside", "known") == CONTENT
        with pytest.raises(SlideFetchFailed, match="TLS: CERTIFICATE_VERIFY_FAILED"):
            fetch("b.inside", "other")
        server.content["/slide.svs"] = endless(0.05)
        with pytest.raises(SlideFetchFailed, match="too slow"):
            fetch("a.inside", "slow")


def test_a_silent_server_is_left(fetch: Callable, server: SlideServer) -> None:
    with pytest.raises(SlideFetchFailed, match="too slow|sent nothing"):
        fetch(server.held(CONTENT), stall_s=0.5)


def test_no_room_is_seen_before_it_is_full(fetch: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.transfer.SPARE_BYTES", 1 << 60)
    with pytest.raises(SlideFetchFailed, match="no room"):
        fetch(CONTENT)


@pytest.mark.parametrize(
    ("rules", "url", "resolved", "why"),
    [
        (Outbound(), "https://slides.example/a.svs", "93.184.215.14", "does not hold"),
        (Outbound(hosts=("slides.example",)), "http://slides.example/a.svs", "93.184.215.14", "must be https"),
        (Outbound(hosts=("slides.example",)), "https://slides.example/a.svs", "10.0.0.1", "not public"),
        (Outbound(hosts=("slides.example",)), "https://slides.example/a.svs", "169.254.169.254", "not public"),
        (Outbound(hosts=("*",)), "https://user:s3cr3t@slides.example/a.svs", "93.184.215.14", "no user name"),
    ],
)
def test_what_may_not_be_asked_is_not(rules: Outbound, url: str, resolved: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=why) as caught:
        fetch_file(rules, url, tmp_path / "x", Transfer(10, 1.0, tmp_path), resolve=lambda _host, _port: [resolved])
    assert caught.value.field == "slide" and "s3cr3t" not in caught.value.message


def test_a_name_that_leads_nowhere_fails(tmp_path: Path) -> None:
    def nowhere(_host: str, _port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    rules = Outbound(hosts=("slides.example",))
    with pytest.raises(SlideFetchFailed, match="slides.example cannot be reached: Name or service not known"):
        fetch_file(rules, "https://slides.example/a", tmp_path / "x", Transfer(10, 1.0, tmp_path), resolve=nowhere)
