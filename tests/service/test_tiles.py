"""Deep Zoom over HTTP: pictures of slides, and of overlays upon them while a job runs and after."""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from fastapi.testclient import TestClient
from PIL import Image

from service.app import create_app
from service.deep_zoom import KeptBytes
from service.errors import MEDIA_TYPE
from service.routes import tiles
from tests.s3_server import S3Server
from tests.segmenters import hue_segmenter
from tests.service.conftest import OPENED, Served, make_settings
from worker.deep_zoom import OVERLAP_PX, TILE_PX, Zoom
from worker.engine import Engine
from worker.slides import open_slide
from worker.tasks import Runner

QUERIES = ["Where are the nuclei?", "Is there a gland?"]
GREEN, BLUE = (0, 185, 90), (30, 110, 230)
ZOOM = Zoom(1200, 900)


def serving(folder: Path, data: Path, **more) -> Iterator[Served]:
    """An application with the viewer's pictures."""
    app = create_app(make_settings(folder, data, **more))
    if tiles.router.routes[0].path not in app.openapi()["paths"]:
        app.include_router(tiles.router)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        app.state.rooms.catalogue._known = OPENED
        yield Served(client, app.state.rooms, folder)


@pytest.fixture(scope="module")
def shown(slide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str, str]]:
    """An application, the id of the good slide, and a finished job of two queries on it; only read from."""
    for served in serving(slide_folder, tmp_path_factory.mktemp("tiles") / "data"):
        job_id = served.post(queries=QUERIES, mpp=1.0, min_region_um2=50)["jobID"]
        served.run_jobs()
        status = served.client.get(f"/v1/jobs/{job_id}").json()
        assert status["status"] == "successful", status
        yield served, status["slide"], job_id


@pytest.fixture
def alone(slide_folder: Path, tmp_path: Path) -> Iterator[Served]:
    """An application with an empty ledger, over a folder of its own with the good slide."""
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(slide_folder / "good.tif", folder)
    yield from serving(folder, tmp_path / "data")


def picture_of(answer) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def stitch(served: Served, base: str, kind: str, level: int, asked: str = "") -> np.ndarray:
    """A whole level, laid out by what the description says, (h, w, 3 or 4) uint8."""
    text = served.client.get(f"{base}.dzi{asked}").text
    width, height = (int(re.search(rf'{name}="(\d+)"', text)[1]) for name in ("Width", "Height"))
    zoom = Zoom(width, height)
    size, (cols, rows) = zoom.size(level), zoom.tiles(level)
    whole = Image.new("RGB" if kind == "jpeg" else "RGBA", size)
    for row in range(rows):
        for col in range(cols):
            part = picture_of(served.client.get(f"{base}_files/{level}/{col}_{row}.{kind}{asked}"))
            whole.paste(part, (max(0, col * TILE_PX - OVERLAP_PX), max(0, row * TILE_PX - OVERLAP_PX)))
    return np.asarray(whole)


def problem(answer, status: int, field: str | None) -> str:
    """The detail of a problem that names this field."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.json().get("field") == field
    return answer.json()["detail"]


# Slides


def test_a_description_names_size_and_tiles(shown):
    served, slide, _ = shown
    answer = served.client.get(f"/v1/slides/{slide}/dzi.dzi")
    assert answer.headers["content-type"].startswith("application/xml")
    assert 'Format="jpeg" Overlap="1" TileSize="254"' in answer.text
    assert '<Size Width="1200" Height="900"/>' in answer.text
    assert "Research use only" in answer.text


@pytest.mark.parametrize("below", [0, 1, 2])
def test_stitched_tiles_are_the_slide_in_its_place(shown, below: int):
    served, slide, _ = shown
    found = stitch(served, f"/v1/slides/{slide}/dzi", "jpeg", ZOOM.top - below).astype(float)
    with open_slide(served.folder / "good.tif") as opened:
        height, width = found.shape[:2]
        wanted = opened.read_px0(0, 0, width << below, height << below, width, height).astype(float)
    here = np.abs(found - wanted).mean()
    assert here < 3
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        assert here < 0.7 * np.abs(np.roll(found, (dy, dx), (0, 1)) - wanted).mean()


@pytest.mark.parametrize(
    ("place", "status", "field", "said"),
    [
        ("11/5_0", 404, "col", "5 columns and 4 rows"),
        ("11/0_4", 404, "row", "5 columns and 4 rows"),
        ("12/0_0", 404, "level", "levels 0 to 11"),
        ("99/0_0", 422, "level", "less than or equal to 64"),
        ("11/-1_0", 422, "col", "greater than or equal to 0"),
        ("11/0_x", 422, "row", "integer"),
    ],
)
def test_a_tile_that_is_not_there_is_a_problem_that_names_what_is(shown, place, status, field, said):
    served, slide, job_id = shown
    assert said in problem(served.client.get(f"/v1/slides/{slide}/dzi_files/{place}.jpeg"), status, field)
    assert said in problem(served.client.get(f"/v1/jobs/{job_id}/tiles_files/{place}.png"), status, field)


def test_a_thumbnail_is_as_large_as_asked(shown):
    served, slide, _ = shown
    image = picture_of(served.client.get(f"/v1/slides/{slide}/thumbnail.jpeg?size=200"))
    assert (image.format, image.size, image.info["comment"]) == ("JPEG", (200, 150), b"Research use only")
    with open_slide(served.folder / "good.tif") as opened:
        assert np.abs(np.asarray(image).astype(int) - opened.thumbnail(200)).mean() < 4
    assert picture_of(served.client.get(f"/v1/slides/{slide}/thumbnail.jpeg")).size == (256, 192)


@pytest.mark.parametrize("size", ["15", "2049", "big"])
def test_a_thumbnail_of_no_size_is_refused(shown, size: str):
    served, slide, _ = shown
    problem(served.client.get(f"/v1/slides/{slide}/thumbnail.jpeg?size={size}"), 422, "size")


@pytest.mark.parametrize("rest", ["dzi.dzi", "dzi_files/0/0_0.jpeg", "thumbnail.jpeg"])
def test_pictures_are_kept_by_browsers_and_known_by_their_tag(shown, rest: str):
    served, slide, _ = shown
    first = served.client.get(f"/v1/slides/{slide}/{rest}")
    assert "max-age=3600" in first.headers["cache-control"] and "private" in first.headers["cache-control"]
    again = served.client.get(f"/v1/slides/{slide}/{rest}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize("rest", ["dzi.dzi", "dzi_files/0/0_0.jpeg", "thumbnail.jpeg"])
def test_no_such_slide_is_404(shown, rest: str):
    problem(shown[0].client.get(f"/v1/slides/{'0' * 32}/{rest}"), 404, "slide")


def test_a_slide_that_cannot_be_read_is_422_without_its_path(shown):
    served = shown[0]
    listed = served.client.get("/v1/slides").json()["slides"]
    known = {served.rooms.ledger.slide(entry["slide_id"]).reference: entry["slide_id"] for entry in listed}
    slide = next(slide for path, slide in known.items() if path.endswith("text.svs"))
    answer = served.client.get(f"/v1/slides/{slide}/dzi.dzi")
    problem(answer, 422, "slide")
    assert str(served.folder) not in answer.text


def test_a_slide_that_changes_has_other_tags_and_pictures(alone: Served):
    slide = alone.client.post("/v1/slides", json={"reference": "file:good.tif"}).json()["slide_id"]
    before = alone.client.get(f"/v1/slides/{slide}/thumbnail.jpeg")
    picture = Image.fromarray(np.full((300, 500, 3), (10, 200, 10), np.uint8))
    picture.save(alone.folder / "new.png")
    os.replace(alone.folder / "new.png", alone.folder / "good.tif")
    after = alone.client.get(f"/v1/slides/{slide}/thumbnail.jpeg", headers={"If-None-Match": before.headers["etag"]})
    assert after.headers["etag"] != before.headers["etag"]
    assert picture_of(after).getpixel((5, 5))[1] > 190
    assert 'Width="500"' in alone.client.get(f"/v1/slides/{slide}/dzi.dzi").text


def test_a_crash_costs_one_child_and_one_answer(alone: Served):
    slide = alone.client.post("/v1/slides", json={"reference": "file:good.tif"}).json()["slide_id"]
    address = f"/v1/slides/{slide}/dzi_files/11/{{}}_1.jpeg"
    assert alone.client.get(address.format(0)).status_code == 200
    (held,) = alone.client.app.state.deep_zoom.children._held
    os.kill(held.child._process.pid, 11)
    said = problem(alone.client.get(address.format(1)), 422, "slide")
    assert "SIGSEGV" in said
    assert picture_of(alone.client.get(address.format(1))).size == (256, 256)
    assert alone.client.get("/healthz").status_code == 200


def test_a_tile_is_made_once(shown):
    served, slide, _ = shown
    address = f"/v1/slides/{slide}/dzi_files/11/2_2.jpeg"
    first = served.client.get(address).content
    children = served.client.app.state.deep_zoom.children
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "call", None)  # nobody may be asked
        assert served.client.get(address).content == first


# Overlays


def test_an_overlay_has_the_frame_of_its_slide(shown):
    served, slide, job_id = shown
    own = served.client.get(f"/v1/slides/{slide}/dzi.dzi").text
    overlay = served.client.get(f"/v1/jobs/{job_id}/tiles.dzi?query=0&opacity=0.3").text
    assert overlay == own.replace("jpeg", "png")


def labels_of(served: Served, job_id: str, query: int, level: int) -> np.ndarray:
    folder = served.rooms.artifacts.job_folder(job_id) / "overlay.zarr" / "labels" / str(query) / str(level)
    return zarr.open_array(folder, mode="r")[:]


@pytest.mark.parametrize(("below", "overlay_level"), [(0, 0), (1, 0), (2, 1)])
def test_an_overlays_pixels_are_its_labels(shown, below: int, overlay_level: int):
    served, _, job_id = shown
    found = stitch(served, f"/v1/jobs/{job_id}/tiles", "png", ZOOM.top - below, "?query=0&opacity=0.4")
    labels = labels_of(served, job_id, 0, overlay_level)  # 600 x 450 px of 2 level-0 pixels at level 0
    wanted = labels.repeat(2, 0).repeat(2, 1) if below == 0 else labels
    assert found.shape[:2] == wanted.shape and (wanted > 0).any()
    assert np.array_equal(found[..., 3], np.where(wanted > 0, 102, 0))
    assert (found[wanted > 0][:, :3] == GREEN).all()


def test_one_query_or_all_are_shown(shown):
    served, _, job_id = shown
    base, level = f"/v1/jobs/{job_id}/tiles", ZOOM.top - 1
    second = stitch(served, base, "png", level, "?query=1&opacity=1")
    assert {tuple(pixel) for pixel in second.reshape(-1, 4).tolist()} == {(0, 0, 0, 0), (*BLUE, 255)}
    both = stitch(served, base, "png", level)
    assert np.array_equal(both[..., 3] > 0, (labels_of(served, job_id, 0, 0) + labels_of(served, job_id, 1, 0)) > 0)
    assert picture_of(served.client.get(f"{base}_files/0/0_0.png")).info["Comment"] == "Research use only"


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ("query=2", "query", "0 to 1"),
        ("query=-1", "query", "greater than or equal to 0"),
        ("opacity=1.1", "opacity", "less than or equal to 1"),
        ("opacity=nan", "opacity", "finite number"),
    ],
)
@pytest.mark.parametrize("rest", ["tiles.dzi", "tiles_files/0/0_0.png"])
def test_what_is_asked_amiss_is_named(shown, rest: str, asked: str, field: str, said: str):
    served, _, job_id = shown
    assert said in problem(served.client.get(f"/v1/jobs/{job_id}/{rest}?{asked}"), 422, field)


def test_a_finished_overlay_is_kept_by_its_tag(shown):
    served, _, job_id = shown
    address = f"/v1/jobs/{job_id}/tiles_files/9/0_0.png"
    first = served.client.get(address)
    assert "max-age=3600" in first.headers["cache-control"]
    assert served.client.get(address, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    assert served.client.get(f"{address}?opacity=0.9").headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize("rest", ["tiles.dzi", "tiles_files/9/0_0.png"])
def test_before_the_plan_and_without_success_it_is_409(alone: Served, rest: str):
    job_id = alone.post(mpp=1.0)["jobID"]
    answer = alone.client.get(f"/v1/jobs/{job_id}/{rest}")
    problem(answer, 409, None)
    assert int(answer.headers["retry-after"]) > 0
    alone.client.delete(f"/v1/jobs/{job_id}")
    assert alone.client.get(f"/v1/jobs/{job_id}/{rest}").json()["code"] == "job-dismissed"
    assert alone.client.get(f"/v1/jobs/{'0' * 32}/{rest}").status_code == 404


def test_while_a_job_runs_its_blocks_appear(alone: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("service.overlay_layers.FRESH_S", 0.0)
    # blocks of 1024 px, 512 px0: of the levels that a block writes the coarsest is 1, and tiles need more of it
    spec = {"slide": "good.tif", "mpp": 0.25, "min_region_um2": 1, "query": QUERIES[0]}
    job_id = alone.client.post("/v1/jobs", json=spec).json()["jobID"]
    base, level = f"/v1/jobs/{job_id}/tiles", ZOOM.top - 2
    seen: list[np.ndarray] = []
    tags: list[str] = []
    with Engine(hue_segmenter()) as engine:
        runner = Runner(alone.rooms.ledger, alone.rooms.artifacts, engine, "tests", ["hue"])
        while runner.run_one():
            answer = alone.client.get(f"{base}_files/{level}/0_0.png")
            tags.append(answer.headers["etag"])
            seen.append(stitch(alone, base, "png", level)[..., 3] > 0)
            running = alone.client.get(f"/v1/jobs/{job_id}").json()["status"] == "running"
            assert ("no-cache" in answer.headers["cache-control"]) == running
    *live, done = seen
    assert len(live) >= 4 and not live[0].any()  # after the plan
    for blocks, (before, after) in enumerate(zip(live, live[1:], strict=False), start=1):
        assert not (before & ~after).any()
        assert sum(after[y : y + 128, x : x + 128].any() for y in (0, 128) for x in (0, 128, 256)) <= blocks
    assert len({int(shown.sum()) for shown in live}) >= 3  # it grew, and again
    assert len(set(tags)) >= 3 and tags[-1] not in tags[:-1]
    assert (done != live[-1]).mean() < 0.01  # what a level's mean or mode makes of a rim


def test_another_tenants_overlay_is_404(slide_folder: Path, tmp_path: Path):
    for served in serving(slide_folder, tmp_path / "data", behind_proxy=True, tenant_header="X-Tenant"):
        mine = {"X-Tenant": "one"}
        body = {"slide": "good.tif", "query": QUERIES[0], "mpp": 1.0}
        job_id = served.client.post("/v1/jobs", json=body, headers=mine).json()["jobID"]
        served.run_jobs()
        address = f"/v1/jobs/{job_id}/tiles_files/9/0_0.png"
        assert served.client.get(address, headers=mine).status_code == 200
        problem(served.client.get(address, headers={"X-Tenant": "two"}), 404, None)
        problem(served.client.get(address), 401, None)


def test_an_overlay_in_a_bucket_has_the_same_tiles(shown, monkeypatch: pytest.MonkeyPatch):
    local, _, job_id = shown
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        data, url = local.rooms.settings.data, server.url("results/of/tests")
        for served in serving(local.folder, data, artifacts=url):
            reader = local.rooms.artifacts.read(job_id)
            for key, _, _ in reader.list("overlay.zarr"):
                served.rooms.artifacts.put(f"jobs/{job_id}/{key}", b"".join(reader.chunks(key)))
            base = f"/v1/jobs/{job_id}/tiles"
            assert np.array_equal(stitch(served, base, "png", 10), stitch(local, base, "png", 10))
            server.fail(True)
            assert served.client.get(f"{base}_files/11/0_0.png").status_code in (200, 503)


# The gateway


def test_the_gateway_decodes_nothing_itself():
    line = "import sys, service.routes.tiles; print([n for n in sys.argv[1:] if n in sys.modules])"
    heavy = ("torch", "cv2", "rasterio", "zarr", "PIL", "openslide", "tifffile", "worker.slides", "worker.slide_tiles")
    told = subprocess.run([sys.executable, "-c", line, *heavy], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_what_is_kept_stays_within_its_limit():
    kept = KeptBytes(limit_bytes=100)
    for key in range(5):
        assert kept.get(key, lambda key=key: bytes([key]) * 30) == bytes([key]) * 30
    assert kept.total == 90
    assert kept.get(2, lambda: b"new") == b"\2" * 30  # the latest three are there
    assert kept.get(0, lambda: b"new") == b"new"
    assert kept.get(3, lambda: b"new") == b"\3" * 30
