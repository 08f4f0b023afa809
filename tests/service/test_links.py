"""Links: one job's results for whoever has the token, read-only, for a while, and no word to anyone else."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import zarr
from sqlalchemy import select, update

from tests.service.conftest import Served, serve
from tests.service.live import listening, read_events, settings_of
from tests.service.test_app import check_problem
from worker.ledger_links import hash_of
from worker.ledger_schema import links

OPENED = (
    "overlay/zarr.json", "overlay.zip", "regions", "regions?limit=1", "regions.geojson.gz", "report", "tiles.dzi",
    "tiles_files/8/0_0.png", "exports",
)  # fmt: skip


def share(served: Served, job_id: str, **body: int) -> str:
    answer = served.client.post(f"/v1/jobs/{job_id}/links", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()["url"]


def test_a_link_shows_what_the_tenant_is_shown(finished: tuple[Served, str]) -> None:
    served, job_id = finished
    url = share(served, job_id, expires_s=60)
    for result in OPENED:
        ours = served.client.get(f"/v1/jobs/{job_id}/{result}")
        theirs = served.client.get(f"{url}/{result}")
        assert theirs.status_code == ours.status_code == 200, result
        assert theirs.headers["content-type"] == ours.headers["content-type"]
        assert theirs.headers["referrer-policy"] == "no-referrer"
        assert "max-age" not in theirs.headers["cache-control"]
        if result not in ("exports", "regions?limit=1", "regions.geojson.gz"):
            assert theirs.content == ours.content, result
    region = served.client.get(f"{url}/regions").json()["features"][0]["id"]
    assert served.client.get(f"{url}/regions/{region}").json()["links"][0]["href"] == f"{url}/regions/{region}"
    page = served.client.get(f"{url}/report", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    part = served.client.get(f"{url}/overlay/zarr.json", headers={"Range": "bytes=0-3"})
    assert (part.status_code, len(part.content)) == (206, 4)
    assert served.client.head(f"{url}/overlay/zarr.json").status_code == 200
    cors = served.client.get(f"{url}/overlay/zarr.json", headers={"Origin": "https://viewer.example"})
    plain = served.client.get(f"/v1/jobs/{job_id}/overlay/zarr.json", headers={"Origin": "https://viewer.example"})
    allowed = "access-control-allow-origin"
    assert cors.headers.get(allowed) == plain.headers.get(allowed)


def test_links_within_documents_stay_below_the_link(finished: tuple[Served, str]) -> None:
    served, job_id = finished
    url = share(served, job_id)
    page = served.client.get(f"{url}/regions?limit=1").json()
    (following,) = page["links"]
    assert following["href"].startswith(f"{url}/regions?")
    assert served.client.get(following["href"]).json()["numberReturned"] == 1
    exports = served.client.get(f"{url}/exports").json()["exports"]
    assert all(export["href"].startswith(f"{url}/exports/") for export in exports)
    stream = served.client.get(f"{url}/events?regions=true").text
    assert "event: regions.final" in stream and "event: status" in stream
    assert f"/v1/jobs/{job_id}" not in stream
    for line in stream.splitlines():
        if line.startswith("data: "):
            for link in json.loads(line[6:])["links"]:
                assert served.client.head(link["href"]).status_code in (200, 404, 405), link
                assert link["href"].startswith(f"{url}/")


def test_it_is_one_job_only_to_read_and_exports_are_not_made_for_it(finished: tuple[Served, str]) -> None:
    served, job_id = finished
    url = share(served, job_id)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        check_problem(served.client.request(method, f"{url}/report"), 405, "method-not-allowed")
    for result in (
        "",
        "links",
        "coverage",
        "../report",
        f"../{job_id}/report",
        "overlay",
        "overlay/%2e%2e/report.json",
    ):
        answer = served.client.get(f"{url}/{result}")
        assert answer.status_code == 404, result
    before = served.rooms.ledger.exports(job_id)
    check_problem(served.client.get(f"{url}/exports/hl7"), 404, "export-not-made")
    check_problem(
        served.client.get(f"{url}/report", headers={"Accept": "application/fhir+json"}), 404, "export-not-made"
    )
    assert served.rooms.ledger.exports(job_id) == before
    check_problem(served.client.get(f"{url}/exports/none"), 404, "export-not-found")
    check_problem(served.client.get(f"{url}/report", headers={"Accept": "image/gif"}), 406, "not-acceptable")


def test_unknown_expired_and_revoked_answer_alike(finished: tuple[Served, str]) -> None:
    served, job_id = finished
    served.client.delete(f"/v1/jobs/{job_id}/links")
    expired = share(served, job_id, expires_s=10)
    token = expired.rpartition("/")[2]
    with served.rooms.ledger.engine.begin() as connection:
        connection.execute(update(links).where(links.c.token_hash == hash_of(token)).values(expires=1.0))
    revoked = share(served, job_id)
    good = share(served, job_id)
    assert served.client.delete(f"/v1/jobs/{job_id}/links").json() == {"revoked": 2}
    assert served.client.delete(f"/v1/jobs/{job_id}/links").json() == {"revoked": 0}
    bodies = []
    for url in (
        expired,
        revoked,
        good,
        "/v1/shared/" + "A" * 43,
        "/v1/shared/x",
        f"/v1/shared/{job_id}",
        share(served, job_id),
    ):
        answer = served.client.get(f"{url}/report")
        if answer.status_code == 200:
            continue
        body = check_problem(answer, 404, "link-not-found")
        bodies.append({name: value for name, value in body.items() if name != "request_id"})
    assert len(bodies) == 6 and all(body == bodies[0] for body in bodies)


def test_only_the_hash_is_kept_and_nothing_repeats_the_token(
    finished: tuple[Served, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, job_id = finished
    with caplog.at_level(logging.DEBUG):
        url = share(served, job_id)
        token = url.rpartition("/")[2]
        assert len(token) == 43, "256 bits"
        answers = [
            served.client.get(f"{url}/{result}") for result in (*OPENED, "overlay/none", "exports/hl7", "nothing")
        ]
        answers.append(served.client.get(f"{url}/regions?limit=0"))
        answers.append(served.client.post(f"{url}/report"))
        monkeypatch.setattr(type(served.rooms.ledger), "exports", lambda *_: 1 / 0)
        broken = served.client.get(f"{url}/exports")
        answers.append(broken)
    assert broken.status_code == 500
    ours = [record for record in caplog.records if record.name.split(".")[0] not in ("httpx", "httpcore", "httpx2")]
    said = [str(vars(record)) for record in ours] + [record.getMessage() for record in ours]
    said += [str(record.exc_info) for record in ours]
    assert any("unexpected error" in text for text in said)
    assert not any(token in text for text in said)
    assert token not in served.client.get("/metrics").text
    assert "/v1/shared/{token}/{result:path}" in served.client.get("/metrics").text
    assert not any(token in answer.text for answer in answers if answer.status_code >= 400)
    with served.rooms.ledger.engine.connect() as connection:
        assert token not in str(connection.execute(select(links)).all())
        assert hash_of(token) in str(connection.execute(select(links)).all())


@pytest.mark.parametrize("expires_s", [0, 9, 30 * 86400 + 1, "3600", 60.5, None])
def test_a_time_that_is_not_accepted_is_named(finished: tuple[Served, str], expires_s: object) -> None:
    served, job_id = finished
    answer = served.client.post(f"/v1/jobs/{job_id}/links", json={"expires_s": expires_s})
    assert check_problem(answer, 422, "bad-request")["field"] == "expires_s"


def test_a_link_needs_no_tenant_and_is_its_tenants_to_give(slide_folder: Path, tmp_path: Path) -> None:
    for served in serve(slide_folder, tmp_path / "data", tenant_header="X-Tenant"):
        north, south = {"X-Tenant": "north"}, {"X-Tenant": "south"}
        body = {"slide": "good.tif", "query": "nuclei"}
        job_id = served.client.post("/v1/jobs", json=body, headers=north).json()["jobID"]
        check_problem(served.client.post(f"/v1/jobs/{job_id}/links", json={}, headers=south), 404, "job-not-found")
        url = served.client.post(f"/v1/jobs/{job_id}/links", json={}, headers=north).json()["url"]
        check_problem(served.client.get(f"{url}/report"), 409, "job-not-finished")
        check_problem(served.client.get(f"/v1/jobs/{job_id}/report"), 401, "tenant-missing")
        check_problem(served.client.delete(f"/v1/jobs/{job_id}/links", headers=south), 404, "job-not-found")
        served.rooms.ledger.dismiss(job_id)
        served.rooms.ledger.expire(-1.0)
        check_problem(served.client.get(f"{url}/report"), 404, "link-not-found")
        assert served.rooms.ledger.prune_links() == 1
        assert served.rooms.ledger.prune_links() == 0


def test_a_zarr_reader_and_an_event_source_need_only_the_address(slide_folder: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "data", slides=(slide_folder,), tenant_header="X-Tenant")
    with listening(settings) as live:
        served = Served(live.client, live.rooms, slide_folder)
        live.client.headers["X-Tenant"] = "north"
        job_id = served.post(mpp=1.0)["jobID"]
        url = live.url + share(served, job_id)
        del live.client.headers["X-Tenant"]
        with live.client.stream("GET", f"{url}/events") as answer:
            assert next(read_events(answer)).data["status"] == "accepted"
        served.run_jobs()
        labels = zarr.open(f"{url}/overlay", mode="r")["labels/0/0"]
        assert np.count_nonzero(labels[:]) > 0
        with live.client.stream("GET", f"{url}/events") as answer:
            (last,) = read_events(answer)
        assert last.data["status"] == "successful"
        hrefs = [link["href"] for link in last.data["links"]]
        assert hrefs and all(href.startswith("/v1/shared/") for href in hrefs)
