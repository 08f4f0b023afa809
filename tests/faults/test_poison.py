"""A tile that kills whoever looks at it is left out, and named; nobody else's job can tell."""

from pathlib import Path

from tests.faults.client import Client
from tests.faults.cluster import cluster
from tests.faults.jobs import SIZES, Undisturbed, request, require_same, write_slides
from tests.faults.servers import no_orphans
from tests.faults.slides import GREEN, write_islands
from tests.segmenters import CrashingSegmenter

MODEL = "tests.segmenters:crashing_segmenter"
OTHERS = ["four", "one", "one", "two"]


def test_a_tile_that_kills_its_worker_is_left_out_and_named(tmp_path: Path):
    slides = write_slides(tmp_path / "slides", ["one", "two", "four"])
    write_islands(slides / "poisoned.tif", *SIZES["four"], seed=9, green=(1, 0))
    with no_orphans(), cluster(tmp_path / "cluster", slides, MODEL, workers=2, lease_s=3.0, sweep_s=0.5) as made:
        client = Client(made.urls)
        poisoned = client.submit(request("poisoned", overlap=0.0, min_coverage=0.1), "poisoned")["jobID"]
        others = [client.submit(request(kind), f"other-{i}")["jobID"] for i, kind in enumerate(OTHERS)]
        row, *rows = made.closed([poisoned, *others], 240)
        assert [(other.status, other.coverage, other.tiles_failed) for other in rows] == [("successful", 1.0, 0)] * 4
        assert (row.status, row.tiles_failed) == ("successful", 1)
        assert row.coverage == 1 - 1 / row.tiles_total
        report = client.ask("GET", f"/v1/jobs/{poisoned}/report", headers={"Accept": "application/json"}).json()
        (named,) = report["coverage"]["failed_tiles"]
        assert "quarantined" in named["reason"]
        left, top, right, bottom = named["bbox_px0"]
        assert left <= 512 + GREEN.start and 512 + GREEN.stop <= right
        assert top <= 1024 + 512 + GREEN.start and 1024 + 512 + GREEN.stop <= bottom
        assert sum(worker.starts - 1 for worker in made.workers) >= 3, "three workers were lost over it"
        made.require_one_commit_each([poisoned, *others])
        made.require_nothing_left()
        require_same(made, client, others, Undisturbed(tmp_path, CrashingSegmenter()), tmp_path / "got")
        client.close()
