"""Deep Zoom: pictures of slides and of overlays for a viewer such as OpenSeadragon."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response

from service.deep_zoom import DeepZoom, Picture
from service.errors import Problem
from service.files import NOSNIFF, etag_of, matches
from service.overlay_layers import JobLayers
from service.rooms import In

KEEP_S = 3600
LASTING = f"private, max-age={KEEP_S}, stale-while-revalidate=86400"
"""A slide or a result does not change under its id, but may be taken away."""

CHANGING = "private, no-cache"
DZI, JPEG, PNG = "application/xml", "image/jpeg", "image/png"


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    zoom = app.state.deep_zoom = DeepZoom(app.state.rooms.settings)
    zoom.warm_soon()
    yield
    zoom.close()


router = APIRouter(tags=["viewer"], lifespan=_lifespan)


async def _zoom(request: Request) -> DeepZoom:
    return request.app.state.deep_zoom


Zooming = Annotated[DeepZoom, Depends(_zoom)]
SlideId = Annotated[str, Path(max_length=100)]
JobId = Annotated[str, Path(max_length=100)]
Level = Annotated[int, Path(ge=0, le=64, description="0 is one pixel; the finest is the slide's level 0")]
Index = Annotated[int, Path(ge=0, le=2**31)]
Size = Annotated[int, Query(ge=16, le=2048, description="Longest side in pixels")]
AskedQuery = Annotated[int | None, Query(ge=0, description="Index of one query; default: all")]
Opacity = Annotated[float, Query(ge=0, le=1, allow_inf_nan=False, description="Of the colours")]
Threshold = Annotated[
    float | None,
    Query(gt=0, lt=1, allow_inf_nan=False, description="Show all pixels from this probability on; default: regions"),
]


@router.get("/v1/slides/{slide_id}/dzi.dzi", summary="Deep Zoom description", responses={200: {"content": {DZI: {}}}})
@router.head("/v1/slides/{slide_id}/dzi.dzi", include_in_schema=False)
async def describe_slide(rooms: In, zoom: Zooming, request: Request, slide_id: SlideId) -> Response:
    """Size and tiles of the slide; its tiles lie under `dzi_files`. Research use only."""

    def answer() -> Response:
        text = zoom.slide_zoom(rooms.catalogue.entry(slide_id)).descriptor("jpeg")
        return _answer(request, Picture(etag_of(text), text.encode), DZI, LASTING)

    return await zoom.run(answer)


@router.get(
    "/v1/slides/{slide_id}/dzi_files/{level}/{col}_{row}.jpeg",
    summary="Deep Zoom tile of a slide",
    responses={200: {"content": {JPEG: {}}}},
)
@router.head("/v1/slides/{slide_id}/dzi_files/{level}/{col}_{row}.jpeg", include_in_schema=False)
async def show_tile(
    rooms: In, zoom: Zooming, request: Request, slide_id: SlideId, level: Level, col: Index, row: Index
) -> Response:
    """254 px and 1 px of overlap, from the nearest finer level of the slide; JPEG of quality 90, colours not halved."""

    def answer() -> Response:
        picture = zoom.slide_tile(rooms.catalogue.entry(slide_id), level, col, row)
        return _answer(request, picture, JPEG, LASTING)

    return await zoom.run(answer)


@router.get(
    "/v1/slides/{slide_id}/thumbnail.jpeg",
    summary="The whole slide in one small picture",
    responses={200: {"content": {JPEG: {}}}},
)
@router.head("/v1/slides/{slide_id}/thumbnail.jpeg", include_in_schema=False)
async def show_thumbnail(rooms: In, zoom: Zooming, request: Request, slide_id: SlideId, size: Size = 256) -> Response:
    """Of the tissue, read from the slide's levels; never the label or the macro image."""

    def answer() -> Response:
        return _answer(request, zoom.thumbnail(rooms.catalogue.entry(slide_id), size), JPEG, LASTING)

    return await zoom.run(answer)


@router.get(
    "/v1/jobs/{job_id}/tiles.dzi",
    summary="Deep Zoom description of the overlay",
    responses={200: {"content": {DZI: {}}}},
)
@router.head("/v1/jobs/{job_id}/tiles.dzi", include_in_schema=False)
async def describe_overlay(
    rooms: In,
    zoom: Zooming,
    request: Request,
    job_id: JobId,
    query: AskedQuery = None,
    opacity: Opacity = 0.5,
    threshold: Threshold = None,
) -> Response:
    """As large as the slide's own, so that the two lie upon each other; what it is asked with goes on to its tiles."""

    def answer() -> Response:
        layers = zoom.jobs.layers(rooms, job_id)
        _queries(layers, query)
        text = layers.zoom.descriptor("png")
        return _answer(request, Picture(etag_of(text), text.encode), DZI, CHANGING)

    return await zoom.run(answer)


@router.get(
    "/v1/jobs/{job_id}/tiles_files/{level}/{col}_{row}.png",
    summary="Deep Zoom tile of the overlay, also while the job runs",
    responses={200: {"content": {PNG: {}}}},
)
@router.head("/v1/jobs/{job_id}/tiles_files/{level}/{col}_{row}.png", include_in_schema=False)
async def show_overlay_tile(
    rooms: In,
    zoom: Zooming,
    request: Request,
    job_id: JobId,
    level: Level,
    col: Index,
    row: Index,
    query: AskedQuery = None,
    opacity: Opacity = 0.5,
    threshold: Threshold = None,
) -> Response:
    """Regions in their query's colour, transparent elsewhere; while the job runs, those of the blocks that are done."""

    def answer() -> Response:
        layers = zoom.jobs.layers(rooms, job_id)
        alpha = round(opacity * 255)
        place = (level, col, row)
        picture = zoom.overlay_tile(rooms, layers, _queries(layers, query), alpha, place, threshold)
        return _answer(request, picture, PNG, CHANGING if layers.live else LASTING)

    return await zoom.run(answer)


def _queries(layers: JobLayers, asked: int | None) -> tuple[int, ...]:
    """Indices of the queries to show."""
    if asked is None:
        return tuple(range(layers.queries))
    if asked >= layers.queries:
        detail = f"this job has {layers.queries} queries; accepted are 0 to {layers.queries - 1}"
        raise Problem(422, "bad-request", detail, field="query")
    return (asked,)


def _answer(request: Request, picture: Picture, media_type: str, caching: str) -> Response:
    """The picture, or 304 where the client has it; then nothing is decoded."""
    headers = {"ETag": picture.etag, "Cache-Control": caching, **NOSNIFF}
    if matches(request.headers.get("if-none-match"), picture.etag):
        return Response(status_code=304, headers=headers)
    return Response(picture.make(), media_type=media_type, headers=headers)
