"""The outbox: what is to be delivered is written down in the transaction that ends the job, so that none is forgotten.

What a message says is fixed there; every try sends the same.
"""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from worker.errors import BadRequest
from worker.ledger_schema import deliveries, jobs
from worker.outbound import read_target

WEBHOOK, DICOMWEB, FHIR = "webhook", "dicomweb", "fhir"
PUSHED = {DICOMWEB: ("dicom-seg",), FHIR: ("fhir",)}
"""Targets that take results, and the exports that they are sent."""

ANNOTATIONS = "dicom-ann"


def tell_end(connection: Connection, job_id: str, now: float, push: Sequence[str] = ()) -> None:
    """Write down what follows from a job's end; called once for each, by whoever changed its status.

    Args:
        connection: in the transaction that ended the job.
        job_id: the job.
        now: by the database's clock.
        push: of `PUSHED`, the targets that get the results of every job that ended well.
    """
    job = connection.execute(select(*_TOLD).where(jobs.c.job_id == job_id)).one()
    event = f"{job.status} {job.finished!r}"
    rows = []
    if job.callback is not None:
        row = new_delivery(job_id, job.tenant, WEBHOOK, event, now, {}, place_of(job.callback))
        rows.append(row | {"message": _message(job, row["delivery_id"])})
    if job.status == "successful":
        for target in push:
            rows.append(new_delivery(job_id, job.tenant, target, event, now, {"exports": list(PUSHED[target])}))
    if rows:
        connection.execute(insert(deliveries), rows)


def new_delivery(
    job_id: str, tenant: str, target: str, event: str, now: float, message: dict[str, Any], place: str = ""
) -> dict[str, Any]:
    """A row of `deliveries` to insert; `place` is which server it goes to, and empty for the operator's own."""
    return {
        "delivery_id": f"msg_{uuid.uuid4().hex}", "job_id": job_id, "tenant": tenant, "target": target, "event": event,
        "state": "waiting", "message": message, "created": now, "not_before": now, "place": place or target,
    }  # fmt: skip


def place_of(url: str) -> str:
    """`host:port` of an address; empty when it is none, which its sender will say."""
    try:
        return read_target(url, "callback_url").place[:300]
    except BadRequest:
        return ""


_TOLD = [
    jobs.c[name]
    for name in (
        "job_id", "status", "tenant", "callback", "slide_id", "model", "created", "started", "finished", "tiles_done",
        "tiles_total", "tiles_failed", "tiles_skipped", "error_code", "error_field", "result",
    )
]  # fmt: skip


def _message(job: Any, event_id: str) -> dict[str, Any]:
    """A webhook's body. Questions, answers and messages stay here: they are words, and words may name a patient."""
    here = f"/v1/jobs/{job.job_id}"
    links = [{"href": here, "rel": "self", "type": "application/json", "title": "Status"}]
    if job.status == "successful":
        links.append({"href": f"{here}/report", "rel": "report", "type": "application/json", "title": "Report"})
    error = {"code": job.error_code, "field": job.error_field} if job.status == "failed" else None
    return {
        "id": event_id,
        "type": f"job.{job.status}",
        "timestamp": _time(job.finished),
        "data": {
            "jobID": job.job_id,
            "status": job.status,
            "created": _time(job.created),
            "started": _time(job.started),
            "finished": _time(job.finished),
            "slide": job.slide_id,
            "model": job.model,
            "tiles": {
                "done": job.tiles_done, "total": job.tiles_total, "failed": job.tiles_failed,
                "skipped": job.tiles_skipped,
            },
            "coverage": job.tiles_done / job.tiles_total if job.tiles_total else None,
            "regions": (job.result or {}).get("regions") if job.status == "successful" else None,
            "error": error,
            "links": links,
        },
    }  # fmt: skip


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
