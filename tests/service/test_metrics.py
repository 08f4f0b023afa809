"""Metrics: what the ledger says, asked for seldom, and requests by the template of their route."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError

from service.metrics import ASK_EVERY_S, LedgerCollector
from tests.service.conftest import Served
from tests.service.live import CARD, SPEC, commit_next, finish_next, plan_next
from worker.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield opened
    opened.close()


class Scraped:
    """A registry whose clock the test turns."""

    def __init__(self, ledger: Ledger):
        self.now = 0.0
        self.registry = CollectorRegistry()
        self.registry.register(LedgerCollector(ledger, "hue", 60.0, clock=lambda: self.now))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"slidereason_{name}", labels)

    def later(self) -> "Scraped":
        self.now += ASK_EVERY_S
        return self


def test_what_waits_runs_ended_and_failed_is_told(ledger: Ledger) -> None:
    scraped = Scraped(ledger)
    assert scraped.value("queue_units", model="hue") == 0, "an empty queue is 0, so that who scales by it knows"
    ledger.heartbeat("w1", CARD, ("hue",))
    ledger.heartbeat("w2", CARD, ("hue",))
    ledger.create_job(SPEC)
    plan_next(ledger)
    commit_next(ledger)
    ledger.claim("w1", ["hue"], CARD)
    ledger.create_job(SPEC)
    ledger.dismiss(ledger.create_job(SPEC)[0])
    scraped.later()
    assert scraped.value("queue_units", model="hue") == 1
    assert scraped.value("queue_oldest_wait_seconds", model="hue") >= 0
    assert scraped.value("units_leased") == 1
    assert scraped.value("jobs", status="running") == 1
    assert scraped.value("jobs", status="dismissed") == 1
    assert scraped.value("jobs", status="failed") == 0
    assert scraped.value("workers", model="hue", revision="abc") == 2
    assert scraped.value("ledger_up") == 1


def test_failures_are_told_by_code_and_a_queue_that_ran_empty_is_zero(ledger: Ledger) -> None:
    from worker.errors import SlideUnreadable

    scraped = Scraped(ledger)
    ledger.create_job(SPEC)
    other = ledger.create_job(type(SPEC)("/slides/b.tif", "b.tif", ("where?",), model="other"))[0]
    assert scraped.value("queue_units", model="other") == 1
    ledger.fail(ledger.claim("w1", ["hue"], CARD), SlideUnreadable("broken"), data_fault=True, final=True)
    ledger.dismiss(other)
    scraped.later()
    assert scraped.value("jobs_failed", code="slide-unreadable") == 1
    assert scraped.value("queue_units", model="other") == 0
    assert scraped.value("queue_oldest_wait_seconds", model="other") == 0


def test_the_ledger_is_asked_at_most_every_five_seconds(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(ledger, "counts", lambda: asked.append(1) or {})
    scraped = Scraped(ledger)
    for _ in range(10):
        list(scraped.registry.collect())
        scraped.now += ASK_EVERY_S / 10
    assert len(asked) == 1
    list(scraped.later().registry.collect())
    assert len(asked) == 2


def test_a_ledger_that_is_away_is_said_and_comes_back(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    scraped = Scraped(ledger)

    def refuse() -> None:
        raise OperationalError("SELECT", {}, ConnectionError("refused"))

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "counts", refuse)
        assert scraped.value("ledger_up") == 0
        assert scraped.value("jobs", status="running") is None
    assert scraped.later().value("ledger_up") == 1


def samples(served: Served) -> dict[tuple[str, frozenset], float]:
    answer = served.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.values())] = sample.value
    return found


def test_requests_are_counted_by_route_template_and_status(served: Served) -> None:
    job_id = served.post()["jobID"]
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{'0' * 32}", f"/v1/jobs/{'1' * 32}", "/nowhere", "/else/where"):
        served.client.get(path)
    served.client.request("BREW", f"/v1/jobs/{job_id}")
    served.client.get("/healthz", headers={"Host": "evil.example"})
    found = samples(served)
    total = "slidereason_http_requests_total"
    assert found[total, frozenset({"POST", "/v1/jobs", "202"})] == 1
    assert found[total, frozenset({"GET", "/v1/jobs/{job_id}", "200"})] == 1
    assert found[total, frozenset({"GET", "/v1/jobs/{job_id}", "404"})] == 2
    assert found[total, frozenset({"GET", "none", "404"})] == 2
    assert found[total, frozenset({"GET", "none", "421"})] == 1
    assert found["slidereason_http_seconds_count", frozenset({"/v1/jobs/{job_id}"})] >= 3
    routes = {label for name, labels in found if name == total for label in labels}
    assert not any(job_id in label or "where" in label for label in routes), "clients cannot make up labels"
    assert "BREW" not in routes
    assert found["slidereason_event_streams", frozenset()] == 0
    assert found["process_resident_memory_bytes", frozenset()] > 1e6


def test_a_failure_nobody_foresaw_is_counted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_args: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(served.rooms.ledger, "list_jobs", break_down)
    assert served.client.get("/v1/jobs").status_code == 500
    assert samples(served)["slidereason_http_requests_total", frozenset({"GET", "/v1/jobs", "500"})] == 1


def test_every_job_through_is_successful(ledger: Ledger) -> None:
    ledger.create_job(SPEC)
    for step in (plan_next, commit_next, commit_next, finish_next):
        step(ledger)
    assert Scraped(ledger).value("jobs", status="successful") == 1
