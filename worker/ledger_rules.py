"""Rules of the ledger, each within a transaction of its caller: what follows when a unit of a job has changed."""

import logging
from typing import Any

from sqlalchemy import Connection, and_, case, func, select, update

from worker.errors import SlideReasonError
from worker.ledger_schema import database_now, jobs, units

log = logging.getLogger(__name__)

FAULTS_ALLOWED = 3
"""So many faults of the data and a unit is given up."""

DEATHS_OF_A_TILE = 2
"""A tile in flight at so many isolated deaths is quarantined."""

LOST_ALLOWED = 20
"""A unit that took so many workers with it is given up, whatever its tiles say."""

OPEN = ("accepted", "running")


def clock(connection: Connection) -> float:
    """Seconds since 1970 by the database's clock."""
    return connection.scalar(select(database_now()))


def lock_job(connection: Connection, job_id: str) -> float:
    """Lock the job's row (PostgreSQL; SQLite has locked all) and read the clock."""
    connection.execute(select(jobs.c.job_id).where(jobs.c.job_id == job_id).with_for_update())
    return clock(connection)


def is_unit(job_id: str, kind: str, key: str):
    """The condition that names one unit."""
    return and_(units.c.job_id == job_id, units.c.kind == kind, units.c.key == key)


def is_claimable(now: float):
    """The condition of a unit that may be claimed now; wants `jobs` joined."""
    return and_(
        units.c.state == "waiting", units.c.not_before <= now, jobs.c.status.in_(OPEN), jobs.c.stopping.is_(False)
    )


def new_unit(job_id: str, kind: str, key: str, tiles: int, position: int, state: str = "waiting") -> dict[str, Any]:
    """A row of `units` to insert."""
    return {"job_id": job_id, "kind": kind, "key": key, "tiles": tiles, "position": position, "state": state}


def reason_of(error: Exception) -> str:
    """An error in words, for the ledger."""
    return str(error) if isinstance(error, SlideReasonError) else f"{type(error).__name__}: {error}"


def count_tiles(connection: Connection, job_id: str, now: float) -> None:
    """Bring the job's counts up to its units'."""
    done, failed = connection.execute(
        select(func.coalesce(func.sum(units.c.tiles_done), 0), func.coalesce(func.sum(units.c.tiles_failed), 0)).where(
            units.c.job_id == job_id
        )
    ).one()
    values = {"tiles_done": done, "tiles_failed": failed, "updated": now}
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))


def settle(connection: Connection, job_id: str, now: float) -> int:
    """After any change of a job's units: dismiss it when it has stopped, open finish when its blocks are through.

    Returns:
        1 when finish was opened, else 0.
    """
    count_tiles(connection, job_id, now)
    job = connection.execute(select(jobs.c.status, jobs.c.stopping).where(jobs.c.job_id == job_id)).one()
    if job.status not in OPEN:
        return 0
    running = func.count(case((units.c.state == "leased", 1)))
    before_finish = func.count(case((and_(units.c.kind != "finish", units.c.state.in_(("waiting", "leased"))), 1)))
    leased, unfinished = connection.execute(select(running, before_finish).where(units.c.job_id == job_id)).one()
    if job.stopping:
        if leased == 0:
            values = {"status": "dismissed", "finished": now, "message": "dismissed"}
            connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))
        return 0
    if unfinished:
        return 0
    held = and_(units.c.job_id == job_id, units.c.kind == "finish", units.c.state == "held")
    return connection.execute(update(units).where(held).values(state="waiting")).rowcount


def give_up(connection: Connection, row: Any, error: Exception, now: float) -> None:
    """A unit that will not be tried again: a block's tiles count as failed; without plan or finish the job fails."""
    values = {"state": "failed", "owner": None, "error": reason_of(error), "tiles_done": 0, "tiles_failed": row.tiles}
    connection.execute(update(units).where(is_unit(row.job_id, row.kind, row.key)).values(**values))
    if row.kind == "segment":
        return
    # An error nobody foresaw may name paths or worse: the log has it, the client learns its kind only.
    foreseen = isinstance(error, SlideReasonError)
    connection.execute(
        update(jobs)
        .where(jobs.c.job_id == row.job_id, jobs.c.status.in_(OPEN))
        .values(
            status="failed", finished=now,
            message=str(error) if foreseen else f"{row.kind} failed with {type(error).__name__}",
            error_code=error.code if foreseen else "internal", error_field=error.field if foreseen else None,
        )
    )  # fmt: skip


def return_expired(connection: Connection, job_id: str, now: float) -> int:
    """Return a job's units whose owner was lost; blocks come back isolated, and their tile in flight is remembered."""
    late = and_(units.c.job_id == job_id, units.c.state == "leased", units.c.lease_until < now)
    rows = connection.execute(select(units).where(late)).all()
    for row in rows:
        log.warning("%s %s of job %s: owner %s was lost", row.kind, row.key, row.job_id, row.owner)
        if row.lost + 1 >= LOST_ALLOWED:
            give_up(connection, row, SlideReasonError(f"{LOST_ALLOWED} workers were lost over it"), now)
            continue
        deaths = dict(row.deaths)
        if row.isolated and row.in_flight is not None:
            deaths[row.in_flight] = deaths.get(row.in_flight, 0) + 1
        connection.execute(
            update(units)
            .where(is_unit(row.job_id, row.kind, row.key))
            .values(
                state="waiting", owner=None, lease_until=None, in_flight=None, lost=row.lost + 1, deaths=deaths,
                isolated=row.kind == "segment", tiles_done=0, tiles_failed=0,
            )
        )  # fmt: skip
    return len(rows)
