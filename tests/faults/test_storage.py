"""Storage that is down, and a disk that is full: jobs wait and say for what, go on, and the ledger is whole."""

import errno
import os
import subprocess
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.faults.client import Client
from tests.faults.cluster import cluster
from tests.faults.jobs import Undisturbed, request, require_same, write_slides
from tests.faults.servers import no_orphans, until

SLOW = "tests.segmenters:slow_segmenter"
AWAY_S = float(os.environ.get("SLIDEREASON_FAULT_STORAGE_AWAY_S", "8"))
DISK_KB = 40 * 1024
OWN_DISK = 'mount -t tmpfs -o size="$1"k own "$0" && shift && exec "$@"'
"""A disk that only the worker sees."""


def test_jobs_wait_for_storage_that_is_down(tmp_path: Path):
    slides = write_slides(tmp_path / "slides", ["one", "four"])
    with no_orphans(), cluster(tmp_path / "cluster", slides, SLOW, storage="s3", TEST_DELAY_S=0.2) as made:
        client = Client(made.urls)
        earlier = client.submit(request("one"), "earlier")["jobID"]
        assert client.closed(earlier, 60)["status"] == "successful"
        job_ids = [client.submit(request("four"), f"key-{i}")["jobID"] for i in range(2)]
        until(lambda: any(kind == "segment" for kind, _, _ in made.owners()), "blocks are worked on")
        made.storage.fail(True)
        away = time.monotonic()
        until(lambda: client.status(job_ids[0])["message"].startswith("waits: "), "the job says that it waits")
        answer = httpx.get(f"{made.urls[0]}/v1/jobs/{earlier}/overlay.zip", timeout=60)
        assert (answer.status_code, answer.headers["retry-after"].isdigit()) == (503, True), answer.text
        job_ids.append(client.submit(request("one"), "meanwhile")["jobID"])  # the ledger takes jobs all the same
        time.sleep(max(0.0, away + AWAY_S - time.monotonic()))
        made.storage.fail(False)
        back = time.monotonic()
        rows = made.closed(job_ids, 180)
        print(f"\nstorage away for {back - away:.1f} s; all jobs done {time.monotonic() - back:.1f} s later")
        assert [(row.status, row.coverage) for row in rows] == [("successful", 1.0)] * 3
        assert made.counted("SELECT sum(faults) FROM units") == [(0,)], "no fault of the data was counted"
        made.require_one_commit_each([earlier, *job_ids])
        made.require_nothing_left()
        require_same(made, client, job_ids, Undisturbed(tmp_path), tmp_path / "got")
        client.close()


def may_mount(folder: Path) -> bool:
    """Whether a filesystem of one's own can be mounted in a namespace of one's own."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "probe", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(64 * 1024)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC


def test_jobs_wait_for_a_disk_that_is_full(tmp_path: Path):
    """At planning, and again amid the blocks."""
    if not may_mount(tmp_path):
        pytest.skip("no disk can be filled: mounting a tmpfs in a user namespace (unshare -rm) is not permitted here")
    slides, disk = write_slides(tmp_path / "slides", ["four"]), tmp_path / "disk"
    disk.mkdir()
    with no_orphans(), cluster(tmp_path / "made", slides, SLOW, workers=0, storage="s3", TEST_DELAY_S=2.0) as made:
        wrap = ("unshare", "-rm", "sh", "-c", OWN_DISK, str(disk), str(DISK_KB))
        worker = made.add_worker(wrap, SCRATCH=disk / "scratch")
        made.ready()
        ballast = Path(f"/proc/{worker.pid}/root{disk}/ballast")
        client = Client(made.urls)

        fill(ballast)
        job_id = client.submit(request("four"), "key")["jobID"]
        for stage in ("plan", "segment"):
            if stage == "segment":
                until(lambda: any(kind == "segment" for kind, _, _ in made.owners()), "blocks are worked on")
                fill(ballast)
            waits = f"SELECT 1 FROM units WHERE kind = '{stage}' AND error IS NOT NULL"
            until(partial(made.counted, waits), f"a {stage} unit meets the full disk", 180)
            until(lambda: client.status(job_id)["message"] == "waits: no space left on device", "it says so", 180)
            ballast.unlink()

        (row,) = made.closed([job_id], 120)
        assert (row.status, row.coverage, row.message) == ("successful", 1.0, f"{row.result['regions']} regions")
        assert worker.starts == 1
        assert made.counted("SELECT sum(faults) FROM units") == [(0,)], "no fault of the data was counted"
        made.require_one_commit_each([job_id])
        made.require_nothing_left()
        require_same(made, client, [job_id], Undisturbed(tmp_path), tmp_path / "got")
        client.close()
