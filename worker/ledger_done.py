"""In which order a job's blocks were done: whoever has seen the first n of them asks for those after."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ScalarSelect, func, select

from worker.ledger_schema import units
from worker.ledger_workers import WorkerLedger


@dataclass(frozen=True)
class DoneBlock:
    """A block that is done.

    Attributes:
        order: 1 for the block of its job that was done first; grows, and a block done afresh comes again.
        key, token: its committed attempt.
        regions: how many provisional regions it found; 0 where none were written down.
    """

    order: int
    key: str
    token: int
    regions: int


class DoneLedger(WorkerLedger):
    """Tells which blocks are done."""

    def done_after(self, job_id: str, order: int, limit: int = 32) -> list[DoneBlock]:
        """The blocks that were done after the one of this order, the first of them first.

        Args:
            job_id: the job.
            order: of the last block seen; 0 is none.
            limit: most blocks in one answer.
        """
        wanted = (
            select(units.c.done, units.c.key, units.c.token, units.c.summary)
            .where(units.c.job_id == job_id, units.c.done > order, units.c.state == "done")
            .order_by(units.c.done)
            .limit(limit)
        )
        with self._reading() as connection:
            rows = connection.execute(wanted).all()
        return [DoneBlock(row.done, row.key, row.token, _regions(row.summary)) for row in rows]


def next_done(job_id: str) -> ScalarSelect[Any]:
    """The next place in the order of a job whose row is locked."""
    others = units.alias()
    last = select(func.coalesce(func.max(others.c.done), 0) + 1).where(
        others.c.job_id == job_id, others.c.done.is_not(None)
    )
    return last.scalar_subquery()


def _regions(summary: dict[str, Any] | None) -> int:
    return int((summary or {}).get("provisional", 0))
