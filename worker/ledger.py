"""The ledger: jobs, their units, slides and workers in SQL. What is in here is true; tickets are only hints.

    Ledger            the service's side: create, look, dismiss
     ├─ DeliveryLedger    what is sent out of the house
     ├─ CareLedger    the operator's: retry, retention, what waits and what failed
     └─ UnitLedger    the worker's: renew, commit, fail, sweep
         └─ ExportLedger    exports of jobs that have ended
             └─ ClaimLedger, WorkerLedger    claim; heartbeats and named leases
"""

import hashlib
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from worker.errors import BadRequest, JobConflict, QueueFull, SlideNotFound
from worker.ledger_care import CareLedger
from worker.ledger_claim import ClaimLedger, ensure_tenant
from worker.ledger_deliveries import DeliveryLedger
from worker.ledger_done import DoneLedger
from worker.ledger_links import LinkLedger
from worker.ledger_rows import (
    EVERYONE,
    SHOWN,
    JobRow,
    SlideRow,
    WorkerRow,
    job_rows,
    read_cursor,
    require_job,
    time_of,
    write_cursor,
)
from worker.ledger_rules import OPEN, clock, new_unit, settle
from worker.ledger_schema import connect, idempotency, jobs, slides, units, workers
from worker.ledger_units import UnitLedger
from worker.types import JobSpec

STATUSES = ("accepted", "running", "successful", "failed", "dismissed")

PACE_S = 600.0
RETRY_AFTER_S = (5, 300)
"""Whoever is refused comes back when, at the pace of the last ten minutes, a job has ended; within these bounds."""

@dataclass(frozen=True)
class Limits:
    """How many jobs may be open at once: in all, and of one tenant; None is no limit."""

    open: int | None = None
    tenant_open: int | None = None


class Ledger(DeliveryLedger, LinkLedger, DoneLedger, CareLedger, UnitLedger):
    """Jobs in SQL; safe to share between threads, and between processes by its URL.

    Args:
        url: `sqlite:////abs/path/ledger.sqlite` or `postgresql+psycopg://…`.
        lease_s: how long a claimed unit or delivery stays owned without `renew`.
        upgrade: bring older or missing tables to this version's; else they are refused.
        push: where the results of every job that ends well are sent, when this process closes it.
    """

    def __init__(self, url: str, lease_s: float = 30.0, upgrade: bool = True, push: tuple[str, ...] = ()):
        ClaimLedger.__init__(self)
        self.engine = connect(url, upgrade)
        self.lease_s = lease_s
        self.push = push

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
        limits: Limits = Limits(),
        job_id: str | None = None,
        tenant: str = EVERYONE,
        trace: str | None = None,
        callback: str | None = None,
    ) -> tuple[str, bool]:
        """Write down a job; it is committed when this returns.

        Args:
            spec: what is asked.
            idempotency_key, body_hash: the client's key, its tenant's own, and a hash of the request it came with.
            limits: refuse when so many jobs are open already.
            job_id: 32 hexadecimal digits; None draws one.
            tenant: whose job it is.
            trace: W3C traceparent of the request.
            callback: address that is told when the job has ended.

        Returns:
            (job id, True when it is new, False when the key named this job before).

        Raises:
            JobConflict: the key came before with another body.
            QueueFull: so many jobs are open; says when to come back.
        """
        key = None if idempotency_key is None else _key_of(tenant, idempotency_key)
        try:
            with self._writing() as connection:
                if key is not None:
                    known = _known_job(connection, key, body_hash or "")
                    if known is not None:
                        return known, False
                _require_room(connection, limits, tenant)
                job_id = job_id or uuid.uuid4().hex
                _insert_job(connection, spec, job_id, tenant, trace, callback)
                if key is not None:
                    values = {"key": key, "body_hash": body_hash or "", "job_id": job_id}
                    connection.execute(insert(idempotency).values(**values))
                return job_id, True
        except IntegrityError:  # PostgreSQL: the same key arrived twice at once and the other was first
            with self._reading() as connection:
                known = _known_job(connection, key, body_hash or "") if key is not None else None
            if known is None:
                raise
            return known, False

    def job(self, job_id: str, tenant: str | None = None) -> JobRow:
        """One job as it stands.

        Args:
            job_id: its id.
            tenant: who asks; None may see everybody's.

        Raises:
            JobNotFound: no job of this tenant has this id.
            JobExpired: its results were removed when their time was over.
        """
        with self._reading() as connection:
            row = connection.execute(select(*SHOWN).where(jobs.c.job_id == job_id)).first()
            require_job(row, job_id, tenant)
            return job_rows(connection, [row], clock(connection))[0]

    def jobs(self, job_ids: Sequence[str]) -> dict[str, JobRow]:
        """Several jobs at once, by id; unknown and expired ones are left out."""
        query = select(*SHOWN).where(jobs.c.job_id.in_(list(job_ids)), jobs.c.expired.is_(None))
        with self._reading() as connection:
            now = clock(connection)
            return {job.job_id: job for job in job_rows(connection, connection.execute(query).all(), now)}

    def list_jobs(
        self,
        cursor: str | None = None,
        limit: int = 50,
        status: str | None = None,
        slide_id: str | None = None,
        tenant: str | None = None,
    ) -> tuple[list[JobRow], str | None]:
        """A page of jobs, newest first.

        Args:
            cursor: what the page before returned; None for the first page.
            limit: rows per page, 1 to 500.
            status, slide_id, tenant: only these; expired jobs are not listed.

        Returns:
            (rows, cursor of the next page or None).

        Raises:
            BadRequest: an unknown status, a limit out of range, or a cursor that is not ours.
        """
        if status is not None and status not in STATUSES:
            raise BadRequest(f"status must be one of {', '.join(STATUSES)}", field="status")
        if not 1 <= limit <= 500:
            raise BadRequest("limit must be between 1 and 500", field="limit")
        query = select(*SHOWN).where(jobs.c.expired.is_(None)).limit(limit + 1)
        query = query.order_by(jobs.c.created.desc(), jobs.c.job_id.desc())
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        if status is not None:
            query = query.where(jobs.c.status == status)
        if slide_id is not None:
            query = query.where(jobs.c.slide_id == slide_id)
        if cursor is not None:
            query = query.where(tuple_(jobs.c.created, jobs.c.job_id) < tuple_(*read_cursor(cursor)))
        with self._reading() as connection:
            now = clock(connection)
            found = connection.execute(query).all()
            rows = job_rows(connection, found[:limit], now)
        more = len(found) > limit
        return rows, write_cursor(found[limit - 1].created, found[limit - 1].job_id) if more else None

    def dismiss(self, job_id: str, tenant: str | None = None) -> JobRow:
        """Stop a job: at once when nobody works on it, else once its workers have seen it. Finished jobs stay.

        Raises:
            JobNotFound, JobExpired: as `job`.
        """
        columns = (jobs.c.status, jobs.c.tenant, jobs.c.expired)
        with self._writing() as connection:
            locked = connection.execute(select(*columns).where(jobs.c.job_id == job_id).with_for_update()).first()
            require_job(locked, job_id, tenant)
            if locked.status in OPEN:
                stopping = {"stopping": True, "message": "stopping"}
                connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**stopping))
                settle(connection, job_id, clock(connection))
        return self.job(job_id, tenant)

    def counts(self) -> dict[str, int]:
        """Number of jobs by status."""
        with self._reading() as connection:
            kept = select(jobs.c.status, func.count()).where(jobs.c.expired.is_(None)).group_by(jobs.c.status)
            found = connection.execute(kept)
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
        return [WorkerRow(row.worker_id, time_of(row.heard), row.card, tuple(row.models)) for row in rows]


def _known_job(connection: Connection, key: str, body_hash: str) -> str | None:
    row = connection.execute(select(idempotency).where(idempotency.c.key == key)).first()
    if row is None:
        return None
    if row.body_hash != body_hash:
        raise JobConflict("this Idempotency-Key came before with another request body", field="Idempotency-Key")
    return row.job_id


def _key_of(tenant: str, key: str) -> str:
    """A client's key as it is kept: keys of two tenants never meet."""
    return key if tenant == EVERYONE else f"{tenant} {hashlib.sha256(key.encode()).hexdigest()}"


def _require_room(connection: Connection, limits: Limits, tenant: str) -> None:
    for limit, whose, who in ((limits.open, None, "jobs"), (limits.tenant_open, tenant, "of your jobs")):
        if limit is None:
            continue
        n_open = connection.scalar(_count(jobs.c.status.in_(OPEN), whose))
        if n_open >= limit:
            ended = connection.scalar(_count(jobs.c.finished > clock(connection) - PACE_S, whose))
            wait_s = min(max(math.ceil(PACE_S / max(1, ended)), RETRY_AFTER_S[0]), RETRY_AFTER_S[1])
            raise QueueFull(
                f"{n_open} {who} are open and {limit} is the limit; try again in {wait_s} s", retry_after_s=wait_s
            )


def _count(condition: Any, tenant: str | None) -> Any:
    query = select(func.count()).select_from(jobs).where(condition)
    return query if tenant is None else query.where(jobs.c.tenant == tenant)


def _insert_job(
    connection: Connection, spec: JobSpec, job_id: str, tenant: str, trace: str | None, callback: str | None
) -> None:
    now = clock(connection)
    ensure_tenant(connection, tenant)
    connection.execute(
        insert(jobs).values(
            job_id=job_id, status="accepted", model=spec.model, slide_id=spec.slide_id, priority=spec.priority,
            created=now, updated=now, spec=spec.to_json(), tenant=tenant, trace=trace, ready=1, units_left=1,
            callback=callback,
        )
    )  # fmt: skip
    connection.execute(insert(units), [new_unit(job_id, "plan", "", 0, 0)])
