"""Units of work in the ledger: who owns what, until when, and what happens when an owner is lost.

    waiting ──claim──▶ leased ──commit──▶ done
       ▲                 │ │
       └─ fail, release ─┘ └─ lease ran out: sweep returns it, isolated when it was a block
                 └─ third fault of the data ──▶ failed

Every claim raises the unit's token by one; every later call of the owner carries it, and one conditional UPDATE refuses
the owner of an older one. A transaction that touches several rows of a job locks the job's row first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, func, insert, select, update

from worker.errors import JobDismissed, LeaseLost
from worker.ledger_claim import Work
from worker.ledger_done import next_done
from worker.ledger_exports import ExportLedger
from worker.ledger_outbox import tell_end
from worker.ledger_rules import (
    FAULTS_ALLOWED,
    OPEN,
    add_tiles,
    clock,
    give_up,
    is_unit,
    lock_job,
    new_unit,
    one_done,
    reason_away,
    reason_of,
    return_expired,
    settle,
)
from worker.ledger_schema import jobs, units
from worker.types import SlideInfo, TilePlan

__all__ = ["BlockRow", "Sweep", "UnitLedger", "Work"]


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
        claimable: units that can be claimed now, per model, exports included.
        unpublished: (job id, token) of committed finishes whose owner was lost before the job was closed, or is
            publishing right now.
    """

    expired: int = 0
    claimable: Mapping[str, int] = field(default_factory=dict)
    unpublished: Sequence[tuple[str, int]] = ()


class UnitLedger(ExportLedger):
    """The worker's side of the ledger; `Ledger` adds the service's.

    Attributes:
        push: where the results of every job that ends well are sent; see `worker.ledger_outbox.PUSHED`.
    """

    push: tuple[str, ...] = ()

    # ---- renew, commit ---------------------------------------------------------------------------------------

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
            stopping = add_tiles(connection, _named(work), tiles_done, tiles_failed, now)
            self._change_mine(
                connection, work, lease_until=now + self.lease_s, tiles_done=tiles_done, tiles_failed=tiles_failed
            )
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
            settled = one_done(connection, _named(work), tiles_done, tiles_failed, now)
            self._change_mine(
                connection, work, state="done", summary=summary, in_flight=None,
                tiles_done=tiles_done, tiles_failed=tiles_failed, done=next_done(work.job_id),
            )  # fmt: skip
            return 0 if settled else settle(connection, work.job_id, now)

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
            ended = connection.execute(
                update(jobs)
                .where(jobs.c.job_id == job_id, jobs.c.status.in_(OPEN), jobs.c.job_id.in_(finished))
                .values(status="successful", stopping=False, finished=now, updated=now, ready=0, units_left=0)
            )
            if ended.rowcount:
                tell_end(connection, job_id, now, self.push)

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
                told = f"tries again: {reason_of(error)}" if data_fault else f"waits: {reason_away(error)}"
                still = (jobs.c.job_id == work.job_id, jobs.c.status.in_(OPEN))
                connection.execute(update(jobs).where(*still).values(message=told))
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
        """How many units wait, per model; those that wait out a pause are counted too."""
        with self._reading() as connection:
            waiting = select(jobs.c.model, func.sum(jobs.c.ready)).where(jobs.c.ready > 0).group_by(jobs.c.model)
            found = Counter({model: int(count) for model, count in connection.execute(waiting)})
        return dict(found + Counter(self.claimable_exports()))

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


def _named(work: Work) -> dict[str, str]:
    return {"job": work.job_id, "its_kind": work.kind, "its_key": work.key}


def _mine(work: Work):
    owned = and_(units.c.token == work.token, units.c.state == "leased")
    return and_(is_unit(work.job_id, work.kind, work.key), owned)
