"""The ledger: jobs, their units, slides and workers in SQL. What is in here is true; tickets are only hints.

This file is the service's side (create, look, dismiss); `worker.ledger_units` is the worker's (claim, commit, sweep).
"""

import base64
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, func, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from worker.errors import BadRequest, JobConflict, JobNotFound, QueueFull, SlideNotFound
from worker.ledger_rules import OPEN, clock, new_unit, settle
from worker.ledger_schema import connect, idempotency, jobs, slides, units, workers
from worker.ledger_units import UnitLedger
from worker.types import JobSpec

STATUSES = ("accepted", "running", "successful", "failed", "dismissed")

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


class Ledger(UnitLedger):
    """Jobs in SQL; safe to share between threads, and between processes by its URL.

    Args:
        url: `sqlite:////abs/path/ledger.sqlite` or `postgresql+psycopg://…`; missing tables are created.
        lease_s: how long a claimed unit stays owned without `renew`.
    """

    def __init__(self, url: str, lease_s: float = 30.0):
        self.engine = connect(url)
        self.lease_s = lease_s

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def ping(self) -> None:
        """Raise when the database is away."""
        with self._reading() as connection:
            connection.execute(select(1))

    # ---- jobs ----------------------------------------------------------------------------------------------------

    def create_job(
        self,
        spec: JobSpec,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
        max_open: int | None = None,
        job_id: str | None = None,
    ) -> tuple[str, bool]:
        """Write down a job; it is committed when this returns.

        Args:
            spec: what is asked.
            idempotency_key, body_hash: the client's key and a hash of the request it came with.
            max_open: refuse when so many jobs are open already.
            job_id: 32 hexadecimal digits; None draws one.

        Returns:
            (job id, True when it is new, False when the key named this job before).

        Raises:
            JobConflict: the key came before with another body.
            QueueFull: `max_open` jobs are open.
        """
        try:
            with self._writing() as connection:
                if idempotency_key is not None:
                    known = _known_job(connection, idempotency_key, body_hash or "")
                    if known is not None:
                        return known, False
                if max_open is not None:
                    _require_room(connection, max_open)
                return _insert_job(connection, spec, job_id or uuid.uuid4().hex, idempotency_key, body_hash or ""), True
        except IntegrityError:  # PostgreSQL: the same key arrived twice at once and the other was first
            with self._reading() as connection:
                known = _known_job(connection, idempotency_key, body_hash or "")
            if known is None:
                raise
            return known, False

    def job(self, job_id: str) -> JobRow:
        """One job as it stands.

        Raises:
            JobNotFound: no job has this id.
        """
        with self._reading() as connection:
            row = connection.execute(select(*_SHOWN).where(jobs.c.job_id == job_id)).first()
            if row is None:
                raise JobNotFound("no job has this id", subject=job_id)
            return _job_row(connection, row, clock(connection))

    def list_jobs(
        self, cursor: str | None = None, limit: int = 50, status: str | None = None, slide_id: str | None = None
    ) -> tuple[list[JobRow], str | None]:
        """A page of jobs, newest first.

        Args:
            cursor: what the page before returned; None for the first page.
            limit: rows per page, 1 to 500.
            status, slide_id: only these.

        Returns:
            (rows, cursor of the next page or None).

        Raises:
            BadRequest: an unknown status, a limit out of range, or a cursor that is not ours.
        """
        if status is not None and status not in STATUSES:
            raise BadRequest(f"status must be one of {', '.join(STATUSES)}", field="status")
        if not 1 <= limit <= 500:
            raise BadRequest("limit must be between 1 and 500", field="limit")
        query = select(*_SHOWN).order_by(jobs.c.created.desc(), jobs.c.job_id.desc()).limit(limit + 1)
        if status is not None:
            query = query.where(jobs.c.status == status)
        if slide_id is not None:
            query = query.where(jobs.c.slide_id == slide_id)
        if cursor is not None:
            query = query.where(tuple_(jobs.c.created, jobs.c.job_id) < tuple_(*_read_cursor(cursor)))
        with self._reading() as connection:
            now = clock(connection)
            found = connection.execute(query).all()
            rows = [_job_row(connection, row, now) for row in found[:limit]]
        more = len(found) > limit
        return rows, _write_cursor(found[limit - 1].created, found[limit - 1].job_id) if more else None

    def dismiss(self, job_id: str) -> JobRow:
        """Stop a job: at once when nobody works on it, else once its workers have seen it. Finished jobs stay.

        Raises:
            JobNotFound: no job has this id.
        """
        with self._writing() as connection:
            locked = connection.execute(select(jobs.c.status).where(jobs.c.job_id == job_id).with_for_update()).first()
            if locked is not None and locked.status in OPEN:
                stopping = {"stopping": True, "message": "stopping"}
                connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**stopping))
                settle(connection, job_id, clock(connection))
        return self.job(job_id)

    def counts(self) -> dict[str, int]:
        """Number of jobs by status."""
        with self._reading() as connection:
            found = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
            return {status: 0 for status in STATUSES} | {status: count for status, count in found}

    # ---- slides and workers --------------------------------------------------------------------------------------

    def register_slide(self, slide_id: str, reference: str, details: dict[str, Any] | None = None) -> None:
        """Remember a slide under an opaque id; the same id again replaces what was known."""
        values = {"reference": reference, "details": details or {}}
        with self._writing() as connection:
            changed = connection.execute(update(slides).where(slides.c.slide_id == slide_id).values(**values))
            if changed.rowcount == 0:
                connection.execute(insert(slides).values(slide_id=slide_id, **values))

    def slide(self, slide_id: str) -> SlideRow:
        """A registered slide.

        Raises:
            SlideNotFound: no slide was registered under this id.
        """
        with self._reading() as connection:
            row = connection.execute(select(slides).where(slides.c.slide_id == slide_id)).first()
        if row is None:
            raise SlideNotFound("no slide has this id", subject=slide_id)
        return SlideRow(row.slide_id, row.reference, row.details)

    def slides(self) -> list[SlideRow]:
        """Every registered slide, by id."""
        with self._reading() as connection:
            rows = connection.execute(select(slides).order_by(slides.c.slide_id)).all()
        return [SlideRow(row.slide_id, row.reference, row.details) for row in rows]

    def workers(self, heard_within_s: float = 60.0) -> list[WorkerRow]:
        """The workers heard from lately."""
        with self._reading() as connection:
            since = clock(connection) - heard_within_s
            query = select(workers).where(workers.c.heard >= since).order_by(workers.c.worker_id)
            rows = connection.execute(query).all()
        return [WorkerRow(row.worker_id, _time(row.heard), row.card, tuple(row.models)) for row in rows]


_SHOWN: Sequence = [column for column in jobs.c if column.name not in ("plan", "slide")] + [
    jobs.c.plan.is_not(None).label("planned")
]


def _known_job(connection: Connection, key: str, body_hash: str) -> str | None:
    row = connection.execute(select(idempotency).where(idempotency.c.key == key)).first()
    if row is None:
        return None
    if row.body_hash != body_hash:
        raise JobConflict("this Idempotency-Key came before with another request body", field="Idempotency-Key")
    return row.job_id


def _require_room(connection: Connection, max_open: int) -> None:
    n_open = connection.scalar(select(func.count()).select_from(jobs).where(jobs.c.status.in_(OPEN)))
    if n_open >= max_open:
        raise QueueFull(f"{n_open} jobs are open and {max_open} is the limit; try again later")


def _insert_job(connection: Connection, spec: JobSpec, job_id: str, key: str | None, body_hash: str) -> str:
    now = clock(connection)
    if key is not None:
        connection.execute(insert(idempotency).values(key=key, body_hash=body_hash, job_id=job_id))
    connection.execute(
        insert(jobs).values(
            job_id=job_id, status="accepted", model=spec.model, slide_id=spec.slide_id, priority=spec.priority,
            created=now, updated=now, spec=spec.to_json(),
        )
    )  # fmt: skip
    connection.execute(insert(units), [new_unit(job_id, "plan", "", 0, 0)])
    return job_id


def _job_row(connection: Connection, row: Any, now: float) -> JobRow:
    handled = row.tiles_done + row.tiles_failed
    eta_s = None
    if row.status == "running" and handled and row.tiles_total and row.started:
        eta_s = max(0.0, (now - row.started) * (row.tiles_total - handled) / handled)
    return JobRow(
        job_id=row.job_id,
        status=row.status,
        message=row.message,
        created=_time(row.created),
        started=_time(row.started),
        finished=_time(row.finished),
        updated=_time(row.updated),
        progress=_progress(row, handled),
        tiles_done=row.tiles_done,
        tiles_total=row.tiles_total,
        tiles_failed=row.tiles_failed,
        tiles_skipped=row.tiles_skipped,
        coverage=row.tiles_done / row.tiles_total if row.tiles_total else None,
        eta_s=eta_s,
        queue_position=_queue_position(connection, row) if row.status == "accepted" else None,
        spec=JobSpec.from_json(row.spec),
        error_code=row.error_code,
        error_field=row.error_field,
        model=row.card,
        result=row.result,
    )


def _progress(row: Any, handled: int) -> int:
    if row.status == "successful":
        return 100
    if row.status == "accepted" or not row.planned:
        return 0
    share = handled / row.tiles_total if row.tiles_total else 1.0
    return PLANNED_PERCENT + int((SEGMENTED_PERCENT - PLANNED_PERCENT) * share)


def _queue_position(connection: Connection, row: Any) -> int:
    older = and_(jobs.c.priority == row.priority, jobs.c.created < row.created)
    ahead = and_(jobs.c.status == "accepted", or_(jobs.c.priority > row.priority, older))
    return connection.scalar(select(func.count()).select_from(jobs).where(ahead))


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _write_cursor(created: float, job_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([created, job_id]).encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[float, str]:
    try:
        created, job_id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return float(created), str(job_id)
    except (ValueError, TypeError) as error:
        raise BadRequest("cursor must be one that a page of this list returned", field="cursor") from error
