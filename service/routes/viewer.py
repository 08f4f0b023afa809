"""The viewer at `/`: a page, its style and its modules, as they lie in `service/viewer`; it needs no other server."""

import gzip
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response

from service.errors import Problem
from service.files import NOSNIFF, etag_of, matches

router = APIRouter(include_in_schema=False)

INDEX = "index.html"
# nothing from elsewhere, nothing inline: what a slide or a model says can be shown, but never run
OUTLINE_RULE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
"""The one rule that OpenSeadragon writes into the page: no focus ring where there is no pointer that hovers."""

POLICY = (
    f"default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self' {OUTLINE_RULE}; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
ASK_AGAIN, KEEP = "no-cache", "max-age=86400"
"""Our modules fit each other only as a set, so a browser asks for each whether it changed; what others wrote stays."""


@dataclass(frozen=True)
class Asset:
    """One file of the viewer.

    Attributes:
        content: its bytes. packed: the same as gzip.
        media_type, etag, caching: of the answer.
    """

    content: bytes
    packed: bytes
    media_type: str
    etag: str
    caching: str


@router.get("/")
@router.head("/")
def show_viewer(request: Request) -> Response:
    """The page. Research use only."""
    return _answer(request, _assets()[INDEX])


@router.get("/viewer/{name:path}")
@router.head("/viewer/{name:path}")
def show_asset(request: Request, name: str) -> Response:
    """A module, a style or a picture of the page; whatever else is asked for is 404."""
    asset = _assets().get(name)
    if asset is None:
        raise Problem(404, "not-found", "the viewer has no such file; / is its page")
    return _answer(request, asset)


def _answer(request: Request, asset: Asset) -> Response:
    headers = {
        "ETag": asset.etag,
        "Cache-Control": asset.caching,
        "Content-Security-Policy": POLICY,
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept-Encoding",
        **NOSNIFF,
    }
    if matches(request.headers.get("if-none-match"), asset.etag):
        return Response(status_code=304, headers=headers)
    content = asset.content
    if "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["Content-Encoding"] = asset.packed, "gzip"
    return Response(content, media_type=asset.media_type, headers=headers)


@cache
def _assets() -> dict[str, Asset]:
    """{name: file}; nothing outside this table can be asked for."""
    found = {}
    for name, file in _files(resources.files("service") / "viewer", ""):
        content = file.read_bytes()
        suffix = name[name.rfind(".") :]
        kind = TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "text/plain"
        caching = KEEP if name.startswith("vendor/") else ASK_AGAIN
        found[name] = Asset(content, gzip.compress(content, 6, mtime=0), kind, etag_of(content), caching)
    return found


def _files(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif not entry.name.startswith("."):
            yield f"{prefix}{entry.name}", entry
