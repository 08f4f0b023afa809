"""What the ledger shows of jobs, workers and slides: rows of the database turned into what callers read."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, func, or_, select

from worker.errors import BadRequest, JobExpired, JobNotFound
from worker.ledger_rules import OPEN
from worker.ledger_schema import jobs
from worker.types import JobSpec

EVERYONE = "default"
"""The tenant of those who are not told apart."""

PLANNED_PERCENT, SEGMENTED_PERCENT = 2, 95
"""Progress when planning and when the last block are through; finish makes up the rest."""


@dataclass(frozen=True)
class JobRow:
    """A job as the status document shows it.

    Attributes:
        job_id, status, message: status is one of `STATUSES`.
        created, started, finished, updated: aware UTC times of the database's clock; None when not reached.
        progress: 0 to 100.
        tiles_done, tiles_total, tiles_failed, tiles_skipped: looked at, to look at, given up, left out (glass, ROI).
        coverage: share of `tiles_total` that was looked at; None before planning.
        eta_s: seconds until the blocks are through at the present pace; None when unknown.
        queue_position: accepted jobs ahead of it; None once it runs.
        spec: what was asked.
        error_code, error_field: of a failed job.
        model: the segmenter's card as a dict, once a worker took the job.
        result: of a successful job: the answer in words and counts.
        tenant: whose job it is.
        units_left: units of work that are not through; 1 before planning.
    """

    job_id: str
    status: str
    message: str
    created: datetime
    started: datetime | None
    finished: datetime | None
    updated: datetime
    progress: int
    tiles_done: int
    tiles_total: int
    tiles_failed: int
    tiles_skipped: int
    coverage: float | None
    eta_s: float | None
    queue_position: int | None
    spec: JobSpec
    error_code: str | None = None
    error_field: str | None = None
    model: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    tenant: str = EVERYONE
    units_left: int = 0

    @property
    def open(self) -> bool:
        """Whether it may still change."""
        return self.status in OPEN


@dataclass(frozen=True)
class WorkerRow:
    """A worker: when it was last heard, what its segmenter says of itself, the model names that reach it."""

    worker_id: str
    heard: datetime
    card: dict[str, Any]
    models: tuple[str, ...]


@dataclass(frozen=True)
class SlideRow:
    """A registered slide: its opaque id, its reference (never echoed), and what was learnt about it."""

    slide_id: str
    reference: str
    details: dict[str, Any]


SHOWN: Sequence = [column for column in jobs.c if column.name not in ("plan", "slide", "trace", "callback")] + [
    jobs.c.plan.is_not(None).label("planned")
]
"""The columns that `job_row` reads."""


def require_job(row: Any, job_id: str, tenant: str | None = None) -> None:
    """Refuse what is not there, not this tenant's, or expired.

    Raises:
        JobNotFound, JobExpired: with the job as subject.
    """
    if row is None or tenant not in (None, row.tenant):
        raise JobNotFound("no job has this id", subject=job_id)
    if row.expired is not None:
        when = datetime.fromtimestamp(row.expired, UTC).date()
        raise JobExpired(f"the job's results were removed on {when}, when their time was over", subject=job_id)


def job_rows(connection: Connection, rows: Sequence[Any], now: float) -> list[JobRow]:
    """Rows of `SHOWN` columns as jobs; `now` is the database's clock."""
    positions = _queue_positions(connection, rows)
    return [_job_row(row, now, positions.get(row.job_id)) for row in rows]


def _job_row(row: Any, now: float, position: int | None) -> JobRow:
    handled = row.tiles_done + row.tiles_failed
    eta_s = None
    if row.status == "running" and handled and row.tiles_total and row.started:
        eta_s = max(0.0, (now - row.started) * (row.tiles_total - handled) / handled)
    return JobRow(
        job_id=row.job_id,
        status=row.status,
        message=row.message,
        created=time_of(row.created),
        started=time_of(row.started),
        finished=time_of(row.finished),
        updated=time_of(row.updated),
        progress=_progress(row, handled),
        tiles_done=row.tiles_done,
        tiles_total=row.tiles_total,
        tiles_failed=row.tiles_failed,
        tiles_skipped=row.tiles_skipped,
        coverage=row.tiles_done / row.tiles_total if row.tiles_total else None,
        eta_s=eta_s,
        queue_position=position,
        spec=JobSpec.from_json(row.spec),
        error_code=row.error_code,
        error_field=row.error_field,
        model=row.card,
        result=row.result,
        tenant=row.tenant,
        units_left=row.units_left,
    )


def _progress(row: Any, handled: int) -> int:
    if row.status == "successful":
        return 100
    if row.status == "accepted" or not row.planned:
        return 0
    share = handled / row.tiles_total if row.tiles_total else 1.0
    return PLANNED_PERCENT + int((SEGMENTED_PERCENT - PLANNED_PERCENT) * share)


def _queue_positions(connection: Connection, rows: Sequence[Any]) -> dict[str, int]:
    """How many accepted jobs are ahead of each accepted one, by one query for all."""
    waiting = [row for row in rows if row.status == "accepted"]
    if len(waiting) == 1:
        row = waiting[0]
        older = and_(jobs.c.priority == row.priority, jobs.c.created < row.created)
        ahead = and_(jobs.c.status == "accepted", or_(jobs.c.priority > row.priority, older))
        return {row.job_id: connection.scalar(select(func.count()).select_from(jobs).where(ahead))}
    if not waiting:
        return {}
    rank = func.rank().over(order_by=(jobs.c.priority.desc(), jobs.c.created)) - 1
    ranked = select(jobs.c.job_id, rank.label("position")).where(jobs.c.status == "accepted").subquery()
    found = connection.execute(select(ranked).where(ranked.c.job_id.in_([row.job_id for row in waiting])))
    return {job_id: position for job_id, position in found}


def time_of(seconds: float | None) -> datetime | None:
    """Seconds since 1970 as an aware UTC time."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def write_cursor(created: float, job_id: str) -> str:
    """Where the next page of a list starts, opaque to the client."""
    return base64.urlsafe_b64encode(json.dumps([created, job_id]).encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[float, str]:
    """What `write_cursor` wrote.

    Raises:
        BadRequest: it is not one of ours.
    """
    try:
        created, job_id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return float(created), str(job_id)
    except (ValueError, TypeError) as error:
        raise BadRequest("cursor must be one that a page of this list returned", field="cursor") from error
