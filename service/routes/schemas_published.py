"""Schemas of what the service writes, for programs that check what they read."""

from functools import cache
from importlib import resources

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.files import NOSNIFF, etag_of, matches

router = APIRouter(tags=["results"])

MEDIA_TYPE = "application/schema+json"


@router.get(
    "/v1/schemas/report.json",
    summary="JSON Schema of the report",
    response_class=Response,
    responses={200: {"content": {MEDIA_TYPE: {}}, "description": "Draft 2020-12"}, 304: {"description": "As known"}},
)
@router.head("/v1/schemas/report.json", include_in_schema=False)
def report_schema(request: Request) -> Response:
    """What `GET /v1/jobs/{job_id}/report` answers as JSON; fields may be added, none changes its meaning."""
    schema = _read("report_schema.json")
    headers = {"ETag": etag_of(schema), "Cache-Control": "max-age=3600", **NOSNIFF}
    if matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(schema, media_type=MEDIA_TYPE, headers=headers)


@cache
def _read(name: str) -> bytes:
    """A schema as it lies beside the code that writes what it describes."""
    return (resources.files("worker") / name).read_bytes()
