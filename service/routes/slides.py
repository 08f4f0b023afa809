"""The slide catalogue: list, look, register, upload."""

import os
import secrets
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from service.catalogue import SlideEntry
from service.errors import Problem
from service.limits import JSON, MULTIPART
from service.rooms import In
from service.schemas import Link, Slide, SlideFetch, SlideList, SlideRequest
from service.uploads import receive_upload
from worker.errors import SlideReasonError
from worker.zarr_head import zarr_mark

router = APIRouter(tags=["slides"])

UPLOAD_SCHEMA = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "The slide; a DICOM series: one part per file"},
        "name": {"type": "string", "maxLength": 200},
    },
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": SlideRequest.model_json_schema()},
            MULTIPART: {"schema": UPLOAD_SCHEMA},
        },
    }
}


@router.get("/v1/slides", summary="Slides of the configured folders, registered and uploaded ones")
def list_slides(
    rooms: In,
    cursor: Annotated[str | None, Query(max_length=100, description="`next_cursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> SlideList:
    """A page of the catalogue. What nobody opened yet has null details; GET the slide to open it."""
    entries, following = rooms.catalogue.page(cursor, limit)
    links = [Link(href=f"/v1/slides?limit={limit}", rel="first", type=JSON, title="First page")]
    if following:
        href = f"/v1/slides?limit={limit}&cursor={following}"
        links.append(Link(href=href, rel="next", type=JSON, title="Next page"))
    return SlideList(slides=[shown(entry) for entry in entries], next_cursor=following, links=links)


@router.get("/v1/slides/{slide_id}", summary="Size, levels, resolution and its source, vendor, bounds")
def show_slide(rooms: In, response: Response, slide_id: Annotated[str, InPath(max_length=100)]) -> Slide:
    """Opens the slide in a child process when that has not happened yet.

    While it is fetched from elsewhere, `fetch` tells how far that is, and `Retry-After` when to ask again.
    """
    entry = rooms.catalogue.look(slide_id)
    _ask_back(entry, response)
    return shown(entry)


@router.post(
    "/v1/slides",
    status_code=201,
    summary="Register a reference, or upload a slide",
    openapi_extra=BODY,
    response_model=Slide,
    responses={
        200: {"model": Slide, "description": "It was known, and is here"},
        202: {"model": Slide, "description": "It is being fetched from elsewhere; `Location` tells how far"},
    },
)
async def add_slide(rooms: In, request: Request, response: Response) -> Slide:
    """JSON registers a `file:` reference under a slide folder (200 when it was known); multipart uploads.

    A slide behind `https:`, `s3:` or `dicomweb:` is fetched in the background: 202 with `Retry-After` until it is
    here, then 200. The slide is opened in a child process first; what is no slide is not kept.
    """
    if request.headers.get("content-type", "").lower().startswith(MULTIPART):
        entry = await _upload(rooms, request)
    else:
        entry = await _register(rooms, request, response)
    response.headers["Location"] = f"/v1/slides/{entry.slide_id}"
    return shown(entry)


async def _register(rooms: In, request: Request, response: Response) -> SlideEntry:
    wanted = _parse(await request.body())
    entry, created = await run_in_threadpool(rooms.catalogue.register, wanted.reference, wanted.name)
    if not created:
        response.status_code = 202 if _ask_back(entry, response) else 200
    return entry


def _ask_back(entry: SlideEntry, response: Response) -> bool:
    """Whether the slide is not here yet; then the answer says when to ask again."""
    if entry.fetch is None or entry.fetch.state == "here":
        return False
    response.headers["Cache-Control"] = "no-store"
    if entry.fetch.state == "fetching":
        response.headers["Retry-After"] = str(entry.fetch.retry_after_s)
    return True


async def _upload(rooms: In, request: Request) -> SlideEntry:
    slide_id = secrets.token_hex(16)
    folder = rooms.catalogue.uploads / slide_id
    upload = await receive_upload(request, folder)
    try:
        name = upload.name.decode("utf-8", "replace").strip() or None
        return await run_in_threadpool(rooms.catalogue.add_upload, slide_id, upload.path.resolve(), name)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, SlideReasonError):
            error.field = "file"
        raise


def _parse(body: bytes) -> SlideRequest:
    try:
        return SlideRequest.model_validate_json(body)
    except ValidationError as error:
        found: list[Any] = [{**item, "loc": ("body", *item["loc"])} for item in error.errors(include_url=False)]
        if found and found[0]["type"] == "json_invalid":
            raise Problem(400, "malformed-json", "the body is not valid JSON; send a JSON object") from None
        raise RequestValidationError(found) from None


def shown(entry: SlideEntry) -> Slide:
    """The entry as a client sees it: no path, no file name that nobody allowed."""
    info = entry.info
    known = {} if info is None else {name: getattr(info, name) for name in _SHOWN}
    here = Link(href=f"/v1/slides/{entry.slide_id}", rel="self", type=JSON, title="This slide")
    return Slide(
        slide_id=entry.slide_id,
        name=entry.name,
        format=_format(entry),
        size_bytes=_size_bytes(entry),
        origin=entry.origin,
        fetch=_fetch_of(entry),
        links=[
            here,
            Link(href="/v1/jobs", rel="http://www.opengis.net/def/rel/ogc/1.0/execute", type=JSON, title="Ask"),
        ],
        **known,
    )


def _fetch_of(entry: SlideEntry) -> SlideFetch | None:
    if entry.fetch is None:
        return None
    fetch, here = entry.fetch, entry.fetch.state == "here"
    done = _size_bytes(entry) if here else fetch.bytes_done
    total = done if here else fetch.bytes_total
    return SlideFetch(state=fetch.state, bytes_done=done, bytes_total=total, detail=fetch.detail)


_SHOWN = (
    "width_px0", "height_px0", "level_dimensions", "level_downsamples", "mpp_x", "mpp_y", "mpp_source",
    "objective_power", "vendor", "bounds_px0", "content_hash",
)  # fmt: skip


def _format(entry: SlideEntry) -> str:
    """What kind of slide, by its name, or for a folder by what lies in it."""
    path = entry.path
    if path.is_dir():
        return "dicom" if zarr_mark(path) is None else "ome-zarr"
    if path.suffix.lower() == ".ozx" or (entry.info is not None and entry.info.vendor == "ome-zarr"):
        return "ome-zarr"
    return path.suffix.lower().removeprefix(".") or "unknown"


def _size_bytes(entry: SlideEntry) -> int:
    try:
        return _size_of(entry.path, entry.path.stat().st_mtime_ns)
    except OSError:
        return 0


@lru_cache(maxsize=4096)
def _size_of(path: Path, changed_ns: int) -> int:
    """Bytes of a file, or of all files below a folder; a Zarr has tens of thousands, so it is remembered."""
    if not path.is_dir():
        return path.stat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)
