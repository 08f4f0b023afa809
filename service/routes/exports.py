"""Exports: a finished job's results in other forms, made by a worker when they are first asked for."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from service.errors import Problem
from service.files import file_answer
from service.rooms import In, Rooms
from service.schemas import ProblemBody
from worker.exports.catalogue import EXPORTS, Export

router = APIRouter(tags=["results"])

RETRY_S = 2
UNFORESEEN = re.compile(r"\w+(Error|Exception|Warning|Interrupt)?: ")
JobId = Annotated[str, Path(max_length=100)]
ANSWERS = {
    200: {"content": {"application/octet-stream": {}}, "description": "The file"},
    202: {"description": "It is being made; ask again after Retry-After"},
    404: {"model": ProblemBody, "description": "No such job or export; names those there are"},
    500: {"model": ProblemBody, "description": "It could not be made; `again=true` tries afresh"},
}


@router.get("/v1/jobs/{job_id}/exports", summary="In which other forms the results can be had")
def list_exports(rooms: In, job_id: JobId) -> JSONResponse:
    """Each with how it stands: `not-asked`, `waiting`, `leased` (being made), `done` or `failed`."""
    rooms.finished(job_id)
    asked = {row.name: row for row in rooms.ledger.exports(job_id)}
    return JSONResponse(
        {"exports": [_described(rooms, job_id, export, asked.get(name)) for name, export in EXPORTS.items()]}
    )


@router.get("/v1/jobs/{job_id}/exports/{name}", summary="The results in another form", responses=ANSWERS)
@router.head("/v1/jobs/{job_id}/exports/{name}", include_in_schema=False)
def show_export(
    rooms: In,
    request: Request,
    job_id: JobId,
    name: Annotated[str, Path(max_length=32, description="One of GET …/exports")],
    again: Annotated[bool, Query(description="Try one afresh that could not be made")] = False,
) -> Response:
    """202 until a worker has made it; then the file, with ETag and Range. Research use only."""
    if name not in EXPORTS:
        detail = f"there is no export of this name; there are {', '.join(EXPORTS)}"
        raise Problem(404, "export-not-found", detail, field="name", accepted=list(EXPORTS))
    return export_answer(rooms, request, job_id, EXPORTS[name], again)


@router.get("/v1/jobs/{job_id}/dicom-seg", summary="The export dicom-seg: DICOM Segmentation", responses=ANSWERS)
@router.head("/v1/jobs/{job_id}/dicom-seg", include_in_schema=False)
def show_dicom_seg(rooms: In, request: Request, job_id: JobId) -> Response:
    """The same as `exports/dicom-seg`. Research use only."""
    return export_answer(rooms, request, job_id, EXPORTS["dicom-seg"])


@router.get("/v1/jobs/{job_id}/dicom-ann", summary="The export dicom-ann: DICOM annotations", responses=ANSWERS)
@router.head("/v1/jobs/{job_id}/dicom-ann", include_in_schema=False)
def show_dicom_ann(rooms: In, request: Request, job_id: JobId) -> Response:
    """The same as `exports/dicom-ann`. Research use only."""
    return export_answer(rooms, request, job_id, EXPORTS["dicom-ann"])


def export_answer(rooms: Rooms, request: Request, job_id: str, export: Export, again: bool = False) -> Response:
    """The export's file when it is there; else 202, and a worker is asked for it.

    Raises:
        Problem: 409, the job is not finished; 500, the export could not be made.
    """
    job = rooms.finished(job_id)
    reader = rooms.artifacts.read(job_id)
    if reader.stat(export.key) is not None:
        named = {"Content-Disposition": f'attachment; filename="{job_id}-{export.file_name}"'}
        return file_answer(request, reader, export.key, export.media_type, named)
    if rooms.shared is not None:
        raise Problem(
            404, "export-not-made", "this export was not made; a link shows only those that are", field="name"
        )
    row = rooms.ledger.ask_export(job_id, export.name, again)
    if row.state == "failed":
        detail = f"the export {export.name} could not be made{_reason(row.error)}; again=true tries afresh"
        raise Problem(500, "export-failed", detail, field="name")
    if row.state == "waiting":
        rooms.send_ticket(job.spec.model)
    body = _described(rooms, job_id, export, row)
    return JSONResponse(body, 202, {"Retry-After": str(RETRY_S), "Cache-Control": "no-store"})


def _reason(error: str | None) -> str:
    """What a worker foresaw, in its words; of anything else only the log tells, since it may name paths."""
    return f": {error}" if error and not UNFORESEEN.match(error) else ""


def _described(rooms: Rooms, job_id: str, export: Export, row: Any) -> dict[str, Any]:
    return {
        "name": export.name,
        "title": export.title,
        "type": export.media_type,
        "file_name": export.file_name,
        "state": "not-asked" if row is None else row.state,
        "href": f"{rooms.address(job_id)}/exports/{export.name}",
    }
