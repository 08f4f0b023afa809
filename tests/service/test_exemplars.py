"""Exemplars over REST: shown, found again, and every refusal names the part at fault."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
import zarr

from tests.segmenters import colour_segmenter, hue_segmenter
from tests.service.conftest import Served, serve
from worker.engine import Engine
from worker.tasks import Runner
from worker.types import SAME_AS_EXAMPLE


def disc(x: float, y: float, radius: float) -> dict:
    angles = np.linspace(0, 2 * np.pi, 33)
    return {"type": "Polygon", "coordinates": [[[x + radius * np.cos(a), y + radius * np.sin(a)] for a in angles]]}


DISC = disc(450, 400, 60)
"""Within the dark disc of good.tif."""


@pytest.fixture
def served(slide_folder: Path, tmp_path: Path) -> Iterator[Served]:
    """A service whose default model takes exemplars; both models' workers have been heard from."""
    for one in serve(slide_folder, tmp_path / "data", model="colour"):
        one.rooms.ledger.heartbeat("worker-1", colour_segmenter().card, ("colour",))
        one.rooms.ledger.heartbeat("worker-2", hue_segmenter().card, ("hue",))
        yield one


def ask(served: Served, **body) -> tuple[int, dict]:
    answer = served.client.post("/v1/jobs", json={"slide": "good.tif", **body})
    return answer.status_code, answer.json()


def run_jobs(served: Served) -> None:
    """Be the worker of the default model."""
    with Engine(colour_segmenter()) as engine:
        runner = Runner(served.rooms.ledger, served.rooms.artifacts, engine, "tests", ["colour"])
        while runner.run_one():
            pass


def test_an_exemplar_reaches_the_spec_and_needs_no_words(served: Served) -> None:
    roi = disc(450, 400, 200)
    shown = {"slide": "no_mpp.tif", "mask": DISC, "roi": roi, "mpp_override": 0.5}
    status, job = ask(served, exemplar=shown)
    assert (status, job["queries"]) == (202, [SAME_AS_EXAMPLE])
    spec = served.rooms.ledger.job(job["jobID"]).spec.exemplar
    assert spec.slide_path == str(served.folder / "no_mpp.tif")
    assert len(spec.slide_id) == 32
    assert spec.mpp_override == 0.5
    assert spec.mask[0][0][:2] == tuple(map(tuple, DISC["coordinates"][0][:2]))
    assert len(spec.roi) == 1
    assert ask(served, query="Where is more of it?", exemplar=shown)[1]["queries"] == ["Where is more of it?"]


def test_a_mask_picture_beside_the_slide_is_an_outline(served: Served) -> None:
    drawn = np.zeros((900, 1200), np.uint8)
    cv2.circle(drawn, (450, 400), 60, 1, -1)
    picture = served.folder / "mask.png"
    cv2.imwrite(str(picture), drawn)
    try:
        status, job = ask(served, exemplar={"slide": "good.tif", "mask": "file:mask.png"}, mpp=1.0)
    finally:
        picture.unlink()  # the folder is every test's
    assert status == 202
    mask = served.rooms.ledger.job(job["jobID"]).spec.exemplar.mask
    assert shapely.union_all([shapely.Polygon(*ring) for ring in mask]).area == np.count_nonzero(drawn)


def test_what_is_shown_is_found_and_reported(served: Served) -> None:
    status, job = ask(served, exemplar={"slide": "good.tif", "mask": DISC}, mpp=1.0, min_region_um2=50)
    assert status == 202
    run_jobs(served)
    url = f"/v1/jobs/{job['jobID']}"
    done = served.client.get(url).json()
    assert (done["status"], done["result"]["regions"]) == ("successful", 3)
    report = served.client.get(f"{url}/report", headers={"Accept": "application/json"}).json()
    assert report["exemplar"]["area_um2"] == pytest.approx(np.pi * 30**2, rel=0.02)
    assert report["exemplar"]["slide_id"] == job["slide"]
    assert str(served.folder) not in json.dumps(report)
    page = served.client.get(f"{url}/report", headers={"Accept": "text/html"}).text
    assert "The example" in page and "Research use only" in page
    overlay = served.rooms.artifacts.job_folder(job["jobID"]) / "overlay.zarr"
    assert zarr.open_array(str(overlay / "labels/0/0"), mode="r")[200, 225] > 0


@pytest.mark.parametrize(
    ("change", "status", "field", "says"),
    [
        ({"slide": None}, 422, "exemplar.slide", "required"),
        ({"mask": None}, 422, "exemplar.mask", "required"),
        ({"slide": 5}, 422, "exemplar.slide", "string"),
        ({"slide": "missing.svs"}, 422, "exemplar.slide", "no slide has this reference"),
        ({"slide": "0" * 32}, 422, "exemplar.slide", "no slide has this id"),
        ({"slide": "../outside.svs"}, 422, "exemplar.slide", "outside the slide folders"),
        ({"slide": "text.svs"}, 422, "exemplar.slide", "not a slide"),
        ({"slide": "empty.svs"}, 422, "exemplar.slide", "empty"),
        ({"slide": "no_mpp.tif"}, 422, "exemplar.mpp_override", "give mpp_override"),
        ({"mpp_override": 0}, 422, "exemplar.mpp_override", "greater"),
        ({"mpp_override": "0.5"}, 422, "exemplar.mpp_override", "number"),
        ({"mask": "all"}, 422, "exemplar.mask", "no mask picture has this reference; accepted is GeoJSON, or"),
        ({"mask": "../outside.svs"}, 422, "exemplar.mask", "no mask picture has this reference"),
        ({"mask": "text.svs"}, 422, "exemplar.mask", "PNG, TIFF or BMP"),
        ({"mask": 5}, 422, "exemplar.mask", "GeoJSON object, or"),
        ({"mask": {"type": "Point", "coordinates": [1, 2]}}, 422, "exemplar.mask", "Point"),
        ({"mask": {"type": "FeatureCollection", "features": []}}, 422, "exemplar.mask", "no polygon"),
        ({"mask": disc(5e4, 400, 60)}, 422, "exemplar.mask", "0 <= x <= 1200"),
        ({"mask": disc(450, 400, 4)}, 422, "exemplar.mask", "0.2%"),
        ({"roi": disc(5e4, 400, 60)}, 422, "exemplar.roi", "outside"),
        ({"roi": disc(900, 400, 60)}, 422, "exemplar.roi", "nothing of exemplar.mask"),
        ({"roi": {"type": "Point", "coordinates": [1, 2]}}, 422, "exemplar.roi", "Point"),
        ({"colour": "red"}, 422, "exemplar.colour", "slide, mask, roi, mpp_override"),
    ],
)
def test_what_cannot_be_shown_is_named_and_nothing_is_stored(
    served: Served, change: dict, status: int, field: str, says: str
) -> None:
    shown = {name: value for name, value in {"slide": "good.tif", "mask": DISC, **change}.items() if value is not None}
    got, problem = ask(served, exemplar=shown)
    assert (got, problem["field"]) == (status, field), problem
    assert says in problem["detail"]
    assert str(served.folder) not in str(problem)
    assert served.client.get("/v1/jobs").json()["jobs"] == []
    assert ask(served, query="q")[0] == 202, "the service goes on"


@pytest.mark.parametrize("value", ["good.tif", 5, [], True])
def test_an_exemplar_is_an_object(served: Served, value: object) -> None:
    status, problem = ask(served, exemplar=value)
    assert (status, problem["field"]) == (422, "exemplar")


def test_without_an_exemplar_a_question_is_due(served: Served) -> None:
    status, problem = ask(served)
    assert (status, problem["field"]) == (422, "query")
    status, problem = ask(served, query="a", queries=["b"], exemplar={"slide": "good.tif", "mask": DISC})
    assert (status, problem["field"]) == (422, "query")


def test_an_outline_of_too_many_vertices_is_413(slide_folder: Path, tmp_path: Path) -> None:
    for served in serve(slide_folder, tmp_path / "data", max_roi_vertices=20):
        status, problem = ask(served, exemplar={"slide": "good.tif", "mask": DISC})
        assert (status, problem["field"]) == (413, "exemplar.mask")


def test_a_model_that_takes_none_is_refused_with_those_that_do(served: Served) -> None:
    shown = {"slide": "good.tif", "mask": DISC}
    status, problem = ask(served, exemplar=shown, model="hue")
    assert (status, problem["field"]) == (422, "exemplar")
    assert problem["detail"] == "hue takes no exemplar; models that do: colour"
    cards = {model["name"]: model["exemplars"] for model in served.client.get("/v1/models").json()["models"]}
    assert cards == {"colour": True, "hue": False}


def test_a_worker_not_heard_from_yet_decides_when_it_plans(slide_folder: Path, tmp_path: Path) -> None:
    """Until then nothing is known of its tiles; what can be said of the outline is said at once."""
    for served in serve(slide_folder, tmp_path / "data"):
        status, problem = ask(served, exemplar={"slide": "good.tif", "mask": disc(5e4, 400, 60)})
        assert (status, problem["field"]) == (422, "exemplar.mask")
        status, job = ask(served, exemplar={"slide": "good.tif", "mask": DISC})
        assert status == 202
        served.run_jobs()
        failed = served.client.get(f"/v1/jobs/{job['jobID']}").json()
        assert (failed["status"], failed["error"]["field"]) == ("failed", "exemplar")


def test_a_reference_slide_larger_than_the_tile_is_cut_and_said(served: Served) -> None:
    big = {"type": "Polygon", "coordinates": [[[100, 100], [1100, 100], [1100, 800], [100, 800], [100, 100]]]}
    status, job = ask(served, exemplar={"slide": "good.tif", "mask": big}, mpp=1.0)
    assert status == 202
    run_jobs(served)
    done = served.client.get(f"/v1/jobs/{job['jobID']}").json()
    assert "only its densest part was shown" in done["result"]["answer"]


def test_the_api_describes_exemplars(served: Served) -> None:
    schemas = served.client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["ExemplarRequest"]["additionalProperties"] is False
    assert set(schemas["ExemplarRequest"]["required"]) == {"slide", "mask"}
    examples = schemas["JobRequest"]["examples"]
    assert any("exemplar" in example and "query" not in example for example in examples)
    for example in examples:
        body = {**example, "slide": "good.tif"}
        if "exemplar" in body:
            body["exemplar"] = {**body["exemplar"], "slide": "good.tif"}
        assert served.client.post("/v1/jobs", json=body).status_code == 202


def test_the_same_key_with_another_outline_is_another_body(served: Served) -> None:
    headers = {"Idempotency-Key": "one"}
    for mask, status in ((DISC, 202), (DISC, 202), (disc(700, 500, 60), 409)):
        body = {"slide": "good.tif", "exemplar": {"slide": "good.tif", "mask": mask}}
        assert served.client.post("/v1/jobs", json=body, headers=headers).status_code == status


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_reference_that_hangs_is_refused(served: Served, tmp_path: Path) -> None:
    pipe = served.folder / "pipe.svs"
    os.mkfifo(pipe)
    try:
        status, problem = ask(served, exemplar={"slide": "pipe.svs", "mask": DISC})
        assert (status, problem["field"]) == (422, "exemplar.slide")
    finally:
        pipe.unlink()

