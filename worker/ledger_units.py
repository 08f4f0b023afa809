"""Units of work in the ledger: who owns what, until when, and what happens when an owner is lost.

    waiting ──claim──▶ leased ──commit──▶ done
       ▲                 │ │
       └─ fail, release ─┘ └─ lease ran out: sweep returns it, isolated when it was a block
                 └─ third fault of the data ──▶ failed

Every claim raises the unit's token by one; every later call of the owner carries it, and one conditional UPDATE refuses
the owner of an older one. A transaction that touches several rows of a job locks the job's row first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, and_, case, func, insert, select, update

from worker.errors import JobDismissed, LeaseLost
from worker.ledger_rules import (
    DEATHS_OF_A_TILE,
    FAULTS_ALLOWED,
    OPEN,
    clock,
    count_tiles,
    give_up,
    is_claimable,
    is_unit,
    lock_job,
    new_unit,
    reason_of,
    return_expired,
    settle,
)
from worker.ledger_schema import jobs, units
from worker.ledger_workers import WorkerLedger
from worker.types import JobSpec, SlideInfo, TilePlan

if TYPE_CHECKING:
    from model.segmenter import SegmenterCard

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


class UnitLedger(WorkerLedger):
    """The worker's side of the ledger; `Ledger` adds the service's."""

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
            now = clock(connection)
            row = connection.execute(
                select(units, *_JOB_COLUMNS)
                .join(jobs, jobs.c.job_id == units.c.job_id)
                .where(is_claimable(now), jobs.c.model.in_(models))
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
                .where(is_unit(row.job_id, row.kind, row.key))
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
            now = lock_job(connection, work.job_id)
            self._change_mine(
                connection, work, lease_until=now + self.lease_s, tiles_done=tiles_done, tiles_failed=tiles_failed
            )
            count_tiles(connection, work.job_id, now)
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
            now = lock_job(connection, work.job_id)
            self._change_mine(connection, work, state="done", summary={})
            rows = [new_unit(work.job_id, "segment", key, n, i) for i, (key, n) in enumerate(tiles_of.items())]
            rows.append(new_unit(work.job_id, "finish", "", 0, 0, state="held"))
            connection.execute(insert(units), rows)
            connection.execute(
                update(jobs)
                .where(jobs.c.job_id == work.job_id)
                .values(
                    plan=plan.to_json(), slide=asdict(slide), tiles_total=plan.n_tiles, tiles_skipped=plan.n_skipped
                )
            )
            settle(connection, work.job_id, now)
        return max(1, len(tiles_of))

    def commit_block(self, work: Work, tiles_done: int, tiles_failed: int, summary: dict[str, Any]) -> int:
        """Make this attempt the block's one result.

        Returns:
            1 when this was the last block and finish can be claimed, else 0.

        Raises:
            LeaseLost: another owner has a newer token; this attempt's files mean nothing.
        """
        with self._writing() as connection:
            now = lock_job(connection, work.job_id)
            self._change_mine(
                connection, work, state="done", summary=summary, in_flight=None,
                tiles_done=tiles_done, tiles_failed=tiles_failed,
            )  # fmt: skip
            return settle(connection, work.job_id, now)

    def commit_finish(self, work: Work, result: dict[str, Any], message: str) -> None:
        """Make this attempt the job's one result; the job closes with `close_job`, once it is published.

        Raises:
            LeaseLost: another owner has a newer token.
        """
        with self._writing() as connection:
            now = lock_job(connection, work.job_id)
            self._change_mine(connection, work, state="done", summary={})
            values = {"result": result, "message": message, "updated": now}
            connection.execute(update(jobs).where(jobs.c.job_id == work.job_id).values(**values))

    def close_job(self, job_id: str) -> None:
        """The finish of this job is published: it is `successful`. May be repeated by anyone."""
        with self._writing() as connection:
            now = lock_job(connection, job_id)
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
            now = lock_job(connection, work.job_id)
            self._change_mine(connection, work)
            row = connection.execute(select(units).where(is_unit(work.job_id, work.kind, work.key))).one()
            faults = row.faults + (1 if data_fault else 0)
            if data_fault and (final or faults >= FAULTS_ALLOWED):
                give_up(connection, row, error, now)
            else:
                wait_s = min(60.0, self.lease_s / 60 * 2 ** min(row.token, 12))
                values = {"state": "waiting", "owner": None, "faults": faults, "not_before": now + wait_s}
                connection.execute(
                    update(units)
                    .where(is_unit(row.job_id, row.kind, row.key))
                    .values(**values, in_flight=None, tiles_done=0, tiles_failed=0, error=reason_of(error))
                )
            settle(connection, work.job_id, now)

    def release(self, work: Work) -> None:
        """Give a unit back unharmed: the worker stops, or the job was dismissed. A lost lease is no error here."""
        with self._writing() as connection:
            now = lock_job(connection, work.job_id)
            connection.execute(
                update(units)
                .where(_mine(work))
                .values(state="waiting", owner=None, in_flight=None, tiles_done=0, tiles_failed=0)
            )
            settle(connection, work.job_id, now)

    def sweep(self) -> Sweep:
        """Return the units whose lease ran out, close jobs that have stopped, and count what can be claimed."""
        with self._reading() as connection:
            now = clock(connection)
            late = select(units.c.job_id).where(units.c.state == "leased", units.c.lease_until < now)
            stopped = select(jobs.c.job_id).where(jobs.c.status.in_(OPEN), jobs.c.stopping)
            due = sorted(set(connection.scalars(late)) | set(connection.scalars(stopped)))
        expired = 0
        for job_id in due:
            with self._writing() as connection:
                now = lock_job(connection, job_id)
                expired += return_expired(connection, job_id, now)
                settle(connection, job_id, now)
        return Sweep(expired, self.claimable(), self._unpublished())

    def claimable(self) -> dict[str, int]:
        """How many units wait to be claimed, per model."""
        with self._reading() as connection:
            rows = connection.execute(
                select(jobs.c.model, func.count())
                .select_from(units.join(jobs, jobs.c.job_id == units.c.job_id))
                .where(is_claimable(clock(connection)))
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





def _mine(work: Work):
    owned = and_(units.c.token == work.token, units.c.state == "leased")
    return and_(is_unit(work.job_id, work.kind, work.key), owned)




def _work(connection: Connection, row: Any, token: int) -> Work:
    planned = select(units.c.token).where(is_unit(row.job_id, "plan", ""))
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




