"""What is known of a region besides its outline: shares, stain, contradictions, and what of it is weak."""

import csv
import html
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from model.data.stain_shift import TrainedStain, tissue_template
from model.segmenter import TileAnswer
from tests.jobs import hue_spec
from tests.segmenters import hue_segmenter
from tests.worker.overlay_job import JOB_ID, discs, finish, make_info, make_plan, segment_blocks
from tests.worker.report_jobs import run_job, stained_slide
from worker.answers import far_words
from worker.attempts import read_records
from worker.evidence import WEAK_AGREEMENT, count_contradictions, pool_stain, weak_points, weigh_evidence
from worker.exports.markdown import escape, write_markdown
from worker.exports.table import write_csv
from worker.looks import claims_of
from worker.regions import find_regions
from worker.report import build_report
from worker.report_parts import evidence_words, flags
from worker.types import JobSpec, TileRecord

TRAINED = TrainedStain((50.0, 30.0, -30.0, 18.0, 11.0, 12.0), (5.0,) * 6, 100, 2.0, {"made": 100})
NEAR = (51.0, 31.0, -31.0, 18.0, 11.0, 12.0)
FAR = (90.0, 0.0, 30.0, 40.0, 11.0, 12.0)
CARD = {"name": "made", "revision": "1", "stain": TRAINED.to_json()}
INFO = make_info(1800, 800)
SPEC = JobSpec("slide", "slide", ("tumour",), min_region_um2=1.0)
PLAN = make_plan(900, 400)


def record(key: str, **said) -> TileRecord:
    return TileRecord(key, 0, 0, 0, 256, emitted=True, confidence=0.9, **said)


def square(place: str = "upper left") -> np.ndarray:
    mask = np.zeros((1, 100, 100), np.float16)
    rows = slice(0, 30) if "upper" in place else slice(70, 100)
    mask[0, rows, 0:30] = 0.9
    return mask


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A disc seen by two tiles, and one of its own; the records can be changed before regions are made."""
    root = tmp_path_factory.mktemp("job")
    segment_blocks(root, PLAN, SPEC, [discs(900, 400, (220, 100, 30), (700, 300, 20))])
    folder, _ = finish(root, PLAN, SPEC)

    def report(change, trained=TRAINED):
        records = [change(record) for record in read_records(root, PLAN)]
        regions = find_regions(root, folder, PLAN, INFO, JOB_ID, SPEC, records, trained)
        card = CARD if trained else {**CARD, "stain": {}}
        return build_report(JOB_ID, SPEC, PLAN, INFO, regions, records, card)

    return report


def test_a_words_place_is_held_against_the_mask():
    said = "<think> It lies in the upper left. </think> Found in the area: tumour <SEG>"
    assert claims_of(TileAnswer(said, square()))["place"] is False
    assert claims_of(TileAnswer(said, square("lower left")))["place"] is True
    assert claims_of(TileAnswer("No tumour is found.", np.zeros((0, 100, 100), np.float16))) == {"emptiness": False}
    assert claims_of(TileAnswer("Found: tumour.", np.zeros((0, 100, 100), np.float16))) == {"emptiness": True}


def test_a_region_pools_the_stain_of_its_tiles_by_share():
    assert pool_stain([(NEAR, 1.0)], TRAINED) == {"shift_sd": 0.141, "limit_sd": 2.0, "far": False, "tiles": 1}
    assert pool_stain([(NEAR, 0.0), (FAR, 1.0), (None, 5.0)], TRAINED)["far"] is True
    assert pool_stain([(NEAR, 1.0)], None) is None and pool_stain([(None, 1.0)], TRAINED) is None


def test_contradictions_are_counted_by_tile_and_aspect():
    tiles = [{"place": True, "number": True}, {"place": False}, {"place": True}, None]
    assert count_contradictions(tiles, tiles[0]) == {
        "chain": ["place", "number"], "checked": 3, "contradicted": 2, "by_aspect": {"place": 2, "number": 1},
    }  # fmt: skip
    assert count_contradictions([None], None) is None


def test_what_is_not_known_does_not_weaken():
    assert weak_points(None, None, None) == ()
    assert weak_points(WEAK_AGREEMENT, None, None) == ()
    assert weak_points(0.2, {"far": True}, {"chain": ["size"]}) == ("agreement", "stain", "contradiction")


def test_the_tiles_that_made_a_region_are_told_by_share():
    said = {key: record(key, stain=NEAR, claims={}) for key in ("0_0", "0_1", "0_2")}
    found = weigh_evidence({"0_0": 10.0, "0_1": 30.0, "0_2": 0.0}, said, "0_1", 0.9, TRAINED)
    assert [(tile["key"], tile["share"]) for tile in found["tiles"]] == [("0_1", 0.75), ("0_0", 0.25)]
    assert found["stain"]["tiles"] == 2 and found["weak"] == ()
    many = {f"0_{n}": record(f"0_{n}") for n in range(30)}
    assert len(weigh_evidence(dict.fromkeys(many, 1.0), many, "0_0", 0.9, None)["tiles"]) == 20


def test_a_sound_job_has_no_flags(job):
    report = job(lambda record: replace(record, stain=NEAR, claims={"emptiness": False}))
    assert report["stain"]["far"] is False and report["stain"]["far_tiles"] == 0
    assert report["queries"][0]["weak_regions"] == {"agreement": 0, "stain": 0, "contradiction": 0}
    assert "weak" not in report["answer"] and "stain" not in report["answer"]
    region = report["regions"][0]
    assert region["weak"] == () and flags(region) == "–"
    words = evidence_words(region)
    assert "Stain 0.1 standard deviations from what the model was trained on (within 2.0)." in words
    assert "does not contradict its own mask; 0 of 2 tiles that made it do." in words


def test_weak_evidence_is_said_plainly(job):
    report = job(lambda record: replace(record, stain=FAR, agreement=0.1, claims={"place": record.emitted}))
    query = report["queries"][0]
    assert query["weak_regions"]["stain"] == query["weak_regions"]["contradiction"] == 2
    assert query["tiles_contradicting"] == query["tiles_emitted"] < query["tiles_checked"]
    assert "The evidence is weak for 2 of 2 regions, 100.0 % of their area: " in query["answer"]
    assert "in 2 the stain is far from what the model was trained on" in query["answer"]
    assert "in 2 the chain contradicts its own outline" in query["answer"]
    far = far_words(report["stain"])
    assert far in report["answer"] and far.startswith("The stain of 15 of 15 tiles is far from what the model was")
    pair = next(region for region in report["regions"] if region["support"])
    assert pair["weak"] == ("agreement", "stain", "contradiction")
    assert evidence_words(pair).startswith("Weak evidence: overlapping tiles disagree, stain far from what")
    assert "Its chain contradicts its own mask (place); 2 of 2 tiles that made it do." in evidence_words(pair)
    assert flags(pair) == "disagree, stain, chain"


def test_where_trained_stains_are_not_known_nothing_is_claimed(job):
    report = job(lambda record: replace(record, stain=FAR), trained=None)
    assert report["stain"] is None and report["model"]["stain"] is None
    assert all(region["stain"] is None and region["contradictions"] is None for region in report["regions"])
    assert "stain" not in report["answer"]
    words = evidence_words(report["regions"][0])
    assert "Stain not known to be like or unlike" in words and "contradicts its mask is not known" in words


def test_a_few_odd_tiles_do_not_make_the_answer_speak_of_stain(job):
    report = job(lambda record: replace(record, stain=FAR if record.key == "1_0" else NEAR))
    assert report["stain"]["far_tiles"] == 1 and far_words(report["stain"]) == ""


def test_silent_tiles_that_say_it_is_there_are_mentioned():
    records = [TileRecord("0_0", 0, 0, 0, 256, text="Found: tumour.", claims={"emptiness": True})]
    report = build_report(JOB_ID, SPEC, PLAN, INFO, [], records, CARD)
    assert "1 tile says that it is there, but pointed at nothing." in report["queries"][0]["answer"]


def test_the_stain_of_a_tile_is_kept_with_its_record():
    picture = np.full((64, 64, 3), (200, 115, 165), np.uint8)
    kept = record("0_0", stain=tissue_template(picture))
    assert TRAINED.distance_sd(kept.stain) > 0 and len(kept.stain) == 6


def test_every_face_of_a_report_tells_it(tmp_path: Path):
    segmenter = hue_segmenter()
    segmenter.card = replace(segmenter.card, stain=replace(TRAINED, mean=FAR).to_json())
    results = run_job(tmp_path, hue_spec(stained_slide(tmp_path / "slide.tif")), segmenter)
    report = results.report
    schema = json.loads((resources.files("worker") / "report_schema.json").read_text(encoding="utf-8"))
    assert [fault.message for fault in Draft202012Validator(schema).iter_errors(report)] == []
    assert report["stain"]["far"] and all("stain" in region["weak"] for region in report["regions"])
    page = html.unescape((results.folder / "report.html").read_text(encoding="utf-8"))
    write_markdown(results, tmp_path / "report.md")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert far_words(report["stain"]) in page and escape(far_words(report["stain"])) in markdown
    for region in report["regions"]:
        assert evidence_words(region) in page and escape(evidence_words(region)) in markdown
    write_csv(results, tmp_path / "regions.csv")
    with (tmp_path / "regions.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["region_id"]: row for row in csv.DictReader(file)}
    features = json.loads((results.folder / "regions.geojson").read_text(encoding="utf-8"))["features"]
    for feature in features:
        row, measured = rows[feature["id"]], feature["properties"]["measurements"]
        assert float(row["stain_shift_sd"]) == measured["Stain shift SD"] > float(row["stain_limit_sd"]) == 2.0
        assert int(row["tiles_contradicting"]) == measured["Contradicting tiles"] <= int(row["tiles_checked"])
        assert row["weak"] == feature["properties"]["metadata"]["weak"] != ""
