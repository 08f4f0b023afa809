"""The examples for other programs: what napari is given, and what the script for QuPath asks the service for."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest

from benchmarks.readers import Served, serving_overlay

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_overlay(tmp_path_factory.mktemp("tools")) as served:
        yield served


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("napari_open_job", EXAMPLES / "napari_open_job.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parts(served: Served) -> tuple[str, str]:
    """Service and job of the overlay's URL."""
    service, _, rest = served.url.partition("/v1/jobs/")
    return service, rest.partition("/")[0]


def test_napari_is_given_pictures_labels_and_probabilities(served: Served, example: ModuleType):
    layers = example.read_job(*parts(served))
    assert [kind for _, _, kind in layers] == ["image", "image", "labels", "image", "labels"]
    picture, told, _ = layers[0]
    assert picture[0].shape[0] == 3 and told["channel_axis"] == 0 and int(np.asarray(picture[-1]).max()) > 0
    report = json.loads((served.folder.parent / "report.json").read_text(encoding="utf-8"))
    for levels, told, kind in layers:
        if kind != "labels":
            continue
        query = next(query for query in report["queries"] if query["query"] == told["name"])
        own = [region for region in report["regions"] if region["query_index"] == query["query_index"]]
        assert sorted(told["features"]["region_id"]) == sorted(region["region_id"] for region in own)
        pixels = np.asarray(levels[0])
        assert sorted(told["features"]["index"]) == sorted(set(np.unique(pixels).tolist()) - {0})
        # a region's area in the layer's own units
        region = own[0]
        area = int((pixels == region["label"]).sum()) * np.prod(told["scale"])
        assert area == pytest.approx(region["area_um2"], rel=1e-6)


def test_without_napari_it_says_what_to_install(served: Served):
    if importlib.util.find_spec("napari") is not None:
        pytest.skip("napari is installed; it would open a window")
    said = subprocess.run(
        [sys.executable, EXAMPLES / "napari_open_job.py", *parts(served)], capture_output=True, text=True, check=False
    )
    assert said.returncode == 2 and "napari[all]" in said.stderr


def test_what_the_script_for_qupath_asks_for_is_there(served: Served):
    script = (EXAMPLES / "qupath_load_job.groovy").read_text(encoding="utf-8")
    asked = re.findall(r'open\("\$\{service\}(/v1/jobs/\$\{job\}/[^"]+)", \'([^\']+)\'', script)
    assert [accept for _, accept in asked] == ["application/json", "application/geo+json"]
    service, job = parts(served)
    for frame in ("level0", "bounds"):
        for path, accept in asked:
            address = service + path.replace("${job}", job).replace("${frame}", frame)
            answer = httpx.get(address, headers={"Accept": accept}, timeout=60)
            assert answer.status_code == 200 and answer.headers["content-type"].startswith(accept)
    report = httpx.get(f"{service}/v1/jobs/{job}/report", headers={"Accept": "application/json"}, timeout=60).json()
    assert {"width_px0", "height_px0", "bounds_px0"} <= set(report["slide"]) and "answer" in report
