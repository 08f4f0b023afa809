"""The report in the form a client accepts, exports by routes of their own, and HEAD where there are pictures."""

from collections.abc import Iterator

import pytest

from service.routes.reports import EXPORTED, OFFERED
from tests.service.conftest import Served, serve
from tests.service.test_app import check_problem


@pytest.fixture(scope="module")
def done(slide_folder, tmp_path_factory) -> Iterator[tuple[Served, str]]:
    for served in serve(slide_folder, tmp_path_factory.mktemp("forms") / "data"):
        job_id = served.post(mpp=1.0, min_region_um2=50)["jobID"]
        served.run_jobs()
        yield served, job_id


@pytest.mark.parametrize(
    ("kind", "start"), [("text/markdown", b"#"), ("application/pdf", b"%PDF-"), ("application/fhir+json", b"{")]
)
def test_a_form_that_is_exported_is_made_when_it_is_asked_for(
    done: tuple[Served, str], kind: str, start: bytes
) -> None:
    served, job_id = done
    url, wanted = f"/v1/jobs/{job_id}/report", {"Accept": f"{kind}, text/html;q=0.2"}
    first = served.client.get(url, headers=wanted)
    assert (first.status_code, first.json()["name"]) == (202, EXPORTED[kind])
    assert "Accept" in first.headers["vary"].split(", ")
    assert int(first.headers["retry-after"]) > 0
    served.run_jobs()
    answer = served.client.get(url, headers=wanted)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)
    assert answer.content.startswith(start) and "Accept" in answer.headers["vary"]
    assert answer.content == served.client.get(f"/v1/jobs/{job_id}/exports/{EXPORTED[kind]}").content
    assert served.client.head(url, headers=wanted).status_code == 200


def test_what_is_not_offered_is_406_and_anything_is_json(done: tuple[Served, str]) -> None:
    served, job_id = done
    url = f"/v1/jobs/{job_id}/report"
    refused = check_problem(served.client.get(url, headers={"Accept": "image/gif"}), 406, "not-acceptable")
    assert refused["accepted"] == list(OFFERED)
    for accept in ("*/*", "application/*", ""):
        assert served.client.get(url, headers={"Accept": accept}).headers["content-type"] == "application/json"
    assert served.client.get(url, headers={"Accept": "text/*"}).headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("name", ["dicom-seg", "dicom-ann"])
def test_dicom_has_addresses_of_its_own(done: tuple[Served, str], name: str) -> None:
    served, job_id = done
    url = f"/v1/jobs/{job_id}/{name}"
    first = served.client.get(url)
    assert (first.status_code, first.json()["href"]) == (202, f"/v1/jobs/{job_id}/exports/{name}")
    served.run_jobs()
    answer = served.client.get(url)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    assert answer.content[128:132] == b"DICM"
    check_problem(served.client.get(f"/v1/jobs/{'0' * 32}/{name}"), 404, "job-not-found")


def test_pictures_answer_head_as_get(done: tuple[Served, str]) -> None:
    served, job_id = done
    slide = f"/v1/slides/{served.client.get(f'/v1/jobs/{job_id}').json()['slide']}"
    slides = ("dzi.dzi", "dzi_files/8/0_0.jpeg", "thumbnail.jpeg?size=64")
    urls = [f"{slide}/{rest}" for rest in slides]
    urls += [f"/v1/jobs/{job_id}/{rest}" for rest in ("tiles.dzi", "tiles_files/8/0_0.png")]
    for url in urls:
        head, whole = served.client.head(url), served.client.get(url)
        assert head.status_code == whole.status_code == 200, url
        for name in ("etag", "content-type", "content-length", "cache-control"):
            assert head.headers[name] == whole.headers[name]
        assert served.client.head(url, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
