"""Regions: GeoJSON for QuPath and everyone, and one region with its chain and evidence."""

import json
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from service.errors import Problem
from service.features import Filter, box_of, collection, find_feature, gzipped, page, read_bbox, read_head
from service.files import NOSNIFF, begun, file_answer
from service.rooms import In, Rooms
from worker.artifacts import REGIONS, REPORT_JSON
from worker.ledger import JobRow

router = APIRouter(tags=["results"])

GEOJSON = "application/geo+json"
JobId = Annotated[str, Path(max_length=100)]
Frame = Annotated[
    Literal["level0", "bounds"],
    Query(description="`bounds` shifts to the corner of the slide's bounds, as QuPath does; bbox is in the same frame"),
]


@router.get(
    "/v1/jobs/{job_id}/regions",
    summary="Regions as a GeoJSON FeatureCollection",
    responses={200: {"content": {GEOJSON: {}}}},
)
def list_regions(
    rooms: In,
    request: Request,
    job_id: JobId,
    bbox: Annotated[str | None, Query(max_length=200, description="x0,y0,x1,y1; regions whose box touches it")] = None,
    min_area_um2: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0,
    limit: Annotated[int | None, Query(ge=1, le=100_000, description="Regions per page; default: all")] = None,
    cursor: Annotated[str | None, Query(max_length=100, description="`next_cursor` of the page before")] = None,
    frame: Frame = "level0",
) -> Response:
    """Streamed. Without any filter it is the file itself, with ETag and Range."""
    job = rooms.finished(job_id)
    reader = rooms.artifacts.read(job_id)
    wanted = Filter(read_bbox(bbox), min_area_um2, _shift(rooms, job, frame))
    if wanted == Filter() and limit is None and cursor is None:
        return file_answer(request, reader, REGIONS, GEOJSON)
    given = {"bbox": bbox, "min_area_um2": min_area_um2 or None, "limit": limit, "frame": frame}
    query = {name: value for name, value in given.items() if value is not None}

    def next_link(following: str) -> dict[str, str]:
        href = f"{rooms.address(job_id)}/regions?{urlencode({**query, 'cursor': following})}"
        return {"href": href, "rel": "next", "type": GEOJSON, "title": "Next page"}

    head = {**read_head(reader), "frame": frame}
    pieces = collection(head, page(reader, wanted, cursor, limit), next_link)
    return StreamingResponse(pieces, media_type=GEOJSON, headers={"Cache-Control": "no-cache", **NOSNIFF})


@router.get("/v1/jobs/{job_id}/regions.geojson.gz", summary="All regions, compressed")
def download_regions(rooms: In, job_id: JobId) -> Response:
    """The whole file for QuPath, gzip."""
    rooms.finished(job_id)
    headers = {
        "Content-Disposition": f'attachment; filename="{job_id}.geojson.gz"',
        "Cache-Control": "no-cache",
        **NOSNIFF,
    }
    pieces = begun(gzipped(rooms.artifacts.read(job_id)))
    return StreamingResponse(pieces, media_type="application/gzip", headers=headers)


@router.get("/v1/jobs/{job_id}/regions/{region_id}", summary="One region: outline, chain, tiles, evidence")
def show_region(
    rooms: In, job_id: JobId, region_id: Annotated[str, Path(max_length=100)], frame: Frame = "level0"
) -> JSONResponse:
    """What the overlay, GeoJSON and report say of this id, in one place."""
    job = rooms.finished(job_id)
    feature = find_feature(rooms.artifacts.read(job_id), region_id)
    if feature is None:
        raise Problem(
            404, "region-not-found", "no region of this job has this id; GET …/regions lists them", field="region_id"
        )
    feature = Filter(shift_px0=_shift(rooms, job, frame)).apply(feature)
    body: dict[str, Any] = {"region_id": region_id, "job": job_id}
    body |= _evidence(rooms, job_id, region_id)
    body["query"] = job.spec.queries[body["query_index"]]
    body |= {"frame": frame, "bbox": box_of(feature["geometry"]["coordinates"]), "feature": feature}
    body["links"] = [
        {
            "href": f"{rooms.address(job_id)}/regions/{region_id}",
            "rel": "self",
            "type": "application/json",
            "title": "Region",
        },
        {
            "href": f"{rooms.address(job_id)}/report#{region_id}",
            "rel": "related",
            "type": "text/html",
            "title": "Report",
        },
    ]
    return JSONResponse(body, headers={"Cache-Control": "no-cache"})


def _evidence(rooms: Rooms, job_id: str, region_id: str) -> dict[str, Any]:
    """The region's entry in the report."""
    return next(entry for entry in _report(rooms, job_id)["regions"] if entry["region_id"] == region_id)


def _shift(rooms: Rooms, job: JobRow, frame: str) -> tuple[float, float]:
    """The bounds' corner in level-0 pixels, as the report recorded it when the job ran."""
    if frame == "level0":
        return 0.0, 0.0
    bounds = _report(rooms, job.job_id)["slide"].get("bounds_px0")
    return (float(bounds[0]), float(bounds[1])) if bounds else (0.0, 0.0)


def _report(rooms: Rooms, job_id: str) -> dict[str, Any]:
    return json.loads(b"".join(rooms.artifacts.read(job_id).chunks(REPORT_JSON)))
