"""Exports in the ledger: units of a job that has ended well, asked for by name, run like any other.

They have no part in the scheduler's order: whoever asks waits for seconds of work that needs no model, so a worker
looks for them first. One that cannot be made is given up as any unit is, and the job stays as it ended.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from worker.ledger_claim import ClaimLedger, Work, slide_info
from worker.ledger_rules import clock, is_unit, lock_job, new_unit
from worker.ledger_schema import jobs, units
from worker.types import JobSpec, TilePlan

KIND = "export"
LOOKED_AT = 4
"""So many exports that wait are tried, oldest first, where others hold theirs."""

FRESH = {"state": "waiting", "faults": 0, "lost": 0, "not_before": 0.0, "error": None, "owner": None}


@dataclass(frozen=True)
class ExportRow:
    """An export as it stands: `waiting`, `leased`, `done` or `failed`, then with the `error`."""

    name: str
    state: str
    error: str | None


class ExportLedger(ClaimLedger):
    """Asks for exports, and gives them out."""

    def ask_export(self, job_id: str, name: str, again: bool = False) -> ExportRow:
        """Let a worker make an export of a finished job; the same export is made once however often it is asked for.

        Args:
            job_id: a job that ended well.
            name: of `worker.exports.catalogue`.
            again: one that failed is tried afresh.

        Returns:
            How it stands.
        """
        with self._writing() as connection:
            now = lock_job(connection, job_id)
            insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            row = new_unit(job_id, KIND, name, 0, int(now))
            connection.execute(insert(units).values(**row).on_conflict_do_nothing())
            if again:
                failed = is_unit(job_id, KIND, name) & (units.c.state == "failed")
                connection.execute(update(units).where(failed).values(**FRESH))
            return next(row for row in _rows(connection, job_id) if row.name == name)

    def exports(self, job_id: str) -> list[ExportRow]:
        """The job's exports that were asked for, by name."""
        with self._reading() as connection:
            return _rows(connection, job_id)

    def claim_export(self, worker_id: str) -> Work | None:
        """Lease the export that was asked for first.

        Returns:
            The unit under a fresh token, or None when nothing waits.
        """
        with self._reading() as connection:
            now = clock(connection)
            waiting = connection.execute(_WAITING, {"now": now}).all()
        for job_id, name in waiting:
            with self._writing() as connection:
                now = lock_job(connection, job_id)
                row = connection.execute(_LOCK, {"job": job_id, "name": name, "now": now}).first()
                if row is not None:
                    token = self._lease(connection, row, worker_id, now)
                    return _export_work(connection, job_id, name, token, now - row.position)
        return None

    def commit_export(self, work: Work) -> None:
        """Make this attempt the export.

        Raises:
            LeaseLost: another owner has a newer token.
        """
        with self._writing() as connection:
            lock_job(connection, work.job_id)
            self._change_mine(connection, work, state="done", error=None)

    def claimable_exports(self) -> dict[str, int]:
        """How many exports wait, per model of their jobs, whose workers get the tickets."""
        counted = select(jobs.c.model, func.count()).select_from(_OF_JOBS).where(_IS_WAITING).group_by(jobs.c.model)
        with self._reading() as connection:
            return {model: int(count) for model, count in connection.execute(counted)}


_OF_JOBS = units.join(jobs, jobs.c.job_id == units.c.job_id)
# As an index over only these rows has it.
_IS_WAITING = (units.c.state == literal_column("'waiting'")) & (units.c.kind == literal_column("'export'"))
_DUE = _IS_WAITING & (units.c.not_before <= bindparam("now"))
_WAITING = select(units.c.job_id, units.c.key).where(_DUE).order_by(units.c.position).limit(LOOKED_AT)
_LOCK = (
    select(units)
    .where(units.c.job_id == bindparam("job"), units.c.key == bindparam("name"), _DUE)
    .with_for_update(skip_locked=True)
)


def _rows(connection: Connection, job_id: str) -> list[ExportRow]:
    asked = select(units.c.key, units.c.state, units.c.error).where(units.c.job_id == job_id, units.c.kind == KIND)
    return [ExportRow(*row) for row in connection.execute(asked.order_by(units.c.key))]


def _export_work(connection: Connection, job_id: str, name: str, token: int, waited_s: float) -> Work:
    """The unit; specs and plans of ended jobs are not kept in memory."""
    job = connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one()
    return Work(
        job_id=job_id, kind=KIND, key=name, token=token, spec=JobSpec.from_json(job.spec),
        plan=TilePlan.from_json(job.plan), slide=slide_info(job.slide), tiles_done=job.tiles_done,
        tiles_failed=job.tiles_failed, tenant=job.tenant, trace=job.trace, waited_s=max(0.0, waited_s),
        finished=job.finished,
    )  # fmt: skip

