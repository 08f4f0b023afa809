"""What a job's row counts step by step is what its units say, whatever happened to them."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from tests.databases import database_urls
from tests.worker.test_ledger import INFO, PLAN, SPEC, claim
from worker.errors import LeaseLost
from worker.ledger import Ledger
from worker.ledger_schema import jobs, units

BLOCKS = 12
HAPPENINGS = ("claim", "claim", "renew", "renew", "commit", "commit", "release", "fail", "lose", "late")


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with database_urls(request.param, tmp_path) as url:
        opened = Ledger(url)
        yield opened
        opened.close()


def require_counted(ledger: Ledger, job_id: str) -> None:
    left = func.count().filter(units.c.state.in_(("waiting", "leased", "held")))
    waiting = func.count().filter(units.c.state == "waiting")
    counts = (func.sum(units.c.tiles_done), func.sum(units.c.tiles_failed), left, waiting)
    kept = (jobs.c.tiles_done, jobs.c.tiles_failed, jobs.c.units_left, jobs.c.ready)
    with ledger.engine.connect() as connection:
        of_units = connection.execute(select(*counts).where(units.c.job_id == job_id)).one()
        of_job = connection.execute(select(*kept).where(jobs.c.job_id == job_id)).one()
    assert tuple(of_job) == tuple(of_units)


@pytest.mark.parametrize("seed", range(4))
def test_counts_follow_whatever_happens(ledger: Ledger, seed: int):
    rng = random.Random(seed)
    job_id, _ = ledger.create_job(SPEC)
    ledger.commit_plan(claim(ledger), PLAN, INFO, {f"{i}_0": 4 for i in range(BLOCKS)})
    held = []
    for _ in range(500):
        happens = rng.choice(HAPPENINGS)
        work = rng.choice(held) if held else None
        if happens == "claim" and len(held) < 4 and (work := ledger.claim("w", ["hue"])) is not None:
            if work.kind == "finish":
                break
            held.append(work)
        elif work is not None and happens == "renew":
            ledger.renew(work, rng.randrange(5), rng.randrange(2))
        elif work is not None and happens == "late":
            ledger.release(work)
            with pytest.raises(LeaseLost):
                rng.choice([ledger.renew, lambda late: ledger.commit_block(late, 4, 0, {})])(work)
            held.remove(work)
        elif work is not None and happens in ("commit", "release", "fail", "lose"):
            held.remove(work)
            if happens == "commit":
                ledger.commit_block(work, 3, 1, {})
            elif happens == "release":
                ledger.release(work)
            elif happens == "fail":
                ledger.fail(work, OSError("the disk is away"), data_fault=False)
                _wait_no_more(ledger)
            else:
                _forget(ledger, work)
                ledger.sweep()
        require_counted(ledger, job_id)
    assert work is not None and work.kind == "finish", "all blocks were through before 500 things had happened"
    assert ledger.job(job_id).tiles_done + ledger.job(job_id).tiles_failed == 4 * BLOCKS


def _wait_no_more(ledger: Ledger) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(update(units).values(not_before=0.0))


def _forget(ledger: Ledger, work) -> None:
    """Let a lease run out."""
    mine = (units.c.job_id == work.job_id, units.c.kind == work.kind, units.c.key == work.key)
    with ledger.engine.begin() as connection:
        connection.execute(update(units).where(*mine).values(lease_until=0.0))
