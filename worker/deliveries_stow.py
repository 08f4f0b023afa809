"""DICOM objects to an archive by STOW-RS.

Source: DICOM PS3.18 §10.5 (Store transaction), Annex I.2 (Store Instances Response Module); PS3.3 C.12.1.1.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from worker.deliveries import MOST_SAID, Outcome, judge, unanswered
from worker.errors import BadRequest
from worker.outbound import Call, Outbound, Reply, Resolve, Stop, call

STORE_S = 600.0
PIECE_BYTES = 1 << 20
FAILED, REASON, INSTANCE = "00081198", "00081197", "00081155"
PROCESSING_FAILURE = 0x0110
OUT_OF_RESOURCES = range(0xA700, 0xA800)
"""Failure reasons that may pass; all others say that the archive does not want the object."""


def store(
    outbound: Outbound,
    url: str,
    files: Sequence[Path],
    token: str | None = None,
    limit_s: float = STORE_S,
    resolve: Resolve | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """Send DICOM files once, in one request.

    Args:
        outbound: which addresses may be called.
        url: the archive's DICOMweb root; `/studies` is put behind it.
        files: DICOM Part 10 files; read piece by piece.
        token: bearer token; None sends none.
        limit_s: seconds for the call.
        resolve: as in `Outbound.pin`.
        stop: as in `call`.

    Returns:
        `delivered` only when the archive took every object; else the objects it refused and its reasons.
    """
    boundary = uuid.uuid4().hex
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
        "User-Agent": "SlideReason",
    }
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    tail = f"--{boundary}--\r\n".encode()
    length = sum(len(head) + path.stat().st_size + 2 for path in files) + len(tail)
    what = Call(headers, _pieces(files, head, tail), length)
    try:
        target = outbound.check(f"{url.rstrip('/')}/studies", "dicomweb_url")
        return read_answer(call(outbound, target, what, limit_s, resolve, stop))
    except BadRequest as error:
        return Outcome("failed", error.message)
    except OSError as error:
        return unanswered(error)


def read_answer(reply: Reply) -> Outcome:
    """What an archive did with what it was sent; a 200 or 202 that lists refused objects is no success."""
    if not reply.whole and 200 <= reply.status < 300:  # the objects it refused may be in what is missing
        return Outcome("again", f"{reply.status}: its answer broke off", reply.status)
    refused = _refused(reply.body)
    if not refused:
        if reply.status == 202:  # some were refused or changed, and it did not say which in a form we read
            return Outcome("failed", "202: the archive took it with reservations that it did not name", 202)
        return judge(reply)
    said = "; ".join(f"{instance} refused ({reason:04X}H)" for instance, reason in refused)
    passing = all(reason in OUT_OF_RESOURCES for _, reason in refused)
    return Outcome("again" if passing else "failed", f"{reply.status}: {said}"[:MOST_SAID], reply.status)


def _pieces(files: Sequence[Path], head: bytes, tail: bytes) -> Iterator[bytes]:
    for path in files:
        yield head
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
        yield b"\r\n"
    yield tail


def _refused(body: bytes) -> list[tuple[str, int]]:
    """(SOP Instance UID, failure reason) of each object of FailedSOPSequence; one that cannot be read stays refused."""
    try:
        answer = json.loads(body)
    except ValueError:
        return []
    answer = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(answer, dict) or FAILED not in answer:
        return []
    items = answer[FAILED].get("Value", []) if isinstance(answer[FAILED], dict) else [None]
    return [_refusal(item) for item in items]


def _refusal(item: Any) -> tuple[str, int]:
    try:
        return str(item[INSTANCE]["Value"][0]), int(item[REASON]["Value"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        return "an object", PROCESSING_FAILURE
