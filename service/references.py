"""Slide references → paths under the allowed roots; nothing else gets through."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from worker.errors import BadRequest, SlideForbidden, SlideNotFound, SlideUnreadable

ACCEPTED = "a slide_id of GET /v1/slides, or a file: reference or path under one of the slide folders"
MAX_REFERENCE_CHARS = 4096
MAX_FOLDER_ENTRIES = 100_000
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")


def resolve_reference(reference: str, roots: Sequence[Path]) -> Path:
    """Find the slide that a reference names.

    Args:
        reference: `file:///absolute`, `file:relative/to/a/root` (percent-encoded), or the same as a plain path.
        roots: resolved folders.

    Returns:
        The resolved path, whose parts begin with those of a root.

    Raises:
        BadRequest: not a reference at all, or of a scheme that is not served.
        SlideForbidden: it leads outside the roots, whether or not something is there.
        SlideNotFound: nothing is there. No message repeats a path.
        SlideUnreadable: neither a regular file nor a folder.
    """
    path = Path(_path_of(reference))
    candidates = [path] if path.is_absolute() else [root / path for root in roots]
    inside = [found for found in map(_follow, candidates) if _under(found, roots)]
    if not inside:
        raise SlideForbidden(f"the reference leads outside the slide folders; accepted is {ACCEPTED}", field="slide")
    for candidate in inside:
        try:
            found = candidate.resolve(strict=True)
        except (OSError, RuntimeError):  # missing, a loop of links, not permitted, a name too long
            continue
        if _under(found, roots):
            _check_kind(found, roots)
            return found
    raise SlideNotFound(f"no slide has this reference; accepted is {ACCEPTED}", field="slide")


def _path_of(reference: str) -> str:
    """The path inside a reference, percent-decoded once when it is a URL."""
    if not reference or len(reference) > MAX_REFERENCE_CHARS:
        raise BadRequest(f"the reference must have 1 to {MAX_REFERENCE_CHARS} characters", field="slide")
    scheme = _SCHEME.match(reference)
    path = reference
    if scheme:
        if scheme[1].lower() != "file":
            raise BadRequest(f"references by {scheme[1][:20]}: are not served; accepted is {ACCEPTED}", field="slide")
        path = reference[len(scheme[0]) :]
        if path.startswith("//"):
            host, slash, path = path[2:].partition("/")
            if host not in ("", "localhost") or not slash:
                raise BadRequest("a file: reference names no host; write file:///absolute/path", field="slide")
            path = "/" + path
        path = unquote(path, errors="strict") if _decodes(path) else "\0"
    if "\0" in path or not path or not _encodes(path):
        raise BadRequest("the reference holds characters that no path has", field="slide")
    return path


def _decodes(path: str) -> bool:
    try:
        unquote(path, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def _encodes(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _follow(path: Path) -> Path:
    """Where a path leads, links followed as far as they exist, without saying whether something is there."""
    return Path(os.path.realpath(path))


def _under(path: Path, roots: Sequence[Path]) -> bool:
    """Part by part, so that `/slides-secret` is not under `/slides`; the root itself is no slide."""
    return any(len(path.parts) > len(root.parts) and path.parts[: len(root.parts)] == root.parts for root in roots)


def _check_kind(path: Path, roots: Sequence[Path]) -> None:
    """A slide is a regular file, or a folder (DICOM, OME-Zarr) none of whose entries leads outside."""
    if path.is_file():
        return
    if not path.is_dir():
        raise SlideUnreadable("a slide is a regular file or a folder; this is neither", field="slide")
    try:
        _check_folder(path, roots)
    except PermissionError as error:
        if isinstance(error, SlideForbidden):
            raise
        raise SlideUnreadable("the folder may not be read by the service", field="slide") from None


def _check_folder(path: Path, roots: Sequence[Path]) -> None:
    with os.scandir(path) as entries:
        for number, entry in enumerate(entries):
            if number >= MAX_FOLDER_ENTRIES:
                raise SlideUnreadable(f"the folder holds more than {MAX_FOLDER_ENTRIES} entries", field="slide")
            if entry.is_symlink() and not _under(_follow(Path(entry.path)), roots):
                raise SlideForbidden("the folder holds links that lead outside the slide folders", field="slide")
