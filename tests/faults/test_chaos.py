"""Everything is broken, one thing every few seconds, and nothing of it can be seen in what the jobs leave.

The short form runs in CI. `make faults` runs the long one: 200 jobs, 4 workers, an event every 5 s for 5 minutes.
"""

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.chaos import Chaos
from tests.faults.client import Client
from tests.faults.cluster import cluster
from tests.faults.jobs import DAMAGED, SIZES, SLUGGISH, Asked, Undisturbed, require_same, write_slides
from tests.faults.servers import no_orphans, until

JOBS = int(os.environ.get("SLIDEREASON_FAULT_JOBS", "16"))
SECONDS = float(os.environ.get("SLIDEREASON_FAULT_SECONDS", "24"))
PERIOD_S = float(os.environ.get("SLIDEREASON_FAULT_PERIOD_S", "3.5"))
SEED = int(os.environ.get("SLIDEREASON_FAULT_SEED", "7"))
WORKERS = int(os.environ.get("SLIDEREASON_FAULT_WORKERS", "3"))
STORAGE = os.environ.get("SLIDEREASON_FAULT_STORAGE", "local,s3").split(",")

SHARES = {"one": 0.5, "two": 0.2, "four": 0.2, "sixteen": 0.08, "forty": 0.02}
"""Of the jobs."""

CLOSED_WITHIN_S = 600.0


def mixture(rng: random.Random, jobs: int) -> list[str]:
    """Kinds of slides for so many jobs; of those that round to none, the long form has one."""
    kinds = [kind for kind, share in SHARES.items() for _ in range(round(share * jobs))]
    kinds = (kinds + ["one"] * jobs)[:jobs]
    rng.shuffle(kinds)
    return kinds


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("storage", STORAGE)
def test_chaos_leaves_no_trace(storage: str, tmp_path: Path):
    rng = random.Random(SEED)
    slides = write_slides(tmp_path / "slides", [*SIZES, SLUGGISH, DAMAGED], SEED)
    kinds, started = mixture(rng, JOBS), time.monotonic()
    with no_orphans(), cluster(tmp_path / "cluster", slides, workers=WORKERS, storage=storage) as made:
        client = Client(made.urls)
        asked = Asked(client, random.Random(SEED + 1))
        odd = iter(range(10_000))
        chaos = Chaos(
            made, rng, PERIOD_S,
            {"slow slide": lambda: asked.one(SLUGGISH, f"slow-{next(odd)}"),
             "unreadable slide": lambda: asked.one(DAMAGED, f"damaged-{next(odd)}")},
        )  # fmt: skip
        chaos.start()
        asked.all(kinds, within_s=0.8 * SECONDS)
        time.sleep(max(0.0, started + SECONDS - time.monotonic()))
        until(lambda: chaos.trouble or all(chaos.done[name] for name in chaos.kinds), "each kind of event happened")
        chaos.stop()
        rows = made.closed(asked.job_ids, CLOSED_WITHIN_S)
        took_s = time.monotonic() - started

        unreadable = {job_id for kind, job_id in asked.jobs.values() if kind == DAMAGED}
        wrong = [(row.job_id, row.status, row.message) for row in rows
                 if row.status != ("failed" if row.job_id in unreadable else "successful")]  # fmt: skip
        assert wrong == []
        good = [row for row in rows if row.job_id not in unreadable]
        assert [(row.job_id, row.tiles_failed) for row in good if row.coverage != 1.0 or row.tiles_failed] == []
        assert made.counted("SELECT count(*) FROM jobs") == [(len(asked.jobs),)], "one job for each key"
        units = made.require_one_commit_each([row.job_id for row in good])
        made.require_nothing_left()
        files = require_same(made, client, [row.job_id for row in good], Undisturbed(tmp_path), tmp_path / "got")
        lost = dict(made.counted("SELECT kind, sum(lost) FROM units GROUP BY kind HAVING sum(lost) > 0"))
        client.close()
    print(
        f"\n{storage}: {len(rows)} jobs ({len(unreadable)} unreadable), {units} units, {took_s:.0f} s to the last; "
        f"events {dict(chaos.done)}; owners lost {lost}; clients met {dict(client.met)}; {files} files compared; "
        f"kinds {dict(Counter(kinds))}; seed {SEED}, {WORKERS} workers"
    )
