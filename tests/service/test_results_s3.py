"""The same results from a bucket as from a folder: one finished job, copied, behind a second application."""

import re
from collections.abc import Iterator

import pytest

from tests.s3_server import S3Server
from tests.service.conftest import Served, serve
from tests.service.test_results import raw_get
from worker import artifacts_s3

OF_THE_STORAGE = ("etag", "last-modified", "x-request-id")
"""Headers that may differ between two storages of the same bytes."""


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


@pytest.fixture(scope="module")
def both(finished: tuple[Served, str], server: S3Server) -> Iterator[tuple[Served, Served, str]]:
    """An application on a folder, one on a bucket with the same content over the same ledger, and the job."""
    local, job_id = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(artifacts_s3.RETRY, "max_retries", 1)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        url = server.url("results/of/tests")
        for served in serve(local.folder, local.rooms.settings.data, artifacts=url):
            reader, store = local.rooms.artifacts.read(job_id), served.rooms.artifacts
            for key, _, _ in reader.list():
                store.put(f"jobs/{job_id}/{key}", b"".join(reader.chunks(key)))
            yield local, served, job_id
            server.fail(False)


def largest(served: Served, job_id: str) -> tuple[str, int]:
    """Key and size of the largest file of the overlay that is no metadata."""
    listed = [(size, key) for key, size, _ in served.rooms.artifacts.read(job_id).list("overlay.zarr")]
    size, key = max(entry for entry in listed if not entry[1].endswith("zarr.json"))
    return key.removeprefix("overlay.zarr/"), size


def comparable(answer) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body without what names the storage or the request."""
    boundary = re.search("boundary=(.*)", answer.headers.get("content-type", ""))
    headers = {name: value for name, value in answer.headers.items() if name not in OF_THE_STORAGE}
    body = answer.content
    if boundary:
        headers["content-type"] = headers["content-type"].replace(boundary[1], "B")
        body = body.replace(boundary[1].encode(), b"B")
    if "json" in headers.get("content-type", "") and "problem" in headers["content-type"]:
        body = re.sub(rb',? ?"request_id":"[^"]*"', b"", body)
        headers.pop("content-length")
    return answer.status_code, headers, body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("rest", "headers"),
    [
        ("/overlay/zarr.json", {}),
        ("/overlay/KEY", {}),
        ("/overlay/KEY", {"Range": "bytes=0-9"}),
        ("/overlay/KEY", {"Range": "bytes=-7"}),
        ("/overlay/KEY", {"Range": "bytes=5-"}),
        ("/overlay/KEY", {"Range": "bytes=3-99999999"}),
        ("/overlay/KEY", {"Range": "bytes=0-1,5-6"}),
        ("/overlay/KEY", {"Range": "bytes=9-12, 0-3, 2-5,-1"}),
        ("/overlay/KEY", {"Range": "bytes=" + ",".join(f"{2 * i}-{2 * i}" for i in range(101))}),
        ("/overlay/KEY", {"Range": "bytes=0-3", "If-Range": '"old"'}),
        ("/overlay/KEY", {"Range": "bytes=x-y", "If-Range": '"old"'}),
        ("/overlay/KEY", {"Range": "bytes=99999999-"}),
        ("/overlay/KEY", {"Range": "bytes=-0"}),
        ("/overlay/KEY", {"Range": "bytes=9-3"}),
        ("/overlay/KEY", {"Range": "bytes=x-y"}),
        ("/overlay/KEY", {"Range": "rows=1-2"}),
        ("/overlay/KEY", {"If-None-Match": "*"}),
        ("/overlay/c/99/99", {}),
        ("/overlay.zip", {}),
        ("/regions", {}),
        ("/regions", {"Range": "bytes=10-19"}),
        ("/regions?limit=1", {}),
        ("/regions?bbox=0,0,500,500&frame=bounds", {}),
        ("/regions?cursor=MQ", {}),
        ("/regions?cursor=OTk5OTk5OTk5", {}),
        ("/regions.geojson.gz", {}),
        ("/regions/none", {}),
        ("/report", {}),
        ("/report", {"Accept": "text/html"}),
        ("/report", {"Accept": "image/png"}),
    ],
)  # fmt: skip
def test_a_bucket_answers_as_a_folder_does(both, rest: str, headers: dict[str, str], method: str) -> None:
    local, bucket, job_id = both
    path = f"/v1/jobs/{job_id}{rest.replace('KEY', largest(local, job_id)[0])}"
    answers = [served.client.request(method, path, headers=headers) for served in (local, bucket)]
    assert comparable(answers[1]) == comparable(answers[0])
    assert answers[0].status_code != 500


def test_every_page_and_every_region_is_the_same(both) -> None:
    local, bucket, job_id = both
    for path in (f"/v1/jobs/{job_id}/regions?limit=1",):
        while path:
            pages = [served.client.get(path).json() for served in (local, bucket)]
            assert pages[0] == pages[1]
            region = pages[0]["features"][0]["id"]
            shown = [served.client.get(f"/v1/jobs/{job_id}/regions/{region}").json() for served in (local, bucket)]
            assert shown[0] == shown[1]
            path = next((link["href"] for link in pages[0]["links"] if link["rel"] == "next"), None)


def test_a_bucket_has_etags_of_its_own(both) -> None:
    _, bucket, job_id = both
    key, size = largest(bucket, job_id)
    path = f"/v1/jobs/{job_id}/overlay/{key}"
    whole = bucket.client.get(path)
    assert len(whole.content) == size
    for name in ("etag", "last-modified"):
        part = bucket.client.get(path, headers={"Range": "bytes=0-3", "If-Range": whole.headers[name]})
        assert (part.status_code, part.content) == (206, whole.content[:4])
    same = bucket.client.get(path, headers={"If-None-Match": f'"other", W/{whole.headers["etag"]}'})
    assert (same.status_code, same.content) == (304, b"")
    other = bucket.client.get(f"/v1/jobs/{job_id}/overlay/zarr.json")
    assert other.headers["etag"] != whole.headers["etag"]
    archive = bucket.client.get(f"/v1/jobs/{job_id}/overlay.zip")
    assert bucket.client.get(
        f"/v1/jobs/{job_id}/overlay.zip", headers={"If-None-Match": archive.headers["etag"]}
    ).status_code == 304  # fmt: skip


@pytest.mark.parametrize(
    "key",
    [
        "", "labels", "labels/", "zarr.json/", "../report.json", "%2e%2e/report.json", "..%2freport.json",
        "%2e%2e%2freport.json", "..%2f..%2f..%2fother%2fsecret", "%252e%252e/report.json", "..%5creport.json",
        "%2fetc%2fpasswd", "labels/../zarr.json", "./zarr.json", "%2e/zarr.json", "zarr.json%00", "%00", "%0a",
        "a" * 300, "labels//zarr.json", "%3f", "zarr.json%3fversionId=1",
    ],
)  # fmt: skip
def test_no_key_leads_out_of_the_overlay(both, key: str) -> None:
    _, bucket, job_id = both
    assert raw_get(bucket, f"/v1/jobs/{job_id}/overlay/zarr.json") == 200
    assert raw_get(bucket, f"/v1/jobs/{job_id}/overlay/{key}") == 404


@pytest.mark.parametrize(
    "rest",
    [
        "/overlay/zarr.json",
        "/overlay.zip",
        "/regions",
        "/regions?limit=1",
        "/regions.geojson.gz",
        "/regions/x",
        "/report",
    ],
)  # fmt: skip
def test_a_bucket_that_is_away_is_said_and_comes_back(both, server: S3Server, rest: str) -> None:
    _, bucket, job_id = both
    path = f"/v1/jobs/{job_id}{rest}"
    before = bucket.client.get(path)
    server.fail()
    try:
        away = bucket.client.get(path)
    finally:
        server.fail(False)
    assert (away.status_code, away.headers["content-type"]) == (503, "application/problem+json")
    assert int(away.headers["retry-after"]) > 0
    assert "127.0.0.1" not in away.text, "where the storage is concerns nobody outside"
    assert comparable(bucket.client.get(path)) == comparable(before)


def test_readiness_knows_of_the_bucket(both, server: S3Server) -> None:
    _, bucket, _ = both
    assert bucket.client.get("/readyz").json()["checks"]["artifacts"] is True
    server.fail()
    try:
        assert bucket.client.get("/readyz").json()["checks"]["artifacts"] is False
    finally:
        server.fail(False)


def test_the_gateway_keeps_no_copies_on_its_disk(both) -> None:
    _, bucket, _ = both
    assert bucket.rooms.artifacts.scratch.folder is None
