"""The viewer over HTTP: what is served, under which policy, and that it fits the rest of the service."""

import io
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.service.conftest import Served
from tests.service.test_app import check_problem
from worker.colors import QUERY_COLORS

VIEWER = Path(str(resources.files("service"))) / "viewer"
OURS = sorted(path.relative_to(VIEWER).as_posix() for path in VIEWER.rglob("*.*") if "vendor" not in path.parts)
MODULES = [name for name in OURS if name.endswith(".js")]


class Page(HTMLParser):
    """The parts of a page that matter for its policy: what it loads, and what it would run or style in place."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self.ids: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "script":
            self._script = "src" not in known
        self.loaded += [known[name] for name in ("src", "href") if known.get(name) and tag != "a"]
        self.inline += [name for name in known if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" else []
        self.ids += [known["id"]] if "id" in known else []

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self.inline.append("script")
        self._script = False


def test_the_page_is_at_the_root_under_a_strict_policy(served: Served) -> None:
    answer = served.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["worker-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert policy["frame-ancestors"] == "'self'"
    assert "Research use only" in answer.text


def test_the_page_has_nothing_inline_and_everything_it_loads_is_here(served: Served) -> None:
    page = Page(served.client.get("/").text)
    assert page.inline == []
    assert len(page.ids) == len(set(page.ids))
    assert len(page.loaded) > 5
    for address in page.loaded:
        assert address.startswith("/viewer/"), address
        assert served.client.get(address.partition("#")[0]).status_code == 200, address


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_only_each_other_and_ids_they_name_exist(served: Served, name: str) -> None:
    text = served.client.get(f"/viewer/{name}").text
    imports = re.findall(r"(?:^import .* from |new URL\()\"([^\"]+)\"", text, re.MULTILINE)
    assert all(target.startswith("./") and target[2:] in MODULES for target in imports), imports
    assert not re.search(r"https?://(?!127)", text), "nothing is fetched from elsewhere"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    ids = set(re.findall(r"\$\(\"([\w-]+)\"\)", text))
    assert ids <= set(Page(served.client.get("/").text).ids) | {"result"}


@pytest.mark.parametrize("name", [*OURS, "vendor/openseadragon/openseadragon.min.js", "vendor/openseadragon/LICENSE"])
def test_a_file_is_served_with_type_and_tag_and_only_once(served: Served, name: str) -> None:
    address = f"/viewer/{name}"
    answer = served.client.get(address, headers={"Accept-Encoding": "gzip"})
    assert answer.status_code == 200
    assert answer.content == (VIEWER / name).read_bytes()
    kinds = {"js": "text/javascript", "css": "text/css", "html": "text/html", "svg": "image/svg+xml"}
    assert answer.headers["content-type"].startswith(kinds.get(name.rpartition(".")[2], "text/plain"))
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == ("max-age=86400" if name.startswith("vendor") else "no-cache")
    again = served.client.get(address, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = served.client.head(address, headers={"Accept-Encoding": "identity"})
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == (VIEWER / name).stat().st_size


@pytest.mark.parametrize("name", ["nothing.js", "", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "vendor", "vendor/"])
def test_nothing_else_can_be_had(served: Served, name: str) -> None:
    answer = served.client.get(f"/viewer/{name}")
    assert "import" not in answer.text
    check_problem(answer, 404, "not-found")


def test_the_colours_are_those_of_overlay_and_report() -> None:
    rows = re.findall(r"\[(\d+), (\d+), (\d+)\],", (VIEWER / "colors.js").read_text())
    assert [tuple(map(int, row)) for row in rows] == list(QUERY_COLORS)


def test_the_library_that_others_wrote_comes_with_its_licence() -> None:
    for folder in (VIEWER / "vendor").iterdir():
        assert "Redistribution" in (folder / "LICENSE").read_text()


def test_our_files_stay_short_enough_to_read() -> None:
    lengths = {name: len((VIEWER / name).read_text().splitlines()) for name in OURS}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def covered(served: Served, job: str, **asked) -> int:
    """Pixels of the whole slide in one small tile that the first query's overlay covers."""
    address = f"/v1/jobs/{job}/tiles_files/8/0_0.png"
    answer = served.client.get(address, params={"query": 0, "opacity": 1, **asked})
    assert answer.status_code == 200, answer.text
    return int((np.asarray(Image.open(io.BytesIO(answer.content)))[..., 3] > 0).sum())


def test_the_threshold_of_overlay_tiles_shows_probabilities_instead_of_regions(finished: tuple[Served, str]) -> None:
    served, job = finished
    regions = covered(served, job)
    shown = [covered(served, job, threshold=threshold) for threshold in (0.05, 0.5, 0.9)]
    assert shown[0] > shown[1] > shown[2] > 0
    assert shown[1] == pytest.approx(regions, rel=0.1), "the job's own threshold, small regions left out"


@pytest.mark.parametrize("threshold", ["0", "1", "-0.1", "nan", "much"])
def test_a_threshold_that_means_nothing_is_refused(finished: tuple[Served, str], threshold: str) -> None:
    served, job = finished
    answer = served.client.get(f"/v1/jobs/{job}/tiles_files/8/0_0.png?threshold={threshold}")
    assert "threshold" in check_problem(answer, 422, answer.json()["code"])["field"]


# what of the slide is looked at


def test_coverage_tells_grid_and_blocks_while_the_job_runs_and_after(served: Served) -> None:
    job = served.post(mpp=1.0)["jobID"]
    check_problem(served.client.get(f"/v1/jobs/{job}/coverage"), 409, "job-not-finished")
    served.run_jobs()
    known = served.client.get(f"/v1/jobs/{job}/coverage").json()
    tiles = served.client.get(f"/v1/jobs/{job}").json()["tiles"]
    assert known["rows"] * known["cols"] == tiles["done"] + tiles["skipped"]
    assert sum(block["tiles"] for block in known["blocks"]) == tiles["total"]
    assert {block["state"] for block in known["blocks"]} == {"done"}
    assert sum(block["tiles_done"] for block in known["blocks"]) == tiles["done"]
    width, height = known["size_px0"]
    for x0, y0, x1, y1 in (block["bbox_px0"] for block in known["blocks"]):
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert width == pytest.approx(1200, abs=2) and height == pytest.approx(900, abs=2)


def test_coverage_names_a_block_that_was_given_up(served: Served) -> None:
    job = served.post(mpp=1.0, min_coverage=0)["jobID"]
    ledger = served.rooms.ledger
    fail_first_block(served)
    (failed,) = [b for b in served.client.get(f"/v1/jobs/{job}/coverage").json()["blocks"] if b["state"] == "failed"]
    assert failed["tiles_failed"] == failed["tiles"] > 0
    assert ledger.job(job).tiles_failed == failed["tiles"]


def test_coverage_of_no_job_is_404(served: Served) -> None:
    check_problem(served.client.get("/v1/jobs/nothing/coverage"), 404, "job-not-found")


def fail_first_block(served: Served) -> None:
    """Be a worker that plans, and cannot do the first block."""
    from tests.segmenters import hue_segmenter
    from worker.engine import Engine
    from worker.errors import TileFailed
    from worker.tasks import Runner

    engine = Engine(hue_segmenter())
    try:
        assert Runner(served.rooms.ledger, served.rooms.artifacts, engine, "tests", ["hue"]).run_one()
    finally:
        engine.close()
    work = served.rooms.ledger.claim("tests", ["hue"], hue_segmenter().card)
    served.rooms.ledger.fail(work, TileFailed("made to fail"), data_fault=True, final=True)
