"""The walk from a slide to a report: what a job leaves, what stops it, and who is blamed."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import zarr

from model.segmenter import TileAnswer, TileBatch
from tests.jobs import digest, hue_spec, pixels_digest
from tests.made_slides import tissue_picture, write_pyramid
from tests.segmenters import HueSegmenter, hue_segmenter
from worker import inline
from worker.artifacts import REPORT_JSON, LocalArtifacts
from worker.engine import Engine
from worker.errors import BadRequest, CoverageTooLow, MppUnknown, SlideNotFound, SlideReasonError, SlideUnreadable
from worker.inline import RESULTS, run_job_inline
from worker.ledger import JobRow, Ledger
from worker.tasks import IsolationGate, Runner
from worker.types import JobSpec


@pytest.fixture(scope="module")
def stained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 2400 x 1800 px at 0.5 µm/px with dark discs on tissue: overlay 1200 x 900, six blocks of 512."""
    picture = tissue_picture(2400, 1800)
    rng = np.random.default_rng(5)
    for _ in range(30):
        x, y, radius = int(rng.integers(600, 1800)), int(rng.integers(500, 1300)), int(rng.integers(20, 90))
        cv2.circle(picture, (x, y), radius, (70, 40, 110), -1)
    return write_pyramid(tmp_path_factory.mktemp("stained") / "stained.tif", picture)


@pytest.fixture(scope="module")
def finished(stained: Path, tmp_path_factory: pytest.TempPathFactory) -> inline.InlineResult:
    return run_job_inline(hue_spec(stained), tmp_path_factory.mktemp("out"), hue_segmenter())


def run(spec: JobSpec, root: Path, segmenter: HueSegmenter) -> tuple[JobRow, Path]:
    """A job run by hand, so that its ledger and folder can be looked at."""
    ledger = Ledger(f"sqlite:///{root / 'ledger.sqlite'}")
    artifacts = LocalArtifacts(root)
    job_id, _ = ledger.create_job(spec)
    with Engine(segmenter) as engine:
        runner = Runner(ledger, artifacts, engine, "test", (spec.model,))
        while ledger.job(job_id).open:
            runner.run_one()
    row = ledger.job(job_id)
    ledger.close()
    return row, artifacts.job_folder(job_id)


def test_a_job_leaves_its_results_and_nothing_else(finished: inline.InlineResult):
    assert sorted(path.name for path in finished.folder.iterdir()) == sorted(RESULTS)
    assert finished.job.status == "successful"
    assert finished.job.coverage == 1.0
    assert finished.job.result["regions"] > 3
    assert finished.answer == json.loads((finished.folder / "report.json").read_text())["answer"]


def test_the_mask_is_where_the_discs_are(finished: inline.InlineResult, stained: Path):
    from worker.slides import open_slide

    labels = zarr.open_array(str(finished.folder / "overlay.zarr" / "labels" / "0" / "0"), mode="r")[...]
    with open_slide(stained) as slide:
        picture = slide.thumbnail(1200)
    assert labels.shape == picture.shape[:2] == (900, 1200)
    dark = picture[..., 0] < 120
    found = labels > 0
    assert 2 * (dark & found).sum() / (dark.sum() + found.sum()) > 0.9


def test_features_and_labels_are_the_same_regions(finished: inline.InlineResult):
    labels = zarr.open_array(str(finished.folder / "overlay.zarr" / "labels" / "0" / "0"), mode="r")[...]
    features = json.loads((finished.folder / "regions.geojson").read_text())["features"]
    assert len(features) == labels.max() == finished.job.result["regions"]
    attributes = json.loads((finished.folder / "overlay.zarr" / "labels" / "0" / "zarr.json").read_text())
    named = {entry["region_id"] for entry in attributes["attributes"]["ome"]["image-label"]["properties"]}
    assert named == {feature["id"] for feature in features}


def test_the_same_job_gives_the_same_bytes(finished: inline.InlineResult, stained: Path, tmp_path: Path):
    again = run_job_inline(hue_spec(stained), tmp_path / "again", hue_segmenter())
    assert digest(again.folder, RESULTS) == digest(finished.folder, RESULTS)


def test_blocks_are_not_seen_in_the_pixels(finished: inline.InlineResult, stained: Path, tmp_path: Path):
    """One big block gives what six small ones give, whatever the shards."""
    whole = run_job_inline(hue_spec(stained, block_px=2048), tmp_path / "whole", hue_segmenter())
    for name in ("labels/0/0", "probability/0/0"):
        arrays = [zarr.open_array(str(r.folder / "overlay.zarr" / name), mode="r")[...] for r in (finished, whole)]
        np.testing.assert_array_equal(*arrays)


def test_two_queries_are_answered_in_one_pass(stained: Path, tmp_path: Path):
    spec = replace(hue_spec(stained), queries=("nuclei", "glands"))
    result = run_job_inline(spec, tmp_path / "out", hue_segmenter())
    overlay = result.folder / "overlay.zarr"
    first, second = (zarr.open_array(str(overlay / f"labels/{i}/0"), mode="r")[...] for i in (0, 1))
    np.testing.assert_array_equal(first, second)
    report = json.loads((result.folder / "report.json").read_text())
    assert [query["query"] for query in report["queries"]] == ["nuclei", "glands"]


def test_a_slide_of_glass_is_a_job_without_tiles(tmp_path: Path):
    glass = write_pyramid(tmp_path / "glass.tif", np.full((1200, 1600, 3), 243, np.uint8))
    result = run_job_inline(hue_spec(glass), tmp_path / "out", hue_segmenter())
    assert (result.job.status, result.job.tiles_total, result.job.result["regions"]) == ("successful", 0, 0)
    assert json.loads((result.folder / "regions.geojson").read_text())["features"] == []


class Failing(HueSegmenter):
    """Cannot take dark tiles."""

    def _answer(self, image: np.ndarray, query: str, forced: bool) -> TileAnswer:
        if (image[..., 0] < 120).any():
            raise ValueError("too dark")
        return super()._answer(image, query, forced)


def test_failed_tiles_are_reported_and_the_job_goes_on(stained: Path, tmp_path: Path):
    result = run_job_inline(hue_spec(stained, min_coverage=0.05), tmp_path / "out", Failing())
    assert result.job.status == "successful"
    assert 0 < result.job.tiles_failed < result.job.tiles_total
    assert result.job.coverage == 1 - result.job.tiles_failed / result.job.tiles_total
    report = json.loads((result.folder / "report.json").read_text())
    failed = report["coverage"]["failed_tiles"]
    assert len(failed) == result.job.tiles_failed
    assert all("too dark" in tile["reason"] for tile in failed)


def test_too_little_coverage_fails_the_job(stained: Path, tmp_path: Path):
    with pytest.raises(CoverageTooLow, match="min_coverage"):
        run_job_inline(hue_spec(stained, min_coverage=0.99), tmp_path / "out", Failing())
    assert not (tmp_path / "out").exists()


def test_a_second_look_is_taken_where_a_neighbours_mask_crosses(stained: Path, tmp_path: Path):
    """A tile that is too cautious to emit is asked again, and only then does it show in the overlay."""
    spec, cautious = hue_spec(stained), HueSegmenter(emit_share=0.12)
    with_it, folder = run(spec, tmp_path / "a", cautious)
    without, plain = run(replace(spec, second_look=False), tmp_path / "b", cautious)
    records = [json.loads(line) for path in folder.glob("blocks/*/records.jsonl") for line in path.open()]
    again = [record for record in records if record["second_look"]]
    assert again and not any(record["emitted"] for record in again)
    assert not any(json.loads(line)["second_look"] for p in plain.glob("blocks/*/records.jsonl") for line in p.open())
    assert pixels_digest(folder / "overlay.zarr") != pixels_digest(plain / "overlay.zarr")
    assert with_it.status == without.status == "successful"


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"mpp": -1.0}, BadRequest, "mpp"),
        ({"roi": (((9e6, 9e6), (9e6 + 9, 9e6), (9e6, 9e6 + 9)),)}, BadRequest, "roi"),
        ({"tile_size_px": 300}, BadRequest, "tile_size_px"),
        ({"slide_path": "/nowhere.tif"}, SlideNotFound, None),
    ],
)
def test_a_job_that_cannot_be_done_says_why(stained: Path, tmp_path: Path, changes, error, field):
    with pytest.raises(error) as raised:
        run_job_inline(replace(hue_spec(stained), **changes), tmp_path / "out", hue_segmenter())
    assert raised.value.field == field or field is None
    assert not (tmp_path / "out").exists()


def test_a_slide_without_mpp_names_mpp_override(tmp_path: Path):
    path = tmp_path / "plain.png"
    cv2.imwrite(str(path), tissue_picture(600, 400))
    with pytest.raises(MppUnknown) as raised:
        run_job_inline(hue_spec(path), tmp_path / "out", hue_segmenter())
    assert raised.value.field == "mpp_override"
    run_job_inline(hue_spec(path, mpp_override=0.5), tmp_path / "out", hue_segmenter())


def test_a_slide_that_is_none_leaves_nothing(tmp_path: Path):
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(SlideUnreadable):
        run_job_inline(hue_spec(tmp_path / "text.svs"), tmp_path / "deep" / "out", hue_segmenter())
    assert not (tmp_path / "deep").exists()


def test_a_slide_that_breaks_under_way_fails_its_blocks(stained: Path, tmp_path: Path):
    """The file is gone once planned: blocks are tried three times, then the job says what it could not do."""
    slide = tmp_path / "copy.tif"
    slide.write_bytes(stained.read_bytes())
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", lease_s=0.01)
    job_id, _ = ledger.create_job(hue_spec(slide))
    with Engine(hue_segmenter()) as engine:
        runner = Runner(ledger, LocalArtifacts(tmp_path), engine, "test", (hue_spec(slide).model,))
        assert runner.run_one()
        slide.unlink()
        while ledger.job(job_id).open:
            runner.run_one()
    row = ledger.job(job_id)
    assert (row.status, row.error_code, row.tiles_failed) == ("failed", "coverage-too-low", row.tiles_total)
    ledger.close()


def test_a_folder_in_use_is_refused(stained: Path, finished: inline.InlineResult, tmp_path: Path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(BadRequest) as raised:
        run_job_inline(hue_spec(stained), tmp_path, hue_segmenter())
    assert raised.value.field == "out"
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_overwriting_replaces_results_and_keeps_the_rest(tmp_path: Path, stained: Path):
    for name in RESULTS[1:]:
        (tmp_path / name).write_text("old")
    (tmp_path / "note.txt").write_text("mine")
    run_job_inline(hue_spec(stained), tmp_path, hue_segmenter(), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*RESULTS, "note.txt"))
    assert (tmp_path / "report.json").read_text() != "old"


def test_a_leftover_of_a_dead_run_is_no_obstacle(stained: Path, tmp_path: Path):
    (tmp_path / f"{inline.PARTIAL}99999999").mkdir()
    run_job_inline(hue_spec(stained), tmp_path, hue_segmenter())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(RESULTS)


def test_a_full_disk_is_told_at_once(stained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worker.pipeline.write_records", full)
    with pytest.raises(SlideReasonError, match="No space left on device"):
        run_job_inline(hue_spec(stained), tmp_path / "out", hue_segmenter())
    assert not (tmp_path / "out").exists()


class Watching(HueSegmenter):
    """Lets the test act while the first batch is inside the model."""

    def __init__(self, act):
        super().__init__()
        self._act = act
        self.batches = 0

    def predict(self, batch: TileBatch, cancelled=None) -> list[TileAnswer]:
        self.batches += 1
        if self.batches == 1:
            self._act()
        return super().predict(batch, cancelled)


def test_a_dismissed_job_stops_between_tiles(stained: Path, tmp_path: Path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", lease_s=0.2)  # renewed, so heard, every 0.05 s
    job_id, _ = ledger.create_job(hue_spec(stained))

    def dismiss_and_wait_until_heard() -> None:
        ledger.dismiss(job_id)
        deadline = time.monotonic() + 60
        while not any(watch.cancelled() for watch in runner._watches):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    segmenter = Watching(dismiss_and_wait_until_heard)
    with Engine(segmenter, max_batch=1) as engine:
        runner = Runner(ledger, LocalArtifacts(tmp_path), engine, "test", (hue_spec(stained).model,))
        while runner.run_one():
            pass
    assert ledger.job(job_id).status == "dismissed"
    assert segmenter.batches == 1, "the tiles that waited were not computed"
    assert ledger.leased() == 0
    ledger.close()


class Deciding(HueSegmenter):
    """Takes minutes, and polls `cancelled` between its steps as a decoder does."""

    def __init__(self):
        super().__init__()
        self.calls, self.began = 0, threading.Event()

    def predict(self, batch: TileBatch, cancelled=None) -> list[TileAnswer]:
        self.calls += 1
        self.began.set()
        for _ in range(30_000):
            if cancelled():
                raise InterruptedError("cancelled between two steps")
            time.sleep(0.01)
        raise AssertionError("nobody cancelled")


def test_a_dismissed_job_stops_within_a_long_prediction(stained: Path, tmp_path: Path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", lease_s=0.2)
    job_id, _ = ledger.create_job(hue_spec(stained))
    segmenter = Deciding()
    with Engine(segmenter, max_batch=4) as engine:
        runner = Runner(ledger, LocalArtifacts(tmp_path), engine, "test", (hue_spec(stained).model,))
        worker = threading.Thread(target=lambda: [None for _ in iter(runner.run_one, False)])
        worker.start()
        assert segmenter.began.wait(60)
        dismissed = time.monotonic()
        ledger.dismiss(job_id)
        worker.join(60)
        assert not worker.is_alive()
        assert time.monotonic() - dismissed < 20, "the prediction would have gone on for minutes"
    assert ledger.job(job_id).status == "dismissed"
    assert segmenter.calls == 1
    assert ledger.leased() == 0
    ledger.close()


def test_an_isolated_block_gives_the_same_bytes(finished: inline.InlineResult, stained: Path, tmp_path: Path):
    """Every block loses its first owner, then runs tile by tile."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    ledger, impatient = Ledger(url), Ledger(url, lease_s=-1)
    spec, recorded = hue_spec(stained), []
    job_id, _ = ledger.create_job(spec, job_id=finished.job.job_id)
    with Engine(hue_segmenter()) as engine:
        runner = Runner(ledger, LocalArtifacts(tmp_path), engine, "test", (spec.model,))
        runner.run_one()
        while impatient.claim("lost", [spec.model]):
            pass
        assert ledger.sweep().expired == len(ledger.blocks(job_id))
        begin = ledger.begin_tile
        ledger.begin_tile = lambda work, key: (recorded.append((work.key, key)), begin(work, key))
        while runner.run_one():
            pass
    assert ledger.job(job_id).status == "successful"
    assert {key for key, tile in recorded if tile is not None} == {row.key for row in ledger.blocks(job_id)}
    for block in ledger.blocks(job_id):
        tiles = [tile for key, tile in recorded if key == block.key]
        assert tiles[-1] is None, "nothing is in flight once the tiles are through"
    assert digest(LocalArtifacts(tmp_path).job_folder(job_id), RESULTS) == digest(finished.folder, RESULTS)
    ledger.close()


def test_a_finish_that_was_not_published_is_published_by_the_sweeper(stained: Path, tmp_path: Path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    artifacts, spec = LocalArtifacts(tmp_path), hue_spec(stained)
    job_id, _ = ledger.create_job(spec)
    with Engine(hue_segmenter()) as engine:
        runner = Runner(ledger, artifacts, engine, "dies", (spec.model,))
        runner.publish_finish = lambda *_: None
        while runner.run_one():
            pass
        assert ledger.job(job_id).status == "running"
        assert not (artifacts.job_folder(job_id) / REPORT_JSON).exists()
        (unpublished,) = ledger.sweep().unpublished
        Runner(ledger, artifacts, engine, "lives", (spec.model,)).publish_finish(*unpublished)
    assert ledger.job(job_id).status == "successful"
    assert (artifacts.job_folder(job_id) / REPORT_JSON).exists()
    ledger.close()


def test_an_isolated_unit_has_the_worker_alone():
    gate, order = IsolationGate(), []
    inside, leave, asked = threading.Event(), threading.Event(), threading.Event()

    def shared() -> None:
        with gate.open():
            inside.set()
            leave.wait(30)
            order.append("shared")

    def isolated() -> None:
        with gate.open():
            asked.set()
            with gate.alone():
                order.append("alone")

    threads = [threading.Thread(target=shared), threading.Thread(target=isolated)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    assert asked.wait(30)
    threads[1].join(0.2)
    assert order == []
    leave.set()
    for thread in threads:
        thread.join(30)
    assert order == ["shared", "alone"]
