"""The overlay: its Zarr store key by key, and as one zip."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse

from service.files import NOSNIFF, begun, etag_of, file_answer, matches
from service.limits import JSON
from service.rooms import In
from service.zip_stream import members_of, stream_zip, zip_length
from worker.artifacts import OVERLAY

router = APIRouter(tags=["results"])

JobId = Annotated[str, Path(max_length=100)]
Key = Annotated[str, Path(max_length=1000, description="Key of the store, e.g. `zarr.json`")]
BINARY = {200: {"content": {"application/octet-stream": {}}}, 206: {"description": "The range asked for"}}


@router.get("/v1/jobs/{job_id}/overlay/{key:path}", summary="OME-Zarr 0.5 store, key by key", responses=BINARY)
@router.head("/v1/jobs/{job_id}/overlay/{key:path}", include_in_schema=False)
def show_key(rooms: In, request: Request, job_id: JobId, key: Key) -> Response:
    """Range, ETag, If-None-Match, HEAD and CORS, so that Zarr readers open this URL itself. 404: not stored."""
    rooms.finished(job_id)
    kind = JSON if key.split("/")[-1] == "zarr.json" else "application/octet-stream"
    return file_answer(request, rooms.artifacts.read(job_id), f"{OVERLAY}/{key}", kind)


@router.get(
    "/v1/jobs/{job_id}/overlay.zip",
    summary="The same store as one zip",
    responses={200: {"content": {"application/zip": {}}}},
)
@router.head("/v1/jobs/{job_id}/overlay.zip", include_in_schema=False)
def show_zip(rooms: In, request: Request, job_id: JobId) -> Response:
    """Stored, not compressed (its chunks are), with the store's root at the zip's root; opens as a Zarr ZipStore."""
    rooms.finished(job_id)
    members = members_of(rooms.artifacts.read(job_id), OVERLAY)
    marks = (f"{member.name} {member.size} {member.etag}" for member in members)
    headers = {
        "ETag": etag_of("\n".join(marks)),
        "Content-Disposition": f'attachment; filename="{job_id}.ome.zarr.zip"',
        "Cache-Control": "no-cache",
        **NOSNIFF,
    }
    if matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    headers["Content-Length"] = str(zip_length(members))
    if request.method == "HEAD":
        return Response(media_type="application/zip", headers=headers)
    return StreamingResponse(begun(stream_zip(members)), media_type="application/zip", headers=headers)
