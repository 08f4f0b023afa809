"""The published schema of the report: every report obeys it, a damaged one does not, and it names every field."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator

from service.routes import schemas_published
from tests.jobs import COLOUR, hue_spec
from tests.segmenters import colour_segmenter
from tests.worker.overlay_job import JOB_ID, make_info, make_plan
from tests.worker.report_jobs import CARD, real_job, run_job, stained_slide
from worker.report import build_report
from worker.types import ExemplarSpec, JobSpec, TileRecord

SCHEMA = json.loads((resources.files("worker") / "report_schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)


def faults(report: dict[str, Any]) -> list[str]:
    return sorted(error.json_path for error in VALIDATOR.iter_errors(report))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a job by the real pipeline, two questions, regions found."""
    return real_job(tmp_path_factory.mktemp("real")).report


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a job that was shown an example."""
    root = tmp_path_factory.mktemp("shown")
    slide = stained_slide(root / "slide.tif")
    ring = ((400.0, 350.0), (500.0, 350.0), (500.0, 450.0), (400.0, 450.0), (400.0, 350.0))
    spec = hue_spec(slide, exemplar=ExemplarSpec(str(slide), "slide.tif", ((ring,),)), model=COLOUR)
    return run_job(root, spec, colour_segmenter()).report


def built(records: list[TileRecord], changes: dict[str, Any] | None = None, **plan: Any) -> dict[str, Any]:
    """A report of a job that found nothing."""
    spec = JobSpec("/slides/slide.svs", "slide-7", ("Is there amyloid?",), roi=(((0, 0), (9, 0), (9, 9)),))
    info = make_info(2600, 1800, **(changes or {}))
    report = build_report(JOB_ID, spec, replace(make_plan(1300, 900), **plan), info, [], records, CARD, {"plan": 0.2})
    return json.loads(json.dumps(report))


def failed(count: int) -> list[TileRecord]:
    return [TileRecord(f"{n // 7}_{n % 7}", 0, 0, 0, 256, error="the file is truncated") for n in range(count)]


def test_it_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)


def test_reports_of_real_jobs_obey_it(report: dict[str, Any], shown: dict[str, Any]):
    assert len(report["regions"]) == 6 and faults(report) == []
    assert shown["exemplar"]["key"] and shown["regions"] and faults(shown) == []


@pytest.mark.parametrize(
    "case",
    [
        built([TileRecord("0_0", 0, 0, 0, 256, text="<think>Stroma.</think> No.")]),
        built(failed(3)),
        built([], n_tiles=0, n_skipped=35, block_keys=(), wanted="AAAAAAA="),
        built([], {"mpp_x": None, "mpp_y": None, "mpp_source": None, "objective_power": None, "content_hash": ""}),
        built([], {"bounds_px0": (10, 20, 2000, 1500)}),
    ],
    ids=["not found", "failed tiles", "nothing looked at", "little known", "bounds"],
)
def test_reports_of_all_sorts_obey_it(case: dict[str, Any]):
    assert faults(case) == []


def described(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A schema and those that it refers to or chooses among."""
    if "$ref" in schema:
        yield from described(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from described(choice)
    yield schema


def unknown(value: Any, schema: dict[str, Any], path: str = "$") -> list[str]:
    """Fields of a report that the schema does not name."""
    schemas = list(described(schema))
    if isinstance(value, list):
        items = next(part["items"] for part in schemas if "items" in part)
        return [name for child in value for name in unknown(child, items, f"{path}[]")]
    if not isinstance(value, dict):
        return []
    named: dict[str, Any] = {name: child for part in schemas for name, child in part.get("properties", {}).items()}
    if any("additionalProperties" in part for part in schemas):
        return []
    lost = [f"{path}.{name}" for name in value if name not in named]
    known = [(name, child) for name, child in value.items() if name in named]
    return lost + [found for name, child in known for found in unknown(child, named[name], f"{path}.{name}")]


def test_it_names_every_field(report: dict[str, Any], shown: dict[str, Any]):
    assert unknown(report, SCHEMA) + unknown(shown, SCHEMA) + unknown(built(failed(3)), SCHEMA) == []
    odd = copy.deepcopy(report)
    odd["regions"][0]["chain_tile"]["mood"] = "good"
    assert unknown(odd, SCHEMA) == ["$.regions[].chain_tile.mood"]


def set_at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(report: Any) -> None:
        for key in path[:-1]:
            report = report[key]
        report[path[-1]] = value

    return change


def lose(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(report: Any) -> None:
        for key in path[:-1]:
            report = report[key]
        del report[path[-1]]

    return change


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (set_at("schema", value="slidereason.report/2"), "$.schema"),
        (set_at("use", value="For the clinic."), "$.use"),
        (lose("answer"), "$"),
        (lose("coverage", "failed_tiles"), "$.coverage"),
        (set_at("coverage", "coverage", value=1.2), "$.coverage.coverage"),
        (set_at("queries", value=[]), "$.queries"),
        (set_at("queries", 0, "found", value=False), "$.queries[0].regions"),
        (set_at("queries", 0, "largest_region", value=None), "$.queries[0].largest_region"),
        (set_at("regions", 0, "region_id", value="7"), "$.regions[0].region_id"),
        (set_at("regions", 0, "area_um2", value="1400"), "$.regions[0].area_um2"),
        (set_at("regions", 0, "bbox_px0", value=[1, 2, 3]), "$.regions[0].bbox_px0"),
        (set_at("regions", 0, "place", value="nowhere"), "$.regions[0].place"),
        (lose("regions", 0, "chain_tile", "key"), "$.regions[0].chain_tile"),
        (set_at("regions", 0, "support", value=["left"]), "$.regions[0].support[0]"),
        (set_at("slide", "width_px0", value=0), "$.slide.width_px0"),
        (set_at("parameters", "connectivity", value=6), "$.parameters.connectivity"),
        (lose("model", "revision"), "$.model"),
    ],
)
def test_a_damaged_report_is_refused(report: dict[str, Any], damage: Callable, where: str):
    broken = copy.deepcopy(report)
    damage(broken)
    assert where in faults(broken)


def test_it_is_served(tmp_path: Path):
    app = FastAPI()
    app.include_router(schemas_published.router)
    with TestClient(app) as client:
        answer = client.get("/v1/schemas/report.json")
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/schema+json"
        assert answer.json() == SCHEMA
        again = client.get("/v1/schemas/report.json", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.head("/v1/schemas/report.json").headers["content-length"] == str(len(answer.content))
