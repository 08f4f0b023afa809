"""The simulation of `benchmarks.scale` held against the real ledger, where a small machine can be the real thing.

    SLIDEREASON_TEST_POSTGRES_URL=postgresql+psycopg://… python -m benchmarks.scale_check

Two situations: 1, 2 and 4 workers whose GPU sleeps one second a block, and 24 threads that do nothing but claim and
commit, every statement held up for a while so that locks decide and not this machine's processors.
"""

import argparse
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import event

from benchmarks.record import RESULTS, Bench, Measurement, write_result
from benchmarks.scale import read_costs
from benchmarks.scale_cluster import Cluster
from benchmarks.scale_costs import CARD_MODELS, INFO, PLAN, SPEC, open_ledger
from benchmarks.scale_ledger import Database
from benchmarks.scale_load import Order, even
from benchmarks.scale_machines import Machines
from worker.ledger import Ledger
from worker.tasks import LeaseWatch

TENANTS, JOBS, BLOCKS = 5, 2, 60
THREADS = 24
STATEMENT_S = 0.02
WARM_S = 2.0


def plan_all(ledger: Ledger, tenants: int, jobs: int, blocks: int) -> None:
    """Jobs whose blocks can be claimed."""
    for index in range(tenants * jobs):
        ledger.create_job(SPEC, tenant=f"t{index % tenants:03d}")
    plans = [ledger.claim("planner", CARD_MODELS) for _ in range(tenants * jobs)]
    for work in plans:
        ledger.commit_plan(work, PLAN, INFO, {f"{index}_0": 1 for index in range(blocks)})


def real(ledger: Ledger, threads: int, seconds: float, run: Callable[[int], None]) -> dict[str, float]:
    """Blocks a second, and the mean of a claim, of threads that claim, run and commit; a warm-up is left out."""
    claims: list[float] = []
    commits: list[float] = []
    begun = time.monotonic()

    def work(number: int) -> None:
        while (now := time.monotonic()) < begun + WARM_S + seconds:
            unit = ledger.claim(f"w{number}", CARD_MODELS)
            claims.append(time.monotonic() - now)
            if unit is None:
                return
            with LeaseWatch(ledger, unit):
                run(number)
                if unit.kind == "segment":
                    ledger.commit_block(unit, 1, 0, {"tiles": 1})
            commits.append(time.monotonic())

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    counted = sum(begun + WARM_S <= at < begun + WARM_S + seconds for at in commits)
    return {"blocks_per_s": counted / seconds, "claim_ms": sum(claims) / len(claims) * 1e3}


def simulated(machines: Machines, database: Database, tenants: int, jobs: int, blocks: int, seconds: float) -> Any:
    """The same of the simulation."""
    orders = [Order(0.0, index % tenants, even(blocks, 1)) for index in range(tenants * jobs)]
    cluster = Cluster(machines, database, orders, seed=0, tenants=tenants)
    seen, marks = cluster.seen, []
    for at_s in (WARM_S, WARM_S + seconds):
        cluster.events.at(at_s, lambda: marks.append(seen.blocks))
    cluster.run(WARM_S + seconds + 0.01)
    ledger = cluster.ledger
    return {"blocks_per_s": (marks[1] - marks[0]) / seconds, "claim_ms": ledger.claim_s / ledger.claims * 1e3}


def sleeping(workers: int, seconds: float, database: Database) -> Measurement:
    """Workers of two threads whose GPU takes a second a block."""
    gpus = [threading.Lock() for _ in range(workers)]

    def run(number: int) -> None:
        with gpus[number // 2]:
            time.sleep(1.0)

    with open_ledger() as ledger:
        plan_all(ledger, 1, 1, 200)
        found = real(ledger, 2 * workers, seconds, run)
    machines = Machines(workers, threads=2, tiles_per_s=1.0, batch=1, tile_tail_s=0.0, plan_s=0.0, status=False)
    return _both(f"{workers} sleeping workers", found, simulated(machines, database, 1, 1, 200, seconds))


def contending(seconds: float, database: Database) -> Measurement:
    """Threads that want the same few rows all the time."""
    with open_ledger() as ledger:
        plan_all(ledger, TENANTS, JOBS, BLOCKS)

        @event.listens_for(ledger.engine, "before_cursor_execute")
        def _hold_up(*_: Any) -> None:
            time.sleep(STATEMENT_S)

        found = real(ledger, THREADS, seconds, lambda _number: None)
    machines = Machines(
        THREADS, threads=1, tiles_per_s=1e9, tile_tail_s=0.0, tile_decode_s=0.0, plan_s=0.0, status=False,
        ticket_take_s=0.0, ticket_send_s=0.0, chain=True, finish_s=0.0, finish_block_s=0.0,
    )  # fmt: skip
    slow = replace(database, statement_s=database.statement_s + STATEMENT_S, connections=32)
    return _both(f"{THREADS} threads, no work", found, simulated(machines, slow, TENANTS, JOBS, BLOCKS, seconds))


def _both(name: str, found: dict[str, float], model: dict[str, float]) -> Measurement:
    notes = {"real": found, "simulated": model, "ratio": model["blocks_per_s"] / found["blocks_per_s"]}
    return Measurement(name, "blocks/s, simulated then real", (model["blocks_per_s"], found["blocks_per_s"]), notes)


def main() -> None:
    """Compare, and write `scale_check.json`."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=10.0, help="of each comparison (default: 10)")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    asked = options.parse_args()
    database = replace(read_costs(RESULTS / "scale_costs.json"), cores=2)
    told = [sleeping(workers, asked.seconds, database) for workers in (1, 2, 4)]
    told.append(contending(asked.seconds, database))
    bench = Bench(seed=0, repeats=1, work=Path(), model="none", quick=False)
    path = write_result("scale_check", told, "PostgreSQL on this machine against the simulation", bench, asked.out)
    for one in told:
        print(f"{one.name}: {one.notes}")
    print(path)


if __name__ == "__main__":
    main()
