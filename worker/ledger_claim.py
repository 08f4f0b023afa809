"""Claiming in the ledger: `worker.scheduler` says whose turn it is, a row lock makes sure that one worker gets it.

The scheduler is asked with few rows, whatever the queue's length: the tenants, and of the tenant whose turn it is the
oldest and the shortest jobs. Every step but the last reads only `jobs`, through an index over those that are ready.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, and_, bindparam, case, exists, func, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from worker.ledger_rules import DEATHS_OF_A_TILE, OPEN, clock, lock_job
from worker.ledger_schema import jobs, tenants, units
from worker.ledger_workers import WorkerLedger
from worker.scheduler import TenantShare, WaitingJob, order_jobs, order_tenants, virtual_time
from worker.types import JobSpec, SlideInfo, TilePlan

if TYPE_CHECKING:
    from model.segmenter import SegmenterCard

WINDOW = 64
"""Of a tenant's jobs so many oldest and so many shortest are compared."""

PASSED_OVER = 8
"""So many of the best jobs are passed over while others hold their rows; then a claim waits for the first of them."""

JOBS_KEPT = 32
"""Plans kept parsed in memory: a job's blocks are claimed one after the other."""


@dataclass(frozen=True)
class Work:
    """A claimed unit: what to do, for whom, under which token.

    Attributes:
        job_id, kind, key: which unit; kind is `plan`, `segment`, `finish` or `export`, key a block's key for `segment`,
            an export's name for `export`.
        token: fencing token of this claim.
        spec: the job's spec.
        plan, slide: the job's plan and slide, None before it was planned.
        isolated: run tile by tile, each recorded with `begin_tile` before it starts.
        quarantined: tiles that are not to be touched again.
        tiles_done, tiles_failed: the job's counts when the unit was claimed.
        plan_token: the token under which the plan was committed.
        tenant: whose job it is.
        trace: W3C traceparent of the request that asked for it; None when it had none.
        waited_s: seconds from the job's creation, or from when an export was asked for, to this claim.
        finished: when the job ended, seconds since 1970; None while it runs.
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
    tenant: str = "default"
    trace: str | None = None
    waited_s: float = 0.0
    finished: float | None = None


class ClaimLedger(WorkerLedger):
    """Gives out units."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[str, int], tuple] = OrderedDict()
        self._asked_lock = threading.Lock()

    def claim(self, worker_id: str, models: Sequence[str], card: "SegmenterCard | None" = None) -> Work | None:
        """Lease the best unit there is, as `worker.scheduler` says; of its job the unit nearest the job's end.

        Args:
            worker_id: the new owner.
            models: names of the segmenters this worker serves; other jobs are left alone.
            card: what the segmenter says of itself, noted with the job.

        Returns:
            The unit under a fresh token, or None when nothing waits.
        """
        passed: set[str] = set()
        while True:
            with self._writing() as connection:
                now, shares = clock(connection), _shares(connection)
                ordered = (found for found in _in_order(connection, models, shares, now) if found[1] not in passed)
                # The job before its unit, as everybody does: PostgreSQL also locks units that it then passes over
                # because they were claimed a moment ago, and their owners hold the job when they want them.
                tenant, job_id = _lock_best(connection, ordered)
                if job_id is None:
                    return None
                row = connection.execute(_LOCK_UNIT, {"job": job_id, "now": now}).first()
                job = row and _start_job(connection, job_id, card, now)
                if job:
                    token = self._lease(connection, row, worker_id, now)
                    _charge(connection, shares, tenant, row.tiles)
                    return self._work(connection, row, job, token, now)
            passed.add(job_id)  # others were faster; its lock is given back before the next job's is asked for

    def _lease(self, connection: Connection, row: Any, worker_id: str, now: float) -> int:
        mine = {"job": row.job_id, "its_kind": row.kind, "its_key": row.key}
        values = {"new_token": row.token + 1, "worker": worker_id, "until": now + self.lease_s}
        connection.execute(_LEASE, mine | values)
        return row.token + 1

    def _work(self, connection: Connection, row: Any, job: Any, token: int, now: float) -> Work:
        spec, plan, slide = self._what_was_asked(connection, row.job_id, job.plan_token if row.kind != "plan" else 0)
        # A tile that took two workers with it in one block is not tried in the next.
        isolated = select(units.c.deaths).where(units.c.job_id == row.job_id, units.c.isolated)
        found = connection.scalars(isolated) if job.any_isolated else ()
        deaths = [item for of_block in found for item in of_block.items()]
        return Work(
            job_id=row.job_id,
            kind=row.kind,
            key=row.key,
            token=token,
            spec=spec,
            plan=plan,
            slide=slide,
            isolated=row.isolated,
            quarantined=tuple(sorted({key for key, times in deaths if times >= DEATHS_OF_A_TILE})),
            tiles_done=job.tiles_done,
            tiles_failed=job.tiles_failed,
            plan_token=job.plan_token,
            tenant=job.tenant,
            trace=job.trace,
            waited_s=max(0.0, now - job.created),
        )

    def _what_was_asked(self, connection: Connection, job_id: str, plan_token: int) -> tuple:
        """(spec, plan, slide) of a job; a large plan is read and parsed once, not for each of its blocks."""
        with self._asked_lock:
            known = self._asked.get((job_id, plan_token))
            if known is not None:
                self._asked.move_to_end((job_id, plan_token))
                return known
        row = connection.execute(select(jobs.c.spec, jobs.c.plan, jobs.c.slide).where(jobs.c.job_id == job_id)).one()
        planned = plan_token and row.plan
        known = (
            JobSpec.from_json(row.spec),
            TilePlan.from_json(row.plan) if planned else None,
            slide_info(row.slide) if planned else None,
        )
        with self._asked_lock:
            self._asked[job_id, plan_token] = known
            while len(self._asked) > JOBS_KEPT:
                self._asked.popitem(last=False)
        return known


def slide_info(data: dict[str, Any]) -> SlideInfo:
    """A slide's info from JSON, which knows no tuples; the frozen info has nothing else."""
    levels = tuple(tuple(size) for size in data["level_dimensions"])
    downsamples = tuple(data["level_downsamples"])
    bounds = tuple(data["bounds_px0"]) if data.get("bounds_px0") else None
    return SlideInfo(**{**data, "level_dimensions": levels, "level_downsamples": downsamples, "bounds_px0": bounds})


# Statements are built once: with eight of them in a claim, building would cost more than running. What an index over
# some of the rows is to serve is written out, since no planner sees that a parameter is what the index says.

_READY = and_(jobs.c.model.in_(bindparam("models", expanding=True)), jobs.c.ready > literal_column("0"))
_WAITING = and_(units.c.state == literal_column("'waiting'"), units.c.not_before <= bindparam("now"))

_SHARES = select(tenants.c.tenant, tenants.c.served, tenants.c.started)
_TOP_PRIORITY = select(func.max(jobs.c.priority)).where(_READY)
_NEXT_PRIORITY = _TOP_PRIORITY.where(jobs.c.priority < bindparam("below"))
_JOBS = (
    select(jobs.c.job_id, jobs.c.created, jobs.c.units_left)
    .where(_READY, jobs.c.priority == bindparam("priority"), jobs.c.tenant == bindparam("tenant"))
    .where(exists().where(units.c.job_id == jobs.c.job_id, _WAITING))
    .limit(WINDOW)
)
_OLDEST, _SHORTEST = _JOBS.order_by(jobs.c.created), _JOBS.order_by(jobs.c.units_left, jobs.c.created)

_TRY_JOB = select(jobs.c.job_id).where(jobs.c.job_id == bindparam("job")).with_for_update(skip_locked=True)
_LOCK_UNIT = (
    select(units)
    .where(units.c.job_id == bindparam("job"), _WAITING)
    .order_by(units.c.position)  # what waits of a job is of one kind: its plan, its blocks, or its finish
    .limit(1)
    .with_for_update(skip_locked=True)
)
_LEASE = (
    update(units)
    .where(
        units.c.job_id == bindparam("job"), units.c.kind == bindparam("its_kind"), units.c.key == bindparam("its_key")
    )
    .values(
        state="leased", token=bindparam("new_token"), owner=bindparam("worker"), lease_until=bindparam("until"),
        in_flight=None, tiles_done=0, tiles_failed=0,
    )
)  # fmt: skip

_plan = units.alias()
_START_JOB = (
    update(jobs)
    .where(jobs.c.job_id == bindparam("job"), jobs.c.status.in_(OPEN), jobs.c.stopping.is_(False))
    .values(
        status="running", message="", updated=bindparam("now"), ready=jobs.c.ready - 1,
        started=func.coalesce(jobs.c.started, bindparam("now")),
    )
    .returning(
        *(jobs.c.tiles_done, jobs.c.tiles_failed, jobs.c.tenant, jobs.c.trace, jobs.c.created, jobs.c.card),
        select(_plan.c.token).where(_plan.c.job_id == jobs.c.job_id, _plan.c.kind == "plan").label("plan_token"),
        exists().where(units.c.job_id == jobs.c.job_id, units.c.isolated).label("any_isolated"),
    )
)  # fmt: skip
# As `worker.scheduler.charge`, by what the row says when it is written: of several claims at once each adds its cost,
# and only one of them brings a tenant that was away up to the others.
_begins = case((tenants.c.served < bindparam("virtual"), bindparam("virtual")), else_=tenants.c.served)
_CHARGE = (
    update(tenants)
    .where(tenants.c.tenant == bindparam("whose"))
    .values(served=_begins + bindparam("cost"), started=_begins)
)


def _shares(connection: Connection) -> list[TenantShare]:
    return [TenantShare(*row) for row in connection.execute(_SHARES)]


def _in_order(
    connection: Connection, models: Sequence[str], shares: list[TenantShare], now: float
) -> Iterator[tuple[str, str]]:
    """(tenant, job id) of jobs with units that can be claimed, the best first."""
    known = {"models": list(models), "now": now}
    priority = connection.scalar(_TOP_PRIORITY, known)
    while priority is not None:
        for share in order_tenants(shares):
            found = _window(connection, {**known, "priority": priority, "tenant": share.tenant})
            for job in order_jobs(found, now):
                yield share.tenant, job.job_id
        priority = connection.scalar(_NEXT_PRIORITY, {**known, "below": priority})


def _lock_best(connection: Connection, ordered: Iterator[tuple[str, str]]) -> tuple[str, str] | tuple[None, None]:
    """Lock the best job's row, or one of the next best if others hold it: a queue for one row would hold up all."""
    best = None
    for tenant, job_id in islice(ordered, PASSED_OVER):
        if connection.execute(_TRY_JOB, {"job": job_id}).first() is not None:
            return tenant, job_id
        best = best or (tenant, job_id)
    if best is None:
        return None, None
    lock_job(connection, best[1])
    return best


def _window(connection: Connection, wanted: dict[str, Any]) -> list[WaitingJob]:
    """The oldest and the shortest jobs of those `wanted` that have a unit whose time has come."""
    found = connection.execute(_OLDEST, wanted).all()
    if len(found) == WINDOW:
        found += connection.execute(_SHORTEST, wanted).all()
    return [WaitingJob(*row) for row in dict.fromkeys(tuple(row) for row in found)]


def _start_job(connection: Connection, job_id: str, card: "SegmenterCard | None", now: float) -> Any:
    """Note that the job runs, and return what its work needs to know of it; None when it was stopped meanwhile."""
    job = connection.execute(_START_JOB, {"job": job_id, "now": now}).first()
    about = None if job is None or card is None else asdict(card)
    if about is not None and not _same_card(job.card, about):
        connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(card=about))
    return job


def _same_card(known: dict[str, Any] | None, card: dict[str, Any]) -> bool:
    return known is not None and (known.get("name"), known.get("revision")) == (card["name"], card["revision"])


def _charge(connection: Connection, shares: list[TenantShare], tenant: str, tiles: int) -> None:
    """Note what the tenant was given; last in the transaction, since every claim of the tenant wants this row."""
    known = {"whose": tenant, "virtual": virtual_time(shares), "cost": max(1, tiles)}
    connection.execute(_CHARGE, known)


def ensure_tenant(connection: Connection, tenant: str) -> None:
    """Give a tenant its row, at the end of the queue of those that were here before."""
    shares = _shares(connection)
    if all(share.tenant != tenant for share in shares):
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        row = insert(tenants).values(tenant=tenant, served=virtual_time(shares), started=0.0)
        connection.execute(row.on_conflict_do_nothing())
