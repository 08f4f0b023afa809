"""Rules of the ledger, each within a transaction of its caller: what follows when a unit of a job has changed."""

import logging
from typing import Any

from sqlalchemy import Column, Connection, and_, bindparam, case, func, select, update

from worker.errors import SlideReasonError, StorageAway
from worker.ledger_outbox import tell_end
from worker.ledger_schema import database_now, jobs, units

log = logging.getLogger(__name__)

FAULTS_ALLOWED = 3
"""So many faults of the data and a unit is given up."""

DEATHS_OF_A_TILE = 2
"""A tile in flight at so many isolated deaths is quarantined."""

LOST_ALLOWED = 20
"""A unit that took so many workers with it is given up, whatever its tiles say."""

LOST_TO_AN_EXPORT = 3
"""An export has no tiles that could be to blame, and nothing waits for it but who asked."""

OPEN = ("accepted", "running")


_CLOCK = select(database_now())
_LOCK_JOB = select(database_now()).where(jobs.c.job_id == bindparam("job")).with_for_update(of=jobs)


def clock(connection: Connection) -> float:
    """Seconds since 1970 by the database's clock."""
    return connection.scalar(_CLOCK)


def lock_job(connection: Connection, job_id: str) -> float:
    """Lock the job's row (PostgreSQL; SQLite has locked all) and read the clock."""
    now = connection.scalar(_LOCK_JOB, {"job": job_id})
    return clock(connection) if now is None else now


def is_unit(job_id: str, kind: str, key: str):
    """The condition that names one unit."""
    return and_(units.c.job_id == job_id, units.c.kind == kind, units.c.key == key)


def new_unit(job_id: str, kind: str, key: str, tiles: int, position: int, state: str = "waiting") -> dict[str, Any]:
    """A row of `units` to insert."""
    return {"job_id": job_id, "kind": kind, "key": key, "tiles": tiles, "position": position, "state": state}


def reason_of(error: Exception) -> str:
    """An error in words, for the ledger."""
    return str(error) if isinstance(error, SlideReasonError) else f"{type(error).__name__}: {error}"


def reason_away(error: Exception) -> str:
    """What is away, for the client: our own words or the system's, never a path."""
    if isinstance(error, StorageAway):
        return "the artifact storage is away"  # its own words name buckets and hosts
    if isinstance(error, SlideReasonError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"a part of the system is away ({type(error).__name__})"


def add_tiles(connection: Connection, unit: dict[str, str], done: int, failed: int, now: float) -> bool:
    """Let the job, whose row is locked, count a unit's tiles as these; what the unit's row says counts until then.

    Args:
        connection: before the unit's row is changed.
        unit: `job`, `its_kind`, `its_key`.
        done, failed: tiles that are through.
        now: by the database's clock.

    Returns:
        Whether the job is to stop.
    """
    return bool(connection.scalar(_ADD_TILES, {**unit, "done": done, "failed": failed, "now": now}))


def one_done(connection: Connection, unit: dict[str, str], done: int, failed: int, now: float) -> bool:
    """`add_tiles` of a block that is through, where others of a job that goes on are not: then nothing needs settling.

    Counting all units of a job at the end of each would make a job of 2,000 blocks cost 2,000 times 2,000 rows.
    """
    return connection.execute(_ONE_DONE, {**unit, "done": done, "failed": failed, "now": now}).rowcount == 1


def settle(connection: Connection, job_id: str, now: float) -> int:
    """After any change of a job's units: count them, dismiss a job that has stopped, open finish after the last block.

    Returns:
        1 when finish was opened, else 0.
    """
    found = connection.execute(_COUNT_UNITS, {"job": job_id}).one()
    claimable = found.status in OPEN and not found.stopping
    opened = 0
    if claimable and not found.before_finish:
        held = and_(units.c.job_id == job_id, units.c.kind == "finish", units.c.state == "held")
        opened = connection.execute(update(units).where(held).values(state="waiting")).rowcount
    values = {
        "tiles_done": found.done, "tiles_failed": found.failed, "updated": now, "units_left": found.left,
        "ready": found.waiting + opened if claimable else 0,
    }  # fmt: skip
    dismissed = found.status in OPEN and found.stopping and not found.leased
    if dismissed:
        values |= {"status": "dismissed", "finished": now, "message": "dismissed"}
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))
    if dismissed:
        tell_end(connection, job_id, now)
    return opened


def _units_where(condition: Any, label: str) -> Any:
    return func.count(case((condition, 1))).label(label)


_OF_JOB = units.c.job_id == bindparam("job")
_THE_JOB = jobs.c.job_id == bindparam("job")
_ITS_UNIT = and_(_OF_JOB, units.c.kind == bindparam("its_kind"), units.c.key == bindparam("its_key"))


def _more(counted: Column, said: Column, given: str) -> Any:
    return counted + bindparam(given) - func.coalesce(select(said).where(_ITS_UNIT).scalar_subquery(), 0)


_ADD_TILES = (
    update(jobs)
    .where(_THE_JOB)
    .values(
        tiles_done=_more(jobs.c.tiles_done, units.c.tiles_done, "done"),
        tiles_failed=_more(jobs.c.tiles_failed, units.c.tiles_failed, "failed"),
        updated=bindparam("now"),
    )
)
_ONE_DONE = _ADD_TILES.where(
    jobs.c.status.in_(OPEN), jobs.c.stopping.is_(False), jobs.c.units_left > 2  # itself, another, and the finish
).values(units_left=jobs.c.units_left - 1)
_ADD_TILES = _ADD_TILES.returning(jobs.c.stopping)

_todo = and_(units.c.kind != "finish", units.c.state.in_(("waiting", "leased")))
_COUNT_UNITS = select(
    select(jobs.c.status).where(_THE_JOB).scalar_subquery().label("status"),
    select(jobs.c.stopping).where(_THE_JOB).scalar_subquery().label("stopping"),
    func.coalesce(func.sum(units.c.tiles_done), 0).label("done"),
    func.coalesce(func.sum(units.c.tiles_failed), 0).label("failed"),
    _units_where(units.c.state == "waiting", "waiting"),
    _units_where(units.c.state == "leased", "leased"),
    _units_where(units.c.state.in_(("waiting", "leased", "held")), "left"),
    _units_where(_todo, "before_finish"),
).where(_OF_JOB)
"""The job's `status` and whether it is `stopping`; of its units: tiles `done` and `failed`; units `waiting`, `leased`,
`left`, and to do `before_finish`."""


def give_up(connection: Connection, row: Any, error: Exception, now: float) -> None:
    """A unit that will not be tried again: a block's tiles count as failed; without plan or finish the job fails."""
    values = {"state": "failed", "owner": None, "error": reason_of(error), "tiles_done": 0, "tiles_failed": row.tiles}
    connection.execute(update(units).where(is_unit(row.job_id, row.kind, row.key)).values(**values))
    if row.kind == "segment":
        return
    # An error nobody foresaw may name paths or worse: the log has it, the client learns its kind only.
    foreseen = isinstance(error, SlideReasonError)
    ended = connection.execute(
        update(jobs)
        .where(jobs.c.job_id == row.job_id, jobs.c.status.in_(OPEN))
        .values(
            status="failed", finished=now,
            message=str(error) if foreseen else f"{row.kind} failed with {type(error).__name__}",
            error_code=error.code if foreseen else "internal", error_field=error.field if foreseen else None,
        )
    )  # fmt: skip
    if ended.rowcount:
        tell_end(connection, row.job_id, now)


def return_expired(connection: Connection, job_id: str, now: float) -> int:
    """Return a job's units whose owner was lost; blocks come back isolated, and their tile in flight is remembered."""
    late = and_(units.c.job_id == job_id, units.c.state == "leased", units.c.lease_until < now)
    rows = connection.execute(select(units).where(late)).all()
    for row in rows:
        log.warning("%s %s of job %s: owner %s was lost", row.kind, row.key, row.job_id, row.owner)
        allowed = LOST_TO_AN_EXPORT if row.kind == "export" else LOST_ALLOWED
        if row.lost + 1 >= allowed:
            give_up(connection, row, SlideReasonError(f"{allowed} workers were lost over it"), now)
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
