"""Row locks of workers that do not answer any more."""

import time
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from tests.databases import database_urls
from tests.worker.test_ledger import SPEC, claim
from worker import ledger_schema
from worker.ledger import Ledger
from worker.ledger_rules import clock, lock_job


def test_who_falls_silent_amid_a_transaction_holds_up_its_job_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ledger_schema, "SILENT_S", 0.5)
    with database_urls("postgresql", tmp_path) as url:
        ledger = Ledger(url)
        job_id, _ = ledger.create_job(SPEC)
        stopped = ledger.engine.connect()
        lock_job(stopped, job_id)
        began = time.monotonic()
        assert claim(ledger).job_id == job_id, "its only job, so a claim waits for the lock"
        assert 0.3 < time.monotonic() - began < 20
        with pytest.raises(DBAPIError, match="idle-in-transaction timeout|closed the connection") as found:
            clock(stopped)
        assert found.value.connection_invalidated, "as when PostgreSQL restarts: away, not refused"
        stopped.close()
        assert ledger.job(job_id).status == "running", "and a fresh connection goes on"
        ledger.close()


def test_the_patience_with_silence_is_set_on_every_connection(tmp_path: Path):
    with database_urls("postgresql", tmp_path) as url:
        ledger = Ledger(url)
        for _ in range(2):  # the second time after the pool has taken back what was not committed
            with ledger.engine.connect() as connection:
                assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "10s"
        ledger.close()
