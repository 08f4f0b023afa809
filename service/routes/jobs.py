"""Jobs: ask, list, look, watch, dismiss."""

import hashlib
import json
import logging
import re
import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from service.callbacks import check_callback
from service.errors import Problem
from service.events import MEDIA_TYPE, EventStream, Wanted, is_over
from service.files import matches
from service.limits import JSON
from service.rooms import In, Rooms
from service.routes.opened import shown_by_link
from service.schemas import JobList, JobRequest, JobStatus, Link, ProblemBody, Status
from service.specs import make_spec
from service.status import Notice, make_notice, retry_after_s, status_document
from worker.ledger import Limits
from worker.logs import log_context
from worker.tracing import current_traceparent, span

log = logging.getLogger("slidereason.service")

router = APIRouter(tags=["jobs"])

TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
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
REFUSALS = {
    403: "The slide lies outside the slide folders",
    404: "No such slide",
    409: "Idempotency-Key came before with another body; or the slide is being fetched, see Retry-After",
    413: "Body or roi too large",
    415: "Not JSON",
    422: "A field is not accepted; the answer names it",
    429: "Too many open jobs, in all or of this tenant; see Retry-After",
    503: "The database is away; see Retry-After",
}
STREAM = {
    200: {"content": {MEDIA_TYPE: {}}},
    204: {"description": "The job is closed and the client has seen so"},
    503: {"model": ProblemBody, "description": "Too many event streams, or the database is away; see Retry-After"},
}
STREAM_RETRY_S = 15
SHARED_STREAM_S = 60.0
"""A stream by a link ends after so long, and its client comes back: if the link is still good."""

MAY_FAIL = {status: {"model": ProblemBody, "description": text} for status, text in REFUSALS.items()}


@router.post(
    "/v1/jobs", status_code=202, summary="Ask a question about a slide", response_model=JobStatus, responses=MAY_FAIL
)
def create_job(
    rooms: In,
    wanted: JobRequest,
    idempotency_key: IdempotencyKey = None,
    traceparent: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> JSONResponse:
    """Checks the slide in a child process, writes the job down, and answers at once; poll `Location`."""
    parent = traceparent if traceparent and TRACEPARENT.fullmatch(traceparent) else None
    limits = Limits(rooms.settings.max_open_jobs, rooms.settings.max_open_jobs_per_tenant)
    with span("POST /v1/jobs", parent, tenant=rooms.tenant):
        check_callback(rooms.settings, wanted.callback_url)
        spec = make_spec(rooms, wanted)
        asked = {"tenant": rooms.tenant, "trace": current_traceparent() or parent, "callback": wanted.callback_url}
        job_id, created = rooms.ledger.create_job(spec, idempotency_key, body_hash(wanted), limits, **asked)
        with log_context(job=job_id):
            log.info("accepted" if created else "asked for again by its key")
            if created:
                rooms.send_ticket(spec.model)
        job = rooms.ledger.job(job_id, rooms.tenant)
    headers = {"Location": f"/v1/jobs/{job_id}", "Cache-Control": "no-store"}
    if job.open:
        headers["Retry-After"] = str(retry_after_s(job))
    return JSONResponse(status_document(job).model_dump(mode="json"), 202, headers)


@router.get("/v1/jobs", summary="Jobs, newest first", response_model=JobList)
def list_jobs(
    rooms: In,
    status: Annotated[Status | None, Query(description="Only these")] = None,
    slide: Annotated[str | None, Query(max_length=100, description="Only jobs on this slide_id")] = None,
    cursor: Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Response:
    """A page of status documents."""
    asked = {"status": status, "slide_id": slide, "tenant": rooms.tenant}
    rows, following = rooms.ledger.list_jobs(cursor=cursor, limit=limit, **asked)
    query = f"limit={limit}" + (f"&status={status}" if status else "") + (f"&slide={slide}" if slide else "")
    links = [Link(href=f"/v1/jobs?{query}", rel="first", type=JSON, title="First page")]
    if following:
        links.append(Link(href=f"/v1/jobs?{query}&cursor={following}", rel="next", type=JSON, title="Next page"))
    page = JobList(jobs=[status_document(row) for row in rows], next_cursor=following, links=links)
    return Response(page.model_dump_json(), media_type=JSON)  # not checked a second time on its way out


@router.get("/v1/jobs/{job_id}", summary="Status document", response_model=JobStatus)
async def show_job(rooms: In, request: Request, job_id: JobId) -> Response:
    """With `ETag`; `If-None-Match` answers 304. `Retry-After` says when to ask again while the job is open."""
    began = time.perf_counter()
    notice = await rooms.board.notice(job_id, rooms.tenant)
    took_s = time.perf_counter() - began
    return _status_answer(rooms, notice, request.headers.get("if-none-match"), took_s)


@router.get("/v1/jobs/{job_id}/events", summary="Status as it changes", responses=STREAM)
async def watch_job(
    rooms: In,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(max_length=100, description="`id` of the last event seen")] = None,
    regions: Annotated[bool, Query(description="Send what blocks find as well, when they are done")] = False,
) -> Response:
    """Server-sent events: `status` (the status document) and `progress`; ends after the job's last `status`.

    With `regions=true` also `region.provisional`, a GeoJSON feature in level-0 pixels for each of the largest pieces
    that a block found, and in the end `regions.final`. After a gap the state there is now is sent, unless
    `Last-Event-ID` names it, and the regions since then. 204: the client has seen the last.
    """
    notice = await rooms.board.notice(job_id, rooms.tenant)
    if is_over(notice, last_event_id, regions):
        return Response(status_code=204)  # what makes a browser's EventSource stop
    if rooms.draining.begun:
        raise Problem(503, "draining", "this process has been told to stop; ask another", headers={"Retry-After": "1"})
    most = rooms.settings.max_event_streams
    if rooms.board.streams >= most:
        detail = f"{most} event streams are open, as many as are accepted here; poll the status instead, or try later"
        headers = {"Retry-After": str(STREAM_RETRY_S)}
        raise Problem(503, "streams-full", detail, headers=headers)
    shared = rooms.shared
    wanted = Wanted(
        last_id=last_event_id,
        regions=rooms.provisional if regions else None,
        relink=None if shared is None else partial(shown_by_link, shared),
        lasts_s=None if shared is None else min(SHARED_STREAM_S, shared.left_s),
    )
    return EventStream(rooms.board, notice, wanted)


@router.delete("/v1/jobs/{job_id}", summary="Dismiss", response_model=JobStatus)
def dismiss_job(rooms: In, job_id: JobId) -> Response:
    """Idempotent. A job that runs says `stopping` until its workers have let go; a finished one stays as it is."""
    job = rooms.ledger.dismiss(job_id, rooms.tenant)
    with log_context(job=job_id):
        log.info("dismissed")
    return _status_answer(rooms, make_notice(job), None)


def _status_answer(rooms: Rooms, notice: Notice, if_none_match: str | None, took_s: float = 0.0) -> Response:
    headers = {"ETag": notice.etag, "Cache-Control": "no-cache"}
    if notice.row.open:
        headers["Retry-After"] = str(rooms.pollers.wait_s(notice.row, took_s))
    if matches(if_none_match, notice.etag):
        return Response(status_code=304, headers=headers)
    return Response(notice.body, media_type=JSON, headers=headers)


def body_hash(wanted: JobRequest) -> str:
    """Identifies what was asked, whatever the order and spacing of the JSON."""
    text = json.dumps(wanted.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
