"""Jobs over REST: asked, listed, looked at, dismissed; every refusal names the field."""

from pathlib import Path

import pytest

from service.errors import MEDIA_TYPE
from tests.service.conftest import QUERY, Served, serve
from worker.types import JobSpec

SQUARE = {"type": "Polygon", "coordinates": [[[100, 100], [500, 100], [500, 500], [100, 500], [100, 100]]]}


def ask(served: Served, **body) -> tuple[int, dict]:
    """Status and body of a job request; None takes a field out."""
    whole = {"slide": "good.tif", "query": QUERY, **body}
    answer = served.client.post("/v1/jobs", json={name: value for name, value in whole.items() if value is not None})
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert {"type", "title", "status", "code", "detail"} <= set(answer.json())
    return answer.status_code, answer.json()


def test_a_job_is_accepted_with_where_to_look_and_when(served: Served) -> None:
    answer = served.client.post("/v1/jobs", json={"slide": "good.tif", "query": f"  {QUERY} ", "magnification": 20})
    assert answer.status_code == 202
    status = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{status['jobID']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert (status["status"], status["type"], status["progress"]) == ("accepted", "process", 0)
    assert status["queries"] == [QUERY]
    assert status["tiles"] == {"done": 0, "total": 0, "failed": 0, "skipped": 0}
    assert served.client.get(answer.headers["location"]).json()["jobID"] == status["jobID"]
    assert served.rooms.ledger.job(status["jobID"]).spec.mpp == 0.5


def test_every_field_reaches_the_spec(served: Served) -> None:
    fields = {
        "mpp": 1.5, "roi": SQUARE, "tissue": "off", "mpp_override": 0.4, "overlap": 0.5, "threshold": 0.6,
        "min_region_um2": 10, "min_coverage": 0.9, "model": "hue", "priority": 3, "tile_size_px": 256,
    }  # fmt: skip
    spec = served.rooms.ledger.job(served.post(queries=["a", "b"], **fields)["jobID"]).spec
    assert spec == JobSpec(
        slide_path=str(served.folder / "good.tif"),
        slide_id=spec.slide_id,
        queries=("a", "b"),
        **{**fields, "roi": spec.roi},
    )
    assert spec.roi == (((100, 100), (500, 100), (500, 500), (100, 500), (100, 100)),)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"query": None}, "query"), ({"queries": ["a"]}, "query"), ({"query": "   "}, "query"),
        ({"query": "?!"}, "query"), ({"query": "a\0b"}, "query"), ({"query": 5}, "query"),
        ({"query": "x" * 1001}, "query"),
        ({"query": None, "queries": []}, "queries"), ({"query": None, "queries": ["a", " "]}, "queries"),
        ({"query": None, "queries": ["a", "a "]}, "queries"),
        ({"query": None, "queries": list("abcdefghijklmnopq")}, "queries"),
        ({"query": None, "queries": ["a", "x" * 1001]}, "queries[1]"),
        ({"mpp": 0}, "mpp"), ({"mpp": -1}, "mpp"), ({"mpp": "1"}, "mpp"), ({"mpp": 1e9}, "mpp"), ({"mpp": True}, "mpp"),
        ({"mpp": 1, "magnification": 10}, "magnification"), ({"magnification": 0}, "magnification"),
        ({"overlap": 0.76}, "overlap"), ({"threshold": 1}, "threshold"), ({"min_region_um2": -1}, "min_region_um2"),
        ({"min_coverage": 2}, "min_coverage"), ({"tissue": "maybe"}, "tissue"), ({"tile_size_px": 1}, "tile_size_px"),
        ({"mpp_override": 0}, "mpp_override"), ({"model": "none-such"}, "model"), ({"priority": 1.5}, "priority"),
        ({"roi": {"type": "Point", "coordinates": [1, 2]}}, "roi"), ({"roi": "all"}, "roi"),
        ({"roi": {"type": "Polygon", "coordinates": [[[5e4, 0], [6e4, 0], [6e4, 9], [5e4, 0]]]}}, "roi"),
        ({"exemplar": {}}, "exemplar.slide"), ({"qurey": "a"}, "qurey"),
        ({"slide": None}, "slide"), ({"slide": ""}, "slide"), ({"slide": 7}, "slide"),
        ({"slide": "s3://bucket/slide.svs"}, "slide"),
    ],
)  # fmt: skip
def test_a_field_that_is_not_accepted_is_named_and_nothing_is_stored(served: Served, change: dict, field: str) -> None:
    status, problem = ask(served, **change)
    assert (status, problem["field"]) == (422, field)
    assert problem["code"] == "bad-request"
    assert served.client.get("/v1/jobs").json()["jobs"] == []


def test_an_unknown_field_is_answered_with_the_known_ones(served: Served) -> None:
    detail = ask(served, mmp=1.0)[1]["detail"]
    assert "mpp_override" in detail
    assert "queries" in detail


@pytest.mark.parametrize(
    ("slide", "status", "code", "field"),
    [
        ("no_mpp.tif", 422, "mpp-unknown", "mpp_override"),
        ("text.svs", 422, "slide-unreadable", "slide"),
        ("empty.svs", 422, "slide-unreadable", "slide"),
        ("broken.svs", 422, "slide-unreadable", "slide"),
        ("missing.svs", 404, "slide-not-found", "slide"),
        ("0" * 32, 404, "slide-not-found", "slide"),
        ("../outside.svs", 403, "slide-forbidden", "slide"),
        ("file:///etc/passwd", 403, "slide-forbidden", "slide"),
        ("file:%2e%2e/%2e%2e/etc/passwd", 403, "slide-forbidden", "slide"),
    ],
)
def test_a_slide_that_cannot_be_used_is_a_clear_error(
    served: Served, slide: str, status: int, code: str, field: str
) -> None:
    got, problem = ask(served, slide=slide)
    assert (got, problem["code"], problem["field"]) == (status, code, field)
    assert str(served.folder) not in str(problem)
    assert "Traceback" not in str(problem)
    assert served.client.get("/v1/jobs").json()["jobs"] == []
    assert ask(served)[0] == 202, "the service goes on"


def test_mpp_override_makes_a_slide_without_resolution_usable(served: Served) -> None:
    assert ask(served, slide="no_mpp.tif", mpp_override=0.5)[0] == 202


def test_the_same_key_and_body_give_the_same_job(served: Served) -> None:
    body = {"slide": "good.tif", "query": QUERY, "mpp": 1.0}
    headers = {"Idempotency-Key": "one-1"}
    first = served.client.post("/v1/jobs", json=body, headers=headers)
    reordered = dict(reversed(body.items()))
    again = served.client.post("/v1/jobs", json=reordered, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.headers["location"] == again.headers["location"]
    other = served.client.post("/v1/jobs", json={**body, "mpp": 2.0}, headers=headers)
    assert (other.status_code, other.json()["code"], other.json()["field"]) == (409, "job-conflict", "Idempotency-Key")
    fresh = served.client.post("/v1/jobs", json=body)
    assert fresh.json()["jobID"] != first.json()["jobID"]
    assert len(served.client.get("/v1/jobs").json()["jobs"]) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "a b"])
def test_a_key_that_is_no_key_is_refused(served: Served, key: str) -> None:
    answer = served.client.post(
        "/v1/jobs", json={"slide": "good.tif", "query": QUERY}, headers={"Idempotency-Key": key}
    )
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


def test_too_many_open_jobs_are_429_with_retry_after(slide_folder: Path, tmp_path: Path) -> None:
    for served in serve(slide_folder, tmp_path / "data", max_open_jobs=2):
        jobs = [served.post()["jobID"] for _ in range(2)]
        full = served.client.post("/v1/jobs", json={"slide": "good.tif", "query": QUERY})
        assert (full.status_code, full.json()["code"]) == (429, "queue-full")
        assert int(full.headers["retry-after"]) > 0
        served.client.delete(f"/v1/jobs/{jobs[0]}")
        served.post()


def test_limits_of_polygons_and_tiles_are_413(slide_folder: Path, tmp_path: Path) -> None:
    for served in serve(slide_folder, tmp_path / "data", max_roi_vertices=4, max_tiles=20):
        status, problem = ask(served, roi=SQUARE)
        assert (status, problem["code"], problem["field"]) == (413, "too-large", "roi")
        status, problem = ask(served, mpp=0.1)
        assert (status, problem["field"]) == (413, "mpp")
        assert "larger mpp" in problem["detail"]


def test_the_list_is_newest_first_paged_and_filtered(served: Served) -> None:
    made = [served.post()["jobID"] for _ in range(5)]
    served.client.delete(f"/v1/jobs/{made[2]}")
    pages, url = [], "/v1/jobs?limit=2"
    while url:
        page = served.client.get(url).json()
        pages.append([job["jobID"] for job in page["jobs"]])
        url = next((link["href"] for link in page["links"] if link["rel"] == "next"), None)
    assert pages == [made[:2:-1], made[2:0:-1], made[:1]]
    assert [job["jobID"] for job in served.client.get("/v1/jobs?status=dismissed").json()["jobs"]] == [made[2]]
    slide = served.client.get(f"/v1/jobs/{made[0]}").json()["slide"]
    assert len(served.client.get(f"/v1/jobs?slide={slide}&status=accepted").json()["jobs"]) == 4
    assert served.client.get("/v1/jobs?slide=other").json()["jobs"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [("cursor=nonsense", "cursor"), ("limit=0", "limit"), ("limit=x", "limit"), ("status=odd", "status")],
)
def test_a_list_that_cannot_be_had_names_the_parameter(served: Served, query: str, field: str) -> None:
    answer = served.client.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_the_status_document_has_an_etag(served: Served) -> None:
    url = f"/v1/jobs/{served.post()['jobID']}"
    first = served.client.get(url)
    same = served.client.get(url, headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (same.status_code, same.content) == (304, b"")
    assert "retry-after" in same.headers
    served.client.delete(url)
    changed = served.client.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200
    assert "retry-after" not in changed.headers


def test_dismiss_is_idempotent(served: Served) -> None:
    url = f"/v1/jobs/{served.post()['jobID']}"
    bodies = [served.client.delete(url).json() for _ in range(2)]
    assert bodies[0] == bodies[1] == served.client.get(url).json()
    assert bodies[0]["status"] == "dismissed"


@pytest.mark.parametrize("job_id", ["0" * 32, "nonsense", "..%2f..%2fetc", "%00", "x" * 101])
@pytest.mark.parametrize("rest", ["", "/overlay/zarr.json", "/overlay.zip", "/regions", "/regions/x", "/report"])
def test_an_unknown_job_is_404_everywhere(served: Served, job_id: str, rest: str) -> None:
    answer = served.client.get(f"/v1/jobs/{job_id}{rest}")
    assert answer.status_code == (422 if len(job_id) > 100 else 404)
    assert answer.headers["content-type"] == MEDIA_TYPE


@pytest.mark.parametrize("rest", ["/overlay/zarr.json", "/overlay.zip", "/regions", "/regions.geojson.gz", "/report"])
def test_results_of_an_open_job_are_409_with_retry_after(served: Served, rest: str) -> None:
    url = f"/v1/jobs/{served.post()['jobID']}"
    early = served.client.get(url + rest)
    assert (early.status_code, early.json()["code"]) == (409, "job-not-finished")
    assert int(early.headers["retry-after"]) > 0
    served.client.delete(url)
    late = served.client.get(url + rest)
    assert (late.status_code, late.json()["code"]) == (409, "job-dismissed")
    assert "retry-after" not in late.headers
