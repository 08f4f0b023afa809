"""Files over HTTP: Range, ETag, If-None-Match, HEAD; and paths that cannot leave their folder."""

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response

from service.errors import Problem

NOSNIFF = {"X-Content-Type-Options": "nosniff"}


def file_answer(request: Request, path: Path, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """A file as response: 200, 206 of a range, 304 when the client has it, 416.

    Args:
        request: its Range, If-Range and If-None-Match are obeyed.
        path: an existing file.
        media_type, headers: of the response.

    Raises:
        Problem: 404 when there is no such file.
    """
    try:
        status = path.stat()
    except OSError:
        raise missing() from None
    if not stat.S_ISREG(status.st_mode):
        raise missing()
    etag = etag_of(f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}")
    headers = {"ETag": etag, "Cache-Control": "no-cache", **NOSNIFF, **(headers or {})}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    if wanted and not request.headers.get("if-range"):
        _check_range(wanted, status.st_size, headers)
    return FileResponse(path, media_type=media_type, headers=headers, stat_result=status)


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


def safe_join(root: Path, key: str) -> Path:
    """The file of a store that a key names.

    Args:
        root: folder of the store. key: `/`-separated, already percent-decoded by the router.

    Raises:
        Problem: 404 for every key that could mean anything but a file below `root`, links included.
    """
    parts = key.split("/")
    if not all(parts) or any(part in (".", "..") or "\0" in part or "\\" in part for part in parts):
        raise missing()
    try:
        path = (root / Path(*parts)).resolve(strict=True)
        base = root.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise missing() from None
    if os.path.commonpath([path, base]) != str(base):
        raise missing()
    return path


def _check_range(header: str, size: int, headers: Mapping[str, str]) -> None:
    """Refuse as a problem what FileResponse would refuse as plain text; it does the rest."""
    unit, _, ranges = header.partition("=")
    spans = [span.strip().partition("-") for span in ranges.split(",")]
    numeric = all(dash and (a or b) and (a + b).isdigit() for a, dash, b in spans)
    if unit.strip().lower() != "bytes" or not numeric:
        raise Problem(
            400, "malformed-request", "the Range header is not accepted; write bytes=first-last", field="Range"
        )
    for first, _, last in spans:
        backwards = first and last and int(first) > int(last)
        if backwards or (first and int(first) >= size) or (not first and int(last) == 0):
            headers = {**headers, "Content-Range": f"bytes */{size}"}
            detail = f"the range lies outside; the file has {size} bytes"
            raise Problem(416, "range-not-satisfiable", detail, field="Range", headers=headers)
