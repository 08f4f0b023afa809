"""The report, in the form the client accepts."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from service.errors import Problem
from service.files import file_answer
from service.negotiation import choose
from service.rooms import In
from service.routes.exports import export_answer
from worker.artifacts import REPORT_HTML, REPORT_JSON
from worker.exports.catalogue import EXPORTS

router = APIRouter(tags=["results"])

JSON, HTML = "application/json", "text/html"
EXPORTED = {"text/markdown": "markdown", "application/pdf": "pdf", "application/fhir+json": "fhir"}
"""Forms that a worker makes when they are first asked for, by the exports' names."""

OFFERED = (JSON, HTML, *EXPORTED)
# the page is one file with its pictures inside: it may load nothing, run nothing, and send nothing
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox allow-popups"
)


@router.get(
    "/v1/jobs/{job_id}/report",
    summary="The answer in words, regions, chains, coverage: JSON, HTML, Markdown, PDF or FHIR by Accept",
    responses={
        200: {"content": {kind: {} for kind in OFFERED}},
        202: {"description": "This form is being made; ask again after Retry-After"},
        406: {"description": "Names what is accepted"},
    },
)
@router.head("/v1/jobs/{job_id}/report", include_in_schema=False)
def show_report(rooms: In, request: Request, job_id: Annotated[str, Path(max_length=100)]) -> Response:
    """JSON unless the client would rather have another form; 202 until a worker has made it. Research use only."""
    kind = choose(request.headers.get("accept"), OFFERED)
    if kind is None:
        detail = f"the report is not available in the form asked for; accepted: {', '.join(OFFERED)}"
        raise Problem(406, "not-acceptable", detail, field="Accept", headers={"Vary": "Accept"}, accepted=list(OFFERED))
    headers = {"Vary": "Accept"}
    if kind in EXPORTED:
        answer = export_answer(rooms, request, job_id, EXPORTS[EXPORTED[kind]])
        answer.headers.update(headers)
        return answer
    rooms.finished(job_id)
    if kind == JSON:
        return file_answer(request, rooms.artifacts.read(job_id), REPORT_JSON, JSON, headers)
    headers |= {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
    return file_answer(request, rooms.artifacts.read(job_id), REPORT_HTML, "text/html; charset=utf-8", headers)
