"""The operator's side of the ledger: trying a job again, retention, what waits and what failed."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, case, delete, func, or_, select, update

from worker.errors import JobConflict
from worker.ledger_rules import clock, lock_job, settle
from worker.ledger_schema import deliveries, idempotency, jobs, units
from worker.ledger_workers import WorkerLedger

ENDED = ("successful", "failed", "dismissed")
AGAIN = ("failed", "dismissed")


@dataclass(frozen=True)
class QueueStats:
    """What waits for the workers of one model: units, and for how long the oldest job has waited for its first."""

    model: str
    waiting_units: int
    oldest_wait_s: float


@dataclass(frozen=True)
class UnitRow:
    """A unit as an operator sees it; `deaths` counts, by tile, the workers that were lost while it was in flight."""

    kind: str
    key: str
    state: str
    token: int
    owner: str | None
    faults: int
    lost: int
    isolated: bool
    deaths: dict[str, int]
    tiles: int
    tiles_done: int
    tiles_failed: int
    error: str | None


class CareLedger(WorkerLedger):
    """Looks after jobs that ended, and counts those that did not."""

    def retry(self, job_id: str) -> Any:
        """Run a failed or dismissed job again: units that are through stay, the others start afresh.

        Returns:
            The job's row.

        Raises:
            JobNotFound, JobExpired: as `Ledger.job`.
            JobConflict: the job is open, or ended well.
        """
        with self._writing() as connection:
            now = lock_job(connection, job_id)
            row = connection.execute(select(jobs).where(jobs.c.job_id == job_id)).first()
            if row is not None and row.expired is None:
                if row.status not in AGAIN:
                    raise JobConflict(
                        f"the job is {row.status}; accepted are jobs that are {' or '.join(AGAIN)}", subject=job_id
                    )
                _start_afresh(connection, job_id)
                values = {"status": "running" if row.started else "accepted", "stopping": False, "finished": None}
                cleared = {"error_code": None, "error_field": None, "message": "", "result": None, "updated": now}
                connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values, **cleared))
                settle(connection, job_id, now)
        return self.job(job_id)

    def units_of(self, job_id: str) -> list[UnitRow]:
        """A job's units in the order they run; none when there is no such job."""
        columns = [units.c[name] for name in UnitRow.__dataclass_fields__]
        stage = case({"plan": 0, "segment": 1, "finish": 2}, value=units.c.kind)
        with self._reading() as connection:
            rows = connection.execute(
                select(*columns).where(units.c.job_id == job_id).order_by(stage, units.c.position)
            )
            return [UnitRow(*row) for row in rows]

    # ---- retention -----------------------------------------------------------------------------------------------

    def expire(self, older_than_s: float, limit: int = 20) -> list[str]:
        """Give up jobs that ended so long ago. What was asked and answered is wiped; the id stays, to answer 410.

        Args:
            older_than_s: seconds since they ended.
            limit: most jobs in one call.

        Returns:
            Jobs whose artifacts are still to be removed, those of earlier calls included; tell `purged` when they are.
        """
        with self._writing() as connection:
            now = clock(connection)
            over = and_(jobs.c.status.in_(ENDED), jobs.c.finished < now - older_than_s, jobs.c.expired.is_(None))
            due = connection.scalars(select(jobs.c.job_id).where(over).order_by(jobs.c.finished).limit(limit)).all()
            if due:
                wiped = {"spec": {}, "plan": None, "slide": None, "result": None, "message": "", "slide_id": ""}
                wiped |= {"callback": None, "expired": now, "updated": now}
                connection.execute(update(jobs).where(jobs.c.job_id.in_(due)).values(**wiped))
                connection.execute(delete(deliveries).where(deliveries.c.job_id.in_(due)))
                connection.execute(delete(units).where(units.c.job_id.in_(due)))
                connection.execute(delete(idempotency).where(idempotency.c.job_id.in_(due)))
            left = select(jobs.c.job_id).where(jobs.c.expired.is_not(None), jobs.c.purged.is_(False))
            return list(connection.scalars(left.order_by(jobs.c.expired).limit(limit)))

    def purged(self, job_id: str) -> None:
        """The artifacts of an expired job are gone."""
        with self._writing() as connection:
            connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(purged=True))

    # ---- counting ------------------------------------------------------------------------------------------------

    def queue_stats(self) -> list[QueueStats]:
        """What waits, per model; a model that nothing waits for is not named."""
        first = case((jobs.c.status == "accepted", jobs.c.created))
        query = select(jobs.c.model, func.sum(jobs.c.ready), func.min(first)).where(jobs.c.ready > 0)
        with self._reading() as connection:
            now = clock(connection)
            rows = connection.execute(query.group_by(jobs.c.model).order_by(jobs.c.model)).all()
        return [QueueStats(model, int(n), max(0.0, now - oldest) if oldest else 0.0) for model, n, oldest in rows]

    def failures(self) -> dict[str, int]:
        """Number of failed jobs by error code."""
        query = select(jobs.c.error_code, func.count()).where(jobs.c.status == "failed", jobs.c.expired.is_(None))
        with self._reading() as connection:
            return {code or "internal": n for code, n in connection.execute(query.group_by(jobs.c.error_code))}


def _start_afresh(connection: Connection, job_id: str) -> None:
    """Units that failed or never ran wait again, blocks with failed tiles too; finish waits for them."""
    fresh = {
        "owner": None, "lease_until": None, "not_before": 0.0, "faults": 0, "lost": 0, "isolated": False, "deaths": {},
        "in_flight": None, "tiles_done": 0, "tiles_failed": 0, "error": None, "summary": None,
    }  # fmt: skip
    mine = units.c.job_id == job_id
    again = or_(units.c.state == "failed", and_(units.c.kind == "segment", units.c.tiles_failed > 0))
    connection.execute(update(units).where(mine, again, units.c.kind != "finish").values(state="waiting", **fresh))
    connection.execute(update(units).where(mine, units.c.kind == "finish").values(state="held", **fresh))
