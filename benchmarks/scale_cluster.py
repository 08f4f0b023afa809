"""A cluster in the simulation: workers with a GPU each, tickets in Redis, storage, gateways, and what goes wrong."""

import random
from collections import deque
from collections.abc import Sequence
from functools import partial

from benchmarks.scale_events import Events, Servers
from benchmarks.scale_ledger import Database, SimulatedLedger, Unit
from benchmarks.scale_load import Order
from benchmarks.scale_machines import MOST_TICKETS, Machines, Seen


class Worker:
    """A process with a GPU."""

    __slots__ = ("number", "life", "gpu_free_s", "busy", "alone", "waiting_alone", "held", "mine", "renewing")

    def __init__(self, number: int):
        self.number, self.life = number, 0
        self.clear()

    def clear(self) -> None:
        """As it starts: nothing in hand."""
        self.gpu_free_s = 0.0
        self.busy, self.alone = 0, False
        self.waiting_alone: deque = deque()
        self.held: list = []
        self.mine: dict[Unit, None] = {}
        self.renewing = False


class Cluster:
    """Everything together; `run` lets a night pass.

    Args:
        machines: what stands there.
        database: PostgreSQL's costs.
        orders: jobs to come, by time.
        seed: of deaths and phases.
        tenants: how many.
    """

    BIN_S = 10

    def __init__(self, machines: Machines, database: Database, orders: Sequence[Order], seed: int, tenants: int = 20):
        self.machines, self.orders, self.seen = machines, orders, Seen()
        self.events = Events()
        self.draw = random.Random(seed)
        self.ledger = SimulatedLedger(
            self.events, database, tenants, machines.lease_s, machines.policy, machines.assumed_units,
            machines.plan_cost, machines.pass_locked, machines.lift,
        )  # fmt: skip
        self.redis, self.storage = Servers(self.events, 1), Servers(self.events, 1)
        self.workers = [Worker(number) for number in range(machines.gpus)]
        self.tickets, self.idle, self.redis_away = 0, deque(), False
        self.thinking: deque[tuple[float, int]] = deque()

    def run(self, until_s: float) -> Seen:
        """Let time pass until all jobs have ended, at most so long."""
        machines, events = self.machines, self.events
        for worker in self.workers:
            events.at(0.0, self._arrive_worker, worker)
        if self.orders:
            events.at(self.orders[0].at_s, self._arrive, 0)
        events.at(machines.sweep_s * self.draw.random(), self._sweep)
        events.at(1.0, self._beat)
        if machines.status:
            for number in range(machines.gateways):
                events.at(machines.gather_s * self.draw.random(), self._answer, number)
        if machines.death_per_hour:
            events.at(self._next_death(), self._die)
        if machines.redis_lost_s is not None:
            events.at(machines.redis_lost_s, self._lose_redis)
        last = self.orders[-1].at_s if self.orders else 0.0
        events.run(until_s, lambda: self.ledger.open == 0 and events.now > last)
        return self.seen

    # ---- jobs and tickets ------------------------------------------------------------------------------------------

    def _arrive(self, index: int) -> None:
        order = self.orders[index]
        self.ledger.create(order.tenant, order.shape)
        self.send(1)
        if self.machines.status:
            self.thinking.append((self.events.now + 2.0, index))
        if index + 1 < len(self.orders):
            self.events.at(self.orders[index + 1].at_s, self._arrive, index + 1)

    def send(self, count: int) -> None:
        """Put tickets into Redis; threads that wait for one wake."""
        if self.redis_away:
            return
        self.redis.serve(count * self.machines.ticket_send_s)
        self.tickets += count
        while self.tickets and self.idle:
            worker, life = self.idle.popleft()
            if worker.life == life:
                self._take_ticket(worker)

    def _take_ticket(self, worker: Worker) -> None:
        self.tickets -= 1
        self.events.at(self.redis.serve(self.machines.ticket_take_s), self._claim, worker, worker.life, True)

    def free_thread(self, worker: Worker, had_work: bool) -> None:
        """A thread looks for its next unit."""
        if had_work and (self.machines.chain or self.redis_away):
            self._claim(worker, worker.life, False)
        elif self.tickets and not self.redis_away:
            self._take_ticket(worker)
        else:
            self.idle.append((worker, worker.life))

    def _claim(self, worker: Worker, life: int, _ticket: bool) -> None:
        if worker.life != life:
            return
        if worker.alone or worker.waiting_alone:
            worker.held.append(partial(self._claim, worker, life, False))
            return
        worker.busy += 1
        self.ledger.claim(partial(self._claimed, worker, life), self.machines.claim_most)

    # ---- a unit ----------------------------------------------------------------------------------------------------

    def _claimed(self, worker: Worker, life: int, units: list[Unit]) -> None:
        if worker.life != life:
            return
        if not units:
            self._put_down(worker, had_work=False)
            return
        for unit in units:
            worker.mine[unit] = None
            if not self.machines.renew_together:
                self.events.at(self.events.now + self.machines.renew_s, self._renew, worker, life, unit)
        if self.machines.renew_together and not worker.renewing:
            worker.renewing = True
            self.events.at(self.events.now + self.machines.renew_s, self._renew_together, worker, life)
        if units[0].isolated:
            worker.busy -= 1
            worker.waiting_alone.append(units)
            self._start_alone(worker, life)
        else:
            self._work(worker, life, units)

    def _start_alone(self, worker: Worker, life: int) -> None:
        if worker.waiting_alone and not worker.alone and worker.busy == 0:
            worker.alone = True
            worker.busy = 1
            self._work(worker, life, worker.waiting_alone.popleft())

    def _work(self, worker: Worker, life: int, units: list[Unit]) -> None:
        """Run the first of the units that one claim gave; the others come after it on the same thread."""
        unit, machines, now = units[0], self.machines, self.events.now
        if unit.stage == "plan":
            end = now + machines.plan_s
        elif unit.stage == "finish":
            end = now + machines.finish_s + machines.finish_block_s * unit.job.shape.blocks
        else:
            end = self._segment(worker, unit, now)
        self.events.at(end, self._worked, worker, life, units)

    def _segment(self, worker: Worker, unit: Unit, now: float) -> float:
        """When a block is through: its first tiles are read, then reading and the GPU go on side by side."""
        machines = self.machines
        first = min(machines.batch, unit.tiles)
        first_read = self.storage.serve(first * machines.tile_bytes / machines.storage_bytes_s)
        rest = (unit.tiles - first) * machines.tile_bytes / machines.storage_bytes_s
        read = self.storage.serve(rest, first_read) if rest else first_read
        read = max(read, now + unit.tiles * machines.tile_decode_s)
        seconds = unit.tiles / machines.tiles_per_s * (machines.alone_times if unit.isolated else 1.0)
        if unit.isolated:
            self.seen.isolated += 1
            seconds += unit.tiles * 0.004  # each tile is written down before it starts
        start = max(worker.gpu_free_s, first_read + first * machines.tile_decode_s)
        worker.gpu_free_s = start + seconds
        self.seen.gpu_s += unit.tiles / machines.tiles_per_s
        return max(worker.gpu_free_s, read + first / machines.tiles_per_s) + unit.tiles * machines.tile_tail_s

    def _worked(self, worker: Worker, life: int, units: list[Unit]) -> None:
        if worker.life == life:
            self.ledger.commit(units[0], partial(self._committed, worker, life, units))

    def _committed(self, worker: Worker, life: int, units: list[Unit], owned: bool, opened: int) -> None:
        unit = units.pop(0)
        if owned and unit.stage == "segment":
            self._count(unit)
        elif not owned:
            self.seen.wasted += 1
        if worker.life != life:
            return
        worker.mine.pop(unit, None)
        if opened:
            self.send(min(opened, MOST_TICKETS))
        if units:
            self._work(worker, life, units)
            return
        if unit.isolated:
            worker.alone = False
        self._put_down(worker, had_work=True)

    def _put_down(self, worker: Worker, had_work: bool) -> None:
        worker.busy -= 1
        self._start_alone(worker, worker.life)
        if not worker.alone and not worker.waiting_alone:
            held, worker.held = worker.held, []
            for call in held:
                call()
        self.free_thread(worker, had_work)

    def _count(self, unit: Unit) -> None:
        seen, place = self.seen, int(self.events.now // self.BIN_S)
        seen.tiles += unit.tiles
        seen.blocks += 1
        seen.tiles_at[place] = seen.tiles_at.get(place, 0.0) + unit.tiles
        mine = seen.of_tenant.setdefault(unit.job.tenant, {})
        mine[place] = mine.get(place, 0.0) + unit.owned

    def _renew(self, worker: Worker, life: int, unit: Unit) -> None:
        if worker.life == life and unit in worker.mine:
            self.ledger.renew(unit, partial(self._renewed, worker, life, unit))

    def _renewed(self, worker: Worker, life: int, unit: Unit, owned: bool) -> None:
        if owned:
            self.events.at(self.events.now + self.machines.renew_s, self._renew, worker, life, unit)

    def _renew_together(self, worker: Worker, life: int) -> None:
        """One statement for all units of a worker, about as dear as one renewal less the job's counts."""
        if worker.life != life:
            return
        database, now = self.ledger.database, self.events.now
        self.ledger.cpu.serve(database.costs["renew"].cpu_s)
        for unit in worker.mine:
            if unit.token:
                unit.until = max(unit.until, now + self.ledger.lease_s - self.ledger.cpu.behind_s)
        if worker.mine:
            self.events.at(now + self.machines.renew_s, self._renew_together, worker, life)
        else:
            worker.renewing = False

    # ---- beside the work -------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        self.ledger.sweep()
        self._refill(self.events.now + self.machines.sweep_s)
        self.events.at(self.events.now + self.machines.sweep_s, self._sweep)

    def _refill(self, until_s: float) -> None:
        """Tickets for what waits; where they are not enough, again soon."""
        waiting, refill_s = self.ledger.waiting(), self.machines.refill_s
        if not self.redis_away:
            missing = min(waiting, self.machines.most_tickets) - self.tickets
            if missing > 0:
                self.send(missing)
            if refill_s and waiting > self.machines.most_tickets and self.events.now + refill_s < until_s:
                self.events.at(self.events.now + refill_s, self._refill, until_s)

    def _beat(self) -> None:
        self.ledger.beat(round(len(self.workers) / self.machines.beat_s) or 1)
        self.events.at(self.events.now + 1.0, self._beat)

    def _answer(self, number: int, asked_s: float | None = None, left: int = 0) -> None:
        """A gateway answers all who wait for a status on one connection, then those that came meanwhile."""
        machines, now, ledger = self.machines, self.events.now, self.ledger
        if asked_s is not None and not left:
            self.seen.answer_s.append(now - asked_s)
        if not left:
            left, asked_s = self._due(), now
        if not left:
            self.events.at(now + machines.gather_s, self._answer, number)
            return
        ranked_s = 0.0
        if machines.count_ahead and ledger.accepted and asked_s == now:
            ranked_s = ledger.database.costs["status"].of(ledger.accepted)
        part = min(left, max(1, int(0.02 / machines.status_row_s)))
        end = ledger.cpu.serve(ranked_s + part * machines.status_row_s)
        self.seen.answers += part
        self.events.at(max(end, now + machines.gather_s), self._answer, number, asked_s, left - part)

    def _due(self) -> int:
        """Half a thousand of those whose pause is over; those of ended jobs do not come again."""
        due, now = 0, self.events.now
        while self.thinking and self.thinking[0][0] <= now and due < 500:
            _, index = self.thinking.popleft()
            if self.ledger.jobs[index].ended is None:
                self.thinking.append((now + self.machines.retry_s, index))
                due += 1
        return due

    # ---- what goes wrong -------------------------------------------------------------------------------------------

    def _arrive_worker(self, worker: Worker) -> None:
        for _ in range(self.machines.threads):
            self.free_thread(worker, had_work=self.redis_away)

    def _next_death(self) -> float:
        rate_per_s = self.machines.death_per_hour * len(self.workers) / 3600
        return self.events.now + self.draw.expovariate(rate_per_s)

    def _die(self) -> None:
        worker = self.draw.choice(self.workers)
        worker.life += 1
        worker.clear()
        self.seen.deaths += 1
        self.events.at(self.events.now + self.machines.back_s, self._arrive_worker, worker)
        self.events.at(self._next_death(), self._die)

    def _lose_redis(self) -> None:
        """Tickets are gone. While Redis is away, workers that notice claim without one, and once more afterwards."""
        self.tickets = 0
        if self.machines.redis_away_s:
            self.redis_away = True
            self.events.at(self.events.now + self.machines.redis_away_s, self._redis_back)
            self._poll_all(self.machines.poll_s)

    def _redis_back(self) -> None:
        self.redis_away = False

    def _poll_all(self, within_s: float) -> None:
        for worker in self.workers:
            self.events.at(self.events.now + self.draw.uniform(0, within_s), self._poll, worker, worker.life)

    def _poll(self, worker: Worker, life: int) -> None:
        """All idle threads of a worker look for work without a ticket; again every few seconds while Redis is away."""
        if worker.life != life:
            return
        mine = [one for one in self.idle if one[0] is worker]
        for one in mine:
            self.idle.remove(one)
            self._claim(worker, life, False)
        if self.redis_away:
            self.events.at(self.events.now + self.machines.poll_s, self._poll, worker, life)
