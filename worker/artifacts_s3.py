"""Artifacts in an S3 bucket: work is done in a local mirror, uploaded, and published by copies within the bucket.

A unit is published once `published/{unit}` holds its token, which is written after everything else. Two publishers
copy the same bytes; a publisher that dies is completed by the next; one that comes too late finds nothing to copy.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from worker.artifacts import CHUNK_BYTES, Stat, is_key, require_job_id
from worker.attempts import ATTEMPTS, PUBLISHED, attempt_folder, files_in
from worker.errors import BadRequest, StorageAway
from worker.scratch import Mirror, Scratch

Item = TypeVar("Item")
Result = TypeVar("Result")

PARALLEL = 8
"""Requests at once of one process."""

PAGE = 1000
"""Keys per request when listing and removing, the most that S3 takes."""

RETRY = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=5),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}
"""A moment's fault is got over here, in about two seconds; a longer one is the caller's to wait for."""

NO_RETRY = {"max_retries": 0, "retry_timeout": timedelta(seconds=2)}
CLIENT = {"connect_timeout": "3s", "read_timeout": "10s", "timeout": "120s"}
PROBE = {"connect_timeout": "2s", "read_timeout": "3s", "timeout": "3s"}
TRUE = ("1", "true", "yes", "on")


class S3Artifacts:
    """Artifacts below a prefix of a bucket, which must be there; `check` says whether it is.

    Args:
        url: `s3://bucket/prefix`; the prefix may be empty.
        scratch: see `open_artifacts`.

    Raises:
        BadRequest: the url names no bucket, or the endpoint is plain http and that was not allowed.
    """

    def __init__(self, url: str, scratch: str | Path | None = None):
        self.url = url.rstrip("/")
        self.bucket, _, prefix = url.removeprefix("s3://").rstrip("/").partition("/")
        if not self.bucket or not url.startswith("s3://"):
            raise BadRequest(f"artifacts {url}: give s3://bucket/prefix", field="artifacts")
        self.endpoint, allow_http = read_endpoint()
        place: dict[str, Any] = {"prefix": prefix or None}
        self.store = S3Store(
            self.bucket, **place, retry_config=RETRY, client_options={**CLIENT, "allow_http": allow_http}
        )
        self._probe = S3Store(
            self.bucket, **place, retry_config=NO_RETRY, client_options={**PROBE, "allow_http": allow_http}
        )
        self.scratch = Scratch(scratch)
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="artifacts")

    def job(self, job_id: str) -> "S3Job":
        """See `Artifacts`."""
        return S3Job(self, require_job_id(job_id))

    def read(self, job_id: str) -> "S3Reader":
        """See `Artifacts`."""
        return S3Reader(self, require_job_id(job_id))

    def check(self) -> None:
        """See `Artifacts`; answers within a few seconds."""
        key = f".probe-{uuid.uuid4().hex}"
        try:
            obstore.put(self._probe, key, b"")
            obstore.delete(self._probe, key)
        except (BaseError, FileNotFoundError) as error:
            raise StorageAway(f"artifacts {self.url}: {self._missing(error)}") from error

    def _missing(self, error: Exception) -> str:
        """What an operator has to see to."""
        text, where = str(error), self.endpoint or "AWS"
        if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
            return f"there is no bucket {self.bucket} at {where}; make it"
        refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if refused or "InvalidAccessKeyId" in text or "SignatureDoesNotMatch" in text:
            return (
                f"{where} refuses the key; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and what the "
                f"key may do in bucket {self.bucket}"
            )
        if not os.environ.get("AWS_ACCESS_KEY_ID") and "redential" in text + type(error).__name__:
            return "there is no key; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return f"{where} does not answer as it should; check AWS_ENDPOINT_URL: {_first_line(error)}"

    def clear_attempts(self, job_id: str) -> None:
        """See `Artifacts`."""
        self.delete_below(f"jobs/{require_job_id(job_id)}/{ATTEMPTS}")

    def remove(self, job_id: str) -> None:
        """See `Artifacts`."""
        self.delete_below(f"jobs/{require_job_id(job_id)}")

    def close(self) -> None:
        """See `Artifacts`."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.scratch.close()

    @contextmanager
    def storage(self, doing: str) -> Iterator[None]:
        """Whatever the client raises inside becomes StorageAway, but for a key that is not there."""
        try:
            yield
        except BaseError as error:
            raise StorageAway(f"artifacts {self.url}: cannot {doing}: {_first_line(error)}") from error

    def listed(self, prefix: str) -> Iterator[dict[str, Any]]:
        """`path`, `size`, `e_tag`, `last_modified` of each object below a prefix."""
        with self.storage(f"list {prefix}"):
            for page in obstore.list(self.store, prefix, chunk_size=PAGE):
                yield from page

    def put(self, key: str, content: bytes | Path) -> None:
        """Store an object; raises StorageAway also where the bucket is gone."""
        try:
            with self.storage(f"write {key}"):
                obstore.put(self.store, key, content)
        except FileNotFoundError as error:
            raise StorageAway(f"artifacts {self.url}: cannot write {key}: {self._missing(error)}") from error

    def copy(self, source: str, target: str) -> None:
        """Copy within the bucket; raises FileNotFoundError when there is no source."""
        with self.storage(f"copy {source}"):
            obstore.copy(self.store, source, target)

    def delete(self, keys: list[str]) -> None:
        """Delete objects, present or not."""
        with self.storage("delete"):
            for start in range(0, len(keys), PAGE):
                obstore.delete(self.store, keys[start : start + PAGE])

    def delete_below(self, prefix: str) -> None:
        """Delete everything below a prefix."""
        self.delete([entry["path"] for entry in self.listed(prefix)])

    def content(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """An object's bytes in pieces; raises FileNotFoundError when there is none."""
        wanted = (start, end) if end is not None else {"offset": start} if start else None
        with self.storage(f"read {key}"):
            answer = obstore.get(self.store, key, options={"range": wanted} if wanted else None)
            for piece in answer.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(piece)

    def each(self, do: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """`do` of every item, several at once; the first error is raised."""
        return list(self._pool.map(do, items))


class S3Job:
    """A `JobStore` whose root is a local mirror while it is open."""

    def __init__(self, artifacts: S3Artifacts, job_id: str):
        self._artifacts = artifacts
        self._job_id = job_id
        self._base = f"jobs/{job_id}"
        self._mirror: Mirror | None = None
        self._attempts: list[Path] = []

    def __enter__(self) -> "S3Job":
        self._mirror = self._artifacts.scratch.take(self._job_id)
        return self

    def __exit__(self, *_: object) -> None:
        for folder in self._attempts:
            shutil.rmtree(folder, ignore_errors=True)
        self._mirror = None
        self._artifacts.scratch.give_back(self._job_id)

    @property
    def root(self) -> Path:
        """See `JobStore`."""
        if self._mirror is None:
            raise RuntimeError("a job in a bucket has local files only within `with artifacts.job(job_id) as store:`")
        return self._mirror.root

    def attempt(self, unit: str, token: int) -> Path:
        """See `JobStore`; the folder is gone once the store is closed."""
        folder = attempt_folder(self.root, unit, token)
        self._attempts.append(folder)
        return folder

    def save(self, unit: str, token: int) -> None:
        """See `JobStore`: uploads the files."""
        self._artifacts.each(
            lambda path: self._artifacts.put(f"{self._base}/{path.relative_to(self.root).as_posix()}", path),
            files_in(self.root / ATTEMPTS / unit / str(token)),
        )

    def publish(self, unit: str, token: int) -> None:
        """See `JobStore`."""
        if self._published(unit) >= token:
            return
        store, attempt = self._artifacts, f"{self._base}/{ATTEMPTS}/{unit}/{token}"
        sources = [entry["path"] for entry in store.listed(attempt)]
        if not sources and self._published(unit) < token:
            raise FileNotFoundError(f"unit {unit} of job {self._job_id}: attempt {token} left nothing to publish")
        if unit == "finish":
            # It replaces metadata that the plan wrote. A publisher of the plan who was stopped half-way, and goes on
            # only now, must find nothing that he could put back.
            store.delete_below(f"{self._base}/{ATTEMPTS}/plan")
        try:
            store.each(lambda source: store.copy(source, self._base + source.removeprefix(attempt)), sources)
        except FileNotFoundError:
            if self._published(unit) < token:  # else another publisher was through before us, and cleared up
                raise
            return
        store.put(f"{self._base}/{PUBLISHED}/{unit}", f"{token}\n".encode())
        store.delete(sources)

    def publish_all(self, tokens: Mapping[str, int]) -> None:
        """See `JobStore`."""
        with ThreadPoolExecutor(PARALLEL) as pool:  # of its own: each of these waits for the other pool
            list(pool.map(self.publish, tokens.keys(), tokens.values()))

    def fetch(self, *keys: str) -> None:
        """See `JobStore`. What was fetched as a file is not asked for again while the mirror is there."""
        wanted: dict[str, str] = {}
        with self._mirror.lock:
            for key in keys:
                if key == "" or key.endswith("/"):
                    wanted |= self._changed(key.rstrip("/"))
                elif key not in self._mirror.tags:
                    wanted[key] = ""
            self._artifacts.each(self._download, wanted)
            self._mirror.tags |= wanted

    def _changed(self, prefix: str) -> dict[str, str]:
        """{key: tag} of the published files below a prefix that the mirror lacks."""
        found = {}
        for entry in self._artifacts.listed(f"{self._base}/{prefix}".rstrip("/")):
            key = entry["path"].removeprefix(f"{self._base}/")
            if key.partition("/")[0] not in (ATTEMPTS, PUBLISHED) and self._mirror.tags.get(key) != _tag_of(entry):
                found[key] = _tag_of(entry)
        return found

    def _download(self, key: str) -> None:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        whole = target.with_name(f".{uuid.uuid4().hex}")
        try:
            with whole.open("wb") as file:
                for piece in self._artifacts.content(f"{self._base}/{key}"):
                    file.write(piece)
            whole.replace(target)
        finally:
            with suppress(FileNotFoundError):
                whole.unlink()

    def _published(self, unit: str) -> int:
        """The token under which a unit was published, 0 when it was not."""
        try:
            return int(b"".join(self._artifacts.content(f"{self._base}/{PUBLISHED}/{unit}")))
        except FileNotFoundError:
            return 0


class S3Reader:
    """A `JobReader` of a job's prefix."""

    def __init__(self, artifacts: S3Artifacts, job_id: str):
        self._artifacts = artifacts
        self._base = f"jobs/{job_id}/"

    def stat(self, key: str) -> Stat | None:
        """See `JobReader`."""
        if not is_key(key):
            return None
        try:
            with self._artifacts.storage(f"look at {key}"):
                known = obstore.head(self._artifacts.store, self._base + key)
        except FileNotFoundError:
            return None
        return Stat(known["size"], _tag_of(known), known["last_modified"])

    def chunks(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `JobReader`."""
        if not is_key(key):
            raise FileNotFoundError(f"{key}: there is no such file")
        if end is None or end > start:
            yield from self._artifacts.content(self._base + key, start, end)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int, str]]:
        """See `JobReader`."""
        for entry in self._artifacts.listed((self._base + prefix).rstrip("/")):
            yield entry["path"].removeprefix(self._base), entry["size"], _tag_of(entry)


def read_endpoint() -> tuple[str | None, bool]:
    """The store's address by the environment (None is AWS), and whether it may be plain http.

    Raises:
        BadRequest: it is plain http and that was not allowed.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in TRUE
    if (endpoint or "").startswith("http://") and not allow_http:
        raise BadRequest(
            f"AWS_ENDPOINT_URL {endpoint} is plain http; give https://, or set AWS_ALLOW_HTTP=true",
            field="AWS_ALLOW_HTTP",
        )
    return endpoint, allow_http


def _tag_of(entry: Mapping[str, Any]) -> str:
    """An object's tag; its time and size for a store that gives none."""
    return (entry["e_tag"] or f"{entry['last_modified'].timestamp()}-{entry['size']}").strip('"')


def _first_line(error: Exception) -> str:
    """The client's message without the debugging text below it."""
    return str(error).partition("\n")[0].strip()
