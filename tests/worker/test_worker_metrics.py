"""What a worker counts: stages, tiles, batches and units, and that counting costs next to nothing."""

import time
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from tests.jobs import HUE, hue_spec
from tests.segmenters import HueSegmenter, hue_segmenter
from worker import metrics
from worker.artifacts import open_artifacts
from worker.engine import Engine
from worker.ledger import Ledger
from worker.tasks import Runner


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


class Broken(HueSegmenter):
    """Fails on every tile but blank ones."""

    def predict(self, batch, cancelled=None):
        if (batch.images < 200).any():
            raise ZeroDivisionError("no")
        return super().predict(batch)


def run_job(slide: Path, folder: Path, segmenter, **changes) -> tuple[Ledger, str]:
    ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
    job_id, _ = ledger.create_job(hue_spec(slide, **changes))
    with Engine(segmenter) as engine:
        runner = Runner(ledger, open_artifacts(folder / "artifacts"), engine, "w", (HUE,))
        while runner.run_one():
            pass
    return ledger, job_id


def test_a_job_is_counted_once_stage_by_stage(pyramid_slide: Path, tmp_path: Path):
    def counts() -> dict[str, float]:
        found = {name: value("slidereason_stage_seconds_count", stage=name) for name in metrics.STAGES}
        found |= {kind: value("slidereason_units_total", kind=kind, outcome="done") for kind in ("plan", "finish")}
        found["block"] = value("slidereason_units_total", kind="segment", outcome="done")
        found["tiles"] = value("slidereason_tiles_total", model=HUE)
        found["batches"] = value("slidereason_batch_seconds_count")
        found["fill"] = value("slidereason_batch_fill_ratio_count")
        found["waits"] = value("slidereason_unit_wait_seconds_count")
        return found

    before = counts()
    ledger, job_id = run_job(pyramid_slide, tmp_path, hue_segmenter())
    row = ledger.job(job_id)
    blocks = len(ledger.blocks(job_id))
    ledger.close()
    more = {name: after - before[name] for name, after in counts().items()}
    units = blocks + 2
    assert row.status == "successful"
    assert more["tiles"] == row.tiles_total
    assert (more["plan"], more["finish"], more["block"]) == (1 + 0, 1, blocks)
    assert more["batches"] == more["fill"] > 0
    assert more["waits"] == more["save"] == more["commit"] == more["publish"] == units
    assert more["read"] == more["wait_engine"] == more["blend"] == more["write"] == blocks


def test_failed_tiles_are_counted_by_reason(pyramid_slide: Path, tmp_path: Path):
    before = value("slidereason_tiles_failed_total", reason="segmenter")
    ledger, job_id = run_job(pyramid_slide, tmp_path, Broken(), min_coverage=0.0)
    failed = ledger.job(job_id).tiles_failed
    ledger.close()
    assert failed > 0
    assert value("slidereason_tiles_failed_total", reason="segmenter") - before == failed


@pytest.mark.parametrize(
    ("fault", "reason"), [("slide", "unreadable"), ("tile", "quarantined"), (None, "segmenter"), ("model", "segmenter")]
)
def test_a_failed_tile_is_counted_by_what_is_at_fault(fault: str | None, reason: str):
    before = value("slidereason_tiles_failed_total", reason=reason)
    metrics.tile_failed(fault)
    assert value("slidereason_tiles_failed_total", reason=reason) == before + 1


def test_a_stage_inside_another_counts_once():
    with metrics.unit_stages() as stages, metrics.stage("finish"):
        time.sleep(0.02)
        with metrics.stage("publish"):
            time.sleep(0.05)
    assert 0.05 <= stages.busy_s["publish"] < 0.5
    assert 0.02 <= stages.busy_s["finish"] < stages.spans["finish"][1] - stages.spans["finish"][0] - 0.04


def test_a_stage_entered_often_is_observed_once():
    before = value("slidereason_stage_seconds_count", stage="read")
    with metrics.unit_stages():
        assert list(metrics.timed(range(5), "read")) == list(range(5))
    assert value("slidereason_stage_seconds_count", stage="read") == before + 1


def test_timed_items_are_closed_with_their_consumer():
    closed = []

    def items():
        try:
            yield from range(5)
        finally:
            closed.append(True)

    reading = metrics.timed(items(), "read")
    assert next(reading) == 0
    reading.close()
    assert closed == [True]


def test_an_error_passes_and_its_stage_still_counts():
    with pytest.raises(ZeroDivisionError), metrics.unit_stages() as stages, metrics.stage("blend"):
        raise ZeroDivisionError
    assert "blend" in stages.busy_s


def test_all_is_told_in_prometheus_form_before_anything_happened():
    text = generate_latest(metrics.REGISTRY).decode()
    for name in ("tiles_total", "tiles_failed_total", "units_total", "stage_seconds", "batch_fill_ratio"):
        assert f"slidereason_{name}" in text
    assert value("slidereason_worker_memory_bytes") > 10 << 20
    assert "slidereason_gpu_memory_bytes" in text


def test_no_gpu_is_no_series(monkeypatch):
    monkeypatch.setitem(metrics.sys.modules, "torch", None)
    assert metrics.gpu_memory() == {}


def test_memory_is_none_where_the_system_does_not_say(tmp_path: Path):
    assert metrics.resident_bytes(tmp_path / "none") == 0


def test_a_stage_costs_microseconds():
    """Three entries a tile must not show beside a block of some hundred tiles and its 10 ms of ledger and broker."""
    begun = time.perf_counter()
    with metrics.unit_stages():
        for _ in range(10_000):
            with metrics.stage("read"):
                pass
    assert (time.perf_counter() - begun) / 10_000 < 100e-6
