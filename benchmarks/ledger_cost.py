"""What ledger and broker cost a block: a job of 2,000 whose blocks do nothing, and each step by itself.

The servers are this benchmark's own: a PostgreSQL with fsync, and a redis-server, both on unix sockets.
"""

import multiprocessing
import statistics
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import celery.worker.state
import pytest
from celery.platforms import SecurityWarning
from kombu import Connection

from benchmarks.record import Bench, Measurement
from benchmarks.run import Unavailable
from tests.faults.servers import Keeper, OwnPostgres, OwnRedis, short_folder
from worker import queue
from worker.ledger import Ledger
from worker.plan import block_of, plan_tiles
from worker.types import JobSpec, SlideInfo

BATCH = 4
"""Tiles of a block."""

BLOCK_PX = 512
MODEL = "hue"


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """A block's whole cost with one and with four block threads, and the calls it is made of."""
    blocks = 100 if bench.quick else 2000
    try:
        found = _costs(bench, blocks)
    except pytest.skip.Exception as error:
        raise Unavailable(str(error)) from error
    return found, f"a job of {blocks} blocks that do nothing, by one process"


class Clock:
    """Milliseconds by name of what was done; safe to share between threads."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = defaultdict(list)
        self._lock = threading.Lock()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        started = time.perf_counter()
        yield
        with self._lock:
            self.ms[name].append(1000 * (time.perf_counter() - started))


def _costs(bench: Bench, blocks: int) -> list[Measurement]:
    """A whole job through a real Celery worker whose blocks do nothing, and each step of it by itself."""
    whole, steps = {1: [], 4: []}, defaultdict(list)
    with short_folder() as own, _servers(own) as (postgres, redis):
        for _ in range(bench.repeats):
            for threads, values in whole.items():
                block_ms, ms = _in_a_child(postgres.url, redis.url, blocks, threads)
                values.append(block_ms)
                for name in ms if threads == 1 else ():
                    steps[name] += ms[name]
        tickets = Clock()
        for _ in range(bench.repeats):
            _time_tickets(redis.url, min(blocks, 500), tickets)
    notes = {"blocks of the job": blocks, "wanted": 10}
    found = [
        Measurement("ledger and broker, a block's whole cost", "ms", tuple(whole[1]), notes | {"block threads": 1}),
        Measurement(
            "ledger and broker, blocks of one job by one process", "blocks/s", tuple(1000 / ms for ms in whole[4]),
            {"blocks of the job": blocks, "block threads": 4},
        ),
    ]  # fmt: skip
    return found + [_calls(name, values) for name, values in {**steps, **tickets.ms}.items()]


def _calls(name: str, ms: list[float]) -> Measurement:
    cuts = statistics.quantiles(ms, n=100)
    notes = {"calls": len(ms), "p95": round(cuts[94], 3), "p99": round(cuts[98], 3)}
    return Measurement(f"{name}, median of the calls", "ms", (statistics.median(ms),), notes)


@contextmanager
def _servers(own: Path) -> Iterator[tuple[OwnPostgres, OwnRedis]]:
    keeper = Keeper()
    try:
        for name in ("pg", "redis"):
            (own / name).mkdir(mode=0o755)
        yield OwnPostgres(keeper, own / "pg", own / "postgres.log"), OwnRedis(keeper, own / "redis", own / "redis.log")
    finally:
        keeper.stop()


def _in_a_child(*asked: object) -> tuple[float, dict[str, list[float]]]:
    """`_drain` in a process of its own: Celery keeps one event loop a process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_drain, args=(sender, *asked))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        child.join()


def _drain(answer: Any, database_url: str, broker_url: str, blocks: int, threads: int) -> None:
    """Run the tickets of one job through a Celery worker.

    Sends:
        Wall ms a block, from its ticket's sending to its commit, and the ms of each step by name.
    """
    warnings.filterwarnings("ignore", category=SecurityWarning)
    clock = Clock()
    ledger, app = Ledger(database_url), queue.make_app(broker_url)
    job_id = planned_job(ledger, blocks)
    started = time.perf_counter()
    queue.submit(app, MODEL, blocks)
    sent_s = time.perf_counter() - started
    left, over = [blocks], threading.Lock()
    times: list[float] = []

    @app.task(name=queue.TASK, ignore_result=True, acks_late=True)
    def ticket() -> None:
        times.append(time.perf_counter())
        with clock.timed("claim"):
            work = ledger.claim("bench", (MODEL,))
        with clock.timed("renew"):
            ledger.renew(work, 1)
        with clock.timed("commit"):
            ledger.commit_block(work, BATCH, 0, {"tiles": BATCH, "failed": 0})
        times.append(time.perf_counter())
        with over:
            left[0] -= 1
            if not left[0]:
                celery.worker.state.should_stop = 0

    worker = app.Worker(
        pool="threads", concurrency=threads, queues=[queue.queue_name(MODEL)], loglevel="ERROR", quiet=True,
        without_gossip=True, without_mingle=True, without_heartbeat=True,
    )  # fmt: skip
    worker.start()
    assert ledger.job(job_id).tiles_done == blocks * BATCH
    ledger.dismiss(job_id)
    ledger.close()
    answer.send((1000 * (sent_s + max(times) - min(times)) / blocks, dict(clock.ms)))


def planned_job(ledger: Ledger, blocks: int) -> str:
    """A planned job of so many blocks; returns its id."""
    columns = min(blocks, 40)
    width, height = columns * BLOCK_PX, -(-blocks // columns) * BLOCK_PX
    info = SlideInfo(width, height, ((width, height),), (1.0,), 1.0, 1.0, "override", None, "generic")
    spec = JobSpec("/slides/a.tif", "a", ("nuclei",), mpp=1.0, overlap=0.0, block_px=BLOCK_PX, model=MODEL)
    plan = plan_tiles(info, spec, None, BLOCK_PX // 2, 1.0)
    tiles_of = {key: len(block_of(plan, key).owned) for key in plan.block_keys[:blocks]}
    assert len(tiles_of) == blocks
    job_id, _ = ledger.create_job(spec)
    ledger.commit_plan(ledger.claim("bench", (MODEL,)), plan, info, tiles_of)
    return job_id


def _time_tickets(broker_url: str, count: int, clock: Clock) -> None:
    """Send a ticket, and receive and acknowledge it, as the transport does."""
    app = queue.make_app(broker_url)
    name = queue.queue_name("tickets-alone")
    for _ in range(count):
        with clock.timed("ticket sent"):
            queue.submit(app, "tickets-alone")
    with Connection(broker_url) as connection, connection.SimpleQueue(name) as waiting:
        for _ in range(count):
            with clock.timed("ticket received"):
                waiting.get(timeout=5).ack()
    app.close()
