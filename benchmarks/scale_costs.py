"""What a call of the ledger costs PostgreSQL, and a ticket Redis: the service times of `benchmarks.scale`.

    SLIDEREASON_TEST_POSTGRES_URL=postgresql+psycopg://… SLIDEREASON_TEST_REDIS_URL=redis://… \
        python -m benchmarks.scale_costs

The server must run on this machine: its processor time is read from /proc. A database of its own is made and dropped.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kombu import Connection as BrokerConnection
from redis import Redis
from sqlalchemy import event, text

from benchmarks.record import RESULTS, Bench, Measurement, write_result
from tests.databases import database_urls
from worker import queue
from worker.ledger import Ledger
from worker.types import JobSpec, SlideInfo, TilePlan

SPEC = JobSpec("/slides/a.svs", "a", ("Where is the tumour?",), model="hue")
INFO = SlideInfo(1000, 800, ((1000, 800), (500, 400)), (1.0, 2.0), 0.5, 0.5, "override", None, "generic", (0, 0, 9, 9))
PLAN = TilePlan(500, 400, 1.0, 2.0, 2.0, 256, 192, (0, 0), 2, 3, 512, ("0_0", "0_1", "0_2"), "/A==", 6, 2)
CARD_MODELS = ("hue",)
TENANTS = 20
TICKS = os.sysconf("SC_CLK_TCK")
COUNTERS = ("statements", "locked_ms", "tenant_locked_ms", "commit_ms")


class Watch:
    """Times the calls of a ledger: wall, the server's processor, statements, and how long rows stay locked."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self._marks: dict[str, float] = {}
        self._statements = 0
        event.listen(ledger.engine, "before_cursor_execute", self._statement)
        event.listen(ledger.engine, "commit", lambda _connection: self._mark("commit"))

    def _mark(self, name: str) -> None:
        self._marks.setdefault(name, time.perf_counter())

    def _statement(self, _connection, _cursor, statement: str, *_rest) -> None:
        self._statements += 1
        start = " ".join(statement.split()).upper()
        if start.startswith("UPDATE TENANTS"):
            self._mark("tenant")
        if start.startswith(("UPDATE JOBS", "INSERT INTO JOBS")) or ("FROM JOBS" in start and "FOR UPDATE" in start):
            self._mark("job")

    def measure(self, name: str, calls: int, call: Callable[[], Any], **notes: Any) -> Measurement:
        """Median wall ms of a call; in the notes the mean of what else was seen."""
        walls: list[float] = []
        seen: dict[str, list[float]] = {counter: [] for counter in COUNTERS}
        before = self._server_s()
        for _ in range(calls):
            self._marks, self._statements = {}, 0
            begun = time.perf_counter()
            call()
            ended = time.perf_counter()
            walls.append((ended - begun) * 1e3)
            seen["statements"].append(self._statements)
            for counter, mark in (("locked_ms", "job"), ("tenant_locked_ms", "tenant"), ("commit_ms", "commit")):
                seen[counter].append((ended - self._marks.get(mark, ended)) * 1e3)
        cpu_ms = (self._server_s() - before) / calls * 1e3
        told = {counter: round(statistics.median(values), 3) for counter, values in seen.items()}
        return Measurement(name, "ms", (statistics.median(walls),), {"cpu_ms": round(cpu_ms, 3), **told, **notes})

    def _server_s(self) -> float:
        """Processor seconds of the server's processes that serve this database, so far."""
        with self.ledger._reading() as connection:
            query = text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
            pids = connection.scalars(query).all()
        total = 0
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS


@contextmanager
def open_ledger() -> Iterator[Ledger]:
    """A ledger in a database of its own."""
    with tempfile.TemporaryDirectory() as folder, database_urls("postgresql", Path(folder)) as url:
        ledger = Ledger(url, lease_s=3600.0)
        try:
            yield ledger
        finally:
            ledger.close()


def fill(ledger: Ledger, waiting: int, ended: int, blocks: int = 30) -> None:
    """Put jobs there: `waiting` that nobody has begun, of 20 tenants, and `ended` ones with their units."""
    for index in range(TENANTS):
        ledger.create_job(SPEC, tenant=f"t{index}", job_id=f"{index:032x}")
    copy_job = """
        INSERT INTO jobs (job_id, status, stopping, model, slide_id, priority, message, created, updated, spec, tenant,
                          ready, units_left, purged, tiles_done, tiles_total, tiles_failed, tiles_skipped, finished)
        SELECT :prefix || lpad(to_hex(n), 31, '0'), :status, false, model, slide_id, 0, '', created + n * 1e-3, updated,
               spec, 't' || (n % :tenants), :open, :open, false, 0, 0, 0, 0, :finished
        FROM generate_series(1, :count) AS n, (SELECT * FROM jobs LIMIT 1) AS one"""
    copy_unit = """
        INSERT INTO units (job_id, kind, key, position, state, token, not_before, faults, lost, isolated, deaths, tiles,
                           tiles_done, tiles_failed, summary)
        SELECT job_id, :kind, :stem || b, b, :state, 1, 0, 0, 0, false, '{}', 100, 0, 0, '{"components": []}'
        FROM jobs, generate_series(1, :blocks) AS b WHERE job_id LIKE :prefix || '%'"""
    with ledger.engine.begin() as connection:
        for prefix, status, count in (("a", "accepted", waiting), ("b", "successful", ended)):
            opened = status == "accepted"
            values = {"prefix": prefix, "status": status, "count": count, "tenants": TENANTS, "open": int(opened)}
            connection.execute(text(copy_job), {**values, "finished": None if opened else time.time()})
        unit = {"kind": "plan", "stem": "", "state": "waiting", "prefix": "a", "blocks": 1}
        connection.execute(text(copy_unit), unit)
        unit = {"kind": "segment", "stem": "0_", "state": "done", "prefix": "b", "blocks": blocks}
        connection.execute(text(copy_unit), unit)
        connection.execute(text(copy_unit), unit | {"kind": "finish", "stem": "", "blocks": 1})
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def _planned(ledger: Ledger, blocks: int) -> str:
    """A job of so many blocks that the next claims get, whatever else waits."""
    job_id, _ = ledger.create_job(SPEC, tenant="mine")
    work = ledger.claim("planner", CARD_MODELS)
    while work.job_id != job_id:
        work = ledger.claim("planner", CARD_MODELS)
    ledger.commit_plan(work, PLAN, INFO, {f"{index}_0": 100 for index in range(blocks)})
    return job_id


def of_job_size(blocks: int, calls: int) -> list[Measurement]:
    """Claim, renew and commit of blocks of one job of so many, and what belongs to the job once."""
    with open_ledger() as ledger:
        watch = Watch(ledger)
        _planned(ledger, blocks)
        taken: list[Any] = []
        calls = min(calls, blocks)
        notes = {"blocks": blocks}
        found = [watch.measure("claim", calls, lambda: taken.append(ledger.claim("w", CARD_MODELS)), **notes)]
        work = taken[0]
        found.append(watch.measure("renew", 100, lambda: ledger.renew(work, 1, 0), **notes))
        summary = {"components": [], "tiles": 100}
        rest = iter(taken)
        found.append(watch.measure("commit", calls, lambda: ledger.commit_block(next(rest), 100, 0, summary), **notes))
        found.append(watch.measure("job", 100, lambda: ledger.job(work.job_id), **notes))
        plans = [_fresh_plan(ledger) for _ in range(5)]
        tiles_of = {f"{index}_0": 100 for index in range(blocks)}
        rest = iter(plans)
        planned = watch.measure("commit_plan", 5, lambda: ledger.commit_plan(next(rest), PLAN, INFO, tiles_of), **notes)
        return [*found, planned]


def _fresh_plan(ledger: Ledger) -> Any:
    ledger.create_job(SPEC, tenant="new")
    while (work := ledger.claim("p", CARD_MODELS)).kind != "plan":
        pass
    return work


def of_queue_length(waiting: int, ended: int, calls: int) -> list[Measurement]:
    """Claim, status, creating, sweeping and counting while so many jobs wait."""
    with open_ledger() as ledger:
        fill(ledger, waiting, ended)
        watch, notes = Watch(ledger), {"waiting": waiting, "ended": ended}
        asked = [f"a{number:031x}" for number in range(1, waiting, max(1, waiting // 100))]
        return [
            watch.measure("claim", calls, lambda: ledger.claim("w", CARD_MODELS), **notes),
            watch.measure("status", calls, lambda: ledger.jobs(asked), **notes),
            watch.measure("create", calls, lambda: ledger.create_job(SPEC, tenant="t0"), **notes),
            watch.measure("sweep", 3, ledger.sweep, **notes),
            watch.measure("counts", 3, ledger.counts, **notes),
            watch.measure("queue_stats", 3, ledger.queue_stats, **notes),
        ]


def of_tickets(url: str, count: int) -> list[Measurement]:
    """Wall and Redis's processor for sending a ticket, and for receiving and acknowledging one."""
    app, redis, model = queue.make_app(url), Redis.from_url(url), f"bench-{os.getpid()}"

    def server_s() -> float:
        known = redis.info("cpu")
        return known["used_cpu_sys"] + known["used_cpu_user"]

    found = []
    try:
        for name in ("ticket sent", "ticket received"):
            before, begun = server_s(), time.perf_counter()
            if name == "ticket sent":
                queue.submit(app, model, count)
            else:
                _receive(url, queue.queue_name(model), count)
            wall_ms = (time.perf_counter() - begun) / count * 1e3
            cpu_ms = (server_s() - before) / count * 1e3
            found.append(Measurement(name, "ms", (wall_ms,), {"cpu_ms": round(cpu_ms, 4)}))
    finally:
        redis.delete(queue.queue_name(model), f"_kombu.binding.{queue.queue_name(model)}")
        app.close()
        redis.close()
    return found


def _receive(url: str, name: str, count: int) -> None:
    with BrokerConnection(url) as connection, connection.SimpleQueue(name) as waiting:
        for _ in range(count):
            waiting.get(timeout=5).ack()


def main() -> None:
    """Measure, and write `scale_costs.json`."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--calls", type=int, default=200, help="of each kind (default: 200)")
    options.add_argument("--repeats", type=int, default=3, help="of the whole (default: 3)")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    asked = options.parse_args()
    rounds = []
    for _ in range(asked.repeats):
        found = [one for blocks in (4, 100, 500, 2000) for one in of_job_size(blocks, asked.calls)]
        for waiting, ended in ((100, 100), (2_000, 2_000), (20_000, 5_000)):
            found += of_queue_length(waiting, ended, asked.calls)
        rounds.append(found + of_tickets(os.environ["SLIDEREASON_TEST_REDIS_URL"], 2_000))
    measurements = [_joined(same) for same in zip(*rounds, strict=True)]
    bench = Bench(seed=0, repeats=asked.repeats, work=Path(), model="none", quick=False)
    where = "PostgreSQL and Redis on this machine, one caller"
    path = write_result("scale_costs", measurements, where, bench, asked.out)
    for one in measurements:
        print(f"{one.name} {one.notes}: {statistics.median(one.values):.3g} ms")
    print(path)


def _joined(same: tuple[Measurement, ...]) -> Measurement:
    """One measurement of several rounds: of processor time the median, of wall times the quietest round's."""
    notes = {}
    for name in same[0].notes:
        found = [one.notes[name] for one in same]
        notes[name] = round(min(found) if name in COUNTERS else statistics.median(found), 4)
    return Measurement(same[0].name, "ms", tuple(value for one in same for value in one.values), notes)


if __name__ == "__main__":
    main()
