"""Results of a job that the real pipeline finished: overlay, zip, regions, report."""

import asyncio
import gzip
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from urllib.parse import unquote

import fsspec
import numpy as np
import pytest
import uvicorn
import zarr
from shapely.geometry import shape

from service.errors import MEDIA_TYPE
from service.routes.reports import OFFERED
from tests.service.conftest import QUERY, Served

Finished = tuple[Served, str]


@pytest.fixture(scope="module")
def url(finished: Finished) -> Iterator[str]:
    """The finished job's address on a real socket."""
    served, job_id = finished
    server = uvicorn.Server(uvicorn.Config(served.client.app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1/jobs/{job_id}"
    finally:
        server.should_exit = True
        thread.join()


def get(finished: Finished, rest: str, **headers: str):
    served, job_id = finished
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return served.client.get(f"/v1/jobs/{job_id}{rest}", headers=named)


def a_chunk(finished: Finished) -> tuple[str, bytes]:
    """Key and bytes of one stored shard."""
    served, job_id = finished
    root = served.rooms.artifacts.job_folder(job_id) / "overlay.zarr"
    path = next(path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "zarr.json")
    return path.relative_to(root).as_posix(), path.read_bytes()


def test_the_status_says_where_the_results_are(finished: Finished) -> None:
    status = get(finished, "").json()
    assert (status["status"], status["progress"]) == ("successful", 100)
    assert status["result"]["regions"] >= 2
    served, _ = finished
    for link in status["links"]:
        if not link["href"].endswith("/overlay/"):
            assert served.client.get(link["href"], headers={"Accept": link["type"]}).status_code == 200, link


def test_the_overlay_url_opens_in_zarr(finished: Finished, url: str) -> None:
    group = zarr.open_group(f"{url}/overlay/", mode="r")
    served, job_id = finished
    local = zarr.open_group(served.rooms.artifacts.job_folder(job_id) / "overlay.zarr", mode="r")
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    labels = group["labels"].attrs["ome"]["labels"]
    assert len(labels) == 2
    for name in labels:
        levels = group["labels"][name].attrs["ome"]["multiscales"][0]["datasets"]
        assert len(levels) == len(ome["multiscales"][0]["datasets"])
        for level in levels:
            path = f"labels/{name}/{level['path']}"
            assert np.array_equal(group[path][:], local[path][:])
    assert group[f"labels/{labels[0]}/0"][:].max() >= 2


def test_fsspec_reads_ranges_of_the_overlay(finished: Finished, url: str) -> None:
    key, data = a_chunk(finished)
    store = fsspec.filesystem("http")
    assert store.info(f"{url}/overlay/{key}")["size"] == len(data)
    assert store.cat_file(f"{url}/overlay/{key}", start=3, end=9) == data[3:9]
    assert store.cat_file(f"{url}/overlay/{key}", start=-5) == data[-5:]
    assert not store.exists(f"{url}/overlay/c/99/99")


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=5-", slice(5, None)),
        ("bytes=0-99999999", slice(None)),
    ],
)
def test_ranges_are_served(finished: Finished, wanted: str, part: slice) -> None:
    key, data = a_chunk(finished)
    answer = get(finished, f"/overlay/{key}", Range=wanted)
    assert answer.status_code == 206
    assert answer.content == data[part]
    start = len(data[: part.start]) if part.start is not None else 0
    assert answer.headers["content-range"] == f"bytes {start}-{start + len(data[part]) - 1}/{len(data)}"


def test_several_ranges_are_served_at_once(finished: Finished) -> None:
    key, data = a_chunk(finished)
    answer = get(finished, f"/overlay/{key}", Range="bytes=0-1,5-6")
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert data[5:7] in answer.content


@pytest.mark.parametrize(
    ("wanted", "status"),
    [("bytes=99999999-", 416), ("bytes=-0", 416), ("bytes=9-3", 416), ("bytes=x-y", 400), ("rows=1-2", 400)],
)
def test_a_range_that_is_none_is_a_problem(finished: Finished, wanted: str, status: int) -> None:
    key, data = a_chunk(finished)
    answer = get(finished, f"/overlay/{key}", Range=wanted)
    assert (answer.status_code, answer.headers["content-type"]) == (status, MEDIA_TYPE)
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{len(data)}"


def test_a_key_has_an_etag_and_a_head(finished: Finished) -> None:
    served, job_id = finished
    key, data = a_chunk(finished)
    whole = get(finished, f"/overlay/{key}")
    assert whole.content == data
    assert whole.headers["accept-ranges"] == "bytes"
    same = get(finished, f"/overlay/{key}", If_None_Match=whole.headers["etag"])
    assert (same.status_code, same.content) == (304, b"")
    part = get(finished, f"/overlay/{key}", Range="bytes=0-3", If_Range=whole.headers["etag"])
    assert (part.status_code, part.content) == (206, data[:4])
    assert get(finished, f"/overlay/{key}", Range="bytes=0-3", If_Range='"old"').status_code == 200
    head = served.client.head(f"/v1/jobs/{job_id}/overlay/{key}")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(data)))
    assert head.headers["etag"] == whole.headers["etag"]


def test_metadata_is_json(finished: Finished) -> None:
    answer = get(finished, "/overlay/zarr.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["zarr_format"] == 3


@pytest.mark.parametrize(
    "key",
    [
        "", "c/9/9", "labels", "labels/", "zarr.json/", "../report.json", "%2e%2e/report.json", "..%2freport.json",
        "%2e%2e%2freport.json", "..%2f..%2f..%2f..%2fledger.sqlite", "%252e%252e/report.json", "..%5creport.json",
        "/etc/passwd",
        "%2fetc%2fpasswd", "labels/../zarr.json", "labels/%2e%2e/zarr.json", "./zarr.json", "%2e/zarr.json",
        "zarr.json%00", "%00", "a" * 300, "labels//zarr.json", "link",
    ],
)  # fmt: skip
def test_no_other_key_leads_anywhere(finished: Finished, key: str) -> None:
    served, job_id = finished
    link = served.rooms.artifacts.job_folder(job_id) / "overlay.zarr" / "link"
    if not link.is_symlink():
        link.symlink_to(served.rooms.artifacts.job_folder(job_id) / "report.json")
    try:
        assert raw_get(served, f"/v1/jobs/{job_id}/overlay/zarr.json") == 200
        assert raw_get(served, f"/v1/jobs/{job_id}/overlay/{key}") == 404
    finally:
        link.unlink()


def raw_get(served: Served, path: str) -> int:
    """Status of a GET whose path no client library has tidied, decoded as uvicorn decodes it."""
    seen: list[int] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    scope = {
        "type": "http", "method": "GET", "path": unquote(path), "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")], "http_version": "1.1", "scheme": "http", "root_path": "",
        "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "asgi": {"version": "3.0", "spec_version": "2.4"},
    }  # fmt: skip
    asyncio.run(served.client.app(scope, receive, send))
    return seen[0]


def test_pages_elsewhere_may_read_results_and_nothing_else(finished: Finished) -> None:
    served, job_id = finished
    origin = {"Origin": "https://hms-dbmi.github.io"}
    for rest in ("/overlay/zarr.json", "/overlay/no/such/chunk", "/regions", "/report", "/overlay.zip"):
        assert get(finished, rest, **origin).headers["access-control-allow-origin"] == "*", rest
    asked = {**origin, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "range"}
    preflight = served.client.options(f"/v1/jobs/{job_id}/overlay/zarr.json", headers=asked)
    assert preflight.status_code == 200
    assert "Range" in preflight.headers["access-control-allow-headers"]
    exposed = get(finished, "/overlay/zarr.json", **origin).headers["access-control-expose-headers"]
    assert {"Content-Range", "ETag"} <= set(exposed.split(", "))
    for path in ("/v1/jobs", "/v1/slides", f"/v1/jobs/{job_id}"):
        assert "access-control-allow-origin" not in served.client.get(path, headers=origin).headers
    assert served.client.delete(f"/v1/jobs/{job_id}", headers=origin).status_code == 403


def test_the_zip_is_the_store(finished: Finished, tmp_path) -> None:
    served, job_id = finished
    root = served.rooms.artifacts.job_folder(job_id) / "overlay.zarr"
    answer = get(finished, "/overlay.zip")
    assert answer.headers["content-type"] == "application/zip"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as opened:
        assert opened.testzip() is None
        assert {name: opened.read(name) for name in opened.namelist()} == {
            path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
        }
    path = tmp_path / "overlay.zip"
    path.write_bytes(answer.content)
    group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    assert group.attrs["ome"]["version"] == "0.5"
    assert get(finished, "/overlay.zip", If_None_Match=answer.headers["etag"]).status_code == 304
    head = served.client.head(f"/v1/jobs/{job_id}/overlay.zip")
    assert (head.headers["content-length"], head.content) == (answer.headers["content-length"], b"")


def test_regions_are_geojson_with_ids_of_the_overlay(finished: Finished) -> None:
    answer = get(finished, "/regions")
    assert answer.headers["content-type"] == "application/geo+json"
    features = answer.json()["features"]
    assert len(features) == get(finished, "").json()["result"]["regions"]
    assert all(shape(feature["geometry"]).is_valid for feature in features)
    assert {feature["properties"]["classification"]["name"] for feature in features} == {QUERY, "Is there a gland?"}
    report = get(finished, "/report").json()
    assert [region["region_id"] for region in report["regions"]] == [feature["id"] for feature in features]
    packed = get(finished, "/regions.geojson.gz")
    assert gzip.decompress(packed.content) == answer.content


def test_regions_are_filtered(finished: Finished) -> None:
    features = get(finished, "/regions").json()["features"]
    boxes = {feature["id"]: shape(feature["geometry"]).bounds for feature in features}
    areas = {feature["id"]: feature["properties"]["measurements"]["Area µm^2"] for feature in features}
    x0, y0, x1, y1 = next(iter(boxes.values()))
    wanted = {key for key, box in boxes.items() if box[0] <= x1 and box[2] >= x0 and box[1] <= y1 and box[3] >= y0}
    found = get(finished, f"/regions?bbox={x0},{y0},{x1},{y1}").json()
    assert {feature["id"] for feature in found["features"]} == wanted != set(boxes)
    middle = sorted(areas.values())[len(areas) // 2]
    found = get(finished, f"/regions?min_area_um2={middle}").json()
    assert {feature["id"] for feature in found["features"]} == {key for key, area in areas.items() if area >= middle}
    assert found["numberReturned"] == len(found["features"]) < len(areas)
    assert get(finished, "/regions?bbox=-9,-9,-1,-1").json()["features"] == []


def test_regions_are_paged(finished: Finished) -> None:
    served, job_id = finished
    whole = [feature["id"] for feature in get(finished, "/regions").json()["features"]]
    found, next_url, pages = [], f"/v1/jobs/{job_id}/regions?limit=2&min_area_um2=1", 0
    while next_url:
        page = served.client.get(next_url).json()
        found += [feature["id"] for feature in page["features"]]
        next_url = page["links"][0]["href"] if page["links"] else None
        assert bool(next_url) == bool(page["next_cursor"])
        pages += 1
    assert found == whole
    assert pages == -(-len(whole) // 2)


@pytest.mark.parametrize(
    ("query", "field"),
    [("bbox=1,2,3", "bbox"), ("bbox=5,5,1,1", "bbox"), ("bbox=a,b,c,d", "bbox"), ("bbox=0,0,inf,inf", "bbox"),
     ("bbox=nan,0,1,1", "bbox"), ("limit=0", "limit"), ("min_area_um2=-1", "min_area_um2"),
     ("min_area_um2=nan", "min_area_um2"),
     ("frame=qupath", "frame"), ("cursor=MQ", "cursor"), ("cursor=!!", "cursor"), ("cursor=OTk5OTk5OTk5", "cursor")],
)  # fmt: skip
def test_a_filter_that_is_not_accepted_is_named(finished: Finished, query: str, field: str) -> None:
    answer = get(finished, f"/regions?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_frame_bounds_shifts_to_the_scanned_area(finished: Finished) -> None:
    served, job_id = finished
    path = served.rooms.artifacts.job_folder(job_id) / "report.json"
    kept = path.read_bytes()
    report = json.loads(kept)
    assert report["slide"]["bounds_px0"] is None
    first = get(finished, "/regions").json()["features"][0]
    assert get(finished, "/regions?frame=bounds").json()["features"][0]["geometry"] == first["geometry"]
    report["slide"]["bounds_px0"] = [100, 50, 500, 500]
    path.write_text(json.dumps(report))
    try:
        shifted = get(finished, "/regions?frame=bounds").json()
        assert shifted["slidereason"]["frame"] == "bounds"
        moved = np.array(shifted["features"][0]["geometry"]["coordinates"][0])
        assert np.array_equal(moved + (100, 50), np.array(first["geometry"]["coordinates"][0]))
        region = get(finished, f"/regions/{first['id']}?frame=bounds").json()
        assert region["bbox"][0] == shape(first["geometry"]).bounds[0] - 100
    finally:
        path.write_bytes(kept)


def test_one_region_has_chain_tiles_and_evidence(finished: Finished) -> None:
    feature = get(finished, "/regions").json()["features"][0]
    region = get(finished, f"/regions/{feature['id']}").json()
    assert region["feature"] == feature
    assert region["region_id"] == feature["id"]
    assert region["query"] == QUERY
    assert region["chain"] == feature["properties"]["metadata"]["chain"] != ""
    assert region["chain_tile"]["key"]
    assert 0 < region["confidence"] <= 1
    assert {"support", "dissent", "agreement", "area_um2", "bbox_px0", "weak"} <= set(region)
    assert region["tiles"][0]["share"] > 0 and region["contradictions"]["checked"] >= 1
    assert region["stain"] is None, "the segmenter of the tests does not know what stains it was trained on"


@pytest.mark.parametrize("region_id", ["x", "00000000-0000-0000-0000-000000000000", "Feature", "%22", "level0"])
def test_an_unknown_region_is_404(finished: Finished, region_id: str) -> None:
    answer = get(finished, f"/regions/{region_id}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, MEDIA_TYPE)


def test_the_report_comes_in_the_form_accepted(finished: Finished) -> None:
    plain = get(finished, "/report")
    assert plain.headers["content-type"] == "application/json"
    assert plain.json()["answer"]
    page = get(finished, "/report", Accept="text/html,application/xml;q=0.9,*/*;q=0.8")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "Research use only" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert {plain.headers["vary"].split(",")[0], page.headers["vary"].split(",")[0]} == {"Accept"}
    assert plain.headers["etag"] != page.headers["etag"]
    other = get(finished, "/report", Accept="image/gif")
    assert (other.status_code, other.json()["accepted"]) == (406, list(OFFERED))
    assert "application/json" in other.json()["detail"]


def test_no_result_tells_a_path(finished: Finished) -> None:
    served, _ = finished
    for rest in ("", "/regions", "/report", "/overlay/zarr.json"):
        assert str(served.folder) not in get(finished, rest).text
    assert str(served.folder) not in get(finished, "/report", Accept="text/html").text
