"""Ten thousand regions: the page, the Markdown and the PDF stay what a person can open, and say what they leave out."""

import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pypdfium2
import pytest

from tests.worker.report_jobs import GRID, huge_job
from worker.exports.job_results import JobResults
from worker.exports.markdown import write_markdown
from worker.report import write_report_html
from worker.report_parts import by_size
from worker.slides import open_slide

MB = 2**20


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> JobResults:
    results = huge_job(tmp_path_factory.mktemp("huge"))
    assert len(results.report["regions"]) == GRID[0] * GRID[1] > 10_000
    return results


def test_the_page_holds_ten_thousand_and_folds_them(huge: JobResults, tmp_path: Path):
    path = tmp_path / "report.html"
    with open_slide(huge.spec.slide_path) as slide:
        write_report_html(path, huge.report, huge.overlay, slide)
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 30 * MB
    anchors = re.findall(r'id="([0-9a-f-]{36})"', page)
    ids = [region["region_id"] for region in by_size(huge.report["regions"])]
    assert len(anchors) == len(set(anchors)) == 10_000 and set(anchors) == set(ids[:10_000])
    open_part = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert open_part.count("<tr") < 250, "a browser lays out few rows before anybody asks for more"
    folded = re.findall(r"<details.*?</details>", page, flags=re.DOTALL)
    assert max(part.count("<tr") for part in folded) == 501 and len(folded) == 20
    assert "Regions 201 to 700 by size: 36 µm² to 36 µm²" in page
    assert "The next 9,800 by size are folded below; the other 98, and every outline, stand in the GeoJSON" in page
    assert "(the 300 largest of them)" in page


def test_the_markdown_lists_the_largest(huge: JobResults, tmp_path: Path):
    write_markdown(huge, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "The 500 largest of 10,098 regions are listed; the other 9,598 stand" in text
    rows = re.findall(r"^\| \d+ \| .* `([0-9a-f-]{36})` \|$", text, re.MULTILINE)
    assert rows == [region["region_id"] for region in by_size(huge.report["regions"])[:500]]
    assert text.count("#### Region ") == 500 and len(text) < MB


def test_the_pdf_is_made_in_a_minute_and_half_a_gigabyte(huge: JobResults, tmp_path: Path):
    code = (
        "import sys, pickle; from pathlib import Path; from worker.exports.pdf import write_pdf\n"
        "write_pdf(pickle.load(sys.stdin.buffer), Path(sys.argv[1]))\n"
        "print([line for line in open('/proc/self/status') if 'VmHWM' in line][0].split()[1])"
    )
    path = tmp_path / "report.pdf"
    huge.__dict__.pop("report", None)  # read there, not sent
    began = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-c", code, str(path)], input=pickle.dumps(huge), stdout=subprocess.PIPE, check=True
    )
    assert time.monotonic() - began < 60
    assert int(told.stdout) / 1024 < 500, "MiB at most in memory"
    assert path.stat().st_size < 10 * MB
    with pypdfium2.PdfDocument(path) as document:
        pages = [" ".join(page.get_textpage().get_text_range().split()) for page in document]
    text = " ".join(pages)
    assert "The 500 largest of 10,098 regions" in text and "9,598 smaller regions are left out here" in text
    ids = [region["region_id"] for region in by_size(huge.report["regions"])]
    assert all(region_id in text for region_id in ids[:500]) and ids[500] not in text
    with_rows = [page for page in pages if page.count("■ ") > 1]
    assert len(with_rows) > 5
    assert all("Region Area Place Confidence Agree Tiles Flags Id" in page for page in with_rows)
