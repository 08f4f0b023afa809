"""The ledger: who owns what, who is fenced off, and what happens when an owner is lost."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.segmenter import SegmenterCard
from tests.databases import database_urls
from worker.errors import (
    BadRequest,
    JobConflict,
    JobDismissed,
    JobNotFound,
    LeaseLost,
    MppUnknown,
    QueueFull,
    SlideNotFound,
    SlideUnreadable,
)
from worker.ledger import Ledger, Limits
from worker.ledger_units import Work
from worker.types import JobSpec, SlideInfo, TilePlan

SPEC = JobSpec("/slides/a.tif", "a.tif", ("where?",), model="hue")
CARD = SegmenterCard(name="hue", revision="1", tile_size_px=256, default_mpp=1.0)
INFO = SlideInfo(1000, 800, ((1000, 800), (500, 400)), (1.0, 2.0), 0.5, 0.5, "override", None, "generic", (0, 0, 9, 9))
PLAN = TilePlan(500, 400, 1.0, 2.0, 2.0, 256, 192, (0, 0), 2, 3, 512, ("0_0", "0_1", "0_2"), "/A==", 6, 2)
TILES = {"0_0": 1, "0_1": 2, "0_2": 3}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with database_urls(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger(url)
    yield opened
    opened.close()


@pytest.fixture
def impatient(url: str) -> Iterator[Ledger]:
    """The same ledger to a worker whose leases are over as soon as they begin."""
    opened = Ledger(url, lease_s=-1.0)
    yield opened
    opened.close()


def claim(ledger: Ledger, worker: str = "w1") -> Work:
    work = ledger.claim(worker, ["hue"], CARD)
    assert work is not None
    return work


def planned(ledger: Ledger, spec: JobSpec = SPEC) -> str:
    """A job whose three blocks wait."""
    job_id, _ = ledger.create_job(spec)
    work = claim(ledger)
    assert work.job_id == job_id
    assert ledger.commit_plan(work, PLAN, INFO, TILES) == 3
    return job_id


def test_a_job_from_end_to_end(ledger: Ledger):
    job_id, created = ledger.create_job(SPEC)
    assert created
    assert ledger.job(job_id).status == "accepted"
    assert ledger.job(job_id).queue_position == 0
    plan = claim(ledger)
    assert (plan.kind, plan.spec, plan.plan, plan.token) == ("plan", SPEC, None, 1)
    ledger.commit_plan(plan, PLAN, INFO, TILES)
    seen = []
    for _ in TILES:
        block = claim(ledger)
        assert (block.plan, block.slide, block.plan_token) == (PLAN, INFO, 1)
        seen.append(block.key)
        opened = ledger.commit_block(block, TILES[block.key], 0, {"n": 1})
        assert opened == (1 if block.key == "0_2" else 0)
    assert seen == list(TILES)
    finish = claim(ledger)
    assert (finish.kind, finish.tiles_done, finish.tiles_failed) == ("finish", 6, 0)
    ledger.commit_finish(finish, {"answer": "there"}, "1 region")
    assert ledger.job(job_id).status == "running"
    ledger.close_job(job_id)
    row = ledger.job(job_id)
    assert (row.status, row.progress, row.coverage, row.result) == ("successful", 100, 1.0, {"answer": "there"})
    assert (row.tiles_done, row.tiles_total, row.tiles_skipped, row.message) == (6, 6, 2, "1 region")
    assert row.created <= row.started <= row.finished
    assert row.model["name"] == "hue"
    assert ledger.claim("w1", ["hue"]) is None


def test_progress_grows_with_renewals(ledger: Ledger):
    job_id = planned(ledger)
    before = ledger.job(job_id)
    work = claim(ledger)
    ledger.renew(work, tiles_done=1)
    after = ledger.job(job_id)
    assert (before.tiles_done, after.tiles_done) == (0, 1)
    assert before.progress < after.progress < 95
    assert after.eta_s is not None and after.eta_s >= 0


def test_priority_goes_before_age(ledger: Ledger):
    old, _ = ledger.create_job(SPEC)
    urgent, _ = ledger.create_job(replace(SPEC, priority=5))
    assert ledger.job(old).queue_position == 1
    assert ledger.job(urgent).queue_position == 0
    assert [claim(ledger).job_id, claim(ledger).job_id] == [urgent, old]


def test_only_a_worker_with_the_model_claims(ledger: Ledger):
    ledger.create_job(SPEC)
    assert ledger.claim("w1", ["tiny", "paper"]) is None
    assert ledger.claim("w1", ["tiny", "hue"]) is not None


def test_no_unit_is_claimed_twice_at_once(ledger: Ledger):
    planned(ledger)
    claimed, start = [], threading.Barrier(8)

    def take(name: str) -> None:
        start.wait()
        work = ledger.claim(name, ["hue"])
        if work is not None:
            claimed.append(work.key)

    threads = [threading.Thread(target=take, args=(f"w{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(claimed)) == len(claimed)
    remaining = 3 - len(claimed)  # PostgreSQL may skip a row that another had locked for a moment
    assert sum(ledger.claim("late", ["hue"]) is not None for _ in range(remaining + 1)) == remaining


def test_a_late_owner_changes_nothing(ledger: Ledger, impatient: Ledger):
    job_id = planned(ledger)
    late = claim(impatient, "late")
    assert ledger.sweep().expired == 1
    owner = claim(ledger, "owner")
    assert (owner.key, owner.token) == (late.key, late.token + 1)
    for call in (
        lambda: ledger.commit_block(late, 1, 0, {"who": "late"}),
        lambda: ledger.renew(late),
        lambda: ledger.begin_tile(late, "0_0"),
        lambda: ledger.fail(late, ValueError("late"), data_fault=True),
    ):
        with pytest.raises(LeaseLost):
            call()
    ledger.release(late)
    ledger.commit_block(owner, 1, 0, {"who": "owner"})
    assert ledger.blocks(job_id)[0].summary == {"who": "owner"}
    assert ledger.blocks(job_id)[0].token == owner.token


def test_an_expired_lease_that_nobody_took_still_commits(ledger: Ledger, impatient: Ledger):
    planned(ledger)
    slow = claim(impatient, "slow")
    ledger.commit_block(slow, 1, 0, {})
    assert ledger.sweep().expired == 0


def test_a_lost_block_comes_back_isolated(ledger: Ledger, impatient: Ledger):
    planned(ledger)
    assert not claim(impatient).isolated
    ledger.sweep()
    again = claim(ledger)
    assert again.isolated
    assert again.quarantined == ()


def test_a_tile_in_flight_at_two_isolated_deaths_is_quarantined(ledger: Ledger, impatient: Ledger):
    planned(ledger)
    for tile, quarantined in ((None, ()), ("3_4", ()), ("3_5", ()), ("3_4", ()), (None, ("3_4",))):
        work = claim(impatient)
        assert work.quarantined == quarantined
        impatient.begin_tile(work, tile)
        ledger.sweep()
    assert claim(ledger).quarantined == ("3_4",)
    assert claim(ledger).quarantined == ("3_4",), "another block of the job must not try it again"


def test_a_tile_that_was_through_is_not_blamed(ledger: Ledger, impatient: Ledger):
    planned(ledger)
    for _ in range(4):
        work = claim(impatient)
        impatient.begin_tile(work, "3_4")
        impatient.begin_tile(work, None)
        ledger.sweep()
    assert claim(ledger).quarantined == ()


def test_faults_of_the_data_count_and_others_do_not(ledger: Ledger):
    job_id = planned(ledger)
    brief = Ledger(str(ledger.engine.url.render_as_string(hide_password=False)), lease_s=1e-6)  # waits next to nothing
    for _ in range(10):
        work = claim(brief)
        brief.fail(work, OSError("disk full"), data_fault=False)
    for attempt in range(3):
        work = claim(brief)
        assert work.key == "0_0"
        brief.fail(work, SlideUnreadable(f"broken {attempt}"), data_fault=True)
    brief.close()
    assert [(row.state, row.error) for row in ledger.blocks(job_id)][0] == ("failed", "broken 2")
    for _ in range(2):
        work = claim(ledger)
        ledger.commit_block(work, TILES[work.key], 0, {})
    row = ledger.job(job_id)
    assert (row.status, row.tiles_failed, row.tiles_done) == ("running", 1, 5)
    assert claim(ledger).kind == "finish"


def test_a_unit_that_failed_waits_before_it_is_tried_again(ledger: Ledger):
    ledger.create_job(SPEC)
    ledger.fail(claim(ledger), OSError("away"), data_fault=False)
    assert ledger.claim("w1", ["hue"]) is None
    assert ledger.claimable() == {"hue": 1}


def test_a_plan_that_is_refused_fails_the_job(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC)
    ledger.fail(claim(ledger), MppUnknown("give it", field="mpp_override"), data_fault=True, final=True)
    row = ledger.job(job_id)
    assert (row.status, row.error_code, row.error_field, row.message) == (
        "failed", "mpp-unknown", "mpp_override", "give it",
    )  # fmt: skip
    assert ledger.claim("w1", ["hue"]) is None


def test_an_unforeseen_error_names_no_secret(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC)
    ledger.fail(claim(ledger), KeyError("/home/someone/secret"), data_fault=True, final=True)
    row = ledger.job(job_id)
    assert (row.status, row.error_code) == ("failed", "internal")
    assert "secret" not in row.message


def test_a_waiting_job_is_dismissed_at_once(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC)
    assert ledger.dismiss(job_id).status == "dismissed"
    assert ledger.dismiss(job_id).status == "dismissed"
    assert ledger.claim("w1", ["hue"]) is None


def test_a_running_job_is_dismissed_once_its_workers_have_seen_it(ledger: Ledger):
    job_id = planned(ledger)
    first, second = claim(ledger), claim(ledger)
    assert ledger.dismiss(job_id).status == "running"
    assert ledger.claim("w1", ["hue"]) is None, "no new block of a job that stops"
    with pytest.raises(JobDismissed):
        ledger.renew(first)
    ledger.release(first)
    assert ledger.job(job_id).status == "running"
    ledger.commit_block(second, 2, 0, {})
    row = ledger.job(job_id)
    assert (row.status, row.message) == ("dismissed", "dismissed")
    assert ledger.leased() == 0


def test_a_dismissed_job_whose_worker_died_is_closed_by_the_sweeper(ledger: Ledger, impatient: Ledger):
    job_id = planned(ledger)
    claim(impatient)
    assert ledger.dismiss(job_id).status == "running"
    ledger.sweep()
    assert ledger.job(job_id).status == "dismissed"


def test_a_finished_job_stays_finished(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC)
    ledger.commit_plan(claim(ledger), replace(PLAN, block_keys=(), n_tiles=0), INFO, {})
    finish = claim(ledger)
    assert finish.kind == "finish"
    ledger.commit_finish(finish, {"answer": "nothing"}, "0 regions")
    ledger.close_job(job_id)
    assert ledger.dismiss(job_id).status == "successful"


def test_a_finish_whose_owner_died_before_publishing_is_found(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC)
    ledger.commit_plan(claim(ledger), replace(PLAN, block_keys=(), n_tiles=0), INFO, {})
    finish = claim(ledger)
    assert ledger.sweep().unpublished == []
    ledger.commit_finish(finish, {}, "")
    assert ledger.sweep().unpublished == [(job_id, finish.token)]
    ledger.close_job(job_id)
    ledger.close_job(job_id)
    assert ledger.sweep().unpublished == []


def test_a_job_is_not_closed_before_its_finish(ledger: Ledger):
    job_id = planned(ledger)
    ledger.close_job(job_id)
    assert ledger.job(job_id).status == "running"


def test_a_unit_that_keeps_killing_is_given_up(ledger: Ledger, impatient: Ledger):
    job_id = planned(ledger)
    for _ in range(20):
        assert claim(impatient).key == "0_0"
        ledger.sweep()
    assert ledger.blocks(job_id)[0].state == "failed"
    assert claim(ledger).key == "0_1"


def test_the_sweep_counts_what_can_be_claimed(ledger: Ledger):
    planned(ledger)
    ledger.create_job(replace(SPEC, model="other"))
    assert ledger.sweep().claimable == {"hue": 3, "other": 1}


def test_one_sweeper_at_a_time(ledger: Ledger):
    assert ledger.take_lease("sweeper", "w1", 60)
    assert not ledger.take_lease("sweeper", "w2", 60)
    assert ledger.take_lease("sweeper", "w1", -1)
    assert ledger.take_lease("sweeper", "w2", 60)


def test_an_idempotency_key_names_one_job(ledger: Ledger):
    first = ledger.create_job(SPEC, "key", "hash")
    assert ledger.create_job(SPEC, "key", "hash") == (first[0], False)
    with pytest.raises(JobConflict) as error:
        ledger.create_job(SPEC, "key", "other")
    assert error.value.field == "Idempotency-Key"
    assert ledger.counts()["accepted"] == 1


def test_a_key_used_by_many_at_once_makes_one_job(ledger: Ledger):
    made, start = [], threading.Barrier(6)

    def create() -> None:
        start.wait()
        made.append(ledger.create_job(SPEC, "key", "hash"))

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job_id for job_id, _ in made}) == 1
    assert sum(created for _, created in made) == 1


def test_a_full_queue_refuses(ledger: Ledger):
    ledger.create_job(SPEC, limits=Limits(open=1))
    with pytest.raises(QueueFull):
        ledger.create_job(SPEC, limits=Limits(open=1))


def test_jobs_are_paged_newest_first(ledger: Ledger):
    made = [ledger.create_job(SPEC)[0] for _ in range(5)]
    pages, cursor = [], None
    while True:
        rows, cursor = ledger.list_jobs(cursor, limit=2)
        pages.append([row.job_id for row in rows])
        if cursor is None:
            break
    assert [len(page) for page in pages] == [2, 2, 1]
    assert sorted(sum(pages, [])) == sorted(made)
    created = [ledger.job(job_id).created for job_id in sum(pages, [])]
    assert created == sorted(created, reverse=True)


def test_jobs_are_filtered(ledger: Ledger):
    kept, _ = ledger.create_job(replace(SPEC, slide_id="b.tif"))
    dropped, _ = ledger.create_job(SPEC)
    ledger.dismiss(dropped)
    assert [row.job_id for row in ledger.list_jobs(status="accepted")[0]] == [kept]
    assert [row.job_id for row in ledger.list_jobs(slide_id="b.tif")[0]] == [kept]


@pytest.mark.parametrize("arguments", [{"cursor": "!"}, {"cursor": "WzFd"}, {"status": "done"}, {"limit": 0}])
def test_a_list_refuses_what_it_does_not_know(ledger: Ledger, arguments: dict):
    with pytest.raises(BadRequest) as error:
        ledger.list_jobs(**arguments)
    assert error.value.field == next(iter(arguments))


def test_what_is_not_there_is_said(ledger: Ledger):
    for call in (ledger.job, ledger.dismiss):
        with pytest.raises(JobNotFound):
            call("0" * 32)
    with pytest.raises(SlideNotFound):
        ledger.slide("none")


def test_slides_are_registered(ledger: Ledger):
    ledger.register_slide("a", "file:a.tif", {"width": 3})
    ledger.register_slide("a", "file:b.tif")
    assert ledger.slide("a").reference == "file:b.tif"
    assert [row.slide_id for row in ledger.slides()] == ["a"]


def test_workers_are_heard(ledger: Ledger):
    ledger.heartbeat("w1", CARD, ["hue", "tests:hue"])
    ledger.heartbeat("w1", CARD, ["hue", "tests:hue"])
    (row,) = ledger.workers()
    assert (row.worker_id, row.models, row.card["revision"]) == ("w1", ("hue", "tests:hue"), "1")
    assert ledger.workers(heard_within_s=-1) == []
    ledger.forget_worker("w1")
    assert ledger.workers() == []


def test_a_ledger_outlives_its_process(url: str):
    first = Ledger(url)
    job_id, _ = first.create_job(SPEC)
    first.close()
    second = Ledger(url)
    second.ping()
    assert second.job(job_id).spec == SPEC
    second.close()
