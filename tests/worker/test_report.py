"""The report: a plain answer, everything that was not looked at, and a page that is whole, safe and self-contained."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.overlay_job import JOB_ID, discs, finish, make_info, make_plan, segment_blocks
from worker.attempts import read_records
from worker.looked_at import looked_at_px
from worker.pictures import LabelFrame, fit, padded_box
from worker.pyramid import OVERLAY
from worker.regions import without_polygon
from worker.report import build_report, write_report_html, write_report_json
from worker.report_parts import coverage_words
from worker.report_pictures import draw_overview, label_frame
from worker.types import JobSpec, TileRecord
from worker.wording import area_words, conclusion_of, count_words, percent_words, place_words, read_chain

EVIL = 'Where is the <script>alert("tumour")</script> & its stroma?'
SPEC = JobSpec("/secret/slide.svs", "slide-7", (EVIL, "Is there amyloid?"), min_region_um2=50.0)
PLAN = make_plan(1300, 900)
INFO = make_info(2600, 1800, bounds_px0=(0, 0, 2600, 1800))
CARD = {"name": "hue", "revision": "abc123", "parameters": 12, "licence": "Apache-2.0", "targets": ("tumour",)}


class PaleSlide:
    """A slide without structure; the page only reads frames from it."""

    def read_px0(self, x_px0, y_px0, width_px0, height_px0, out_width, out_height):
        return np.full((out_height, out_width, 3), 230, np.uint8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("job")
    picture = discs(1300, 900, (300, 200, 120), (1150, 800, 40), (40, 880, 5))
    segment_blocks(root, PLAN, SPEC, [picture, np.zeros_like(picture)])
    folder, regions = finish(root, PLAN, SPEC)
    return folder, [without_polygon(region) for region in regions], list(read_records(root, PLAN))


@pytest.fixture(scope="module")
def report(finished):
    _, regions, records = finished
    return build_report(JOB_ID, SPEC, PLAN, INFO, regions, records, CARD)


@pytest.fixture(scope="module")
def page(finished, report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report_html(path, report, finished[0] / OVERLAY, PaleSlide())
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of the page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_answer_says_what_was_found_and_where(report):
    answer = report["queries"][0]["answer"]
    assert answer.startswith("Found: 3 regions, together ")
    assert "The largest (45,225 µm²) lies in the upper left of the slide." in answer
    assert "Its reasoning chain concludes: “Adenocarcinoma is present.”" in answer
    total = sum(region["area_um2"] for region in report["regions"])
    assert report["queries"][0]["area_um2"] == total
    assert report["queries"][0]["share_of_looked_at"] == pytest.approx(total / (1300 * 900), abs=1e-6)


def test_the_answer_says_plainly_when_nothing_was_found(report):
    query = report["queries"][1]
    assert not query["found"] and query["answer"].startswith("Not found in the 35 tiles looked at (1.17 mm²).")
    assert "What most tiles said (35 of 35): “No tumour is present.”" in query["answer"]
    assert query["largest_region"] is None


def test_tiles_that_pointed_at_something_too_small_are_mentioned(finished):
    _, _, records = finished
    report = build_report(JOB_ID, replace(SPEC, min_region_um2=9e5), PLAN, INFO, [], records, CARD)
    assert "pointed at something, but no region of at least 0.90 mm² reached the threshold of 0.5" in report["answer"]


def test_a_tile_seen_by_several_blocks_is_counted_once(report):
    assert report["coverage"]["tiles"] == 35
    for query in report["queries"]:
        assert query["tiles_emitted"] + query["tiles_silent"] == 35


def test_what_was_not_looked_at_is_said_with_reasons(finished):
    _, regions, records = finished
    failed = [TileRecord("0_0", query, 0, 0, 256, error="the file is truncated") for query in (0, 1)]
    plan = replace(PLAN, n_skipped=12)
    others = [record for record in records if record.key != "0_0"]
    report = build_report(JOB_ID, SPEC, plan, INFO, regions, [*others, *failed], CARD)
    coverage = report["coverage"]
    assert (coverage["looked_at"], coverage["failed"], coverage["skipped"]) == (34, 1, 12)
    assert coverage["coverage"] == pytest.approx(34 / 35, abs=1e-6)
    assert coverage["looked_at_um2"] == 1300 * 900 - 192 * 192
    assert coverage["failed_tiles"] == [
        {"key": "0_0", "reason": "the file is truncated", "bbox_px0": [0.0, 0.0, 512.0, 512.0]}
    ]
    words = report["answer"].splitlines()[-1]
    assert words.startswith("Not looked at: 36,864 µm², 3.2 % of the slide (36,864 µm² in tiles that failed).")
    assert "Skipped: 12 of 47 tiles" in words
    assert "1 tile failed and was not judged: the file is truncated (1). Coverage is 97.1 %." in words


def test_everything_looked_at_is_said_too(report):
    assert coverage_words(report["coverage"]) == "Every tile of the slide was looked at."


def test_nothing_looked_at_is_never_called_not_found():
    empty = replace(PLAN, n_tiles=0, n_skipped=35, block_keys=(), wanted=base64.b64encode(bytes(5)).decode())
    report = build_report(JOB_ID, SPEC, empty, INFO, [], [], CARD)
    assert report["coverage"]["looked_at_um2"] == 0
    assert "Nothing was looked at" in report["answer"] and "Not found" not in report["answer"]


def test_the_report_names_slide_model_and_parameters_but_no_path(report):
    text = json.dumps(report)
    assert "secret" not in text and report["slide"]["slide_id"] == "slide-7"
    assert report["model"]["revision"] == "abc123" and report["parameters"]["threshold"] == 0.5
    assert "timings_s" not in report


def test_json_is_the_same_for_the_same_job(report, tmp_path):
    write_report_json(tmp_path / "a.json", report)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == json.loads(json.dumps(report))


def test_the_page_escapes_questions_and_chains(page):
    assert "<script" not in page and "&lt;script&gt;alert" in page
    assert EVIL in "".join(Tags(page).words)
    assert "&lt;SEG&gt;" in page and "<SEG>" not in page and "<think>" not in page.lower()


def test_the_page_is_self_contained(page):
    for tag, attributes in Tags(page).tags:
        assert tag not in ("script", "link", "iframe", "object", "form")
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert attributes.get("href", "#").startswith("#")
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import", page)


def test_the_page_warns_and_answers(page, report):
    words = " ".join("".join(Tags(page).words).split())
    assert words.index("Research use only.") < words.index("Found") < words.index("Not found")
    for sentence in report["queries"][0]["details"] + report["queries"][1]["details"]:
        assert sentence in words


def test_every_region_has_an_anchor_and_the_large_ones_their_pictures(page, report):
    tags = Tags(page).tags
    anchors = {attributes["id"] for _, attributes in tags if "id" in attributes}
    assert {region["region_id"] for region in report["regions"]} <= anchors
    # the overview, and for each of three regions its crop and its tile
    assert sum(tag == "img" for tag, _ in tags) == 1 + 2 * 3


def test_the_page_names_failed_tiles_hash_and_parameters(finished, tmp_path):
    folder, regions, records = finished
    broken = TileRecord("0_0", 0, 0, 0, 256, error="the <b>file</b> is truncated")
    others = [record for record in records if record.key != "0_0"]
    failed = build_report(JOB_ID, SPEC, PLAN, INFO, regions, [*others, broken], CARD)
    write_report_html(tmp_path / "report.html", failed, folder / OVERLAY, PaleSlide())
    words = " ".join(" ".join(Tags((tmp_path / "report.html").read_text(encoding="utf-8")).words).split())
    assert "1 tile that failed" in words and "Dashed red: tiles that failed." in words
    assert "0_0 0, 0, 512, 512 the <b>file</b> is truncated" in words
    for fact in ("Tiles looked at 34 of 35 (97.1 %)", f"Content {INFO.content_hash}", "Smallest region 50 µm²"):
        assert fact in words
    assert "Least coverage 50.0 %" in words and "Revision abc123" in words


def test_failed_tiles_are_drawn_on_the_slide(finished, report):
    folder, _, _ = finished
    frame = label_frame(report, folder / OVERLAY)
    failed = report["coverage"] | {"failed_tiles": [{"key": "1_1", "bbox_px0": [600.0, 600.0, 1100.0, 1100.0]}]}
    pictures = [
        draw_overview(changed, frame, PaleSlide(), [], []).image for changed in (report, report | {"coverage": failed})
    ]
    changed_at = np.argwhere((pictures[0] != pictures[1]).any(axis=-1))  # (row, col)
    scale = pictures[0].shape[1] / 2600
    assert np.allclose(changed_at.min(axis=0), 600 * scale, atol=2) and np.allclose(
        changed_at.max(axis=0), 1100 * scale, atol=2
    )


def test_thousands_of_regions_become_a_short_page(finished, report, tmp_path):
    folder, regions, records = finished
    many = [replace(regions[0], region_id=f"{label}", label=label, area_um2=100.0 + label) for label in range(1, 4001)]
    big = build_report(JOB_ID, SPEC, PLAN, INFO, many, records, CARD)
    write_report_html(tmp_path / "report.html", big, folder / OVERLAY, PaleSlide())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The 200 largest of 4,000 regions" in page
    assert page.count("<details") == 8, "the others are folded, 500 at a time"
    assert len(page) < 2_000_000 and len(big["regions"]) == 4000


@given(seed=st.integers(0, 2**16), offset=st.tuples(st.integers(-190, 0), st.integers(-190, 0)))
@settings(max_examples=25, deadline=None)
def test_the_area_looked_at_is_that_of_the_union_of_tiles(seed, offset):
    plan = make_plan(700, 500)
    wanted = np.random.default_rng(seed).random((plan.rows, plan.cols)) < 0.4
    plan = replace(plan, offset_px=offset, wanted=base64.b64encode(np.packbits(wanted).tobytes()).decode())
    seen = np.zeros((500, 700), bool)
    for row, col in np.argwhere(wanted):
        y, x = offset[1] + row * plan.stride_px, offset[0] + col * plan.stride_px
        seen[max(y, 0) : max(y + 256, 0), max(x, 0) : max(x + 256, 0)] = True
    assert looked_at_px(plan) == seen.sum()


def test_a_chain_is_taken_apart():
    chain = read_chain("<think>Crowded\n glands.</think> Tumour <SEG>, and a vessel <SEG>.")
    assert chain.observations == "Crowded glands." and chain.conclusion == "Tumour <SEG>, and a vessel <SEG>."
    assert conclusion_of("<think>Crowded glands.</think> Tumour <SEG>, and a vessel <SEG>.") == "Tumour, and a vessel."
    assert conclusion_of("<think>cut off in the middle") == "cut off in the middle"
    assert conclusion_of("No tags at all.") == "No tags at all."
    assert conclusion_of("") == ""


@pytest.mark.parametrize(
    ("area_um2", "words"), [(12_345.6, "12,346 µm²"), (2_500_000, "2.50 mm²"), (100_000, "0.10 mm²"), (7, "7 µm²")]
)
def test_areas_in_words(area_um2, words):
    assert area_words(area_um2) == words


def test_shares_and_counts_in_words():
    assert [percent_words(share) for share in (0, 1e-5, 0.1234, 0.9999, 1)] == [
        "0.0 %",
        "less than 0.1 %",
        "12.3 %",
        "more than 99.9 %",
        "100.0 %",
    ]
    assert (
        count_words(1, "tile") == "1 tile"
        and count_words(2048, "tile") == "2,048 tiles"
        and count_words(0, "tile") == "no tiles"
    )


@pytest.mark.parametrize(
    ("point", "place"),
    [((10, 10), "upper left"), ((1300, 900), "centre"), ((2500, 900), "right"), ((1300, 1700), "lower")],
)
def test_places_on_the_slide(point, place):
    assert place_words(point, INFO) == place


def test_places_are_those_of_the_scanned_area():
    assert place_words((1300, 900), make_info(2600, 1800, bounds_px0=(1200, 800, 1400, 1000))) == "upper left"


def test_labels_are_read_in_frames_of_the_slide(finished):
    frame = LabelFrame(finished[0] / OVERLAY, (2.0, 2.0), 3)
    # 240 level-0 pixels around the first disc's centre, half a pixel of the picture per overlay pixel
    labels = frame.read(0, (360, 160, 840, 640), 120, 120)
    assert labels.shape == (120, 120) and labels[60, 60] == 1 and labels[0, 0] == 0
    assert (labels > 0).mean() == pytest.approx(np.pi / 4, abs=0.02)
    outside = frame.read(0, (-4000, -4000, -3000, -3000), 10, 10)
    assert outside.max() == 0


def test_frames_of_pictures():
    assert fit((0, 0, 4000, 1000), 400) == (400, 100)
    x0, y0, x1, y1 = padded_box((100, 100, 500, 120), 0.15, 64)
    assert (x1 - x0, (x0 + x1) / 2, (y0 + y1) / 2) == (520, 300, 110) and (y1 - y0) >= 260
