"""Stored files over HTTP: Range, ETag, If-None-Match, HEAD, alike from a folder and from a bucket."""

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from email.utils import format_datetime
from itertools import chain

from fastapi import Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from service.errors import Problem
from worker.artifacts import JobReader

NOSNIFF = {"X-Content-Type-Options": "nosniff"}
MOST_SPANS = 100
"""Spans of one Range header; whoever asks for more gets the whole file, as Starlette answers for files."""


def file_answer(
    request: Request, reader: JobReader, key: str, media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A stored file as response: 200, 206 of a range, 304 when the client has it, 416.

    Args:
        request: its Range, If-Range and If-None-Match are obeyed.
        reader, key: the file.
        media_type, headers: of the response.

    Raises:
        Problem: 404 when there is no such file, for every key that could mean anything but a file of the job too.
        StorageAway: it cannot be read now.
    """
    known = reader.stat(key)
    if known is None:
        raise missing()
    etag = etag_of(known.etag)
    headers = {"ETag": etag, "Cache-Control": "no-cache", **NOSNIFF, **(headers or {})}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    modified = format_datetime(known.modified, usegmt=True)
    only_if, wanted = request.headers.get("if-range"), request.headers.get("range")
    spans = None
    if wanted and only_if in (None, etag, modified):
        spans = read_spans(wanted, known.size, headers)
    if known.path is not None:
        return FileResponse(known.path, media_type=media_type, headers=headers, stat_result=known.path.stat())
    headers |= {"Last-Modified": modified, "Accept-Ranges": "bytes"}
    return _object_answer(request, reader, key, media_type, headers, known.size, spans)


def _object_answer(
    request: Request,
    reader: JobReader,
    key: str,
    media_type: str,
    headers: dict[str, str],
    size: int,
    spans: list[tuple[int, int]] | None,
) -> Response:
    """What FileResponse does for a file, for an object: the whole, one span, or several as multipart/byteranges."""
    status, length = 206 if spans else 200, size
    if not spans:
        pieces = reader.chunks(key)
    elif len(spans) == 1:
        (start, end), length = spans[0], spans[0][1] - spans[0][0]
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        pieces = reader.chunks(key, start, end)
    else:
        boundary = secrets.token_hex(13)
        heads = [
            f"--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: bytes {a}-{b - 1}/{size}\r\n\r\n".encode()
            for a, b in spans
        ]
        tail = f"--{boundary}--".encode()
        length = sum(len(head) + b - a + 2 for head, (a, b) in zip(heads, spans, strict=True)) + len(tail)
        parts = [([head], reader.chunks(key, a, b), [b"\r\n"]) for head, (a, b) in zip(heads, spans, strict=True)]
        pieces = chain(*chain(*parts), [tail])
        media_type = f"multipart/byteranges; boundary={boundary}"
    headers["Content-Length"] = str(length)
    if request.method == "HEAD":
        return Response(status_code=status, media_type=media_type, headers=headers)
    return StreamingResponse(begun(pieces), status, media_type=media_type, headers=headers)


def begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces, the first of which is there already: a storage that is away can still be said in the status.

    Raises:
        Problem: 404 when the file is gone.
        StorageAway: it cannot be read now.
    """
    try:
        first = next(pieces, b"")
    except FileNotFoundError:
        raise missing() from None
    return chain([first], pieces)


def missing() -> Problem:
    """404 for a key of a store or a file of a job that is not there (an empty chunk is not written)."""
    return Problem(404, "not-found", "there is nothing under this key; a chunk that is all background is not stored")


def etag_of(text: str | bytes) -> str:
    """A strong entity tag of whatever identifies a representation."""
    data = text.encode() if isinstance(text, str) else text
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def matches(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names this tag (weak comparison, RFC 9110, §13.1.2)."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags


def read_spans(header: str, size: int, headers: Mapping[str, str]) -> list[tuple[int, int]] | None:
    """The spans (start, end) that a Range header asks for, in order, those that touch joined.

    Args:
        header: the header. size: bytes of the file. headers: for the refusal.

    Returns:
        None when there are so many that the whole file is the answer.

    Raises:
        Problem: 400 when it is no Range header of bytes, 416 when a span lies outside.
    """
    unit, _, ranges = header.partition("=")
    asked = [span.strip().partition("-") for span in ranges.split(",")]
    numeric = all(dash and (a or b) and (a + b).isdigit() for a, dash, b in asked)
    if unit.strip().lower() != "bytes" or not numeric:
        raise Problem(
            400, "malformed-request", "the Range header is not accepted; write bytes=first-last", field="Range"
        )
    spans: list[tuple[int, int]] = []
    for first, _, last in asked:
        backwards = first and last and int(first) > int(last)
        if backwards or (first and int(first) >= size) or (not first and int(last) == 0):
            headers = {**headers, "Content-Range": f"bytes */{size}"}
            detail = f"the range lies outside; the file has {size} bytes"
            raise Problem(416, "range-not-satisfiable", detail, field="Range", headers=headers)
        start = int(first) if first else max(0, size - int(last))
        spans.append((start, min(int(last) + 1, size) if first and last else size))
    if len(spans) > MOST_SPANS:
        return None
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined
