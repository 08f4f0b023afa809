"""Whose turn it is: the policy by itself, and the ledger that asks it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, update

from tests.databases import database_urls
from tests.worker.test_ledger import INFO, PLAN
from worker.ledger import Ledger
from worker.ledger_claim import _charge, _shares
from worker.ledger_schema import jobs, tenants
from worker.scheduler import TenantShare, WaitingJob, charge, order_jobs, order_tenants, virtual_time
from worker.types import JobSpec

SPEC = JobSpec("/slides/a.svs", "a", ("tumour",), model="hue")


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with database_urls(request.param, tmp_path) as url:
        ledger = Ledger(url)
        yield ledger
        ledger.close()


def planned(ledger: Ledger, blocks: int, tiles: int = 1, **about) -> str:
    """A job whose plan is through."""
    job_id, _ = ledger.create_job(SPEC, **about)
    while (work := ledger.claim("planner", ["hue"])).job_id != job_id:
        ledger.release(work)
    ledger.commit_plan(work, PLAN, INFO, {f"{i}_0": tiles for i in range(blocks)})
    return job_id


def age(ledger: Ledger, job_id: str, seconds: float) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(created=jobs.c.created - seconds))


def run_next(ledger: Ledger) -> str:
    """Claim a unit, run it, and say whose job it was."""
    work = ledger.claim("w", ["hue"])
    if work.kind == "plan":
        ledger.commit_plan(work, PLAN, INFO, {"0_0": 1})
    elif work.kind == "segment":
        ledger.commit_block(work, 1, 0, {})
    else:
        ledger.commit_finish(work, {}, "")
        ledger.close_job(work.job_id)
    return work.job_id


def test_a_small_job_passes_a_large_one_of_the_same_tenant(ledger: Ledger):
    large = planned(ledger, blocks=200)
    age(ledger, large, 100.0)
    assert {run_next(ledger) for _ in range(5)} == {large}
    small, _ = ledger.create_job(SPEC)
    age(ledger, small, 3.0)
    ran = [run_next(ledger) for _ in range(6)]
    assert ran[:3] == [small] * 3, "plan, block, finish"
    assert ran[3:] == [large] * 3


def test_a_large_job_does_not_wait_for_ever():
    """However many small ones come, its ratio grows past theirs."""
    large = WaitingJob("large", 0.0, 1000)
    small = [WaitingJob(f"s{i}", 5000.0 - 0.01 * i, 1) for i in range(100)]
    assert order_jobs([large, *small], 5000.0)[0] is large


def test_equal_jobs_run_one_after_the_other():
    """The one that is under way has less left; nothing is gained by running all at once and finishing none."""
    waiting = [WaitingJob(f"{i:02}", float(i), 10) for i in range(20)]
    started = replace(waiting[0], units_left=5)
    assert [job.job_id for job in order_jobs([*waiting[1:], started], 100.0)][:3] == ["00", "01", "02"]


def test_tenants_take_turns_whatever_they_have_queued(ledger: Ledger):
    many = {planned(ledger, blocks=20, tenant="many") for _ in range(5)}
    few = planned(ledger, blocks=10, tenant="few")
    ran = Counter("many" if run_next(ledger) in many else "few" for _ in range(20))
    assert ran["few"] >= 9, ran
    assert ledger.job(few).tenant == "few"


def test_a_tenant_that_was_away_has_earned_nothing(ledger: Ledger):
    busy = planned(ledger, blocks=60, tenant="busy")
    planned(ledger, blocks=1, tenant="back")
    for _ in range(40):
        run_next(ledger)
    back = planned(ledger, blocks=30, tenant="back")
    ran = Counter(run_next(ledger) for _ in range(12))
    assert 5 <= ran[back] <= 7 and 5 <= ran[busy] <= 7, ran


def test_claims_at_once_bring_a_tenant_that_was_away_up_to_the_others_once(ledger: Ledger):
    """Each had seen it far behind; had each added the difference, it would wait for ever after."""
    planned(ledger, blocks=1, tenant="back")
    planned(ledger, blocks=4, tenant="busy")
    with ledger.engine.begin() as connection:
        connection.execute(update(tenants).where(tenants.c.tenant == "back").values(served=0.0, started=0.0))
        connection.execute(update(tenants).where(tenants.c.tenant == "busy").values(served=1e6, started=1e6))
        stale = _shares(connection)
        for _ in range(3):
            _charge(connection, stale, "back", 5)
        shares = {share.tenant: share.served for share in _shares(connection)}
    assert shares["back"] == 1e6 + 15


def test_tenants_are_charged_by_tiles_not_by_units(ledger: Ledger):
    heavy, light = planned(ledger, 30, tiles=9, tenant="heavy"), planned(ledger, 90, tiles=3, tenant="light")
    ran = Counter(run_next(ledger) for _ in range(40))
    assert 2.3 < ran[light] / ran[heavy] < 3.7, ran


def test_priority_comes_before_fairness(ledger: Ledger):
    planned(ledger, blocks=5, tenant="a")
    urgent, _ = ledger.create_job(replace(SPEC, priority=5), tenant="a")
    assert [run_next(ledger) for _ in range(3)] == [urgent] * 3


def test_a_job_that_waits_out_a_pause_holds_up_nobody(ledger: Ledger):
    paused = planned(ledger, blocks=1)
    ledger.fail(ledger.claim("w", ["hue"]), OSError(28, "No space left on device", "/secret"), data_fault=False)
    other = planned(ledger, blocks=1)
    assert run_next(ledger) == other
    assert ledger.job(paused).message == "waits: no space left on device"


def test_a_claim_reads_few_rows_however_long_the_queue(ledger: Ledger):
    for number in range(150):
        ledger.create_job(SPEC, tenant=f"t{number % 3}")
    statements = []
    event.listen(ledger.engine, "after_cursor_execute", lambda *args: statements.append(args[2]))
    assert ledger.claim("w", ["hue"]) is not None
    assert len(statements) <= 15, statements


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=200))
def test_backlogged_tenants_are_never_far_apart(turns):
    """Start-time fair queueing: two tenants that both always want differ by at most one unit of each."""
    shares = {name: TenantShare(name) for name in "abcd"}
    had = dict.fromkeys(shares, 0.0)
    for _, cost in turns:
        chosen = order_tenants(list(shares.values()))[0]
        shares[chosen.tenant] = charge(chosen, virtual_time(shares.values()), cost)
        had[chosen.tenant] += cost
    assert max(had.values()) - min(had.values()) <= 2 * max(cost for _, cost in turns)
