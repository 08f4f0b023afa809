"""What a job leaves behind, by job id: in a local folder or in an S3 bucket, where files appear whole or not at all.

    jobs/{job_id}/overlay.zarr/, regions.geojson, report.json, report.html, exemplar.png      the results
                  blocks/, exemplar/                                                          what finish reads
                  attempts/{unit}/{token}/, published/{unit}                                  see `worker.attempts`

A unit of work has a `JobStore`, whoever reads results a `JobReader`; both are the same whatever the storage is.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from worker import attempts
from worker.errors import BadRequest, JobNotFound, StorageAway

OVERLAY = "overlay.zarr"
REGIONS = "regions.geojson"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"

CHUNK_BYTES = 1 << 20
KEY_BYTES = 900
"""Longest key; S3 takes 1,024 bytes, the prefix included."""

_JOB_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Stat:
    """What is known of a stored file.

    Attributes:
        size: bytes.
        etag: changes when the content does; opaque, without quotes.
        modified: when it was stored, UTC.
        path: the file itself, where the storage is a folder.
    """

    size: int
    etag: str
    modified: datetime
    path: Path | None = None


class JobStore(Protocol):
    """A job's files as a unit of work sees them; a context manager, open while the unit runs.

    Attributes:
        root: local folder that mirrors the job; attempts are written below it.
    """

    root: Path

    def __enter__(self) -> "JobStore": ...

    def __exit__(self, *_: object) -> None: ...

    def attempt(self, unit: str, token: int) -> Path:
        """The attempt's own empty folder, `root/attempts/{unit}/{token}`."""

    def save(self, unit: str, token: int) -> None:
        """Make an attempt's files safe, before the ledger commits it.

        Raises:
            OSError: they are not (`StorageAway`, a full disk); the attempt must not be committed.
        """

    def publish(self, unit: str, token: int) -> None:
        """Make a committed attempt visible; may be repeated by anyone on any host.

        Raises:
            FileNotFoundError: there is no such attempt, and none of this unit was published before.
            OSError: the storage is away.
        """

    def publish_all(self, tokens: Mapping[str, int]) -> None:
        """Publish many units: `{unit: token}`. Raises as `publish`."""

    def fetch(self, *keys: str) -> None:
        """Bring published files under `root`: a file by its key, a folder by its key and `/`, everything by `""`.

        Raises:
            FileNotFoundError: there is no file of this key.
            OSError: the storage is away, or the disk is full.
        """


class JobReader(Protocol):
    """A job's published files by key. A key that could lead anywhere else is the key of nothing."""

    def stat(self, key: str) -> Stat | None:
        """What is known of a file; None when there is none."""

    def chunks(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start`, which must lie within the file, to before `end`, in pieces of about a megabyte.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: the storage is away.
        """

    def list(self, prefix: str = "") -> Iterator[tuple[str, int, str]]:
        """(key, bytes, tag) of every file, or of those in the folder `prefix`, ordered by key."""


class Artifacts(Protocol):
    """Where jobs leave their files. Everything raises `JobNotFound` for what is no job id, `OSError` while away.

    Attributes:
        url: the folder, or `s3://bucket/prefix`.
    """

    url: str

    def job(self, job_id: str) -> JobStore:
        """The view of a unit of work."""

    def read(self, job_id: str) -> JobReader:
        """The view of a reader."""

    def check(self) -> None:
        """Raise OSError, saying what is missing, when nothing can be written here now."""

    def remove(self, job_id: str) -> None:
        """Remove everything of the job."""

    def clear_attempts(self, job_id: str) -> None:
        """Remove what attempts left behind, once the job is closed and all it keeps is published."""

    def close(self) -> None:
        """Let go of connections and local copies."""


def open_artifacts(place: str | Path, scratch: str | Path | None = None) -> Artifacts:
    """The artifacts in a folder, shared or not, or in a bucket.

    Args:
        place: a folder, or `s3://bucket/prefix`; endpoint and keys of a bucket come from `AWS_ENDPOINT_URL`,
            `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION` and `AWS_ALLOW_HTTP`.
        scratch: local folder for copies of what lies in a bucket; None is a private one among the temporary files.

    Raises:
        BadRequest: the place is neither; `field` is `artifacts`.
    """
    if str(place).startswith("s3://"):
        from worker.artifacts_s3 import S3Artifacts  # its client is loaded where there is a bucket

        return S3Artifacts(str(place), scratch)
    if "://" in str(place):
        raise BadRequest(f"artifacts {place}: give a folder or s3://bucket/prefix", field="artifacts")
    return LocalArtifacts(place)


def require_job_id(job_id: str) -> str:
    """The id; raises JobNotFound when it is not one at all, so that it can lead nowhere."""
    if not _JOB_ID.fullmatch(job_id):
        raise JobNotFound("no job has this id", subject=job_id)
    return job_id


def is_key(key: str) -> bool:
    """Whether this can be the key of a file: a relative path in its one plain spelling."""
    parts = key.split("/")
    plain = all(parts) and not any(part in (".", "..") or "\\" in part for part in parts)
    return plain and len(key.encode(errors="replace")) <= KEY_BYTES and all(c.isprintable() for c in key)


class LocalArtifacts:
    """Artifacts in a folder, of one machine or shared by many.

    Args:
        root: the folder; made when missing.
        durable: whether `save` and `publish` wait for the disk.
    """

    def __init__(self, root: str | Path, durable: bool = True):
        self.root = Path(root)
        self.url = str(root)
        self._durable = durable

    def job_folder(self, job_id: str) -> Path:
        """The job's folder, which need not exist."""
        return self.root / "jobs" / require_job_id(job_id)

    def job(self, job_id: str) -> "LocalJob":
        """See `Artifacts`."""
        return LocalJob(self.job_folder(job_id), self._durable)

    def read(self, job_id: str) -> "LocalReader":
        """See `Artifacts`."""
        return LocalReader(self.job_folder(job_id))

    def check(self) -> None:
        """See `Artifacts`."""
        self.root.mkdir(parents=True, exist_ok=True)
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        probe.touch()
        os.unlink(probe)

    def clear_attempts(self, job_id: str) -> None:
        """See `Artifacts`."""
        shutil.rmtree(self.job_folder(job_id) / attempts.ATTEMPTS, ignore_errors=True)

    def remove(self, job_id: str) -> None:
        """See `Artifacts`."""
        folder = self.job_folder(job_id)
        while folder.exists():
            with suppress(FileNotFoundError):  # somebody else removes it as well
                shutil.rmtree(folder)

    def close(self) -> None:
        """See `Artifacts`."""


class LocalJob:
    """A `JobStore` that works in the published folder itself."""

    def __init__(self, root: Path, durable: bool):
        self.root = root
        self._durable = durable

    def __enter__(self) -> "LocalJob":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def attempt(self, unit: str, token: int) -> Path:
        """See `JobStore`."""
        return attempts.attempt_folder(self.root, unit, token)

    def save(self, unit: str, token: int) -> None:
        """See `JobStore`."""
        if self._durable:
            attempts.save(self.root, unit, token)

    def publish(self, unit: str, token: int) -> None:
        """See `JobStore`."""
        attempts.publish(self.root, unit, token, self._durable)

    def publish_all(self, tokens: Mapping[str, int]) -> None:
        """See `JobStore`."""
        for unit, token in tokens.items():
            self.publish(unit, token)

    def fetch(self, *keys: str) -> None:
        """See `JobStore`: everything is here."""


class LocalReader:
    """A `JobReader` of a folder."""

    def __init__(self, root: Path):
        self._root = root

    def stat(self, key: str) -> Stat | None:
        """See `JobReader`; a link, wherever it leads, is nothing."""
        if not is_key(key):
            return None
        try:
            base = self._root.resolve(strict=True)
            path = (base / key).resolve(strict=True)
            return _stat_of(path) if path == base / key and path.is_file() else None
        except (FileNotFoundError, NotADirectoryError, RuntimeError):
            return None
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                return None
            raise StorageAway(f"artifacts: {key} cannot be looked at: {error.strerror}") from error

    def chunks(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `JobReader`."""
        known = self.stat(key)
        if known is None:
            raise FileNotFoundError(f"{key}: there is no such file")
        with known.path.open("rb") as file:
            file.seek(start)
            left = CHUNK_BYTES if end is None else end - start
            while left > 0 and (piece := file.read(min(CHUNK_BYTES, left))):
                left -= 0 if end is None else len(piece)
                yield piece

    def list(self, prefix: str = "") -> Iterator[tuple[str, int, str]]:
        """See `JobReader`; links are left out, so that nothing outside can get in."""
        found = {path.relative_to(self._root).as_posix(): path for path in attempts.files_in(self._root / prefix)}
        for key, path in sorted(found.items()):
            if not path.is_symlink():
                known = _stat_of(path)
                yield key, known.size, known.etag


def _stat_of(path: Path) -> Stat:
    known = path.stat()
    etag = f"{known.st_mtime_ns}-{known.st_size}-{known.st_ino}"
    return Stat(known.st_size, etag, datetime.fromtimestamp(known.st_mtime, UTC), path)
