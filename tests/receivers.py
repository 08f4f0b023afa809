"""Servers that receive what SlideReason delivers: each reads what came as its standard says, and answers so."""

import base64
import hashlib
import hmac
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pydicom
from fhir.resources.R4B.bundle import Bundle
from pydantic import ValidationError
from pydicom.dataset import Dataset

Answer = tuple[int, dict[str, str], bytes]
Answering = Callable[[str, Message, bytes], Answer]


@contextmanager
def serving(answer: Answering) -> Iterator[str]:
    """A server on loopback that gives every POST to `answer` (path, headers, body); yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, said = answer(self.path, self.headers, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(said))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_args) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class WebhookReceiver:
    """Verifies each message before it looks at it; answers what it is told to, then 204."""

    def __init__(self, secret: str, *answers: Answer):
        self._key = base64.b64decode(secret.removeprefix("whsec_"))
        self._answers = list(answers)
        self.seen: list[tuple[str, dict]] = []

    def __call__(self, _path: str, headers: Message, body: bytes) -> Answer:
        """A receiver's answer."""
        event, stamp = headers["webhook-id"], headers["webhook-timestamp"]
        expected = hmac.new(self._key, f"{event}.{stamp}.".encode() + body, hashlib.sha256).digest()
        given = [part.partition(",")[2] for part in headers["webhook-signature"].split() if part.startswith("v1,")]
        fresh = abs(time.time() - int(stamp)) < 300
        if not fresh or not any(hmac.compare_digest(base64.b64decode(part), expected) for part in given):
            return 401, {}, b""
        self.seen.append((event, json.loads(body)))
        return self._answers.pop(0) if self._answers else (204, {}, b"")


class Archive:
    """A STOW-RS origin server (PS3.18 §10.5): reads each part with pydicom, and refuses the classes it is told to."""

    def __init__(self, refused: dict[str, int] | None = None, token: str | None = None):
        self._refused = refused or {}
        self._token = token
        self.stored: list[Dataset] = []

    def __call__(self, path: str, headers: Message, body: bytes) -> Answer:
        """An archive's answer: 200, 202 where some and 409 where all were refused."""
        if self._token is not None and headers["Authorization"] != f"Bearer {self._token}":
            return 401, {}, b""
        if path != "/dicom-web/studies":
            return 404, {}, b""
        form = headers.get_content_type(), headers.get_param("type"), headers["Accept"]
        if form != ("multipart/related", "application/dicom", "application/dicom+json"):
            return 415, {}, b""
        taken, refused = Dataset(), Dataset()
        taken_items, refused_items = [], []
        for part in _parts(body, str(headers.get_boundary())):
            found = pydicom.dcmread(io.BytesIO(part))
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = found.SOPClassUID, found.SOPInstanceUID
            if found.SOPClassUID in self._refused:
                item.FailureReason = self._refused[found.SOPClassUID]
                refused_items.append(item)
            else:
                self.stored.append(found)
                taken_items.append(item)
        taken.ReferencedSOPSequence, refused.FailedSOPSequence = taken_items, refused_items
        answer = Dataset()
        answer.update({**(taken if taken_items else {}), **(refused if refused_items else {})})
        status = 200 if not refused_items else 202 if taken_items else 409
        return status, {"Content-Type": "application/dicom+json"}, json.dumps(answer.to_json_dict()).encode()


class FhirServer:
    """Creates bundles at `/fhir/Bundle` when fhir.resources finds them valid, else answers an OperationOutcome."""

    def __init__(self) -> None:
        self.stored: list[Bundle] = []

    def __call__(self, path: str, headers: Message, body: bytes) -> Answer:
        """A FHIR server's answer."""
        if path != "/fhir/Bundle" or headers.get_content_type() != "application/fhir+json":
            return 404, {}, b""
        try:
            self.stored.append(Bundle.model_validate_json(body))
        except ValidationError as error:
            issue = {"severity": "error", "code": "invalid", "diagnostics": error.errors()[0]["msg"]}
            said = json.dumps({"resourceType": "OperationOutcome", "issue": [issue]}).encode()
            return 422, {"Content-Type": "application/fhir+json"}, said
        return 201, {"Location": "Bundle/1"}, b""


def _parts(body: bytes, boundary: str) -> list[bytes]:
    """The parts of a multipart body (RFC 2046 §5.1.1), each of application/dicom; fails where it is not well formed."""
    head, *parts, end = (b"\r\n" + body).split(f"\r\n--{boundary}".encode())
    assert head == b"" and end == b"--\r\n", "not a multipart body"
    found = []
    for part in parts:
        assert part.startswith(b"\r\n"), "a boundary must end its line"
        fields, gap, content = part[2:].partition(b"\r\n\r\n")
        assert gap and fields == b"Content-Type: application/dicom", fields
        found.append(content)
    return found
