"""A worker's sender and real servers: leases that last while it sends and no longer, and servers that hang."""

import base64
import threading
import time
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from tests.databases import database_urls
from tests.receivers import Answer, serving
from tests.worker.test_ledger import SPEC
from tests.worker.worker_process import wait_until
from worker.artifacts import LocalArtifacts
from worker.destinations import read_destinations
from worker.errors import LeaseLost
from worker.ledger import Ledger
from worker.ledger_schema import deliveries
from worker.sender import Sender

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
THERE = read_destinations(callback_inside_hosts="127.0.0.1", webhook_secret=SECRET)
LEASE_S = 1.0


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with database_urls(request.param, tmp_path) as url:
        opened = Ledger(url, lease_s=LEASE_S)
        yield opened
        opened.close()


class Hanging:
    """A receiver that takes a message and says nothing until it is let go."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.seen: list[str] = []
        self.at_once = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, _path: str, headers: Message, _body: bytes) -> Answer:
        with self._lock:
            self.seen.append(headers["webhook-id"])
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.over.wait(60)
        with self._lock:
            self.at_once -= 1
        return 204, {}, b""


def quick(_path: str, _headers: Message, _body: bytes) -> Answer:
    return 204, {}, b""


def sender(ledger: Ledger, tmp_path: Path, name: str = "first") -> Sender:
    return Sender(ledger, LocalArtifacts(tmp_path), name, THERE, period_s=0.05)


def end_job(ledger: Ledger, url: str, tenant: str = "default") -> str:
    """A job whose end is to be told."""
    job_id, _ = ledger.create_job(SPEC, callback=url, tenant=tenant)
    ledger.dismiss(job_id)
    return job_id


def state(ledger: Ledger, job_id: str) -> str:
    return ledger.deliveries(job_id)[0].state


def test_while_the_first_sends_nobody_else_does_however_long_it_takes(ledger: Ledger, tmp_path: Path):
    receiver = Hanging()
    with serving(receiver) as url:
        job_id = end_job(ledger, url)
        first, second = sender(ledger, tmp_path), sender(ledger, tmp_path, "second")
        first.start()
        try:
            wait_until(lambda: receiver.seen)
            end = time.monotonic() + 3 * LEASE_S
            while time.monotonic() < end:
                assert not second.send_one()
                time.sleep(0.05)
            receiver.over.set()
            wait_until(lambda: state(ledger, job_id) == "delivered")
        finally:
            receiver.over.set()
            first.stop()
    assert len(receiver.seen) == 1 and ledger.deliveries(job_id)[0].tries == 1


def test_what_a_lost_sender_had_is_sent_by_another_as_soon_as_its_lease_is_over(ledger: Ledger, tmp_path: Path):
    with serving(quick) as url:
        job_id = end_job(ledger, url)
        _, lease = sender(ledger, tmp_path)._claim()  # and its process is gone
        lost, other = time.monotonic(), sender(ledger, tmp_path, "other")
        wait_until(other.send_one)
        assert 0.9 * LEASE_S < time.monotonic() - lost < 3 * LEASE_S
    assert (state(ledger, job_id), ledger.deliveries(job_id)[0].tries) == ("delivered", 2)
    assert lease.over()


def test_who_cannot_renew_stops_sending_before_another_may(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    receiver, cut_off = Hanging(), sender(ledger, tmp_path)

    def away(_delivery: object) -> None:
        raise OperationalError("renew", {}, Exception("the connection is lost"))

    with serving(receiver) as url:
        job_id = end_job(ledger, url)
        monkeypatch.setattr(ledger, "renew_delivery", away)
        begun = time.monotonic()
        lane, lease = cut_off._claim()
        with lease:
            outcome = cut_off._try(lease.delivery, lease.over)
        took_s = time.monotonic() - begun
        receiver.over.set()
        assert 0.7 * LEASE_S < took_s < LEASE_S
        assert outcome.state == "again" and "stopped" in outcome.said
        assert state(ledger, job_id) == "sending", "until its lease is over"
        wait_until(sender(ledger, tmp_path, "other").send_one)
    assert state(ledger, job_id) == "delivered" and receiver.most <= 2


def test_a_call_is_cut_when_another_has_the_delivery(ledger: Ledger, tmp_path: Path):
    ledger.lease_s = 8 * LEASE_S  # renewed after a quarter; without that it would be given up after 0.8 of it
    receiver, late = Hanging(), sender(ledger, tmp_path)
    with serving(receiver) as url:
        job_id = end_job(ledger, url)
        _, lease = late._claim()
        thread = threading.Thread(target=late._send, args=(lease,))
        thread.start()
        try:
            wait_until(lambda: receiver.seen)
            with ledger.engine.begin() as connection:  # as if this process had slept
                connection.execute(update(deliveries).values(not_before=0.0))
            _, other = sender(ledger, tmp_path, "other")._claim()
            thread.join(5 * LEASE_S)
            assert not thread.is_alive()
        finally:
            receiver.over.set()
            thread.join()
        assert ledger.record(other.delivery, "delivered", "204", 204) == "delivered"
        with pytest.raises(LeaseLost):
            ledger.renew_delivery(lease.delivery)
    assert ledger.deliveries(job_id)[0].tries == 2


def test_a_lease_is_not_renewed_for_ever(ledger: Ledger, tmp_path: Path):
    with serving(quick) as url:
        end_job(ledger, url)
        hangs = sender(ledger, tmp_path)
        hangs._times_s = {"webhook": 1.5 * LEASE_S}
        _, lease = hangs._claim()
        with lease:  # and in it something hangs that no call's limit ends
            other = sender(ledger, tmp_path, "other")
            wait_until(other.send_one, 5 * LEASE_S)
            assert lease.over()


def test_an_outcome_waits_for_a_ledger_that_is_away(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    receiver, record, tries = Hanging(), ledger.record, []
    receiver.over.set()

    def away_at_first(*given: object, **more: object) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise OperationalError("record", {}, Exception("the server restarts"))
        return record(*given, **more)

    monkeypatch.setattr(ledger, "record", away_at_first)
    with serving(receiver) as url:
        job_id = end_job(ledger, url)
        assert sender(ledger, tmp_path).send_one()
    assert (state(ledger, job_id), len(receiver.seen), len(tries)) == ("delivered", 1, 3)


def test_a_server_that_hangs_is_called_twice_at_once_and_holds_up_nobody(ledger: Ledger, tmp_path: Path):
    receiver = Hanging()
    with serving(receiver) as dead, serving(quick) as fine:
        held = [end_job(ledger, dead, "north") for _ in range(12)]
        working = sender(ledger, tmp_path)
        working.start()
        try:
            wait_until(lambda: receiver.at_once == 2)
            later = [end_job(ledger, fine, tenant) for tenant in ("north", "south") for _ in range(4)]
            wait_until(lambda: {state(ledger, job_id) for job_id in later} == {"delivered"})
            assert receiver.most == 2 and {state(ledger, job_id) for job_id in held} == {"sending", "waiting"}
            receiver.over.set()
            wait_until(lambda: {state(ledger, job_id) for job_id in held} == {"delivered"})
        finally:
            receiver.over.set()
            working.stop()
    assert sorted(receiver.seen) == sorted(ledger.deliveries(job_id)[0].delivery_id for job_id in held)
    assert receiver.most == 2
