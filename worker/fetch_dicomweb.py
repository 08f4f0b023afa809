"""A DICOM series from an archive by WADO-RS: the instances as they are stored, one file each.

Source: DICOM PS3.18 §10.4 (Retrieve Transaction), §8.6.1.2 (multipart payloads); RFC 2046 §5.1.1, RFC 2387.
"""

from collections.abc import Iterator
from email.message import Message
from pathlib import Path

from worker.download import download
from worker.errors import SlideFetchFailed
from worker.outbound import Outbound, Resolve
from worker.transfer import Transfer

ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""Any transfer syntax: the archive need not decode what it holds."""

MOST_INSTANCES = 10_000
MOST_LINE_BYTES = 4096
MOST_LINES = 50


def fetch_series(
    outbound: Outbound, url: str, folder: Path, transfer: Transfer, token: str | None = None,
    resolve: Resolve | None = None,
) -> None:  # fmt: skip
    """Fetch every instance of a series into a folder; the files are numbered, whatever the archive calls them.

    Args:
        outbound: which addresses may be asked.
        url: `…/studies/{uid}/series/{uid}`.
        folder: exists and is empty.
        transfer: is told what comes, and may end it.
        token: bearer token; None sends none.
        resolve: as in `Outbound.pin`.

    Raises:
        BadRequest: the address may not be asked.
        SlideFetchFailed: the series did not come whole; what came may lie in `folder`.
    """
    headers = {"Accept": ACCEPT} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    with download(outbound, url, headers, transfer, resolve) as body:
        number = 0
        for kind, pieces in Parts(body.pieces, _boundary(body.headers.get("content-type", ""))):
            if kind != "application/dicom":
                raise _refused("sent a part that is no DICOM object (application/dicom)")
            if number >= MOST_INSTANCES:
                raise _refused(f"sent more than {MOST_INSTANCES} instances")
            transfer.keep(folder / f"{number:05d}.dcm", pieces)
            number += 1
    if not number:
        raise _refused("sent a series without instances")


class Parts:
    """The parts of a multipart body, each to be read before the next.

    Args:
        pieces: the body.
        boundary: as its Content-Type names it.
    """

    def __init__(self, pieces: Iterator[bytes], boundary: str):
        self._pieces = pieces
        self._mark = b"\r\n--" + boundary.encode("ascii")
        self._held = bytearray(b"\r\n")  # so that a boundary may stand at the very beginning

    def __iter__(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """(media type, bytes in pieces) of each part; raises SlideFetchFailed where the body is not well formed."""
        for _ in self._until_mark():  # what stands before the first boundary is no part
            pass
        while not (rest := self._line()).startswith(b"--"):
            if rest.strip(b" \t"):
                raise _refused("sent a multipart body that is not well formed")
            part = self._until_mark()
            yield self._head(), part
            for _ in part:
                pass

    def _head(self) -> str:
        """Reads the headers of a part; returns its media type."""
        kind = ""
        for _ in range(MOST_LINES):
            line = self._line()
            if not line:
                return kind
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-type":
                kind = value.decode("latin-1").partition(";")[0].strip().lower()
        raise _refused("sent a part with too many headers")

    def _line(self) -> bytes:
        while (end := self._held.find(b"\r\n")) < 0:
            # the last line of all may lack its end
            if len(self._held) > MOST_LINE_BYTES or (not self._more() and not self._held.startswith(b"--")):
                raise _refused("sent a multipart body that is not well formed")
            if self._held.startswith(b"--"):
                return b"--"
        line = bytes(self._held[:end])
        del self._held[: end + 2]
        return line

    def _until_mark(self) -> Iterator[bytes]:
        keep = len(self._mark) - 1
        while (end := self._held.find(self._mark)) < 0:
            if len(self._held) > keep:
                yield bytes(self._held[:-keep])
                del self._held[:-keep]
            if not self._more():
                raise _refused("ended the body before its last boundary")
        if end:
            yield bytes(self._held[:end])
        del self._held[: end + len(self._mark)]

    def _more(self) -> bool:
        piece = next(self._pieces, b"")
        self._held += piece
        return bool(piece)


def _boundary(content_type: str) -> str:
    """The boundary that a Content-Type names.

    Raises:
        SlideFetchFailed: it is none of a multipart body of DICOM objects.
    """
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    inner = str(message.get_param("type") or "application/dicom").lower()
    if message.get_content_type() != "multipart/related" or inner != "application/dicom":
        raise _refused("does not answer with DICOM objects (multipart/related; type=application/dicom)")
    if not isinstance(boundary, str) or not boundary.isascii() or not 1 <= len(boundary) <= 70:
        raise _refused("names no boundary of its multipart body")
    return boundary


def _refused(why: str) -> SlideFetchFailed:
    return SlideFetchFailed(f"the archive {why}", field="slide")
