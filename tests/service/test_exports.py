"""Exports over REST: asked for, made by a worker, downloaded; and what is refused."""

import csv
import io

import pytest

from tests.service.conftest import QUERY, Served, serve
from worker.exports.catalogue import EXPORTS, Export
from worker.exports.job_results import JobResults


@pytest.fixture(scope="module")
def done(slide_folder, tmp_path_factory):
    """An application of this module's own, with one finished job."""
    for served in serve(slide_folder, tmp_path_factory.mktemp("exports") / "data"):
        job_id = served.post(queries=[QUERY, "=SUM(A1:A9) is there a gland?"], mpp=1.0, min_region_um2=50)["jobID"]
        served.run_jobs()
        yield served, job_id


def test_an_export_is_made_when_it_is_asked_for(done: tuple[Served, str]):
    served, job_id = done
    url = f"/v1/jobs/{job_id}/exports/csv"
    (listed,) = [e for e in served.client.get(f"/v1/jobs/{job_id}/exports").json()["exports"] if e["name"] == "csv"]
    assert (listed["state"], listed["href"]) == ("not-asked", url)
    first = served.client.get(url)
    assert (first.status_code, first.headers["retry-after"], first.json()["state"]) == (202, "2", "waiting")
    assert served.client.get(url).status_code == 202
    assert served.rooms.ledger.claimable() == {"hue": 1}, "asked for twice, made once"
    served.run_jobs()
    answer = served.client.get(url)
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="{job_id}-regions.csv"'
    assert served.client.get(url, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert served.client.get(f"/v1/jobs/{job_id}").json()["message"].endswith("regions"), "the job is as it was"
    assert served.rooms.ledger.exports(job_id)[0].state == "done"


def test_the_table_says_what_the_regions_say(done: tuple[Served, str]):
    served, job_id = done
    served.client.get(f"/v1/jobs/{job_id}/exports/csv")
    served.run_jobs()
    text = served.client.get(f"/v1/jobs/{job_id}/exports/csv").content.decode("utf-8-sig")
    rows = {row["region_id"]: row for row in csv.DictReader(io.StringIO(text))}
    features = served.client.get(f"/v1/jobs/{job_id}/regions").json()["features"]
    assert set(rows) == {feature["id"] for feature in features} and len(rows) >= 2
    for feature in features:
        row, measured = rows[feature["id"]], feature["properties"]["measurements"]
        assert float(row["area_um2"]) == measured["Area µm^2"]
        assert float(row["confidence"]) == measured["Confidence"]
        assert int(row["supporting_tiles"]) == measured["Supporting tiles"]
        assert row["query"] in (QUERY, "'=SUM(A1:A9) is there a gland?"), "no spreadsheet computes a question"
        assert row["use"] == "Research use only"


def test_what_there_is_not(done: tuple[Served, str]):
    served, job_id = done
    answer = served.client.get(f"/v1/jobs/{job_id}/exports/xls")
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (404, "export-not-found", "name")
    assert "csv" in answer.json()["accepted"]
    assert served.client.get(f"/v1/jobs/{'0' * 32}/exports/csv").status_code == 404
    other = served.post(queries=[QUERY], mpp=2.0)["jobID"]
    assert served.client.get(f"/v1/jobs/{other}/exports/csv").json()["code"] == "job-not-finished"
    served.client.delete(f"/v1/jobs/{other}")


def write_nothing(results: JobResults, path) -> None:
    raise ValueError(f"{results.folder} is no place for this")


def test_one_that_cannot_be_made_says_so_and_is_tried_again(done: tuple[Served, str], monkeypatch):
    served, job_id = done
    bad = Export("bad", "bad.txt", "text/plain", "Bad", "tests.service.test_exports:write_nothing")
    monkeypatch.setitem(EXPORTS, "bad", bad)
    url = f"/v1/jobs/{job_id}/exports/bad"
    assert served.client.get(url).status_code == 202
    for _ in range(3):
        served.run_jobs()
        with served.rooms.ledger.engine.begin() as connection:  # let its pauses be over
            connection.exec_driver_sql("UPDATE units SET not_before = 0 WHERE kind = 'export'")
    answer = served.client.get(url)
    assert (answer.status_code, answer.json()["code"]) == (500, "export-failed")
    assert str(served.folder.parent) not in answer.text and "ValueError" not in answer.text
    assert served.client.get(f"/v1/jobs/{job_id}").json()["status"] == "successful", "the job stays as it ended"
    assert served.client.get(url, params={"again": True}).status_code == 202
    assert served.client.get(url).json()["state"] == "waiting"
