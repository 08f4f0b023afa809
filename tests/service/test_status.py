"""How long a client is told to wait: useful for one, bearable with a thousand, the same for a job every time."""

from dataclasses import replace
from pathlib import Path

import pytest

from service.status import LONGEST_S, POLLS_PER_S, Pollers, retry_after_s, shown_eta_s
from tests.service.live import SPEC
from worker.ledger import JobRow, Ledger


@pytest.fixture
def waiting(tmp_path: Path) -> JobRow:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    job = ledger.job(ledger.create_job(SPEC)[0])
    ledger.close()
    return job


def test_one_user_is_told_a_second_or_two(waiting: JobRow) -> None:
    assert retry_after_s(waiting) == 2
    running = replace(waiting, status="running", queue_position=None)
    assert retry_after_s(running) == 2
    assert retry_after_s(replace(running, eta_s=3.0)) == 1
    assert retry_after_s(replace(running, eta_s=100.0)) in range(10, 15)


def test_who_is_further_back_polls_less_often_within_bounds(waiting: JobRow) -> None:
    waits = [retry_after_s(replace(waiting, queue_position=ahead)) for ahead in (0, 50, 200, 100_000)]
    assert waits == sorted(waits)
    assert len(set(waits)) == 4
    assert LONGEST_S <= waits[-1] <= LONGEST_S * 1.5


def test_jobs_are_told_different_times_and_each_always_the_same(waiting: JobRow) -> None:
    jobs = [replace(waiting, job_id=f"{n:032x}") for n in range(200)]
    waits = [retry_after_s(job, least_s=8.0) for job in jobs]
    assert set(waits) == {8, 9, 10, 11}
    assert waits == [retry_after_s(job, least_s=8.0) for job in jobs]
    assert min(waits.count(wait) for wait in set(waits)) > 30


@pytest.mark.parametrize("clients", [1, 100, 1000, 5000])
def test_however_many_obey_the_gateway_is_asked_as_often_as_it_can_bear(waiting: JobRow, clients: int) -> None:
    now = 0.0
    pollers = Pollers(lambda: now)
    jobs = [replace(waiting, job_id=f"{n:032x}") for n in range(clients)]
    due = [n / clients * 30 for n in range(clients)]
    asked: list[float] = []
    while now < 180:
        for n in range(clients):
            if due[n] <= now:
                due[n] = now + pollers.wait_s(jobs[n])
                asked.append(now)
        now += 0.25
    rate = sum(120 <= at for at in asked) / 60
    assert rate <= POLLS_PER_S * 1.1
    assert rate >= min(clients / 3, POLLS_PER_S * 0.6), "but no less often than need be"
    assert pollers.count == pytest.approx(clients, rel=0.35, abs=2)


def test_a_slow_gateway_is_asked_less_often_and_a_quick_one_again_as_before(waiting: JobRow) -> None:
    now = 0.0
    pollers = Pollers(lambda: now)
    waits = []
    for took_s in [0.01] * 30 + [1.0] * 60 + [0.01] * 90:
        now += 1.0
        waits.append(pollers.wait_s(waiting, took_s))
    assert waits[29] == 2
    assert 15 <= waits[89] <= LONGEST_S
    assert waits[-1] == 2


def test_estimates_are_shown_in_steps() -> None:
    assert shown_eta_s(None) is None
    steps = {0.0: 0, 3.2: 4, 19.5: 20, 41.0: 45, 299.0: 300, 3000.0: 3000, 7000.0: 7200}
    assert {eta_s: shown_eta_s(eta_s) for eta_s in steps} == steps
