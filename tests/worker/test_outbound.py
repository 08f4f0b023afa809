"""Which addresses may be called, and that a call goes there and nowhere else."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.certificates import make_certificate
from worker.errors import BadRequest
from worker.outbound import Call, Outbound, call, is_public

OPEN = Outbound(hosts=("lis.example.org", "*.lab.example"))
HELLO = Call({"Content-Type": "text/plain"}, b"hello")


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers["Host"], body))
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(b"got it")

    def log_message(self, *_args) -> None: ...


@contextmanager
def receiver() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    "url",
    [
        "http://lis.example.org/hook",
        "https://other.example.org/",
        "https://lab.example/",
        "https://lis.example.org.evil.test/",
        "https://user:secret@lis.example.org/",
        "https://lis.example.org@evil.test/",
        "https://lis.example.org\\@evil.test/",
        "https://lis.example.org/#part",
        "https://lis.example.org:0/",
        "https://lis.example.org:99999/",
        "https://lis.example.org/a b",
        "https://lis.example.org/\r\nX: y",
        "https://läb.example/",
        "ftp://lis.example.org/",
        "file:///etc/passwd",
        "https:///path",
        "https://[::1",
        "https://lis.example.org/" + "a" * 3000,
    ],
)
def test_what_may_not_be_called_is_refused_by_name(url: str):
    with pytest.raises(BadRequest, match="^callback_url ") as caught:
        OPEN.check(url)
    assert caught.value.field == "callback_url"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "0x7f.0.0.1", "1.2.3.4.5"])
def test_an_ip_address_in_disguise_is_refused_even_where_every_host_may_be_called(host: str):
    with pytest.raises(BadRequest, match="usual form"):
        Outbound(hosts=("*",)).check(f"https://{host}/")


def test_what_may_be_called_is_taken_apart():
    target = OPEN.check("https://A.LAB.example:8443/hook?x=1")
    assert (target.scheme, target.host, target.port, target.path) == ("https", "a.lab.example", 8443, "/hook?x=1")
    assert OPEN.check("https://lis.example.org").path == "/"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.3.4",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_addresses_that_are_not_public_are_not_called(address: str):
    assert not is_public(address)
    target = OPEN.check("https://lis.example.org/")
    with pytest.raises(BadRequest, match="not public"):
        call(OPEN, target, HELLO, resolve=lambda _host, _port: ["93.184.215.14", address])


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8"])
def test_public_addresses_are(address: str):
    assert is_public(address)
    assert OPEN.pin(OPEN.check("https://lis.example.org/"), lambda _host, _port: [address]) == address


def test_the_call_goes_to_the_address_that_was_judged_and_resolves_once():
    with receiver() as server:
        answers = [["127.0.0.1"], ["203.0.113.9"]]
        outbound = Outbound(inside=("lis.inside",))
        target = outbound.check(f"http://lis.inside:{server.server_port}/hook?a=b")
        reply = call(outbound, target, HELLO, resolve=lambda _host, _port: answers.pop(0))
        assert (reply.status, reply.body, len(answers)) == (200, b"got it", 1)
        assert server.seen == [("/hook?a=b", f"lis.inside:{server.server_port}", b"hello")]


def test_an_answer_of_the_name_that_changed_to_a_private_address_is_refused():
    answers = [["93.184.215.14"], ["127.0.0.1"]]
    target = OPEN.check("https://lis.example.org/")
    assert OPEN.pin(target, lambda _host, _port: answers.pop(0)) == "93.184.215.14"
    with pytest.raises(BadRequest, match="not public"):
        call(OPEN, target, HELLO, resolve=lambda _host, _port: answers.pop(0))


def test_inside_may_name_one_port_only():
    outbound = Outbound(inside=("127.0.0.1:9000",))
    assert outbound.check("http://127.0.0.1:9000/").port == 9000
    with pytest.raises(BadRequest):
        outbound.check("http://127.0.0.1:9001/")


def test_a_redirect_is_an_answer_and_is_not_followed():
    with receiver() as server:
        outbound = Outbound(inside=("127.0.0.1",))
        reply = call(outbound, outbound.check(f"http://127.0.0.1:{server.server_port}/away"), HELLO)
        assert (reply.status, [path for path, _, _ in server.seen]) == (302, ["/away"])


def test_pieces_are_sent_as_one_body():
    with receiver() as server:
        outbound = Outbound(inside=("127.0.0.1",))
        target = outbound.check(f"http://127.0.0.1:{server.server_port}/")
        assert call(outbound, target, Call({}, iter([b"ab", b"cd"]), 4)).status == 200
        assert server.seen[0][2] == b"abcd"


@pytest.mark.parametrize("trickle", [False, True])
def test_who_hangs_or_trickles_is_left(trickle: bool):
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang() -> None:
            connection, _ = listening.accept()
            with connection:
                while not over.wait(0.02):
                    try:
                        connection.sendall(b"H" if trickle else b"")
                    except OSError:
                        return

        thread = threading.Thread(target=hang, daemon=True)
        thread.start()
        outbound = Outbound(inside=("127.0.0.1",))
        target = outbound.check(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        with pytest.raises(TimeoutError, match=r"longer than 0\.3 s"):
            call(outbound, target, HELLO, limit_s=0.3)
        over.set()
        thread.join()


@contextmanager
def answering(head: bytes) -> Iterator[str]:
    """A server that sends this to the first who calls, and then nothing until it is cut off; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(head)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        thread.join()


@pytest.mark.parametrize("head", [b"", b"HTTP/1.0 200 OK\r\n\r\nhalf an answ"], ids=["silent", "without-length"])
@pytest.mark.parametrize("why", ["stop", "limit"])
def test_a_call_that_is_cut_is_no_answer_whatever_came_of_it(head: bytes, why: str):
    outbound, looks = Outbound(inside=("127.0.0.1",)), iter([False, False, True])
    stop, limit_s = ((lambda: next(looks)), 60.0) if why == "stop" else (None, 0.3)
    with answering(head) as url, pytest.raises(InterruptedError if why == "stop" else TimeoutError):
        call(outbound, outbound.check(url), HELLO, limit_s, stop=stop)


def test_what_is_to_stop_is_not_begun():
    with receiver() as server:
        outbound = Outbound(inside=("127.0.0.1",))
        with pytest.raises(InterruptedError, match="before it began"):
            call(outbound, outbound.check(f"http://127.0.0.1:{server.server_port}/"), HELLO, stop=lambda: True)
        assert server.seen == []


@pytest.mark.parametrize(("length", "whole"), [(5, True), (9, False)])
def test_a_body_that_breaks_off_is_told(length: int, whole: bool):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nhello".encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        outbound = Outbound(inside=("127.0.0.1",))
        reply = call(outbound, outbound.check(f"http://127.0.0.1:{listening.getsockname()[1]}/"), HELLO)
        thread.join()
    assert (reply.status, reply.body, reply.whole) == (200, b"hello", whole)


def test_nobody_there_and_no_http_are_errors_that_may_pass():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    outbound = Outbound(inside=("127.0.0.1",))
    with pytest.raises(OSError, match="did not answer"):
        call(outbound, outbound.check(f"http://127.0.0.1:{port}/"), HELLO)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_must_be_trusted_and_of_the_name_that_was_asked_for(tmp_path: Path, monkeypatch):
    context, certificate = make_certificate(tmp_path, "lis.inside")
    outbound = Outbound(inside=("lis.inside", "other.inside"))
    with receiver() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_args: None

        def status(host: str) -> int:
            target = outbound.check(f"https://{host}:{server.server_port}/")
            return call(outbound, target, HELLO, resolve=lambda _host, _port: ["127.0.0.1"]).status

        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            status("lis.inside")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert status("lis.inside") == 200
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            status("other.inside")


def test_a_token_that_cannot_be_sent_is_not_repeated():
    with receiver() as server:
        outbound = Outbound(inside=("127.0.0.1",))
        target = outbound.check(f"http://127.0.0.1:{server.server_port}/")
        with pytest.raises(OSError) as caught:
            call(outbound, target, Call({"Authorization": "Bearer secret\r\nX: y"}, b""))
        assert "secret" not in str(caught.value) and server.seen == []
