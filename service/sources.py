"""Slides that lie elsewhere: which references name one, whether the operator allows it, and how it is fetched."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from worker.destinations import Endpoint
from worker.errors import BadRequest
from worker.fetch_dicomweb import fetch_series
from worker.fetch_https import fetch_file
from worker.fetch_s3 import fetch_folder, fetch_object
from worker.outbound import Outbound, Target, read_target
from worker.transfer import Transfer

MAX_REFERENCE_CHARS = 2048
SUFFIX = re.compile(r"\.[a-z0-9]{1,12}")
_SCHEME = re.compile(r"(https?|s3|dicomweb):", re.IGNORECASE)
_SERIES = re.compile(r"(/[!-~]*)?/studies/(?P<study>[0-9.]{1,64})/series/(?P<series>[0-9.]{1,64})/?")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
DICOMWEB = "dicomweb:https://host/dicom-web/studies/{uid}/series/{uid}"
HOSTS = "SLIDEREASON_SLIDE_HOSTS (or SLIDEREASON_SLIDE_INSIDE_HOSTS)"


@dataclass(frozen=True)
class Sources:
    """Where slides may be fetched from.

    Attributes:
        outbound: hosts, for files and for archives.
        places: `(bucket, prefix)`; the prefix is empty or ends with `/`.
        archive: the operator's own, whose token is sent to it and to nobody else.
    """

    outbound: Outbound = Outbound()
    places: Sequence[tuple[str, str]] = ()
    archive: Endpoint | None = None

    def read(self, reference: str) -> str:
        """Judge a reference by how it is written; nobody is asked.

        Returns:
            The reference in its one spelling. It may hold a signature, so it is shown to nobody.

        Raises:
            BadRequest: it is none, or the operator does not allow it; says what would be accepted.
        """
        if len(reference) > MAX_REFERENCE_CHARS:
            raise _refused(f"the reference must have at most {MAX_REFERENCE_CHARS} characters")
        scheme, _, rest = reference.partition(":")
        if scheme.lower() == "s3":
            return self._read_s3(rest)
        self._require_hosts(scheme.lower())
        return self._read_series(rest) if scheme.lower() == "dicomweb" else self._read_https(reference)

    def fetch(self, reference: str, folder: Path, transfer: Transfer) -> Path:
        """Fetch a slide, by what `read` returned, into an empty folder; returns its path.

        Raises:
            BadRequest: a host leads where nobody may ask.
            SlideFetchFailed: it did not come whole.
        """
        target = folder / file_of(reference)
        scheme, _, rest = reference.partition(":")
        if scheme == "s3":
            bucket, _, key = rest.removeprefix("//").partition("/")
            if key.endswith("/"):
                target.mkdir()
                fetch_folder(bucket, key, target, transfer)
            else:
                fetch_object(bucket, key, target, transfer)
        elif scheme == "dicomweb":
            target.mkdir()
            fetch_series(self.outbound, rest, target, transfer, self._token(rest))
        else:
            fetch_file(self.outbound, reference, target, transfer)
        return target

    def _require_hosts(self, scheme: str) -> None:
        if not self.outbound.hosts and not self.outbound.inside:
            raise _refused(
                f"slides behind {scheme}: are not fetched here; for that the operator must name hosts in {HOSTS}"
            )

    def _read_https(self, reference: str) -> str:
        target = self.outbound.check(reference, "slide")
        if target.path.partition("?")[0].endswith("/"):
            raise _refused("an https: reference names one file, such as https://host/path/slide.svs")
        return _spelt(target)

    def _read_series(self, address: str) -> str:
        target = self.outbound.check(address, "slide")
        found = _SERIES.fullmatch(target.path)
        plain = not re.search(r"[?%;]|//|/\.\.?/", target.path)
        if not found or not plain or not all(map(_UID.fullmatch, found.group("study", "series"))):
            raise _refused(f"a DICOMweb reference is {DICOMWEB}, with UIDs of digits and dots")
        return f"dicomweb:{_spelt(target).rstrip('/')}"

    def _read_s3(self, rest: str) -> str:
        if not self.places:
            detail = "slides behind s3: are not fetched here; for that the operator must name SLIDEREASON_SLIDE_PLACES"
            raise _refused(detail)
        bucket, _, key = rest.removeprefix("//").partition("/")
        parts = key.removesuffix("/").split("/")
        if not rest.startswith("//") or not bucket or any(not _is_name(part) for part in parts):
            raise _refused("an s3: reference is s3://bucket/key of a file, or s3://bucket/prefix/ of a folder")
        if not any(bucket == place and key.startswith(prefix) and key != prefix for place, prefix in self.places):
            raise _refused("the s3: reference lies below none of the operator's SLIDEREASON_SLIDE_PLACES")
        return f"s3://{bucket}/{key}"

    def _token(self, address: str) -> str | None:
        """The archive's token, for addresses below its own root only."""
        if self.archive is None or self.archive.token is None:
            return None
        ours, asked = read_target(self.archive.url, "dicomweb_url"), read_target(address, "slide")
        same = (ours.scheme, ours.host, ours.port) == (asked.scheme, asked.host, asked.port)
        return self.archive.token if same and asked.path.startswith(ours.path.rstrip("/") + "/studies/") else None


def is_elsewhere(reference: str) -> bool:
    """Whether a reference names a slide that is not on a disk of ours."""
    return _SCHEME.match(reference) is not None


def name_of(reference: str) -> str:
    """What a slide that lies elsewhere is called there: the last part of its path."""
    path = reference.partition("?")[0]
    return PurePosixPath(path if path.startswith("s3:") else unquote(path, errors="replace")).name


def file_of(reference: str) -> str:
    """What a slide that lies elsewhere is called here; of its own name only the ending is kept."""
    name = name_of(reference).lower()
    if reference.startswith("dicomweb:"):
        return "series"
    if reference.startswith("s3:") and reference.endswith("/"):
        return "slide.zarr" if name.endswith(".zarr") else "series"
    suffix = PurePosixPath(name).suffix
    return f"slide{suffix if SUFFIX.fullmatch(suffix) else '.bin'}"


def read_place(place: str) -> tuple[str, str]:
    """`s3://bucket/prefix` as bucket and prefix.

    Raises:
        BadRequest: it is none.
    """
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    if not place.startswith("s3://") or not bucket or (prefix and not all(map(_is_name, prefix.split("/")))):
        raise BadRequest("give s3://bucket or s3://bucket/prefix", field="slide_places")
    return bucket, f"{prefix}/" if prefix else ""


def _spelt(target: Target) -> str:
    """An address in its one spelling."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    usual = {"https": 443, "http": 80}[target.scheme]
    return f"{target.scheme}://{host}{'' if target.port == usual else f':{target.port}'}{target.path}"


def _is_name(part: str) -> bool:
    return part not in ("", ".", "..") and part.isprintable() and len(part.encode("utf-8", "replace")) <= 255


def _refused(why: str) -> BadRequest:
    return BadRequest(why, field="slide")
