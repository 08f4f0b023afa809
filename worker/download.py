"""A body that is fetched by HTTP and read piece by piece, from an address that the operator's rules allow."""

import http.client
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from worker.errors import SlideFetchFailed
from worker.outbound import Outbound, Resolve, open_connection
from worker.transfer import Transfer

PIECE_BYTES = 1 << 20
ACCESS = "refuses access: the address, or the operator's token, lacks the right"
REFUSED = {
    401: ACCESS,
    403: ACCESS,
    404: "has nothing at this address",
    406: "does not offer the slide in this form",
    410: "has nothing at this address any more",
}


@dataclass(frozen=True)
class Download:
    """A good answer whose body is still to be read: headers by lower-case names, and the body in pieces."""

    headers: Mapping[str, str]
    pieces: Iterator[bytes]


@contextmanager
def download(
    outbound: Outbound, url: str, headers: Mapping[str, str], transfer: Transfer, resolve: Resolve | None = None
) -> Iterator[Download]:
    """Ask for a body once; no redirect is followed, and the connection ends with the block.

    Args:
        outbound: which addresses may be asked.
        url: where the body lies.
        headers: of the request; may hold a token.
        transfer: is told what comes, and may end it.
        resolve: as in `Outbound.pin`.

    Raises:
        BadRequest: the address may not be asked; `field` is `slide`.
        SlideFetchFailed: nobody answered, or not with a whole body; no message repeats more of the address than its
            host, or a header.
    """
    target = outbound.check(url, "slide")
    with _network(target.host, transfer):
        connection = open_connection(outbound, target, transfer.stall_s, resolve)
    try:
        with transfer.ended_by(connection.cut):
            with _network(target.host, transfer):
                asked = {"User-Agent": "SlideReason", **headers, "Accept-Encoding": "identity", "Connection": "close"}
                connection.request("GET", target.path, headers=asked)
                answer = connection.getresponse()
                transfer.check()  # headers that were cut off look as if they had ended
            total = _body_length(answer, target.host)
            if total is not None:
                transfer.expect(total)
            known = {name.lower(): value for name, value in answer.getheaders()}
            yield Download(known, _pieces(answer, total, target.host, transfer))
    finally:
        connection.close()


def _body_length(answer: http.client.HTTPResponse, host: str) -> int | None:
    """Bytes of the body, None where they come in chunks, whose end shows.

    Raises:
        SlideFetchFailed: it is no good answer, or nobody could tell whether its body is whole.
    """
    status = answer.status
    why = None
    if 300 <= status < 400:
        why = f"answers with a redirect ({status}), which is not followed; name the address that it leads to"
    elif status != 200:
        why = f"{REFUSED.get(status, 'does not give the slide')} ({status})"
    elif answer.getheader("Content-Encoding", "identity").strip().lower() != "identity":
        why = "packs what it sends (Content-Encoding), though it was asked not to"
    elif answer.length is None and not answer.chunked:
        why = "does not say how long the body is, so that nobody could tell whether it is whole"
    if why:
        raise SlideFetchFailed(f"{host} {why}", field="slide")
    return None if answer.chunked else answer.length


def _pieces(answer: http.client.HTTPResponse, total: int | None, host: str, transfer: Transfer) -> Iterator[bytes]:
    came = 0
    while True:
        with _network(host, transfer):
            piece = answer.read1(PIECE_BYTES)
        transfer.check()  # a body that was cut off from here looks as if it had ended
        if not piece:
            break
        came += len(piece)
        transfer.took(len(piece))
        yield piece
    if total is not None and came < total:
        raise SlideFetchFailed(f"{host} broke off after {came} of {total} bytes", field="slide")


@contextmanager
def _network(host: str, transfer: Transfer) -> Iterator[None]:
    """What the network raises, as a failed fetch; of its words only those that cannot repeat a header are kept."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        transfer.check()
        if isinstance(error, SlideFetchFailed) or getattr(error, "field", None):  # in our words already
            raise
        if isinstance(error, TimeoutError):
            why = f"sent nothing for {transfer.stall_s:g} s"
        elif isinstance(error, ssl.SSLError):
            why = f"cannot be spoken to by TLS: {error.reason or type(error).__name__}"
        elif isinstance(error, http.client.IncompleteRead):
            why = "broke off in the middle"
        elif isinstance(error, OSError):
            why = f"cannot be reached: {error.strerror or type(error).__name__}"
        else:
            why = f"did not answer in HTTP: {type(error).__name__}"
        raise SlideFetchFailed(f"{host} {why}", field="slide") from None
