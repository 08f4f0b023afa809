"""Trying a job again, retention, tenants and limits, and what the operator can count."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from tests.databases import database_urls
from tests.worker.test_ledger import INFO, PLAN, TILES
from worker.errors import CoverageTooLow, JobConflict, JobExpired, JobNotFound, QueueFull, TileFailed
from worker.ledger import Ledger, Limits
from worker.ledger_schema import jobs
from worker.types import JobSpec

SPEC = JobSpec("/slides/a.svs", "a", ("tumour",), model="hue")


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with database_urls(request.param, tmp_path) as url:
        ledger = Ledger(url)
        yield ledger
        ledger.close()


def claim(ledger: Ledger):
    return ledger.claim("w", ["hue"])


def run_to_finish(ledger: Ledger):
    ledger.commit_plan(claim(ledger), PLAN, INFO, TILES)
    for _ in TILES:
        work = claim(ledger)
        ledger.commit_block(work, TILES[work.key], 0, {})
    return claim(ledger)


def succeed(ledger: Ledger, **about) -> str:
    job_id, _ = ledger.create_job(SPEC, **about)
    ledger.commit_finish(run_to_finish(ledger), {"answer": "patient"}, "1 regions")
    ledger.close_job(job_id)
    return job_id


def end_long_ago(ledger: Ledger, job_id: str) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(finished=1000.0))


def test_a_failed_job_is_tried_again_and_keeps_what_it_has(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC)
    ledger.commit_plan(claim(ledger), PLAN, INFO, TILES)
    bad = claim(ledger)
    ledger.fail(bad, TileFailed("broken"), data_fault=True, final=True)
    for _ in range(2):
        work = claim(ledger)
        ledger.commit_block(work, TILES[work.key], 0, {"kept": True})
    ledger.fail(claim(ledger), CoverageTooLow("too low"), data_fault=True, final=True)
    assert ledger.job(job_id).status == "failed" and ledger.failures() == {"coverage-too-low": 1}

    row = ledger.retry(job_id)
    assert (row.status, row.error_code, row.finished, row.tiles_failed) == ("running", None, None, 0)
    again = claim(ledger)
    assert (again.key, again.token) == (bad.key, bad.token + 1)
    ledger.commit_block(again, TILES[again.key], 0, {})
    finish = claim(ledger)
    assert finish.kind == "finish" and {row.state for row in ledger.blocks(job_id)} == {"done"}
    ledger.commit_finish(finish, {}, "")
    ledger.close_job(job_id)
    assert ledger.job(job_id).status == "successful" and ledger.failures() == {}


def test_a_dismissed_job_is_tried_again(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC)
    ledger.dismiss(job_id)
    assert claim(ledger) is None and ledger.claimable() == {}
    assert ledger.retry(job_id).status == "accepted"
    assert claim(ledger).kind == "plan"


def test_only_ended_jobs_are_tried_again(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC)
    with pytest.raises(JobConflict, match="accepted; accepted are jobs that are failed or dismissed"):
        ledger.retry(job_id)
    with pytest.raises(JobNotFound):
        ledger.retry("0" * 32)


def test_retention_leaves_an_id_and_nothing_else(ledger: Ledger):
    old, new = succeed(ledger, idempotency_key="k", body_hash="b"), succeed(ledger)
    end_long_ago(ledger, old)
    assert ledger.expire(3600.0) == [old]
    assert ledger.expire(3600.0) == [old], "named until its artifacts are gone"
    ledger.purged(old)
    assert ledger.expire(3600.0) == []
    for call in (ledger.job, ledger.dismiss, ledger.retry):
        with pytest.raises(JobExpired, match="removed on"):
            call(old)
    assert [row.job_id for row in ledger.list_jobs()[0]] == [new]
    assert ledger.units_of(old) == [] and ledger.blocks(old) == []
    with ledger.engine.connect() as connection:
        row = connection.execute(jobs.select().where(jobs.c.job_id == old)).one()
    assert (row.spec, row.plan, row.slide, row.result, row.slide_id) == ({}, None, None, None, "")
    again, created = ledger.create_job(SPEC, "k", "b")
    assert created and again != old


def test_open_jobs_never_expire(ledger: Ledger):
    ledger.create_job(SPEC)
    assert ledger.expire(0.0) == []


def test_a_tenant_sees_its_own_jobs_only(ledger: Ledger):
    mine, _ = ledger.create_job(SPEC, "key", "body", tenant="north")
    theirs, created = ledger.create_job(SPEC, "key", "other body", tenant="south")
    assert created and ledger.job(mine, "north").tenant == "north"
    for call in (ledger.job, ledger.dismiss):
        with pytest.raises(JobNotFound):
            call(mine, tenant="south")
    assert [row.job_id for row in ledger.list_jobs(tenant="south")[0]] == [theirs]
    assert len(ledger.list_jobs()[0]) == 2
    assert set(ledger.jobs([mine, theirs, "0" * 32])) == {mine, theirs}


def test_each_tenant_has_its_limit(ledger: Ledger):
    limits = Limits(open=3, tenant_open=1)
    ledger.create_job(SPEC, limits=limits, tenant="north")
    with pytest.raises(QueueFull, match="1 of your jobs are open and 1 is the limit") as caught:
        ledger.create_job(SPEC, limits=limits, tenant="north")
    assert 5 <= caught.value.retry_after_s <= 300
    ledger.create_job(SPEC, limits=limits, tenant="south")
    ledger.create_job(SPEC, limits=limits, tenant="west")
    with pytest.raises(QueueFull, match="3 jobs are open"):
        ledger.create_job(SPEC, limits=limits, tenant="east")


def test_retry_after_follows_the_pace_of_the_queue(ledger: Ledger):
    waits = []
    for _ in range(2):
        open_id, _ = ledger.create_job(SPEC)
        with pytest.raises(QueueFull) as caught:
            ledger.create_job(SPEC, limits=Limits(open=1))
        waits.append(caught.value.retry_after_s)
        ledger.dismiss(open_id)
        for _ in range(19):
            ledger.dismiss(ledger.create_job(SPEC)[0])
    assert waits == [300, 30]


def test_what_waits_is_counted(ledger: Ledger):
    assert ledger.queue_stats() == []
    job_id, _ = ledger.create_job(SPEC)
    (stats,) = ledger.queue_stats()
    assert (stats.model, stats.waiting_units) == ("hue", 1) and 0 <= stats.oldest_wait_s < 60
    ledger.commit_plan(claim(ledger), PLAN, INFO, TILES)
    assert [stats.waiting_units for stats in ledger.queue_stats()] == [len(TILES)]
    states = [(unit.kind, unit.state) for unit in ledger.units_of(job_id)]
    assert states == [("plan", "done"), *[("segment", "waiting")] * len(TILES), ("finish", "held")]


def test_the_trace_and_the_tenant_reach_the_worker(ledger: Ledger):
    trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    ledger.create_job(SPEC, tenant="north", trace=trace)
    work = claim(ledger)
    assert (work.trace, work.tenant) == (trace, "north") and 0 <= work.waited_s < 60
