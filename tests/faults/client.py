"""A client as a hospital's would be: it obeys Retry-After, and takes an unanswered request up again under its key."""

import io
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

TRY_FOR_S = 180.0
LONGEST_PAUSE_S = 3.0
"""Of a test's patience: a real client would wait as long as it is told to."""


class Client:
    """Talks to one of several gateways, whichever answers; safe to share between threads.

    Attributes:
        met: how often which trouble was met: `429`, `503`, or the kind of a broken connection.
    """

    def __init__(self, urls: list[str]):
        self._urls = urls
        self._http = httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=8))
        self._lock = threading.Lock()
        self._turn = 0
        self.met: Counter[str] = Counter()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request, again and again until it is answered.

        Raises:
            AssertionError: an answer with 5xx other than 503, or no answer for minutes.
        """
        deadline = time.monotonic() + TRY_FOR_S
        while True:
            pause_s = 0.3
            try:
                answer = self._http.request(method, self._next_url() + path, **more)
                if answer.status_code not in (429, 503):
                    assert answer.status_code < 500, f"{method} {path}: {answer.status_code} {answer.text}"
                    return answer
                assert "retry-after" in answer.headers, f"{method} {path}: {answer.status_code} without Retry-After"
                self._note(str(answer.status_code))
                pause_s = min(float(answer.headers["retry-after"]), LONGEST_PAUSE_S)
            except httpx.TransportError as error:
                self._note(type(error).__name__)
            assert time.monotonic() < deadline, f"{method} {path}: no answer for {TRY_FOR_S:g} s; met {self.met}"
            time.sleep(pause_s)

    def submit(self, body: dict[str, Any], key: str) -> dict[str, Any]:
        """Ask for a job; the same key again gives the same job."""
        answer = self.ask("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key})
        assert answer.status_code == 202, answer.text
        return answer.json()

    def status(self, job_id: str) -> dict[str, Any]:
        """A job's status document."""
        answer = self.ask("GET", f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def closed(self, job_id: str, timeout_s: float) -> dict[str, Any]:
        """The status document once the job is closed."""
        deadline = time.monotonic() + timeout_s
        while True:
            document = self.status(job_id)
            if document["status"] not in ("accepted", "running"):
                return document
            assert time.monotonic() < deadline, f"the job is stuck: {document}"
            time.sleep(0.5)

    def download_overlay(self, job_id: str, folder: Path) -> Path:
        """A job's overlay as an OME-Zarr folder."""
        answer = self.ask("GET", f"/v1/jobs/{job_id}/overlay.zip")
        assert answer.status_code == 200, answer.text
        with zipfile.ZipFile(io.BytesIO(answer.content)) as packed:
            packed.extractall(folder)
        return folder

    def _next_url(self) -> str:
        with self._lock:
            self._turn += 1
            return self._urls[self._turn % len(self._urls)]

    def _note(self, trouble: str) -> None:
        with self._lock:
            self.met[trouble] += 1
