"""Exports in the ledger: asked for once, given out first, returned when their worker is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from tests.databases import database_urls
from tests.worker.test_ledger import INFO, PLAN, SPEC, claim
from worker.errors import LeaseLost
from worker.ledger import Ledger
from worker.ledger_schema import units


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with database_urls(request.param, tmp_path) as url:
        opened = Ledger(url)
        yield opened
        opened.close()


@pytest.fixture
def job_id(ledger: Ledger) -> str:
    """A job that ended well."""
    job_id, _ = ledger.create_job(SPEC)
    ledger.commit_plan(claim(ledger), PLAN, INFO, {"0_0": 2})
    ledger.commit_block(claim(ledger), 2, 0, {})
    ledger.commit_finish(claim(ledger), {}, "2 regions")
    ledger.close_job(job_id)
    return job_id


def lose(ledger: Ledger) -> None:
    """Let every lease run out."""
    with ledger.engine.begin() as connection:
        connection.execute(update(units).values(lease_until=0.0))
    ledger.sweep()


def test_asked_for_twice_it_is_made_once(ledger: Ledger, job_id: str):
    assert ledger.claim_export("w1") is None
    assert [ledger.ask_export(job_id, "csv").state for _ in range(2)] == ["waiting", "waiting"]
    assert ledger.sweep().claimable == {"hue": 1}
    work = ledger.claim_export("w1")
    assert (work.kind, work.key, work.spec, work.plan, work.slide) == ("export", "csv", SPEC, PLAN, INFO)
    assert work.finished == pytest.approx(ledger.job(job_id).finished.timestamp(), abs=1e-3)
    assert ledger.claim_export("w2") is None and ledger.claim("w2", ["hue"]) is None
    before = ledger.job(job_id)
    ledger.renew(work)
    ledger.commit_export(work)
    assert [(row.name, row.state, row.error) for row in ledger.exports(job_id)] == [("csv", "done", None)]
    assert ledger.ask_export(job_id, "csv").state == "done"
    after = ledger.job(job_id)
    assert (after.status, after.message, after.tiles_done) == (before.status, "2 regions", 2)


def test_a_late_owner_changes_nothing(ledger: Ledger, job_id: str):
    ledger.ask_export(job_id, "csv")
    late = ledger.claim_export("w1")
    lose(ledger)
    work = ledger.claim_export("w2")
    assert work.token == late.token + 1
    with pytest.raises(LeaseLost):
        ledger.commit_export(late)
    ledger.commit_export(work)


def test_one_that_kills_its_workers_is_given_up_and_may_be_asked_for_again(ledger: Ledger, job_id: str):
    ledger.ask_export(job_id, "csv")
    for _ in range(3):
        assert ledger.claim_export("w") is not None
        lose(ledger)
    assert ledger.claim_export("w") is None
    (row,) = ledger.exports(job_id)
    assert (row.state, row.error) == ("failed", "3 workers were lost over it")
    assert ledger.job(job_id).status == "successful"
    assert ledger.ask_export(job_id, "csv").state == "failed"
    assert ledger.ask_export(job_id, "csv", again=True).state == "waiting"
    assert ledger.claim_export("w") is not None


def test_storage_that_is_away_makes_it_wait_and_says_nothing_of_the_job(ledger: Ledger, job_id: str):
    ledger.ask_export(job_id, "csv")
    ledger.fail(ledger.claim_export("w"), OSError("the bucket is away"), data_fault=False)
    assert ledger.exports(job_id)[0].state == "waiting"
    assert (ledger.job(job_id).message, ledger.job(job_id).status) == ("2 regions", "successful")
    assert ledger.claim_export("w") is None, "it waits a little"


def test_the_oldest_is_made_first_and_an_expired_job_has_none(ledger: Ledger, job_id: str):
    for name in ("pdf", "csv"):
        ledger.ask_export(job_id, name)
    with ledger.engine.begin() as connection:
        connection.execute(update(units).where(units.c.key == "csv").values(position=units.c.position - 10))
    assert ledger.claim_export("w").key == "csv"
    assert ledger.expire(older_than_s=-1.0) == [job_id]
    assert ledger.claim_export("w") is None
