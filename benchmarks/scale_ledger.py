"""The ledger in the simulation: what is in its rows, and what each transaction costs whom.

Who gets what is decided by `worker.scheduler` itself. The rest follows `worker.ledger*`: the window of candidates, the
rows that are locked and in which order, the lease, isolation after a lost owner, and when a job counts as ready.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.scale_events import Events, Locks, Places, Servers
from benchmarks.scale_load import SlideShape
from worker.ledger_claim import PASSED_OVER, WINDOW
from worker.scheduler import TenantShare, WaitingJob, charge, order_jobs, order_tenants, virtual_time

Then = Callable[..., None]

UNDER_LOCK = 5
"""Statements of a claim between the job's lock and the tenant's: lock, unit, job, what was asked, lease."""


@dataclass(frozen=True)
class Cost:
    """A transaction: processor seconds of the server as `cpu_s + per_item_s * items`, and its statements."""

    cpu_s: float
    per_item_s: float
    statements: int

    def of(self, items: float) -> float:
        """Processor seconds with so many items."""
        return self.cpu_s + self.per_item_s * items


@dataclass(frozen=True)
class Database:
    """PostgreSQL as the simulation knows it.

    Attributes:
        costs: of `claim` (items: the tenant's jobs nobody has planned), `renew`, `commit`, `commit_plan` (items: the
            job's blocks), `status` (of many jobs at once; items: all jobs nobody has planned) and `beat`.
        cores: processors of the server.
        connections: most at a time; a pooler in front makes the others wait.
        statement_s: client and network, per statement.
        flush_s: until a commit is on disk; commits at one time share a flush, so it delays but is no queue.
    """

    costs: dict[str, Cost]
    cores: int = 16
    connections: int = 200
    statement_s: float = 0.0004
    flush_s: float = 0.001


class Job:
    """A job's rows."""

    __slots__ = (
        "number", "tenant", "created", "shape", "stage", "next", "returned", "free", "ready", "left", "row", "started",
        "ended", "deaths",
    )  # fmt: skip

    def __init__(self, number: int, tenant: int, created: float, shape: SlideShape):
        self.number, self.tenant, self.created, self.shape = number, tenant, created, shape
        self.stage, self.next, self.returned = "plan", 0, []
        self.free = self.ready = self.left = 1
        self.row = WaitingJob(f"{number:08d}", created, 1)
        self.started = self.ended = None
        self.deaths = 0


class Unit:
    """A claimed unit; `token` tells a late owner from the present one."""

    __slots__ = ("job", "stage", "index", "token", "tiles", "owned", "isolated", "until")

    def __init__(self, job: Job, index: int, isolated: bool):
        self.job, self.stage, self.index, self.isolated = job, job.stage, index, isolated
        segment = self.stage == "segment"
        self.tiles = job.shape.computed[index] if segment else 0
        self.owned = job.shape.owned[index] if segment else 0
        self.until, self.token = 0.0, True


class Tenant:
    """A tenant's row and its ready jobs, by age and by what is left."""

    def __init__(self, name: str):
        self.share = TenantShare(name)
        self.by_age: list[tuple[float, int]] = []
        self.by_left: list[tuple[int, float, int]] = []
        self.unplanned = self.open = 0
        self.known = False


class SimulatedLedger:
    """Rows, locks and the server's processors.

    Args:
        events: the clock.
        database: what things cost.
        tenants: how many.
        lease_s: of a claimed unit.
        policy: `fair` asks `worker.scheduler`; `oldest` takes the oldest job whosoever, to compare.
        assumed_units: `units_left` that an unplanned job is ordered by; the product says 1.
        plan_cost: tiles that a plan is charged as; the product says 1.
        pass_locked: a claim passes over some jobs whose rows are locked, as the product does since this was simulated.
        lift: when a tenant that was away is lifted to the others' virtual time: at a claim, from what its `row` says
            once that is locked, as the product does; from what was `seen` before, so that claims at one time lift it
            together, as the product did at first; or once, at its `arrival`.
    """

    def __init__(
        self, events: Events, database: Database, tenants: int, lease_s: float = 30.0, policy: str = "fair",
        assumed_units: int = 1, plan_cost: int = 1, pass_locked: bool = True, lift: str = "row",
    ):  # fmt: skip
        self.pass_locked, self.lift, self.level = pass_locked, lift, 0.0
        self.events, self.database, self.lease_s, self.policy = events, database, lease_s, policy
        self.assumed_units, self.plan_cost = assumed_units, plan_cost
        self.cpu = Servers(events, database.cores)
        self.places = Places(events, database.connections)
        self.locks = Locks(events)
        self.tenants = [Tenant(f"t{number:03d}") for number in range(tenants)]
        self.place_of = {tenant.share.tenant: number for number, tenant in enumerate(self.tenants)}
        self.jobs: list[Job] = []
        self.leased: dict[Unit, None] = {}
        self.accepted = self.open = self.lost = self.empty = self.retried = self.claims = 0
        self.claim_s = 0.0

    # ---- rows ------------------------------------------------------------------------------------------------------

    def create(self, tenant: int, shape: SlideShape) -> Job:
        """Write down a job; it can be claimed at once."""
        job = Job(len(self.jobs), tenant, self.events.now, shape)
        if self.assumed_units != 1:
            job.row = WaitingJob(job.row.job_id, job.created, self.assumed_units)
        self.jobs.append(job)
        owner = self.tenants[tenant]
        if not owner.known or (self.lift == "arrival" and not owner.open):
            level = self._level()
            owner.known = True
            owner.share = replace(owner.share, served=max(owner.share.served, level))
        owner.unplanned += 1
        owner.open += 1
        self.accepted += 1
        self.open += 1
        self._show(job)
        return job

    def _level(self) -> float:
        """Where a tenant that comes begins: beside the least served of those that have work."""
        if self.lift != "arrival":
            return virtual_time(one.share for one in self.tenants)
        return min((one.share.served for one in self.tenants if one.open), default=self.level)

    def _show(self, job: Job) -> None:
        tenant = self.tenants[job.tenant]
        insort(tenant.by_age, (job.created, job.number))
        insort(tenant.by_left, (job.row.units_left, job.created, job.number))

    def _hide(self, job: Job) -> None:
        tenant = self.tenants[job.tenant]
        del tenant.by_age[bisect_left(tenant.by_age, (job.created, job.number))]
        del tenant.by_left[bisect_left(tenant.by_left, (job.row.units_left, job.created, job.number))]

    def _change(self, job: Job, ready: int, left: int) -> None:
        """The job's counters after a commit, and where the scheduler finds it."""
        if job.ready:
            self._hide(job)
        job.ready = ready
        if left != job.left or (job.stage == "segment" and job.row.units_left != left):
            job.left = left
            job.row = WaitingJob(job.row.job_id, job.created, left)
        if ready:
            self._show(job)

    def waiting(self) -> int:
        """Units that can be claimed."""
        return sum(self.jobs[number].ready for tenant in self.tenants for _, number in tenant.by_age)

    # ---- claim -----------------------------------------------------------------------------------------------------

    def claim(self, then: Then, most: int = 1) -> None:
        """Lease up to `most` units of the job whose turn it is; `then(units)`, an empty list when nothing waits."""
        self._try(then, most, self.events.now, frozenset())

    def _try(self, then: Then, most: int, since: float, passed: frozenset[int]) -> None:
        self.places.take(partial(self._look, then, most, since, passed))

    def _look(self, then: Then, most: int, since: float, passed: frozenset[int]) -> None:
        cost, shares = self.database.costs["claim"], [tenant.share for tenant in self.tenants]
        busy = [tenant for tenant in self.tenants if tenant.by_age]
        ties = min(busy, key=lambda tenant: tenant.share.served).unplanned if busy else 0
        end = self.cpu.serve(0.5 * cost.cpu_s + cost.per_item_s * (ties if ties > WINDOW else 0))
        looked = end + self._statements(cost.statements - UNDER_LOCK - 1)
        self.events.at(looked, self._pick, then, most, since, passed, shares)

    def _pick(
        self, then: Then, most: int, since: float, passed: frozenset[int], shares: Sequence[TenantShare]
    ) -> None:
        job, tries = self._best(shares, passed)
        if job is None:
            self.empty += 1
            self.places.release()
            then([])
            return
        start = partial(self._start, then, most, since, passed, shares, job)
        if tries:
            tried = self.events.now + self._statements(tries)
            self.events.at(tried, self.locks.take, "job", job.number, start)
        else:
            self.locks.take("job", job.number, start)

    def _best(self, shares: Sequence[TenantShare], passed: frozenset[int]) -> tuple[Job | None, int]:
        """As `worker.ledger_claim._in_order`: the first job with a unit, as seen before any lock is held.

        Returns:
            The job, and how many locked ones were tried before it.
        """
        now, tried = self.events.now, []
        for share in order_tenants(shares) if self.policy == "fair" else [None]:
            for row in order_jobs(self._window(share), now) if share else self._oldest():
                job = self.jobs[int(row.job_id)]
                if job.number in passed:
                    continue
                if not self.pass_locked or not self.locks.held("job", job.number):
                    return job, len(tried)
                tried.append(job)
                if len(tried) == PASSED_OVER:
                    return tried[0], len(tried)
        return (tried[0] if tried else None), len(tried)

    def _window(self, share: TenantShare) -> list[WaitingJob]:
        tenant = self.tenants[self.place_of[share.tenant]]
        numbers = [number for _, number in tenant.by_age[:WINDOW]]
        if len(numbers) == WINDOW:
            numbers += [number for _, _, number in tenant.by_left[:WINDOW]]
        return [self.jobs[number].row for number in dict.fromkeys(numbers)]

    def _oldest(self) -> list[WaitingJob]:
        heads = heapq.merge(*(tenant.by_age[:WINDOW] for tenant in self.tenants))
        return [self.jobs[number].row for _, number in heads]

    @staticmethod
    def _take(job: Job) -> Unit:
        job.free -= 1
        if job.stage != "segment":
            return Unit(job, 0, False)
        if job.returned:
            return Unit(job, heapq.heappop(job.returned), True)
        job.next += 1
        return Unit(job, job.next - 1, False)

    def _start(
        self, then: Then, most: int, since: float, passed: frozenset[int], shares: Sequence[TenantShare], job: Job
    ) -> None:
        """The job's row is locked: lease, then wait for the tenant's row, which every claim of the tenant wants."""
        if not job.free:  # others were faster
            self.retried += 1
            self._done(job, partial(self._try, then, most, since, passed | {job.number}))
            return
        units = [self._take(job) for _ in range(min(most, job.free))]
        end = self.cpu.serve(0.5 * self.database.costs["claim"].cpu_s)
        charged = partial(self.locks.take, "tenant", job.tenant, partial(self._charge, then, units, since, shares))
        self.events.at(end + self._statements(UNDER_LOCK), charged)

    def _charge(self, then: Then, units: list[Unit], since: float, shares: Sequence[TenantShare]) -> None:
        wait_s = self._statements(1) + self.database.flush_s
        self.events.at(self.events.now + wait_s, self._claimed, then, units, since, shares)

    def _claimed(self, then: Then, units: list[Unit], since: float, shares: Sequence[TenantShare]) -> None:
        job, now = units[0].job, self.events.now
        tenant = self.tenants[job.tenant]
        cost = self.plan_cost if job.stage == "plan" else sum(max(1, unit.owned) for unit in units)
        if self.lift == "row":
            tenant.share = charge(tenant.share, virtual_time(shares), cost)
        elif self.lift == "seen":
            before = shares[job.tenant]
            after = charge(before, virtual_time(shares), cost)
            served = tenant.share.served + after.served - before.served
            tenant.share = TenantShare(tenant.share.tenant, served, after.started)
        else:  # nothing is lifted here, so start tags stay 0 and the finish tag alone orders the tenants
            self.level = max(self.level, tenant.share.served)
            tenant.share = replace(charge(tenant.share, 0.0, cost), started=0.0)
        self._change(job, job.ready - len(units), job.left)
        if job.started is None:
            job.started = now
            self.accepted -= 1
            tenant.unplanned -= 1
        for unit in units:
            unit.until = now + self.lease_s
            self.leased[unit] = None
        self.claims += 1
        self.claim_s += now - since
        self.locks.release("tenant", job.tenant)
        self._done(job, partial(then, units))

    # ---- renew, commit, sweep --------------------------------------------------------------------------------------

    def change(self, kind: str, job: Job, items: float, then: Then, statements: int | None = None) -> None:
        """A transaction under the job's lock; `then()` once it is committed."""
        self.places.take(partial(self._lock, kind, job, items, then, statements))

    def _lock(self, kind: str, job: Job, items: float, then: Then, statements: int | None) -> None:
        self.locks.take("job", job.number, partial(self._change_locked, kind, job, items, then, statements))

    def _change_locked(self, kind: str, job: Job, items: float, then: Then, statements: int | None) -> None:
        cost = self.database.costs[kind]
        wait_s = self._statements(cost.statements if statements is None else statements) + self.database.flush_s
        self.events.at(self.cpu.serve(cost.of(items)) + wait_s, self._done, job, then)

    def _done(self, job: Job, then: Then) -> None:
        self.locks.release("job", job.number)
        self.places.release()
        then()

    def renew(self, unit: Unit, then: Callable[[bool], None]) -> None:
        """Extend a lease; `then(whether it is still owned)`."""
        self.change("renew", unit.job, unit.job.shape.blocks, partial(self._renewed, unit, then))

    def _renewed(self, unit: Unit, then: Callable[[bool], None]) -> None:
        if unit.token:
            unit.until = self.events.now + self.lease_s
        then(unit.token)

    def commit(self, unit: Unit, then: Callable[[bool, int], None]) -> None:
        """Commit a unit; `then(whether it was still owned, units that can now be claimed)`."""
        kind = "commit_plan" if unit.stage == "plan" else "commit"
        twice = 2 if unit.stage == "finish" else 1  # its commit, and closing the job
        statements = twice * self.database.costs[kind].statements
        self.change(kind, unit.job, unit.job.shape.blocks, partial(self._committed, unit, then), statements)

    def _committed(self, unit: Unit, then: Callable[[bool, int], None]) -> None:
        job, opened = unit.job, 0
        if not unit.token:
            then(False, 0)
            return
        unit.token = False
        del self.leased[unit]
        if unit.stage == "plan":
            opened = job.shape.blocks
            if job.ready:
                self._hide(job)
                job.ready = 0
            job.stage, job.free = "segment", opened
            self._change(job, opened, opened + 1)
        elif unit.stage == "segment":
            last = job.left == 2
            if last:
                opened, job.stage, job.free = 1, "finish", 1
            self._change(job, 1 if last else job.ready, job.left - 1)
        else:
            job.left, job.ended = 0, self.events.now
            self.tenants[job.tenant].open -= 1
            self.open -= 1
        then(True, opened)

    def sweep(self) -> int:
        """Return units whose lease ran out; a block comes back isolated."""
        late = [unit for unit in self.leased if unit.until < self.events.now]
        for unit in late:
            job = unit.job
            self.change("commit", job, job.shape.blocks, partial(self._return, unit))
        return len(late)

    def _return(self, unit: Unit) -> None:
        job = unit.job
        if not unit.token or unit.until >= self.events.now:
            return
        unit.token = False
        del self.leased[unit]
        self.lost += 1
        job.deaths += 1
        if unit.stage == "segment":
            heapq.heappush(job.returned, unit.index)
        job.free += 1
        self._change(job, job.ready + 1, job.left)

    def _statements(self, count: int) -> float:
        return count * self.database.statement_s

    def beat(self, count: int) -> None:
        """So many heartbeats at once; they delay others and nobody waits for them."""
        for _ in range(count):
            self.cpu.serve(self.database.costs["beat"].cpu_s)
