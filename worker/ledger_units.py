"""Units of work in the ledger: who owns what, until when, and what happens when an owner is lost.

    waiting ──claim──▶ leased ──commit──▶ done
       ▲                 │ │
       └─ fail, release ─┘ └─ lease ran out: sweep returns it, isolated when it was a block
                 └─ third fault of the data ──▶ failed

Every claim raises the unit's token by one; every later call of the owner carries it, and one conditional UPDATE refuses
the owner of an older one. A transaction that touches several rows of a job locks the job's row first.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, and_, case, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from worker.errors import JobDismissed, LeaseLost, SlideReasonError
from worker.ledger_schema import database_now, jobs, leases, units, workers
from worker.types import JobSpec, SlideInfo, TilePlan

if TYPE_CHECKING:
    from model.segmenter import SegmenterCard

log = logging.getLogger(__name__)

FAULTS_ALLOWED = 3
"""So many faults of the data and a unit is given up."""

DEATHS_OF_A_TILE = 2
"""A tile in flight at so many isolated deaths is quarantined."""

LOST_ALLOWED = 20
"""A unit that took so many workers with it is given up, whatever its tiles say."""

OPEN = ("accepted", "running")
SHOWN_FIRST = {"finish": 0, "segment": 1, "plan": 2}


@dataclass(frozen=True)
class Work:
    """A claimed unit: what to do, for whom, under which token.

    Attributes:
        job_id, kind, key: which unit; kind is `plan`, `segment` or `finish`, key a block's key for `segment`.
        token: fencing token of this claim.
        spec: the job's spec.
        plan, slide: the job's plan and slide, None before it was planned.
        isolated: run tile by tile, each recorded with `begin_tile` before it starts.
        quarantined: tiles that are not to be touched again.
        tiles_done, tiles_failed: the job's counts when the unit was claimed.
        plan_token: the token under which the plan was committed.
    """

    job_id: str
    kind: str
    key: str
    token: int
    spec: JobSpec
    plan: TilePlan | None = None
    slide: SlideInfo | None = None
    isolated: bool = False
    quarantined: tuple[str, ...] = ()
    tiles_done: int = 0
    tiles_failed: int = 0
    plan_token: int = 0


@dataclass(frozen=True)
class BlockRow:
    """A block's row as finish needs it: `state` is `done` (then `token` is the committed one) or `failed`."""

    key: str
    state: str
    token: int
    summary: dict[str, Any] | None
    error: str | None


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        expired: leases that had run out.
        claimable: units that can be claimed now, per model.
        unpublished: (job id, token) of committed finishes whose owner was lost before the job was closed, or is
            publishing right now.
    """

    expired: int = 0
    claimable: Mapping[str, int] = field(default_factory=dict)
    unpublished: Sequence[tuple[str, int]] = ()


class UnitLedger:
    """The worker's side of the ledger; `Ledger` adds the service's."""

    engine: Engine
    lease_s: float

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self.engine.connect().execution_options(reading=True) as connection, connection.begin():
            yield connection

    # ---- claim, renew, commit ------------------------------------------------------------------------------------

    def claim(self, worker_id: str, models: Sequence[str], card: "SegmenterCard | None" = None) -> Work | None:
        """Lease the best unit there is: highest priority, then oldest job, then the unit nearest the job's end.

        Args:
            worker_id: the new owner.
            models: names of the segmenters this worker serves; other jobs are left alone.
            card: what the segmenter says of itself, noted with the job.

        Returns:
            The unit under a fresh token, or None when nothing waits.
        """
        with self._writing() as connection:
            now = _now(connection)
            row = connection.execute(
                select(units, *_JOB_COLUMNS)
                .join(jobs, jobs.c.job_id == units.c.job_id)
                .where(_claimable(now), jobs.c.model.in_(models))
                .order_by(
                    jobs.c.priority.desc(),
                    jobs.c.created,
                    jobs.c.job_id,
                    case(SHOWN_FIRST, value=units.c.kind),
                    units.c.position,
                )
                .limit(1)
                .with_for_update(skip_locked=True, of=units)
            ).first()
            if row is None:
                return None
            token = row.token + 1
            connection.execute(
                update(units)
                .where(_unit(row.job_id, row.kind, row.key))
                .values(
                    state="leased", token=token, owner=worker_id, lease_until=now + self.lease_s, in_flight=None,
                    tiles_done=0, tiles_failed=0,
                )
            )  # fmt: skip
            changes = {"status": "running", "updated": now, "started": row.started or now}
            if card is not None:
                changes["card"] = asdict(card)
            connection.execute(update(jobs).where(jobs.c.job_id == row.job_id).values(**changes))
            return _work(connection, row, token)

    def renew(self, work: Work, tiles_done: int = 0, tiles_failed: int = 0) -> None:
        """Extend the lease and report progress.

        Args:
            work: the claimed unit.
            tiles_done, tiles_failed: tiles owned by the unit that are through so far.

        Raises:
            LeaseLost: another owner has a newer token.
            JobDismissed: the job is to stop.
        """
        with self._writing() as connection:
            now = _lock_job(connection, work.job_id)
            self._change_mine(
                connection, work, lease_until=now + self.lease_s, tiles_done=tiles_done, tiles_failed=tiles_failed
            )
            _count_tiles(connection, work.job_id, now)
            stopping = connection.scalar(select(jobs.c.stopping).where(jobs.c.job_id == work.job_id))
        if stopping:
            raise JobDismissed("the job was dismissed", subject=work.job_id)

    def begin_tile(self, work: Work, tile_key: str | None) -> None:
        """Record, before it starts, the tile an isolated block is about to run (None: no tile is in flight).

        Raises:
            LeaseLost: another owner has a newer token.
        """
        with self._writing() as connection:
            self._change_mine(connection, work, in_flight=tile_key)

    def commit_plan(self, work: Work, plan: TilePlan, slide: SlideInfo, tiles_of: Mapping[str, int]) -> int:
        """Store the plan and open its blocks, in one transaction.

        Args:
            work: the plan unit.
            plan, slide: what was planned, of which slide.
            tiles_of: {block key: number of tiles it owns}, in the order the blocks should run.

        Returns:
            How many units can now be claimed, that is how many tickets to send.

        Raises:
            LeaseLost: another owner has a newer token.
        """
        with self._writing() as connection:
            now = _lock_job(connection, work.job_id)
            self._change_mine(connection, work, state="done", summary={})
            rows = [_new_unit(work.job_id, "segment", key, n, i) for i, (key, n) in enumerate(tiles_of.items())]
            rows.append(_new_unit(work.job_id, "finish", "", 0, 0, state="held"))
            connection.execute(insert(units), rows)
            connection.execute(
                update(jobs)
                .where(jobs.c.job_id == work.job_id)
                .values(
                    plan=plan.to_json(), slide=asdict(slide), tiles_total=plan.n_tiles, tiles_skipped=plan.n_skipped
                )
            )
            _settle(connection, work.job_id, now)
        return max(1, len(tiles_of))

    def commit_block(self, work: Work, tiles_done: int, tiles_failed: int, summary: dict[str, Any]) -> int:
        """Make this attempt the block's one result.

        Returns:
            1 when this was the last block and finish can be claimed, else 0.

        Raises:
            LeaseLost: another owner has a newer token; this attempt's files mean nothing.
        """
        with self._writing() as connection:
            now = _lock_job(connection, work.job_id)
            self._change_mine(
                connection, work, state="done", summary=summary, in_flight=None,
                tiles_done=tiles_done, tiles_failed=tiles_failed,
            )  # fmt: skip
            return _settle(connection, work.job_id, now)

    def commit_finish(self, work: Work, result: dict[str, Any], message: str) -> None:
        """Make this attempt the job's one result; the job closes with `close_job`, once it is published.

        Raises:
            LeaseLost: another owner has a newer token.
        """
        with self._writing() as connection:
            now = _lock_job(connection, work.job_id)
            self._change_mine(connection, work, state="done", summary={})
            values = {"result": result, "message": message, "updated": now}
            connection.execute(update(jobs).where(jobs.c.job_id == work.job_id).values(**values))

    def close_job(self, job_id: str) -> None:
        """The finish of this job is published: it is `successful`. May be repeated by anyone."""
        with self._writing() as connection:
            now = _lock_job(connection, job_id)
            finished = select(units.c.job_id).where(units.c.kind == "finish", units.c.state == "done")
            connection.execute(
                update(jobs)
                .where(jobs.c.job_id == job_id, jobs.c.status.in_(OPEN), jobs.c.job_id.in_(finished))
                .values(status="successful", stopping=False, finished=now, updated=now)
            )

    # ---- what goes wrong -----------------------------------------------------------------------------------------

    def fail(self, work: Work, error: Exception, data_fault: bool, final: bool = False) -> None:
        """Give a unit back after an error.

        Args:
            work: the claimed unit.
            error: what happened.
            data_fault: True when the data is at fault and the attempt counts; False when storage, database or broker
                were away: then the unit waits a little longer each time and goes on.
            final: a fault that trying again cannot mend; the unit is given up at once.

        Raises:
            LeaseLost: another owner has a newer token.
        """
        with self._writing() as connection:
            now = _lock_job(connection, work.job_id)
            self._change_mine(connection, work)
            row = connection.execute(select(units).where(_unit(work.job_id, work.kind, work.key))).one()
            faults = row.faults + (1 if data_fault else 0)
            if data_fault and (final or faults >= FAULTS_ALLOWED):
                _give_up(connection, row, error, now)
            else:
                wait_s = min(60.0, self.lease_s / 60 * 2 ** min(row.token, 12))
                values = {"state": "waiting", "owner": None, "faults": faults, "not_before": now + wait_s}
                connection.execute(
                    update(units)
                    .where(_unit(row.job_id, row.kind, row.key))
                    .values(**values, in_flight=None, tiles_done=0, tiles_failed=0, error=_reason(error))
                )
            _settle(connection, work.job_id, now)

    def release(self, work: Work) -> None:
        """Give a unit back unharmed: the worker stops, or the job was dismissed. A lost lease is no error here."""
        with self._writing() as connection:
            now = _lock_job(connection, work.job_id)
            connection.execute(
                update(units)
                .where(_mine(work))
                .values(state="waiting", owner=None, in_flight=None, tiles_done=0, tiles_failed=0)
            )
            _settle(connection, work.job_id, now)

    def sweep(self) -> Sweep:
        """Return the units whose lease ran out, close jobs that have stopped, and count what can be claimed."""
        with self._reading() as connection:
            now = _now(connection)
            late = select(units.c.job_id).where(units.c.state == "leased", units.c.lease_until < now)
            stopped = select(jobs.c.job_id).where(jobs.c.status.in_(OPEN), jobs.c.stopping)
            due = sorted(set(connection.scalars(late)) | set(connection.scalars(stopped)))
        expired = 0
        for job_id in due:
            with self._writing() as connection:
                now = _lock_job(connection, job_id)
                expired += _return_expired(connection, job_id, now)
                _settle(connection, job_id, now)
        return Sweep(expired, self.claimable(), self._unpublished())

    def claimable(self) -> dict[str, int]:
        """How many units wait to be claimed, per model."""
        with self._reading() as connection:
            rows = connection.execute(
                select(jobs.c.model, func.count())
                .select_from(units.join(jobs, jobs.c.job_id == units.c.job_id))
                .where(_claimable(_now(connection)))
                .group_by(jobs.c.model)
            )
            return {model: count for model, count in rows}

    def _unpublished(self) -> list[tuple[str, int]]:
        finished = and_(units.c.kind == "finish", units.c.state == "done", jobs.c.status.in_(OPEN))
        with self._reading() as connection:
            joined = units.join(jobs, jobs.c.job_id == units.c.job_id)
            rows = connection.execute(select(units.c.job_id, units.c.token).select_from(joined).where(finished))
            return [(row.job_id, row.token) for row in rows]

    def leased(self) -> int:
        """How many units are owned by a worker."""
        with self._reading() as connection:
            return connection.scalar(select(func.count()).select_from(units).where(units.c.state == "leased"))

    def blocks(self, job_id: str) -> list[BlockRow]:
        """The job's blocks in the order they were planned."""
        with self._reading() as connection:
            rows = connection.execute(
                select(units).where(units.c.job_id == job_id, units.c.kind == "segment").order_by(units.c.position)
            )
            return [BlockRow(row.key, row.state, row.token, row.summary, row.error) for row in rows]

    # ---- workers -------------------------------------------------------------------------------------------------

    def heartbeat(self, worker_id: str, card: "SegmenterCard", models: Sequence[str]) -> None:
        """Say that a worker lives, and what it serves."""
        with self._writing() as connection:
            values = {"heard": _now(connection), "card": asdict(card), "models": list(models)}
            changed = connection.execute(update(workers).where(workers.c.worker_id == worker_id).values(**values))
            if changed.rowcount == 0:
                connection.execute(insert(workers).values(worker_id=worker_id, **values))

    def forget_worker(self, worker_id: str) -> None:
        """Remove a worker that stopped in good order."""
        with self._writing() as connection:
            connection.execute(workers.delete().where(workers.c.worker_id == worker_id))

    def take_lease(self, name: str, owner: str, for_s: float) -> bool:
        """Whether `owner` now holds the named lease (the sweeper's) for the next `for_s` seconds."""
        try:
            with self._writing() as connection:
                now = _now(connection)
                free = (leases.c.until < now) | (leases.c.owner == owner)
                changed = connection.execute(
                    update(leases).where(leases.c.name == name, free).values(owner=owner, until=now + for_s)
                )
                if changed.rowcount:
                    return True
                if connection.scalar(select(leases.c.owner).where(leases.c.name == name)) is not None:
                    return False
                connection.execute(insert(leases).values(name=name, owner=owner, until=now + for_s))
                return True
        except IntegrityError:  # another took it between our look and our insert
            return False

    def _change_mine(self, connection: Connection, work: Work, **values: Any) -> None:
        """The conditional UPDATE that fences off late owners."""
        changed = connection.execute(update(units).where(_mine(work)).values(owner=units.c.owner, **values))
        if changed.rowcount != 1:
            raise LeaseLost(
                f"{work.kind} {work.key} of the job is no longer owned under token {work.token}", subject=work.job_id
            )


_JOB_COLUMNS = (
    jobs.c.spec,
    jobs.c.plan,
    jobs.c.slide,
    jobs.c.started,
    jobs.c.tiles_done.label("job_tiles_done"),
    jobs.c.tiles_failed.label("job_tiles_failed"),
)


def _now(connection: Connection) -> float:
    return connection.scalar(select(database_now()))


def _lock_job(connection: Connection, job_id: str) -> float:
    """Lock the job's row (PostgreSQL; SQLite has locked all) and read the clock."""
    connection.execute(select(jobs.c.job_id).where(jobs.c.job_id == job_id).with_for_update())
    return _now(connection)


def _unit(job_id: str, kind: str, key: str):
    return and_(units.c.job_id == job_id, units.c.kind == kind, units.c.key == key)


def _mine(work: Work):
    owned = and_(units.c.token == work.token, units.c.state == "leased")
    return and_(_unit(work.job_id, work.kind, work.key), owned)


def _claimable(now: float):
    return and_(
        units.c.state == "waiting", units.c.not_before <= now, jobs.c.status.in_(OPEN), jobs.c.stopping.is_(False)
    )


def _new_unit(job_id: str, kind: str, key: str, tiles: int, position: int, state: str = "waiting") -> dict[str, Any]:
    return {"job_id": job_id, "kind": kind, "key": key, "tiles": tiles, "position": position, "state": state}


def _work(connection: Connection, row: Any, token: int) -> Work:
    planned = select(units.c.token).where(_unit(row.job_id, "plan", ""))
    # A tile that took two workers with it in one block is not tried in the next.
    isolated = select(units.c.deaths).where(units.c.job_id == row.job_id, units.c.isolated)
    deaths = [item for found in connection.scalars(isolated) for item in found.items()]
    return Work(
        job_id=row.job_id,
        kind=row.kind,
        key=row.key,
        token=token,
        spec=JobSpec.from_json(row.spec),
        plan=TilePlan.from_json(row.plan) if row.plan else None,
        slide=_slide_info(row.slide) if row.slide else None,
        isolated=row.isolated,
        quarantined=tuple(sorted({key for key, times in deaths if times >= DEATHS_OF_A_TILE})),
        tiles_done=row.job_tiles_done,
        tiles_failed=row.job_tiles_failed,
        plan_token=connection.scalar(planned),
    )


def _slide_info(data: dict[str, Any]) -> SlideInfo:
    """JSON knows no tuples; the frozen info has nothing else."""
    levels = tuple(tuple(size) for size in data["level_dimensions"])
    downsamples = tuple(data["level_downsamples"])
    bounds = tuple(data["bounds_px0"]) if data.get("bounds_px0") else None
    return SlideInfo(**{**data, "level_dimensions": levels, "level_downsamples": downsamples, "bounds_px0": bounds})


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, SlideReasonError) else f"{type(error).__name__}: {error}"


def _count_tiles(connection: Connection, job_id: str, now: float) -> None:
    """Bring the job's counts up to its units'."""
    done, failed = connection.execute(
        select(func.coalesce(func.sum(units.c.tiles_done), 0), func.coalesce(func.sum(units.c.tiles_failed), 0)).where(
            units.c.job_id == job_id
        )
    ).one()
    values = {"tiles_done": done, "tiles_failed": failed, "updated": now}
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))


def _settle(connection: Connection, job_id: str, now: float) -> int:
    """After any change of a job's units: dismiss it when it has stopped, open finish when its blocks are through.

    Returns:
        1 when finish was opened, else 0.
    """
    _count_tiles(connection, job_id, now)
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


def _give_up(connection: Connection, row: Any, error: Exception, now: float) -> None:
    """A unit that will not be tried again: a block's tiles count as failed; without plan or finish the job fails."""
    values = {"state": "failed", "owner": None, "error": _reason(error), "tiles_done": 0, "tiles_failed": row.tiles}
    connection.execute(update(units).where(_unit(row.job_id, row.kind, row.key)).values(**values))
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


def _return_expired(connection: Connection, job_id: str, now: float) -> int:
    """Return a job's units whose owner was lost; blocks come back isolated, and their tile in flight is remembered."""
    late = and_(units.c.job_id == job_id, units.c.state == "leased", units.c.lease_until < now)
    rows = connection.execute(select(units).where(late)).all()
    for row in rows:
        log.warning("%s %s of job %s: owner %s was lost", row.kind, row.key, row.job_id, row.owner)
        if row.lost + 1 >= LOST_ALLOWED:
            _give_up(connection, row, SlideReasonError(f"{LOST_ALLOWED} workers were lost over it"), now)
            continue
        deaths = dict(row.deaths)
        if row.isolated and row.in_flight is not None:
            deaths[row.in_flight] = deaths.get(row.in_flight, 0) + 1
        connection.execute(
            update(units)
            .where(_unit(row.job_id, row.kind, row.key))
            .values(
                state="waiting", owner=None, lease_until=None, in_flight=None, lost=row.lost + 1, deaths=deaths,
                isolated=row.kind == "segment", tiles_done=0, tiles_failed=0,
            )
        )  # fmt: skip
    return len(rows)
