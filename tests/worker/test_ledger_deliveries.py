"""The outbox in the ledger: written with the end of a job and never twice, given to one sender at a time."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import event, update

from tests.databases import database_urls
from tests.worker.test_ledger import INFO, PLAN, SPEC, claim
from worker.artifacts import LocalArtifacts
from worker.delivery_turns import OF_A_PLACE, Lane
from worker.destinations import read_destinations
from worker.errors import JobNotFound, LeaseLost, SlideReasonError
from worker.ledger import Ledger
from worker.ledger_schema import deliveries
from worker.sender import Sender

HOOK = "https://lis.example.org/hook"
ALL = ("webhook", "dicomweb", "fhir")


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with database_urls(request.param, tmp_path) as url:
        opened = Ledger(url)
        yield opened
        opened.close()


def finish(ledger: Ledger, callback: str | None = HOOK) -> str:
    """A job whose result is committed, and which is still to be closed."""
    job_id, _ = ledger.create_job(SPEC, callback=callback)
    ledger.commit_plan(claim(ledger), PLAN, INFO, {"0_0": 2})
    ledger.commit_block(claim(ledger), 2, 0, {})
    ledger.commit_finish(claim(ledger), {"regions": 2}, "2 regions")
    return job_id


def take(ledger: Ledger, worker: str = "w", give_up_s: float = 1000.0):
    for lane in ledger.due_lanes(ALL):
        delivery = ledger.claim_delivery(worker, lane, give_up_s)
        if delivery is not None:
            return delivery
    return None


def make_due(ledger: Ledger) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(update(deliveries).values(not_before=0.0))


def test_however_many_close_a_job_its_end_is_told_once(ledger: Ledger):
    ledger.push = ("fhir",)
    job_id = finish(ledger)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: ledger.close_job(job_id), range(12)))
    assert sorted(row.target for row in ledger.deliveries(job_id)) == ["fhir", "webhook"]
    silent = finish(ledger, callback=None)
    ledger.push = ()
    ledger.close_job(silent)
    assert ledger.deliveries(silent) == []


def test_a_failure_and_a_dismissal_are_told_once_each_and_again_after_a_retry(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC, callback=HOOK)
    ledger.fail(claim(ledger), SlideReasonError("no"), data_fault=True, final=True)
    assert len(ledger.deliveries(job_id)) == 1
    ledger.retry(job_id)
    ledger.dismiss(job_id)
    ledger.dismiss(job_id)
    ledger.sweep()
    assert len(ledger.deliveries(job_id)) == 2
    types = {take(ledger).message["type"] for _ in range(2)}
    assert types == {"job.failed", "job.dismissed"}
    assert take(ledger) is None


def test_a_job_dismissed_while_it_runs_is_told_of_when_its_workers_have_let_go(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC, callback=HOOK)
    work = claim(ledger)
    ledger.dismiss(job_id)
    assert ledger.deliveries(job_id) == []
    ledger.release(work)
    assert take(ledger).message["data"]["status"] == "dismissed"


def test_many_senders_share_what_is_due_and_none_takes_what_another_has(ledger: Ledger):
    for _ in range(12):
        ledger.dismiss(ledger.create_job(SPEC, callback=HOOK)[0])

    def drain(name: int) -> list[str]:
        taken = []
        while (delivery := take(ledger, f"w{name}")) is not None:
            taken.append(delivery.delivery_id)
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = Counter(delivery for found in pool.map(drain, range(4)) for delivery in found)
    while (delivery := take(ledger)) is not None:  # rows that one held while another looked
        taken[delivery.delivery_id] += 1
    assert len(taken) == 12 and set(taken.values()) == {1}


def test_who_is_late_records_nothing(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC, callback=HOOK)
    ledger.dismiss(job_id)
    late = take(ledger, "late")
    make_due(ledger)
    other = take(ledger, "other")
    assert (other.delivery_id, other.message, other.token) == (late.delivery_id, late.message, late.token + 1)
    with pytest.raises(LeaseLost):
        ledger.record(late, "failed", "410", 410)
    with pytest.raises(LeaseLost):
        ledger.renew_delivery(late)
    assert ledger.record(other, "delivered", "204", 204) == "delivered"
    with pytest.raises(LeaseLost):
        ledger.record(other, "again", "500", 500)
    with pytest.raises(LeaseLost):
        ledger.renew_delivery(other)
    (row,) = ledger.deliveries(job_id)
    assert (row.state, row.tries, row.next_try, row.gives_up) == ("delivered", 2, None, None)


def test_it_is_given_up_when_the_next_try_would_be_too_late(ledger: Ledger):
    job_id, _ = ledger.create_job(SPEC, callback=HOOK)
    ledger.dismiss(job_id)
    assert ledger.record(take(ledger, give_up_s=100.0), "again", "503", 503, pause_s=0.0) == "waiting"
    assert ledger.record(take(ledger, give_up_s=1e6), "again", "503", 503, pause_s=200.0) == "failed", "as it was set"
    (row,) = ledger.deliveries(job_id)
    assert "gave up" in row.said and row.tries == 2


def test_what_this_sender_cannot_reach_is_left_to_others(ledger: Ledger):
    job_id = finish(ledger)
    ledger.close_job(job_id)
    ledger.ask_delivery(job_id, "default", "fhir", ["fhir"])
    assert ledger.due_lanes(["dicomweb"]) == {}
    (lane,) = ledger.due_lanes(["dicomweb", "fhir"])
    assert lane == Lane("default", "fhir", "fhir")
    assert ledger.claim_delivery("w", lane, 100.0).target == "fhir"
    with pytest.raises(JobNotFound):
        ledger.ask_delivery(job_id, "south", "fhir", ["fhir"])


def test_a_lease_lasts_while_it_is_renewed_and_no_longer(ledger: Ledger):
    ledger.lease_s = 0.4
    ledger.dismiss(ledger.create_job(SPEC, callback=HOOK)[0])
    held = take(ledger)
    for _ in range(4):
        time.sleep(0.2)
        ledger.renew_delivery(held)
        assert take(ledger) is None
    time.sleep(0.5)
    assert take(ledger, "other").token == held.token + 1


def test_each_tenants_deliveries_to_each_server_are_a_lane(ledger: Ledger):
    urls = [HOOK, "https://LIS.example.org./other?secret=1", "http://10.1.2.3:8080/", "https://" + "a." * 200 + "b/"]
    for tenant in ("north", "south"):
        for url in urls:
            ledger.dismiss(ledger.create_job(SPEC, callback=url, tenant=tenant)[0])
    lanes = ledger.due_lanes(ALL)
    assert {lane.place[:20] for lane in lanes} == {"lis.example.org:443", "10.1.2.3:8080", "a." * 10}
    assert len(lanes) == 6 and {lane.tenant for lane in lanes} == {"north", "south"}
    with ledger.engine.begin() as connection:  # as a version that knew no places left them
        connection.execute(update(deliveries).values(place=""))
    taken = [take(ledger) for _ in range(8)]
    assert len({delivery.delivery_id for delivery in taken}) == 8


def test_large_deliveries_leave_room_for_webhooks(ledger: Ledger, tmp_path: Path):
    there = read_destinations(webhook_secret="whsec_" + "A" * 32, fhir_url="http://127.0.0.1:1/fhir")
    sender = Sender(ledger, LocalArtifacts(tmp_path), "w", there)
    job_id = finish(ledger)
    for _ in range(OF_A_PLACE + 1):
        ledger.ask_delivery(job_id, "default", "fhir", ["fhir"])
        with ledger.engine.begin() as connection:  # or it would be the same one
            connection.execute(update(deliveries).values(message={}))
    claimed = [sender._claim() for _ in range(OF_A_PLACE)]
    assert {lease.delivery.target for _, lease in claimed} == {"fhir"}
    assert sender._claim() is None
    ledger.close_job(job_id)
    assert sender._claim()[1].delivery.target == "webhook"
    sender._turns.end(claimed[0][0])
    assert sender._claim()[1].delivery.target == "fhir"


def test_blocks_are_committed_with_no_more_statements_than_without_an_outbox(ledger: Ledger):
    """What a callback costs, it costs at the end."""

    def statements(callback: str | None) -> list[str]:
        ledger.create_job(SPEC, callback=callback)
        ledger.commit_plan(claim(ledger), PLAN, INFO, {"0_0": 1, "0_1": 2, "0_2": 3})
        seen: list[str] = []
        listen = lambda *given: seen.append(given[2])  # noqa: E731
        works = [claim(ledger) for _ in range(3)]
        event.listen(ledger.engine, "before_cursor_execute", listen)
        for work in works:
            ledger.commit_block(work, 1, 0, {})
        event.remove(ledger.engine, "before_cursor_execute", listen)
        ledger.close_job(_end(ledger))
        return seen

    assert statements(HOOK) == statements(None)
    assert not any("deliveries" in statement or "callback" in statement for statement in statements(HOOK))


def _end(ledger: Ledger) -> str:
    work = claim(ledger)
    ledger.commit_finish(work, {}, "")
    return work.job_id
