"""Tickets that come twice or not at all, and owners that come back from the dead."""

import signal
import time
from pathlib import Path

from tests.faults.client import Client
from tests.faults.cluster import Cluster, cluster
from tests.faults.jobs import Asked, Undisturbed, request, require_same, write_slides
from tests.faults.servers import no_orphans, until
from worker import queue

SLOW = "tests.segmenters:slow_segmenter"
MANY = 50


def claims(made: Cluster) -> int:
    """How often a unit was given to a worker."""
    return made.counted("SELECT count(*) FROM audit WHERE after = 'leased'")[0][0]


def test_every_ticket_delivered_twice_gives_one_commit_a_unit(tmp_path: Path):
    slides = write_slides(tmp_path / "slides", ["one", "four"])
    with no_orphans(), cluster(tmp_path / "cluster", slides, workers=2, twice=True) as made:
        client = Client(made.urls)
        job_ids = [client.submit(request(kind), f"key-{i}")["jobID"] for i, kind in enumerate(["one", "four"] * 2)]
        rows = made.closed(job_ids, 120)
        assert [(row.status, row.coverage) for row in rows] == [("successful", 1.0)] * 4
        units = made.require_one_commit_each(job_ids)
        assert units == 2 * (1 + 1 + 1) + 2 * (1 + 4 + 1)
        assert claims(made) == units, "the second ticket finds nothing to claim"
        made.require_nothing_left()
        require_same(made, client, job_ids, Undisturbed(tmp_path), tmp_path / "got")
        client.close()


def test_an_owner_that_wakes_after_its_lease_changes_nothing(tmp_path: Path):
    slides = write_slides(tmp_path / "slides", ["four"])
    with no_orphans(), cluster(tmp_path / "cluster", slides, SLOW, workers=1, lease_s=2.0, TEST_DELAY_S=0.4) as made:
        client = Client(made.urls)
        job_id = client.submit(request("four"), "key")["jobID"]
        until(lambda: any(kind == "segment" for kind, _, _ in made.owners()), "a block is worked on")
        sleeper = made.workers[0]
        sleeper.kill(signal.SIGSTOP)
        leased = made.counted("SELECT key, owner FROM units WHERE kind = 'segment' AND state = 'leased'")
        held = [key for key, _ in leased]
        assert held and {int(owner.split("-")[-2]) for _, owner in leased} == {sleeper.pid}
        made.add_worker()
        until(lambda: {pid for _, pid, _ in made.owners()} - {sleeper.pid}, "another worker takes over")
        until(lambda: sleeper.pid not in {pid for _, pid, _ in made.owners()}, "its leases have run out")
        sleeper.kill(signal.SIGCONT)
        (row,) = made.closed([job_id], 120)
        assert (row.status, row.coverage, row.tiles_failed) == ("successful", 1.0, 0)
        made.require_one_commit_each([job_id])
        lost = {key: times for key, times in made.counted("SELECT key, lost FROM units WHERE kind = 'segment'")}
        assert all(lost[key] >= 1 for key in held), "each block that it held went to another"
        until(lambda: "no longer owned" in (made.folder / "logs" / "worker-0.log").read_text(), "the sleeper was told")
        assert sleeper.starts == 1, "and it lives on"
        made.require_nothing_left()
        require_same(made, client, [job_id], Undisturbed(tmp_path), tmp_path / "got")
        client.close()


def test_a_flushed_broker_loses_no_job(tmp_path: Path):
    slides = write_slides(tmp_path / "slides", ["one"])
    with no_orphans(), cluster(tmp_path / "cluster", slides, workers=0) as made:
        client = Client(made.urls)
        asked = Asked(client)
        asked.all(["one"] * MANY, within_s=0.0)
        with made.redis.client() as redis:
            assert redis.llen(queue.queue_name(made.model)) == MANY
            for _ in range(2):
                made.add_worker()
            until(lambda: made.ledger.counts()["successful"] >= 3, "the workers have begun")
            redis.flushall()
        flushed = time.monotonic()
        rows = made.closed(asked.job_ids, 300)
        print(f"\nall of {MANY} jobs {time.monotonic() - flushed:.1f} s after the flush")
        assert [row.status for row in rows] == ["successful"] * MANY
        made.require_one_commit_each(asked.job_ids)
        made.require_nothing_left()
        client.close()
