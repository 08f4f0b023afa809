"""The report as PDF: whole, the same to the byte, safe with any words, honest when the slide is gone."""

import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pypdfium2
import pytest

from tests.made_slides import tissue_picture, write_pyramid
from tests.worker.report_jobs import EVIL, changed, real_job
from worker.exports.job_results import JobResults
from worker.exports.pdf import write_pdf
from worker.exports.pdf_sheet import NOTDEF
from worker.job_slide import CHANGED, GONE, UNREADABLE, open_unchanged

IMAGE = pypdfium2.raw.FPDF_PAGEOBJ_IMAGE


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> JobResults:
    return real_job(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def file(results: JobResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pdf") / "report.pdf"
    write_pdf(results, path)
    return path


def pages(path: Path) -> list[str]:
    """The words of each page, white space tidied."""
    with pypdfium2.PdfDocument(path) as document:
        return [" ".join(page.get_textpage().get_text_range().split()) for page in document]


def pictures(path: Path) -> int:
    with pypdfium2.PdfDocument(path) as document:
        return sum(len(list(page.get_objects(filter=(IMAGE,)))) for page in document)


def unspaced(text: str) -> str:
    """Words without the breaks of their lines."""
    return re.sub(r"\s", "", text)


def written(results: JobResults, folder: Path) -> Path:
    write_pdf(results, folder / "report.pdf")
    return folder / "report.pdf"


def test_it_answers_and_names_every_region(file: Path, results: JobResults):
    text, report = unspaced("".join(pages(file))), results.report
    for query in report["queries"]:
        assert unspaced(query["answer"]).replace("核", NOTDEF) in text
    for region in report["regions"]:
        assert text.count(region["region_id"]) == 2, "in the table and above its pictures"
        assert unspaced(f"{region['area_um2']:,.0f} µm²") in text
    assert text.count("Conclusion:Ilookedfor") == 6 and "1furthertilemadepartofthisregion" in text


def test_it_says_what_it_was_made_with(file: Path, results: JobResults):
    text, report = " ".join(pages(file)), results.report
    assert f"Revision {report['model']['revision']}" in text
    assert report["slide"]["content_hash"] in text and len(report["slide"]["content_hash"]) == 64
    for words in ("Threshold 0.5", "Smallest region 50 µm²", "Tiles looked at 6 of 6 (100.0 %)", "Second look yes"):
        assert words in text
    assert "finished 2026-11-26 12:00 UTC" in text


def test_every_page_warns_and_says_which_it_is(file: Path):
    found = pages(file)
    assert len(found) > 2 and found[0].startswith("Research use only.")
    for number, text in enumerate(found, 1):
        assert "Research use only. Not for use in diagnostic procedures. Job 6f1c1b54" in text
        assert re.search(rf"(?<!\d){number} / {len(found)}(?!\d)", text), text[-200:]


def test_words_of_people_stay_words(file: Path):
    text = unspaced(" ".join(pages(file)))
    assert "{nb}" in EVIL and unspaced(EVIL).replace("核", NOTDEF) in text
    data = file.read_bytes()
    assert [name for name in (b"/URI", b"/JavaScript", b"/Launch", b"/EmbeddedFile") if name in data] == []


def test_what_the_font_lacks_is_admitted(file: Path, results: JobResults, tmp_path: Path):
    assert f"Characters that this file's font lacks are shown as {NOTDEF}" in " ".join(pages(file))

    def ask(report: dict[str, Any]) -> None:
        report["queries"] = report["queries"][1:]
        report["queries"][0] |= {"query_index": 0, "query": "Où est le noyau? Где ядра? Πού;"}
        report["regions"] = [region for region in report["regions"] if not region.update(chain="", query_index=0)][:3]

    text = " ".join(pages(written(changed(results, tmp_path / "job", ask), tmp_path)))
    assert "Où est le noyau? Где ядра? Πού;" in text and NOTDEF not in text and "font lacks" not in text
    assert text.count("No tile's reasoning is on record for this region.") == 3


def test_script_that_it_cannot_set_is_admitted(file: Path, results: JobResults, tmp_path: Path):
    def ask(report: dict[str, Any]) -> None:
        report["queries"][1]["query"] = "איפה הגרעין?"

    said = "letters of right-to-left script stand here from left to right"
    assert said in " ".join(pages(written(changed(results, tmp_path / "job", ask), tmp_path)))
    assert said not in " ".join(pages(file))


def test_regions_and_tiles_are_pictured(file: Path):
    assert pictures(file) == 1 + 2 * 6


def test_the_overview_shows_the_slide_with_its_outlines(file: Path):
    with pypdfium2.PdfDocument(file) as document:
        (image,) = list(document[0].get_objects(filter=(IMAGE,)))
        picture = image.get_bitmap(render=False).to_numpy().astype(int)  # BGR or RGB; green is in the middle either way
    height, width = picture.shape[:2]
    assert width == 1400 and height == 1050
    tissue = picture[height // 2 - 10 : height // 2 + 10, width // 2 - 10 : width // 2 + 10].mean(axis=(0, 1))
    glass = picture[5:25, 5:25].mean(axis=(0, 1))
    assert tissue[1] < 180 and glass.min() > 230
    blue_line = (abs(picture - (230, 110, 30)).sum(-1) < 60) | (abs(picture - (30, 110, 230)).sum(-1) < 60)
    assert blue_line.sum() > 500


def test_no_path_stands_in_it(file: Path, results: JobResults):
    folder = str(Path(results.spec.slide_path).parent)
    with pypdfium2.PdfDocument(file) as document:
        told = document.get_metadata_dict()
    assert told["Title"] == "2 questions to one slide"
    assert folder not in " ".join(pages(file)) + str(told) and folder.encode() not in file.read_bytes()


def test_it_is_the_same_to_the_byte_in_another_process(file: Path, results: JobResults, tmp_path: Path):
    code = (
        "import sys, pickle; from pathlib import Path; from worker.exports.pdf import write_pdf\n"
        "write_pdf(pickle.load(sys.stdin.buffer), Path(sys.argv[1]))"
    )
    plain = replace(results)  # without the report it has read
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", code, str(tmp_path / "again.pdf")]
    subprocess.run(command, input=pickle.dumps(plain), env=environment, check=True)
    assert (tmp_path / "again.pdf").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("fate", ["gone", "changed", "unreadable"])
def test_a_slide_that_is_not_what_it_was_is_not_pictured(fate: str, results: JobResults, tmp_path: Path):
    path = tmp_path / "slide.tif"
    if fate == "changed":
        write_pyramid(path, tissue_picture(1200, 900, seed=9))
    elif fate == "unreadable":
        path.write_text("no slide at all")
    spec = replace(results.spec, slide_path=str(path))
    file = written(replace(results, spec=spec, open_slide=partial(open_unchanged, spec, results.slide)), tmp_path)
    words = {"gone": GONE, "changed": CHANGED, "unreadable": UNREADABLE}[fate]
    text = " ".join(pages(file))
    assert f"{words}; so regions and tiles are not pictured here." in text
    assert pictures(file) == 1 and text.count("Conclusion: I looked for") == 6


def test_it_is_made_quietly(results: JobResults, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        written(results, tmp_path)
    assert caplog.messages == []


def test_tiles_that_failed_are_named_with_reasons(results: JobResults, tmp_path: Path):
    def fail(report: dict[str, Any]) -> None:
        tiles = [{"key": f"0_{n}", "reason": "the file is cut", "bbox_px0": [0.0, 0.0, 512.4, 512.0]} for n in (1, 2)]
        reasons = [{"reason": "the file is cut", "tiles": 3}, {"reason": "x" * 9000, "tiles": 1}]
        report["coverage"] |= {"failed": 3, "coverage": 0.5, "failed_tiles": tiles, "failed_reasons": reasons}

    text = " ".join(pages(written(changed(results, tmp_path / "job", fail), tmp_path)))
    assert "3 tiles failed; nothing is known of what lies in them. Looked at: 50.0 % of the tiles." in text
    assert "0_1 0, 0, 512, 512 the file is cut" in text and "The first 2 of them:" in text
    assert "Dashed red: tiles that failed." in text
    assert f"1{'x' * 600}…" in unspaced(text), "a cell is cut before its row outgrows a page"


def test_nothing_found_is_said(results: JobResults, tmp_path: Path):
    def forget(report: dict[str, Any]) -> None:
        report["regions"] = []
        said = {"silent_tiles_said": [{"text": "No tumour here.", "tiles": 6}], "tiles_silent": 6, "second_looks": 0}
        for query in report["queries"]:
            query |= {"answer": "Not found in the 6 tiles looked at.", "found": False, "regions": 0, **said}

    file = written(changed(results, tmp_path / "job", forget), tmp_path)
    text = " ".join(pages(file))
    assert text.count("Not found in the 6 tiles looked at.") == 2 and "All regions" not in text
    assert "6 tiles said no. Most often: 6 No tumour here." in text and pictures(file) == 1
