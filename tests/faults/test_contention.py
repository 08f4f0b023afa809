"""Many block threads at one job: nobody waits for a lock of somebody who waits for his."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event

from benchmarks.ledger_cost import MODEL, planned_job
from tests.faults.servers import Keeper, OwnPostgres, short_folder
from worker.ledger import Ledger

BLOCKS, THREADS = 240, 8


@contextmanager
def own_ledger() -> Iterator[Ledger]:
    """A ledger in a PostgreSQL of its own."""
    keeper = Keeper()
    with short_folder() as own:
        try:
            (own / "pg").mkdir(mode=0o755)
            ledger = Ledger(OwnPostgres(keeper, own / "pg", own / "postgres.log").url)
            yield ledger
            ledger.close()
        finally:
            keeper.stop()


def test_claims_and_commits_of_one_job_never_deadlock():
    """A claim once locked a unit before its job: two in some thousand claims and commits met each other head-on."""
    troubles: list[Exception] = []
    with own_ledger() as ledger:
        job_id = planned_job(ledger, BLOCKS)
        locked: list[str] = []

        @event.listens_for(ledger.engine, "before_cursor_execute")
        def _note(_connection, _cursor, statement: str, *_rest) -> None:
            if "FOR UPDATE" in statement:
                locked.append(re.search(r"FROM (\w+)", statement).group(1))

        first = ledger.claim("test", (MODEL,))
        assert locked == ["jobs", "units"]
        ledger.release(first)

        def work() -> None:
            try:
                while (unit := ledger.claim("test", (MODEL,))) and unit.kind == "segment":
                    ledger.renew(unit, 1)
                    ledger.begin_tile(unit, "0_0")
                    ledger.commit_block(unit, 4, 0, {"tiles": 4, "failed": 0})
            except Exception as error:
                troubles.append(error)

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        row = ledger.job(job_id)
    assert troubles == []
    assert row.tiles_done == 4 * BLOCKS
