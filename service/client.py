"""A client of the REST API for scripts and notebooks.

    client = Client("http://127.0.0.1:8000")
    job = client.ask("biopsy.svs", "Where is the tumour?", mpp=1.0).wait()
    print(job.answer)
    for region in job.regions():
        print(region["id"], region["properties"]["measurements"]["Area µm^2"])
    job.save_export("csv", "regions.csv")

It needs nothing but Python, so this file may be copied by itself. Where the service asks for patience (429, 503,
Retry-After, a slide that is being fetched) it waits; every question carries an Idempotency-Key, so that one whose
answer was lost makes no second job.
Research use only.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urljoin
from urllib.request import Request, urlopen

OPEN = ("accepted", "running")
FORMS = {"json": "application/json", "html": "text/html"}
PATIENT = (429, 503)
LONGEST_PAUSE_S = 60.0


class ProblemError(Exception):
    """What the service refused, in its words.

    Attributes:
        status: HTTP status. code: stable, for programs. detail: for people. field: the input at fault, or None.
        retry_after_s: when to come back, where the service said so.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after_s: float = 1.0):
        self.status = status
        self.code = str(problem.get("code", "unknown"))
        self.detail = str(problem.get("detail", ""))
        self.field = problem.get("field")
        self.retry_after_s = retry_after_s
        super().__init__(f"{self.code} ({self.field}): {self.detail}" if self.field else f"{self.code}: {self.detail}")


class JobEndedError(Exception):
    """A job that was waited for ended without results; `job` is that job."""

    def __init__(self, job: "Job"):
        self.job = job
        super().__init__(f"the job was {job.status['status']}: {job.status['message']}")


class Client:
    """A service at an address.

    Args:
        url: e.g. `http://127.0.0.1:8000`.
        headers: sent with every request, for what a proxy wants.
        timeout_s: of one answer.
        patience_s: how long a service that is full or away is asked again.
        fetch_patience_s: how long a slide that the service fetches from elsewhere is waited for.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, timeout_s: float = 60.0, patience_s: float = 300.0,
        fetch_patience_s: float = 3600.0,
    ):  # fmt: skip
        self.url = url.rstrip("/") + "/"
        self.headers = dict(headers or {})
        self.timeout_s, self.patience_s, self.fetch_patience_s = timeout_s, patience_s, fetch_patience_s

    def slides(self) -> Iterator[dict[str, Any]]:
        """The slides that can be asked about."""
        return self._paged("v1/slides", "slides")

    def models(self) -> list[dict[str, Any]]:
        """The models of the workers there are."""
        return self.get_json("v1/models")["models"]

    def upload(self, path: str | Path) -> dict[str, Any]:
        """Send a slide file; returns its entry, whose `slide_id` can be asked about."""
        path, mark = Path(path), secrets.token_hex(16)
        name = path.name.replace('"', "_")
        head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        tail = f"\r\n--{mark}--\r\n"
        with path.open("rb") as file:
            body = _Chained(head.encode(), file, tail.encode())
            size = len(head.encode()) + os.fstat(file.fileno()).st_size + len(tail.encode())
            headers = {"Content-Type": f"multipart/form-data; boundary={mark}", "Content-Length": str(size)}
            with self._open("v1/slides", body, headers, patient=False) as answer:
                return json.load(answer)

    def register(self, reference: str, name: str | None = None) -> dict[str, Any]:
        """Name a slide that lies under a slide folder or elsewhere; waits until the service has it.

        Args:
            reference: `file:`, `https:`, `s3:` or `dicomweb:`.
            name: to show in lists; no patient data, please.

        Raises:
            ProblemError: refused, or it could not be fetched; says why.
            TimeoutError: it is still being fetched after `fetch_patience_s`.
        """
        body = json.dumps({"reference": reference} | ({"name": name} if name else {})).encode()
        end, slide_id = time.monotonic() + self.fetch_patience_s, None
        while True:
            if slide_id is None:
                answer = self._open("v1/slides", body, {"Content-Type": FORMS["json"]})
            else:
                answer = self._open(f"v1/slides/{quote(slide_id, safe='')}")
            with answer:
                entry, wait_s = json.load(answer), _seconds(answer.headers.get("Retry-After"), 1.0)
            fetch = entry.get("fetch") or {"state": "here"}
            if fetch["state"] == "here":
                return entry
            if fetch["state"] == "failed":
                raise ProblemError(422, {"code": "slide-fetch-failed", "field": "slide", "detail": fetch["detail"]})
            # `away`: whoever fetched it is gone, so name it anew
            slide_id = entry["slide_id"] if fetch["state"] == "fetching" else None
            if time.monotonic() + wait_s > end:
                raise TimeoutError(f"the slide is still being fetched after {self.fetch_patience_s:g} s")
            time.sleep(wait_s)

    def ask(
        self, slide: str, query: str | Sequence[str] | None = None, idempotency_key: str | None = None,
        callback_url: str | None = None, **fields: Any,
    ) -> "Job":  # fmt: skip
        """Ask about a slide.

        Args:
            slide: its id, its name under one of the service's slide folders, or where it lies elsewhere; while it is
                fetched from there, this waits.
            query: a question, or several that one pass over the tiles serves.
            idempotency_key: the same key with the same question is the same job; None draws one.
            callback_url: where a signed webhook is sent when the job has ended, if the service sends any.
            fields: further fields of the request: `mpp`, `roi`, `threshold`, `exemplar`, …

        Raises:
            ProblemError: refused; `field` says why.
        """
        question = {"query": query} if isinstance(query, str) else {"queries": list(query)} if query else {}
        told = {"callback_url": callback_url} if callback_url else {}
        body = json.dumps({"slide": slide, **question, **told, **fields}).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        end = time.monotonic() + self.fetch_patience_s
        while True:
            try:
                with self._open("v1/jobs", body, headers) as answer:
                    return Job(self, json.load(answer))
            except ProblemError as problem:
                if problem.code != "slide-fetching" or time.monotonic() + problem.retry_after_s > end:
                    raise
                time.sleep(problem.retry_after_s)

    def job(self, job_id: str) -> "Job":
        """A job by its id."""
        return Job(self, self.get_json(f"v1/jobs/{quote(job_id, safe='')}"))

    def jobs(self, **filters: Any) -> Iterator["Job"]:
        """Jobs, newest first; `status` and `slide` filter."""
        return (Job(self, status) for status in self._paged("v1/jobs", "jobs", **filters))

    # ---- requests ------------------------------------------------------------------------------------------------

    def get_json(self, path: str) -> dict[str, Any]:
        """The JSON under a path of the service."""
        with self._open(path) as answer:
            return json.load(answer)

    def save(self, path: str, target: str | Path, accept: str = "*/*") -> Path:
        """Download what lies under a path into a file, which appears when it is whole."""
        with self._open(path, headers={"Accept": accept}) as answer:
            return _keep(answer, Path(target))

    def _paged(self, path: str, member: str, **filters: Any) -> Iterator[dict[str, Any]]:
        cursor = {}
        while True:
            page = self.get_json(f"{path}?{urlencode({**filters, **cursor})}")
            yield from page[member]
            if not page.get("next_cursor"):
                return
            cursor = {"cursor": page["next_cursor"]}

    def _open(
        self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, patient: bool = True,
        method: str | None = None,
    ) -> HTTPResponse:  # fmt: skip
        """An answer; one that asks for patience, or gets lost on the way, is asked for again for `patience_s`."""
        request = Request(urljoin(self.url, path), body, {**self.headers, **(headers or {})}, method=method)
        end, pause_s = time.monotonic() + self.patience_s, 0.5
        while True:
            try:
                return urlopen(request, timeout=self.timeout_s)
            except HTTPError as error:
                problem = _problem(error)
                wait_s = _seconds(error.headers.get("Retry-After"), pause_s)
                if error.code not in PATIENT or not patient or time.monotonic() + wait_s > end:
                    raise problem from None
            except (URLError, HTTPException, ConnectionError, TimeoutError):
                wait_s = pause_s
                if not patient or time.monotonic() + wait_s > end:
                    raise
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class Job:
    """A question on its way, or answered.

    Attributes:
        status: the status document as it was last seen.
    """

    def __init__(self, client: Client, status: dict[str, Any]):
        self.client, self.status = client, status

    @property
    def id(self) -> str:
        """Its id."""
        return self.status["jobID"]

    @property
    def open(self) -> bool:
        """Whether it was still going on when it was last looked at."""
        return self.status["status"] in OPEN

    @property
    def answer(self) -> str:
        """The answer in words, of a job that ended well."""
        return self.status["result"]["answer"]

    @property
    def overlay_url(self) -> str:
        """Address of the OME-Zarr store, for zarr, napari or vizarr."""
        return urljoin(self.client.url, f"{self._path}/overlay")

    def wait(self, tell: Callable[[dict[str, Any]], None] | None = None, timeout_s: float | None = None) -> "Job":
        """Wait until it has results, never asking more often than the service says.

        Args:
            tell: called with each status document.
            timeout_s: most seconds; None waits for as long as it takes.

        Raises:
            JobEndedError: it failed or was dismissed.
            TimeoutError: it goes on, but the time is over.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self.client._open(self._path) as answer:
                self.status = json.load(answer)
                wait_s = _seconds(answer.headers.get("Retry-After"), 1.0)
            if tell is not None:
                tell(self.status)
            if not self.open:
                break
            if end is not None and time.monotonic() + wait_s > end:
                raise TimeoutError(f"job {self.id} is {self.status['progress']} % done after {timeout_s:g} s")
            time.sleep(wait_s)
        if self.status["status"] != "successful":
            raise JobEndedError(self)
        return self

    def dismiss(self) -> "Job":
        """Stop it."""
        with self.client._open(self._path, method="DELETE") as answer:
            self.status = json.load(answer)
        return self

    def regions(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Its regions as GeoJSON features, page by page; `bbox`, `min_area_um2` and `frame` filter and shift."""
        link = f"{self._path}/regions?{urlencode({'limit': 1000, **filters})}"
        while link:
            page = self.client.get_json(link)
            yield from page["features"]
            link = next((link["href"] for link in page.get("links", ()) if link["rel"] == "next"), None)

    def region(self, region_id: str) -> dict[str, Any]:
        """One region: outline, chain, tiles, evidence."""
        return self.client.get_json(f"{self._path}/regions/{quote(region_id, safe='')}")

    def report(self) -> dict[str, Any]:
        """The report, for programs."""
        with self.client._open(f"{self._path}/report", headers={"Accept": FORMS["json"]}) as answer:
            return json.load(answer)

    def save_report(self, target: str | Path, form: str = "html") -> Path:
        """Download the report: `html` or `json`."""
        return self.client.save(f"{self._path}/report", target, FORMS[form])

    def save_overlay(self, target: str | Path) -> Path:
        """Download the overlay as one zip, which opens as a Zarr store."""
        return self.client.save(f"{self._path}/overlay.zip", target)

    def save_regions(self, target: str | Path) -> Path:
        """Download all regions as GeoJSON."""
        return self.client.save(f"{self._path}/regions", target)

    def exports(self) -> list[dict[str, Any]]:
        """In which other forms the results can be had, and how each stands."""
        return self.client.get_json(f"{self._path}/exports")["exports"]

    def save_export(self, name: str, target: str | Path, timeout_s: float = 600.0) -> Path:
        """Download an export, once it is made.

        Raises:
            ProblemError: there is no such export, or it cannot be made.
            TimeoutError: it is not made in time.
        """
        end = time.monotonic() + timeout_s
        while True:
            with self.client._open(f"{self._path}/exports/{quote(name, safe='')}") as answer:
                if answer.status == 200:
                    return _keep(answer, Path(target))
                wait_s = _seconds(answer.headers.get("Retry-After"), 1.0)
            if time.monotonic() + wait_s > end:
                raise TimeoutError(f"export {name} of job {self.id} is not made after {timeout_s:g} s")
            time.sleep(wait_s)

    def deliver(self, to: str, **options: Any) -> dict[str, Any]:
        """Have its results pushed to the operator's archive (`dicomweb`) or FHIR server (`fhir`).

        Args:
            to: which.
            options: `annotations=True` sends the DICOM annotations as well.

        Returns:
            The delivery; `deliveries` tells how it goes on.

        Raises:
            ProblemError: there is no such server, or the job has no results.
        """
        body = json.dumps({"to": to, **options}).encode()
        headers = {"Content-Type": "application/json"}
        with self.client._open(f"{self._path}/deliveries", body, headers) as answer:
            return json.load(answer)

    def deliveries(self) -> list[dict[str, Any]]:
        """What became of its webhook and of what was pushed: state, tries, last answer, next try."""
        return self.client.get_json(f"{self._path}/deliveries")["deliveries"]

    @property
    def _path(self) -> str:
        return f"v1/jobs/{self.id}"


class _Chained:
    """A body of bytes, a file, and bytes, of which nothing but a piece is in memory."""

    def __init__(self, head: bytes, file: BinaryIO, tail: bytes):
        self._head, self._file, self._tail = head, file, tail

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        while piece := self._file.read(1 << 20):
            yield piece
        yield self._tail


def _keep(answer: HTTPResponse, target: Path) -> Path:
    """Write an answer's body into a file, which appears when it is whole."""
    whole = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with whole.open("wb") as file:
            shutil.copyfileobj(answer, file)
        return whole.replace(target)
    finally:
        whole.unlink(missing_ok=True)


def _problem(error: HTTPError) -> ProblemError:
    wait_s = _seconds(error.headers.get("Retry-After"), 1.0)
    try:
        return ProblemError(error.code, json.load(error), wait_s)
    except ValueError:
        return ProblemError(error.code, {"code": f"http-{error.code}", "detail": str(error.reason)})


def _seconds(header: str | None, otherwise: float) -> float:
    try:
        return min(max(float(header), 0.0), LONGEST_PAUSE_S)
    except (TypeError, ValueError):
        return otherwise
