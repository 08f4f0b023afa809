"""Uploaded slides: multipart bodies streamed to disk, part by part, never held in memory."""

import errno
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.catalogue import SUFFIXES
from service.errors import Problem

FORM = "a multipart/form-data body with the slide in one part named `file` (a DICOM series: one such part per file)"
BUFFER_BYTES = 1 << 20
MAX_FILES = 2000
MAX_NAME_BYTES = 200


@dataclass
class Upload:
    """Receives the parts of one body into `folder`.

    Attributes:
        folder: exists, empty at first. files: written so far. name: the text part `name`, if any.
        ended: the closing boundary has come; without it the body was cut off.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    name: bytes = b""
    ended: bool = False
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _header: tuple[bytes, bytes] = (b"", b"")
    _part: str = ""
    _file: BinaryIO | None = None

    @property
    def path(self) -> Path:
        """The slide: its file, or the folder of a DICOM series."""
        return self.files[0] if len(self.files) == 1 else self.folder

    def parser(self, boundary: bytes) -> MultipartParser:
        """A parser that writes what it finds here."""
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._grow(data[start:end], b""),
                "on_header_value": lambda data, start, end: self._grow(b"", data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._open,
                "on_part_data": self._write,
                "on_part_end": self.close,
                "on_end": self._end,
            },
        )

    def close(self) -> None:
        """End the part."""
        if self._file:
            self._file.close()
            self._file = None

    def _end(self) -> None:
        self.ended = True

    def _begin(self) -> None:
        self._headers = {}

    def _grow(self, name: bytes, value: bytes) -> None:
        self._header = (self._header[0] + name, self._header[1] + value)

    def _end_header(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = (b"", b"")

    def _open(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._part = options.get(b"name", b"").decode("utf-8", "replace")
        if self._part not in ("file", "name"):
            raise Problem(422, "bad-request", f"the body has a part of another name; accepted is {FORM}", field="file")
        if self._part == "file":
            if len(self.files) >= MAX_FILES:
                raise Problem(413, "too-large", f"up to {MAX_FILES} files are accepted in one body", field="file")
            # of the client's file name only a known ending is kept
            suffix = Path(options.get(b"filename", b"").decode("utf-8", "replace")).suffix.lower()
            path = self.folder / f"{len(self.files):05d}{suffix if suffix in SUFFIXES else '.bin'}"
            self._file = path.open("xb")
            self.files.append(path)

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._file:
            self._file.write(data[start:end])
        elif len(self.name) + end - start > MAX_NAME_BYTES:
            raise Problem(422, "bad-request", f"a name of up to {MAX_NAME_BYTES} bytes is accepted", field="name")
        else:
            self.name += data[start:end]


async def receive_upload(request: Request, folder: Path) -> Upload:
    """Stream the body into `folder`, which is removed again when anything goes wrong.

    Raises:
        Problem: not such a form, no file in it, or no room for it. Size is limited by `service.limits`.
    """
    folder.mkdir(parents=True)
    upload = Upload(folder)
    try:
        await _receive(request, upload)
        if not upload.ended:
            raise Problem(400, "malformed-request", f"the body ended too early; accepted is {FORM}", field="file")
        if not upload.files:
            raise Problem(422, "bad-request", f"the body has no file; accepted is {FORM}", field="file")
    except BaseException as error:
        upload.close()
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, FormParserError):
            raise Problem(400, "malformed-request", f"the body is broken; accepted is {FORM}", field="file") from None
        if isinstance(error, ClientDisconnect):
            raise HTTPException(400, "the body ended too early") from None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Problem(507, "no-room", "the server has no room for this slide", field="file") from None
        raise
    return upload


async def _receive(request: Request, upload: Upload) -> None:
    _, options = parse_options_header(request.headers.get("content-type", ""))
    if b"boundary" not in options:
        raise Problem(400, "malformed-request", f"Content-Type names no boundary; accepted is {FORM}", field="file")
    parser = upload.parser(options[b"boundary"])
    buffer = bytearray()
    async for chunk in request.stream():
        buffer += chunk
        if len(buffer) >= BUFFER_BYTES:
            await run_in_threadpool(parser.write, bytes(buffer))
            buffer.clear()
    await run_in_threadpool(parser.write, bytes(buffer))
    parser.finalize()
