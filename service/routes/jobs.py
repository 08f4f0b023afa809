"""Jobs: ask, list, look, dismiss."""

import hashlib
import json
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from service.files import etag_of, matches
from service.limits import JSON
from service.rooms import In, retry_after_s
from service.schemas import JobList, JobRequest, JobStatus, Link, ProblemBody, Status, Tiles
from service.specs import make_spec
from worker.ledger import JobRow

router = APIRouter(tags=["jobs"])

RESULTS = "http://www.opengis.net/def/rel/ogc/1.0/results"
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key with the same body gives the same job, however often it is sent",
    ),
]
JobId = Annotated[str, Path(max_length=100)]
MESSAGES = {
    "accepted": "waiting for a worker",
    "running": "looking at tiles",
    "successful": "done",
    "failed": "failed",
    "dismissed": "dismissed",
}
REFUSALS = {
    403: "The slide lies outside the slide folders",
    404: "No such slide",
    409: "Idempotency-Key came before with another body",
    413: "Body or roi too large",
    415: "Not JSON",
    422: "A field is not accepted; the answer names it",
    429: "Too many open jobs; see Retry-After",
}
MAY_FAIL = {status: {"model": ProblemBody, "description": text} for status, text in REFUSALS.items()}


@router.post(
    "/v1/jobs", status_code=202, summary="Ask a question about a slide", response_model=JobStatus, responses=MAY_FAIL
)
def create_job(rooms: In, wanted: JobRequest, idempotency_key: IdempotencyKey = None) -> JSONResponse:
    """Checks the slide in a child process, writes the job down, and answers at once; poll `Location`."""
    spec = make_spec(rooms, wanted)
    job_id, created = rooms.ledger.create_job(
        spec, idempotency_key, body_hash(wanted), max_open=rooms.settings.max_open_jobs
    )
    if created:
        rooms.send_ticket(spec.model)
    job = rooms.ledger.job(job_id)
    headers = {"Location": f"/v1/jobs/{job_id}", "Retry-After": str(retry_after_s(job)), "Cache-Control": "no-store"}
    return JSONResponse(status_document(job).model_dump(mode="json"), 202, headers)


@router.get("/v1/jobs", summary="Jobs, newest first")
def list_jobs(
    rooms: In,
    status: Annotated[Status | None, Query(description="Only these")] = None,
    slide: Annotated[str | None, Query(max_length=100, description="Only jobs on this slide_id")] = None,
    cursor: Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> JobList:
    """A page of status documents."""
    rows, following = rooms.ledger.list_jobs(cursor=cursor, limit=limit, status=status, slide_id=slide)
    query = f"limit={limit}" + (f"&status={status}" if status else "") + (f"&slide={slide}" if slide else "")
    links = [Link(href=f"/v1/jobs?{query}", rel="first", type=JSON, title="First page")]
    if following:
        links.append(Link(href=f"/v1/jobs?{query}&cursor={following}", rel="next", type=JSON, title="Next page"))
    return JobList(jobs=[status_document(row) for row in rows], next_cursor=following, links=links)


@router.get("/v1/jobs/{job_id}", summary="Status document", response_model=JobStatus)
def show_job(rooms: In, request: Request, job_id: JobId) -> Response:
    """With `ETag`; `If-None-Match` answers 304. `Retry-After` says when to ask again while the job is open."""
    return _status_answer(rooms.ledger.job(job_id), request.headers.get("if-none-match"))


@router.delete("/v1/jobs/{job_id}", summary="Dismiss", response_model=JobStatus)
def dismiss_job(rooms: In, job_id: JobId) -> Response:
    """Idempotent. A job that runs says `stopping` until its workers have let go; a finished one stays as it is."""
    return _status_answer(rooms.ledger.dismiss(job_id), None)


def _status_answer(job: JobRow, if_none_match: str | None) -> Response:
    body = status_document(job).model_dump_json().encode()
    headers = {"ETag": etag_of(body), "Cache-Control": "no-cache"}
    if job.open:
        headers["Retry-After"] = str(retry_after_s(job))
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=JSON, headers=headers)


def body_hash(wanted: JobRequest) -> str:
    """Identifies what was asked, whatever the order and spacing of the JSON."""
    text = json.dumps(wanted.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def status_document(job: JobRow) -> JobStatus:
    """The job as OGC API Processes shows one."""
    error = None
    if job.status == "failed":
        error = {"code": job.error_code, "field": job.error_field, "detail": job.message}
    return JobStatus(
        jobID=job.job_id,
        status=job.status,
        message=job.message or MESSAGES[job.status],
        created=job.created,
        started=job.started,
        finished=job.finished,
        updated=job.updated,
        progress=job.progress,
        tiles=Tiles(done=job.tiles_done, total=job.tiles_total, failed=job.tiles_failed, skipped=job.tiles_skipped),
        coverage=job.coverage,
        eta_s=job.eta_s,
        queue_position=job.queue_position,
        slide=job.spec.slide_id,
        queries=list(job.spec.queries),
        model=job.spec.model,
        result=job.result,
        error=error,
        links=_links(job),
    )


def _links(job: JobRow) -> list[Link]:
    here = f"/v1/jobs/{job.job_id}"
    links = [Link(href=here, rel="self", type=JSON, title="Status")]
    if job.status == "successful":
        links += [
            Link(href=f"{here}/overlay/", rel=RESULTS, type="application/vnd+zarr", title="Overlay (OME-Zarr 0.5)"),
            Link(href=f"{here}/overlay.zip", rel=RESULTS, type="application/zip", title="Overlay as one zip"),
            Link(href=f"{here}/regions", rel=RESULTS, type="application/geo+json", title="Regions"),
            Link(href=f"{here}/report", rel=RESULTS, type="text/html", title="Report for people"),
            Link(href=f"{here}/report", rel=RESULTS, type=JSON, title="Report for programs"),
        ]
    return links
