"""Tenants behind a proxy that says who asks: nobody sees, stops or fills up another's jobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import MEDIA_TYPE
from tests.service.conftest import QUERY, Served, serve

HEADER = "X-Tenant"
A, B = {HEADER: "ward-a"}, {HEADER: "ward.b_2"}
BODY = {"slide": "good.tif", "query": QUERY}
RESULTS = ("/overlay/zarr.json", "/overlay.zip", "/regions", "/regions.geojson.gz", "/regions/x", "/report")


@pytest.fixture
def shared(slide_folder: Path, tmp_path: Path) -> Iterator[Served]:
    limits = {"max_open_jobs": 4, "max_open_jobs_per_tenant": 2}
    yield from serve(slide_folder, tmp_path / "data", tenant_header=HEADER, **limits)


def ask(served: Served, who: dict, **more: str) -> str:
    answer = served.client.post("/v1/jobs", json=BODY, headers={**who, **more})
    assert answer.status_code == 202, answer.text
    return answer.json()["jobID"]


@pytest.mark.parametrize("call", ["/v1/jobs", "/v1/jobs/x", "/v1/jobs/x/events", "/v1/slides", "/v1/models"])
def test_who_does_not_say_who_asks_is_refused(shared: Served, call: str) -> None:
    answer = shared.client.get(call)
    assert (answer.status_code, answer.json()["code"]) == (401, "tenant-missing")
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert HEADER.lower() in answer.json()["detail"].lower()
    assert "www-authenticate" in answer.headers


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "naïve", "a,b"])
def test_what_is_no_tenant_is_refused(shared: Served, name: str) -> None:
    answer = shared.client.get("/v1/jobs", headers=[(HEADER.encode(), name.encode())])
    assert (answer.status_code, answer.json()["code"]) == (403, "tenant-malformed")


def test_a_header_sent_twice_is_refused(shared: Served) -> None:
    answer = shared.client.get("/v1/jobs", headers=[(HEADER, "ward-a"), (HEADER, "ward.b_2")])
    assert (answer.status_code, answer.json()["code"]) == (403, "tenant-ambiguous")


def test_probes_and_metrics_belong_to_nobody(shared: Served) -> None:
    assert shared.client.get("/healthz").status_code == 200
    assert shared.client.get("/readyz").json()["code"] == "not-ready"
    assert shared.client.get("/metrics").status_code == 200


@pytest.mark.parametrize("rest", ["", "/events", *RESULTS])
def test_anothers_job_is_404_on_every_route(shared: Served, rest: str) -> None:
    job_id = ask(shared, A)
    answer = shared.client.get(f"/v1/jobs/{job_id}{rest}", headers=B)
    unknown = shared.client.get(f"/v1/jobs/{'0' * 32}{rest}", headers=B)
    assert (answer.status_code, answer.json()["code"]) == (404, "job-not-found")
    kept = [{**problem.json(), "request_id": ""} for problem in (answer, unknown)]
    assert kept[0] == kept[1], "nothing tells it from a job that never was"


def test_nobody_dismisses_or_lists_anothers_job(shared: Served) -> None:
    job_id = ask(shared, A)
    assert shared.client.delete(f"/v1/jobs/{job_id}", headers=B).status_code == 404
    assert shared.client.get(f"/v1/jobs/{job_id}", headers=A).json()["status"] == "accepted"
    assert shared.client.get("/v1/jobs", headers=B).json()["jobs"] == []
    assert [job["jobID"] for job in shared.client.get("/v1/jobs", headers=A).json()["jobs"]] == [job_id]
    assert shared.client.delete(f"/v1/jobs/{job_id}", headers=A).json()["status"] == "dismissed"


def test_keys_of_two_tenants_never_meet(shared: Served) -> None:
    key = {"Idempotency-Key": "one"}
    first = ask(shared, A, **key)
    assert ask(shared, A, **key) == first
    assert ask(shared, B, **key) != first


def test_a_tenant_fills_its_own_share_and_all_together_the_whole(shared: Served) -> None:
    for _ in range(2):
        ask(shared, A)
    full = shared.client.post("/v1/jobs", json=BODY, headers=A)
    assert (full.status_code, full.json()["code"]) == (429, "queue-full")
    assert "2 of your jobs are open and 2 is the limit" in full.json()["detail"]
    assert 5 <= int(full.headers["retry-after"]) <= 300
    for _ in range(2):
        ask(shared, B)
    full = shared.client.post("/v1/jobs", json=BODY, headers={HEADER: "ward-c"})
    assert (full.status_code, full.json()["code"]) == (429, "queue-full")
    assert "4 jobs are open and 4 is the limit" in full.json()["detail"]


def test_without_the_setting_everybody_is_one_tenant(served: Served) -> None:
    job_id = ask(served, A)
    assert served.client.get(f"/v1/jobs/{job_id}", headers=B).status_code == 200
    assert served.rooms.ledger.job(job_id).tenant == "default"
