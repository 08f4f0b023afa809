"""Two gateways over one ledger and one store behave as one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from tests.databases import database_urls
from tests.service.conftest import OPENED, QUERY, Served, make_settings

BODY = {"slide": "good.tif", "query": QUERY, "mpp": 1.0}


@pytest.fixture(params=["sqlite", "postgresql"])
def gateways(request: pytest.FixtureRequest, slide_folder: Path, tmp_path: Path) -> Iterator[list[Served]]:
    with ExitStack() as stack:
        url = stack.enter_context(database_urls(request.param, tmp_path))
        shared = {"database_url": url, "artifacts": str(tmp_path / "artifacts"), "max_open_jobs": 100}
        found = []
        for name in ("one", "two"):
            app = create_app(make_settings(slide_folder, tmp_path / name, **shared))
            app.state.rooms.catalogue._known = OPENED
            client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
            found.append(Served(stack.enter_context(client), app.state.rooms, slide_folder))
        yield found


def test_one_key_sent_to_both_at_once_makes_one_job(gateways: list[Served]) -> None:
    gateways[0].client.post("/v1/jobs", json=BODY)  # opens the slide once
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(5):
            headers = {"Idempotency-Key": f"key-{round_}"}
            calls = [
                pool.submit(gateways[n % 2].client.post, "/v1/jobs", json=BODY, headers=headers) for n in range(8)
            ]
            answers = [call.result() for call in calls]
            assert {answer.status_code for answer in answers} == {202}
            assert len({answer.json()["jobID"] for answer in answers}) == 1
    assert len(gateways[1].client.get("/v1/jobs").json()["jobs"]) == 6


def test_what_one_does_the_other_shows_at_once(gateways: list[Served]) -> None:
    one, two = (served.client for served in gateways)
    for _ in range(5):
        url = one.post("/v1/jobs", json=BODY).headers["location"]
        shown = two.get(url)
        assert (shown.status_code, shown.json()["status"]) == (200, "accepted")
        assert one.get(url, headers={"If-None-Match": shown.headers["etag"]}).status_code == 304, "the same tag"
        assert two.delete(url).json()["status"] == "dismissed"
        assert one.get(url).json() == two.get(url).json()
        assert one.get(url).json()["status"] == "dismissed"


def test_results_are_the_same_from_either_and_expire_from_both(gateways: list[Served]) -> None:
    one, two = gateways
    job_id = one.post(mpp=1.0, min_region_um2=50)["jobID"]
    two.run_jobs()
    for rest in ("/report", "/regions", "/overlay/zarr.json"):
        answers = [served.client.get(f"/v1/jobs/{job_id}{rest}") for served in gateways]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].content == answers[1].content
        assert answers[0].headers["etag"] == answers[1].headers["etag"]
    one.rooms.ledger.expire(-1.0)
    for served in gateways:
        for rest in ("", "/events", "/report", "/regions", "/regions/x", "/overlay/zarr.json", "/overlay.zip"):
            gone = served.client.get(f"/v1/jobs/{job_id}{rest}")
            assert (gone.status_code, gone.json()["code"]) == (410, "job-expired"), rest
        assert served.client.delete(f"/v1/jobs/{job_id}").status_code == 410


def test_a_gateway_of_a_cluster_makes_no_data_folder(gateways: list[Served], tmp_path: Path) -> None:
    assert gateways[0].client.post("/v1/jobs", json=BODY).status_code == 202
    assert gateways[1].client.get("/v1/slides").status_code == 200
    assert not (tmp_path / "one").exists()
    assert not (tmp_path / "two").exists()
