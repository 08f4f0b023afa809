"""An address outside that may be called: which one may, and one call to it.

A client names the address of a webhook, so it is hostile: it may point at the cloud's metadata, at a database of ours,
or at a name whose answer changes between the check and the call. Therefore the name is resolved once, every address it
resolves to is judged, and the connection goes to the one that was judged. Redirects are answers, never followed, and a
proxy of the environment is not asked.
"""

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from worker.errors import BadRequest

MOST_URL_CHARS = 2048
MOST_ANSWER_BYTES = 1 << 20
CALL_S = 20.0
PORTS = {"https": 443, "http": 80}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
LOOK_S = 0.1
"""Seconds between two looks at whether a call is to end."""

Resolve = Callable[[str, int], list[str]]
Stop = Callable[[], bool]
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Outbound:
    """Which addresses may be called.

    Attributes:
        hosts: names that may be called by https while their addresses are public: `lis.example.org`, `*.example.org`
            for every name below it, or `*` for all.
        inside: hosts that the operator knows to stand in the own network: `host` or `host:port`. They may have private
            and loopback addresses, and may be called by http.
    """

    hosts: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()

    def check(self, url: str, name: str = "callback_url") -> "Target":
        """Judge an address by how it is written; nothing is resolved.

        Args:
            url: where somebody wants to be called.
            name: the field or setting it came in, for the error.

        Returns:
            The target, to be given to `call`.

        Raises:
            BadRequest: it may not be called; says what would be accepted.
        """
        target = read_target(url, name)
        if target.place in self.inside or (target.host in self.inside):
            return target
        if target.scheme != "https":
            raise _refused(name, "must be https; http is for hosts that the operator lists as inside")
        if not any(_matches(target.host, host) for host in self.hosts):
            raise _refused(name, f"names the host {target.host!r}, which the operator's list of hosts does not hold")
        return target

    def pin(self, target: "Target", resolve: Resolve | None = None) -> str:
        """The address to connect to.

        Args:
            target: what `check` returned.
            resolve: host and port to addresses; None asks the system.

        Raises:
            BadRequest: one of its addresses is not public and the host is not listed as inside.
            OSError: the name cannot be resolved now.
        """
        found = (resolve or resolve_name)(target.host, target.port)
        if not found:
            raise OSError(f"{target.host} has no address")
        if target.place not in self.inside and target.host not in self.inside:
            for address in found:
                if not is_public(address):
                    detail = "leads to an address that is not public; the operator must list its host as inside"
                    raise _refused(target.name, detail)
        return found[0]


@dataclass(frozen=True)
class Target:
    """An address in parts: `scheme`, lower-case `host`, `port`, `path` with its query; `name` is where it came from."""

    scheme: str
    host: str
    port: int
    path: str
    name: str = "callback_url"

    @property
    def place(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Call:
    """What is sent: `body` is bytes, or pieces that are `length` bytes together."""

    headers: Mapping[str, str]
    body: bytes | Iterable[bytes]
    length: int | None = None
    method: str = "POST"


@dataclass(frozen=True)
class Reply:
    """What came back: status, headers with lower-case names, and as much of the body as may be read.

    `whole` is False when the body broke off before its end, or is longer than may be read.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = True


def call(
    outbound: Outbound, target: Target, what: Call, limit_s: float = CALL_S, resolve: Resolve | None = None,
    stop: Stop | None = None,
) -> Reply:  # fmt: skip
    """Call an address once; no redirect is followed.

    Args:
        outbound: the rules; they are asked about the resolved address again.
        target: what `Outbound.check` returned.
        what: the request.
        limit_s: seconds for all of it, from the connection to the last byte.
        resolve: as in `Outbound.pin`.
        stop: asked before the connection is made and several times a second from then on; once it says yes, the
            connection is cut, whatever was sent. None never does.

    Raises:
        BadRequest: the address may not be called.
        TimeoutError: it took longer.
        InterruptedError: `stop` said yes.
        OSError: nobody answered, or not in HTTP, or not with a certificate for this name.
    """
    address = outbound.pin(target, resolve)
    if stop is not None and stop():
        raise InterruptedError(f"the call of {target.host} was stopped before it began")
    connection = _Pinned(target, address, limit_s)
    with _watched(connection, limit_s, stop) as why:
        try:
            reply = _exchange(connection, target, what)
        except (OSError, http.client.HTTPException, ValueError) as error:
            _require_time(target, limit_s, why or ["limit"] * isinstance(error, TimeoutError))
            # A header that cannot be sent may be a token: then the error's own words would repeat it.
            words = "" if not isinstance(error, (OSError, http.client.HTTPException)) else f": {error}"
            raise OSError(f"{target.host} did not answer in HTTP: {type(error).__name__}{words}"[:300]) from None
        _require_time(target, limit_s, why)  # a body without a length looks whole when it was cut
    return reply


def open_connection(outbound: Outbound, target: Target, limit_s: float, resolve: Resolve | None = None) -> "_Pinned":
    """A connection to where a target may be called, for bodies too large for `call`; it connects when it is used.

    Args:
        outbound: the rules; they are asked about the resolved address again.
        target: what `Outbound.check` returned.
        limit_s: seconds that connecting, sending a piece or receiving one may take. `cut` ends it from another thread.
        resolve: as in `Outbound.pin`.

    Raises:
        BadRequest: the address may not be called.
        OSError: the name cannot be resolved now.
    """
    return _Pinned(target, outbound.pin(target, resolve), limit_s)


def is_public(address: str) -> bool:
    """Whether an IP address can be reached by anybody; IPv4 within IPv6 counts as that IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = _inner(ip)
    if inner is not None:
        return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_link_local)


def resolve_name(host: str, port: int) -> list[str]:
    """Every address of a name, as the system says, each once."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _inner(ip: IpAddress) -> ipaddress.IPv4Address | None:
    if isinstance(ip, ipaddress.IPv4Address):
        return None
    if ip in NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


def read_target(url: str, name: str) -> Target:
    """An address in parts, whether or not it may be called.

    Raises:
        BadRequest: it is none, or none of http or https in plain form; `name` is the field.
    """
    if len(url) > MOST_URL_CHARS or not re.fullmatch(r"[!-~]+", url) or "\\" in url:
        raise _refused(name, f"must be an address in plain ASCII of at most {MOST_URL_CHARS} characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused(name, "is no address; give https://host/path") from None
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme not in PORTS or not host:
        raise _refused(name, "must begin with https://host")
    if "@" in parts.netloc or parts.fragment:
        raise _refused(name, "must hold no user name, password or fragment")
    if port == 0:
        raise _refused(name, "must name a port from 1 to 65535, or none")
    _require_host(host, name)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or PORTS[parts.scheme], path, name)


def _require_host(host: str, name: str) -> None:
    """Refuse what a resolver might take for an IP address written in another way: 2130706433, 0x7f.1, 127.1."""
    try:
        ipaddress.ip_address(host)
        return
    except ValueError:
        pass
    last = host.rpartition(".")[2]
    if not re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", host) or re.fullmatch(r"\d+|0x[0-9a-f]*", last):
        raise _refused(name, "must name a host, or an IP address in its usual form")


def _matches(host: str, allowed: str) -> bool:
    if allowed == "*":
        return True
    if allowed.startswith("*."):
        return host.endswith(allowed[1:])
    return host == allowed


def _refused(name: str, why: str) -> BadRequest:
    return BadRequest(f"{name} {why}", field=name)


def _exchange(connection: "_Pinned", target: Target, what: Call) -> Reply:
    length = len(what.body) if isinstance(what.body, bytes) else what.length
    headers = {**what.headers, "Content-Length": str(length), "Connection": "close", "Accept-Encoding": "identity"}
    with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it had read all
        connection.request(what.method, target.path, what.body, headers)
    answer = connection.getresponse()
    body = answer.read(MOST_ANSWER_BYTES)
    headers = {key.lower(): value for key, value in answer.getheaders()}
    return Reply(answer.status, headers, body, whole=not answer.length)


@contextmanager
def _watched(connection: "_Pinned", limit_s: float, stop: Stop | None) -> Iterator[list[str]]:
    """However slowly bytes trickle, the call ends in time; yields a list that then says why: `limit` or `stop`."""
    why: list[str] = []
    ended = threading.Event()
    end = time.monotonic() + limit_s

    def watch() -> None:
        while not ended.wait(LOOK_S):
            if not why and stop is not None and stop():
                why.append("stop")
            elif not why and time.monotonic() >= end:
                why.append("limit")
            if why:
                connection.cut()  # again and again: it may only be about to connect

    watcher = threading.Thread(target=watch, name="call-watch", daemon=True)
    watcher.start()
    try:
        yield why
    finally:
        ended.set()
        watcher.join()
        connection.close()


def _require_time(target: Target, limit_s: float, why: list[str]) -> None:
    if why == ["stop"]:
        raise InterruptedError(f"the call of {target.host} was stopped")
    if why:
        raise TimeoutError(f"{target.host} took longer than {limit_s:g} s")


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was judged, under the name it was asked for by."""

    def __init__(self, target: Target, address: str, limit_s: float):
        super().__init__(target.host, target.port, timeout=limit_s)
        self.default_port = PORTS[target.scheme]  # so that the Host header leaves out the scheme's own port
        self._address = address
        self._secure = target.scheme == "https"
        self._plain: socket.socket | None = None

    def connect(self) -> None:
        self._plain = self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self._plain, server_hostname=self.host)

    def cut(self) -> None:
        """End what goes on in another thread."""
        for open_socket in {self._plain, self.sock} - {None}:
            with suppress(OSError):
                # An SSL socket has taken over the plain one's descriptor; its own shutdown would forget TLS first.
                socket.socket.shutdown(open_socket, socket.SHUT_RDWR)
