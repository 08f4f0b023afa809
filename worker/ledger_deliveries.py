"""Deliveries in the ledger: who sends which, until when, and what became of each try.

    waiting ──claim──▶ sending ──record──▶ delivered | failed
       ▲                 │
       └─────────────────┘ to be tried again; or its sender was lost, and did not renew its lease

Every claim raises the delivery's token by one, and whoever holds an older one can neither renew nor record. A sender
that is lost after it has sent and before it has recorded makes one delivery arrive twice, under the same id.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, func, insert, literal_column, select, update

from worker.deliveries import MOST_SAID
from worker.delivery_turns import Lane
from worker.errors import LeaseLost
from worker.ledger_outbox import new_delivery
from worker.ledger_rows import require_job, time_of
from worker.ledger_rules import clock, lock_job
from worker.ledger_schema import deliveries, jobs
from worker.ledger_workers import WorkerLedger

OPEN_STATES = ("waiting", "sending")


@dataclass(frozen=True)
class DeliveryRow:
    """A delivery as it stands: `waiting`, `sending`, `delivered` or `failed`.

    Attributes:
        delivery_id: the same at every try; a webhook's id.
        target: `webhook`, `dicomweb` or `fhir`.
        state, tries: where it is, after so many tries.
        said, status: the last answer in words, and its HTTP status.
        created, next_try, gives_up: aware UTC times; the last two are None where there is none.
    """

    delivery_id: str
    target: str
    state: str
    tries: int
    said: str
    status: int | None
    created: datetime
    next_try: datetime | None
    gives_up: datetime | None


@dataclass(frozen=True)
class Delivery:
    """A delivery in the hands of a sender.

    Attributes:
        delivery_id, job_id, target, token: what it is, and under which token it is owned.
        tries: this one included.
        said: the answer of the try before; empty at the first.
        message: a webhook's body, or which exports to send.
        callback: a webhook's address.
        model: of the job, whose workers make exports.
    """

    delivery_id: str
    job_id: str
    target: str
    token: int
    tries: int
    said: str
    message: dict[str, Any]
    callback: str | None
    model: str


class DeliveryLedger(WorkerLedger):
    """Takes deliveries in, and gives them out."""

    def ask_delivery(self, job_id: str, tenant: str, target: str, exports: Sequence[str]) -> DeliveryRow:
        """Let a worker send results somewhere; what is on its way already is not sent a second time.

        Args:
            job_id: a job of this tenant that ended well.
            tenant: who asks.
            target: `dicomweb` or `fhir`.
            exports: which of the job's exports.

        Raises:
            JobNotFound, JobExpired: there is no such job, or not any more.
        """
        wanted = {"exports": list(exports)}
        with self._writing() as connection:
            now = lock_job(connection, job_id)
            row = connection.execute(select(jobs.c.tenant, jobs.c.expired).where(jobs.c.job_id == job_id)).first()
            require_job(row, job_id, tenant)
            still = (deliveries.c.job_id == job_id, deliveries.c.target == target, deliveries.c.state.in_(OPEN_STATES))
            for known in connection.execute(select(deliveries).where(*still)):
                if known.message == wanted:
                    return _shown(known)
            new = new_delivery(job_id, tenant, target, f"asked {uuid.uuid4().hex}", now, wanted)
            connection.execute(insert(deliveries).values(**new))
            asked = select(deliveries).where(deliveries.c.delivery_id == new["delivery_id"])
            return _shown(connection.execute(asked).one())

    def deliveries(self, job_id: str) -> list[DeliveryRow]:
        """The job's deliveries, oldest first."""
        asked = select(deliveries).where(deliveries.c.job_id == job_id)
        with self._reading() as connection:
            rows = connection.execute(asked.order_by(deliveries.c.created, deliveries.c.delivery_id)).all()
        return [_shown(row) for row in rows]

    def due_lanes(self, targets: Sequence[str]) -> dict[Lane, float]:
        """Where something is due now.

        Args:
            targets: those that this sender can reach.

        Returns:
            {lane: since when, seconds since 1970}.
        """
        with self._reading() as connection:
            now = clock(connection)
            rows = connection.execute(_DUE_LANES.where(deliveries.c.target.in_(targets)), {"now": now}).all()
        return {Lane(row.tenant, row.target, row.place): row.since for row in rows}

    def claim_delivery(self, worker_id: str, lane: Lane, give_up_s: float) -> Delivery | None:
        """Take the lane's delivery that has been due for longest, for `lease_s` seconds.

        Args:
            worker_id: who sends it.
            lane: of `due_lanes`.
            give_up_s: seconds after its first try from which it is not tried again.

        Returns:
            The delivery under a fresh token, or None when others have all that is due.
        """
        with self._writing() as connection:
            now = clock(connection)
            wanted = {"tenant": lane.tenant, "target": lane.target, "place": lane.place, "now": now}
            row = connection.execute(_LOCK, wanted).first()
            return None if row is None else _lease(connection, row, worker_id, now + self.lease_s, now + give_up_s)

    def renew_delivery(self, delivery: Delivery) -> None:
        """Keep it for another `lease_s` seconds from now.

        Raises:
            LeaseLost: another sender has it, its outcome is recorded, or its job is gone.
        """
        with self._writing() as connection:
            values = {"not_before": clock(connection) + self.lease_s}
            changed = connection.execute(update(deliveries).where(*_held(delivery)).values(**values))
        if not changed.rowcount:
            raise LeaseLost("another sender has this delivery, or it is gone", subject=delivery.delivery_id)

    def record(
        self, delivery: Delivery, state: str, said: str, status: int | None = None, pause_s: float = 0.0,
        counted: bool = True,
    ) -> str:  # fmt: skip
        """Write down what became of a try.

        Args:
            delivery: as it was claimed.
            state: `delivered`, `failed`, or `again`.
            said, status: the answer.
            pause_s: seconds before the next try.
            counted: False when nothing was sent.

        Returns:
            The state it is in: `delivered`, `failed` or `waiting`.

        Raises:
            LeaseLost: another sender has it, or its job is gone.
        """
        mine = _held(delivery)
        with self._writing() as connection:
            now = clock(connection)
            asked = select(deliveries.c.give_up_at).where(*mine).with_for_update()
            row = connection.execute(asked).first()
            if row is None:
                raise LeaseLost("another sender has this delivery, or it is gone", subject=delivery.delivery_id)
            values = {"owner": None, "said": said[:MOST_SAID], "status": status, "not_before": now + pause_s}
            values["tries"] = delivery.tries - (0 if counted else 1)
            values["state"] = "waiting" if state == "again" else state
            if state == "again" and now + pause_s > row.give_up_at:
                values |= {"state": "failed", "said": f"gave up, the time for it is over; last: {said}"[:MOST_SAID]}
            connection.execute(update(deliveries).where(*mine).values(**values))
        return values["state"]


# As an index over only these rows has it.
_OPEN = literal_column("deliveries.state IN ('waiting', 'sending')")
_DUE = (_OPEN, deliveries.c.not_before <= bindparam("now"))
_LANE = (deliveries.c.tenant, deliveries.c.target, deliveries.c.place)
_DUE_LANES = select(*_LANE, func.min(deliveries.c.not_before).label("since")).where(*_DUE).group_by(*_LANE)
_LOCK = (
    select(deliveries)
    .where(*_DUE, *(column == bindparam(column.name) for column in _LANE))
    .order_by(deliveries.c.not_before)
    .limit(1)
    .with_for_update(skip_locked=True)
)


def _held(delivery: Delivery) -> tuple[ColumnElement[bool], ...]:
    """The condition that it is still its sender's."""
    return (
        deliveries.c.delivery_id == delivery.delivery_id, deliveries.c.token == delivery.token,
        deliveries.c.state == "sending",
    )  # fmt: skip


def _lease(connection: Connection, row: Any, worker_id: str, until: float, give_up_at: float) -> Delivery:
    values = {
        "state": "sending", "token": row.token + 1, "tries": row.tries + 1, "owner": worker_id, "not_before": until,
        "give_up_at": func.coalesce(deliveries.c.give_up_at, give_up_at),
    }  # fmt: skip
    connection.execute(update(deliveries).where(deliveries.c.delivery_id == row.delivery_id).values(**values))
    job = connection.execute(select(jobs.c.callback, jobs.c.model).where(jobs.c.job_id == row.job_id)).one()
    return Delivery(
        row.delivery_id, row.job_id, row.target, row.token + 1, row.tries + 1, row.said, row.message, job.callback,
        job.model,
    )  # fmt: skip


def _shown(row: Any) -> DeliveryRow:
    return DeliveryRow(
        delivery_id=row.delivery_id,
        target=row.target,
        state=row.state,
        tries=row.tries,
        said=row.said,
        status=row.status,
        created=time_of(row.created),
        next_try=time_of(row.not_before) if row.state == "waiting" else None,
        gives_up=time_of(row.give_up_at) if row.state in OPEN_STATES else None,
    )
