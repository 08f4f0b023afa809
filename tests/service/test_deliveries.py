"""Jobs that tell of their end and have results pushed: through the gateway and a worker's sender, to real receivers."""

import base64
import json
import tempfile
import threading
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from sqlalchemy import select, update

from service.settings import Settings
from tests.receivers import Answer, Archive, FhirServer, WebhookReceiver, serving
from tests.s3_server import S3Server
from tests.service.conftest import Served, make_settings, serve
from tests.service.test_app import check_problem
from worker import metrics
from worker.destinations import Destinations, read_destinations
from worker.errors import BadRequest
from worker.ledger_schema import deliveries, jobs
from worker.sender import Sender

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
INSIDE = "127.0.0.1"


class Paths:
    """A server's answers by the first part of the path."""

    def __init__(self, **servers):
        self._servers = servers

    def __call__(self, path: str, headers: Message, body: bytes) -> Answer:
        return self._servers[path.split("/")[1].replace("-", "_").partition("?")[0]](path, headers, body)


def destinations(url: str = "", **more) -> Destinations:
    pushed = {"dicomweb_url": f"{url}/dicom-web", "dicomweb_token": "t0ken", "fhir_url": f"{url}/fhir"} if url else {}
    return read_destinations(callback_inside_hosts=INSIDE, webhook_secret=SECRET, **pushed, **more)


def sender_of(served: Served, there: Destinations, name: str = "sender") -> Sender:
    return Sender(served.rooms.ledger, served.rooms.artifacts, name, there)


def settings_with(url: str = "") -> dict:
    pushed = {"dicomweb_url": f"{url}/dicom-web", "fhir_url": f"{url}/fhir"} if url else {}
    return {"callback_inside_hosts": INSIDE, "webhook_secret": SECRET, **pushed}


def now(served: Served) -> None:
    """Whatever waits out a pause, or is in the hands of a sender that is gone, is due."""
    with served.rooms.ledger.engine.begin() as connection:
        connection.execute(update(deliveries).values(not_before=0.0))


def listed(served: Served, job_id: str) -> list[dict]:
    answer = served.client.get(f"/v1/jobs/{job_id}/deliveries")
    assert answer.status_code == 200, answer.text
    return answer.json()["deliveries"]


@pytest.fixture
def told(slide_folder: Path, tmp_path: Path) -> Iterator[Served]:
    """An application that may call back servers of this machine."""
    yield from serve(slide_folder, tmp_path / "data", **settings_with())


# ---- webhooks ----------------------------------------------------------------------------------------------------


def test_a_job_tells_once_that_it_is_done_and_what_it_tells_names_no_words(told: Served):
    receiver = WebhookReceiver(SECRET, (503, {}, b""))
    with serving(receiver) as url:
        status = told.post(mpp=1.0, callback_url=f"{url}/hook?secret=abc")
        job_id = status["jobID"]
        assert listed(told, job_id) == [], "nothing is told before the end"
        told.run_jobs()
        sender = sender_of(told, destinations())
        assert sender.send_one()
        (waiting,) = listed(told, job_id)
        assert (waiting["state"], waiting["tries"], waiting["status"]) == ("waiting", 1, 503)
        assert waiting["next_try"] and waiting["gives_up"]
        assert not sender.send_one(), "it waits out its pause"
        now(told)
        assert sender.send_one() and not sender.send_one()
        counted = metrics.REGISTRY.get_sample_value
        assert counted("slidereason_deliveries_total", {"to": "webhook", "state": "delivered"}) >= 1
    (delivered,) = listed(told, job_id)
    assert (delivered["state"], delivered["tries"], delivered["to"]) == ("delivered", 2, "webhook")
    assert receiver.seen[0] == receiver.seen[1], "the same id and the same body at every try"
    event, body = receiver.seen[0]
    assert event == delivered["id"] == body["id"] and body["type"] == "job.successful"
    assert body["data"]["jobID"] == job_id and body["data"]["regions"] >= 1
    assert all(told.client.get(link["href"]).status_code == 200 for link in body["data"]["links"])
    assert "nuclei" not in json.dumps(body) and "good.tif" not in json.dumps(body)
    shown = told.client.get(f"/v1/jobs/{job_id}").text + told.client.get("/v1/jobs").text + json.dumps(delivered)
    assert "secret=abc" not in shown and "callback" not in shown


def test_each_way_to_end_is_told_once(told: Served):
    receiver = WebhookReceiver(SECRET)
    ledger = told.rooms.ledger
    with serving(receiver) as url:
        ended = told.post(mpp=1.0, callback_url=url)["jobID"]
        told.run_jobs()
        ledger.close_job(ended)
        dismissed = told.post(mpp=1.0, callback_url=url)["jobID"]
        for _ in range(2):
            told.client.delete(f"/v1/jobs/{dismissed}")
        failed = told.post(mpp=1.0, callback_url=url)["jobID"]
        (told.folder / "good.tif").rename(told.folder / "away.tif")
        try:
            told.run_jobs()
        finally:
            (told.folder / "away.tif").rename(told.folder / "good.tif")
        ledger.sweep()
        sender = sender_of(told, destinations())
        while sender.send_one():
            pass
        assert {(body["data"]["jobID"], body["type"]) for _, body in receiver.seen} == {
            (ended, "job.successful"), (dismissed, "job.dismissed"), (failed, "job.failed"),
        }  # fmt: skip
        assert len(receiver.seen) == len({event for event, _ in receiver.seen}) == 3
        (error,) = [body["data"]["error"] for _, body in receiver.seen if body["type"] == "job.failed"]
        assert error["code"] == "slide-not-found"
        ledger.retry(failed)
        told.run_jobs()
        assert sender.send_one() and receiver.seen[-1][1]["type"] == "job.successful", "another end is another event"


def test_one_that_was_sent_and_not_recorded_comes_again_under_its_id(told: Served):
    receiver = WebhookReceiver(SECRET)
    ledger = told.rooms.ledger
    with serving(receiver) as url:
        job_id = told.post(mpp=1.0, callback_url=url)["jobID"]
        told.client.delete(f"/v1/jobs/{job_id}")
        lost = sender_of(told, destinations(), "lost")
        _, lease = lost._claim()
        lost._try(lease.delivery, lambda: False)  # and here it is killed
        assert listed(told, job_id)[0]["state"] == "sending"
        other = sender_of(told, destinations(), "other")
        assert not other.send_one(), "the lost one may still be at it"
        now(told)
        assert other.send_one() and not other.send_one()
        lost._send(lease)  # it was only slow: what it records is refused
    (delivered,) = listed(told, job_id)
    assert (delivered["state"], delivered["tries"]) == ("delivered", 2)
    assert len({event for event, _ in receiver.seen}) == 1 and len(receiver.seen) == 3
    assert ledger.expire(-1.0) == [job_id]
    with ledger.engine.connect() as connection:
        assert connection.execute(select(deliveries)).all() == []
        assert connection.scalar(select(jobs.c.callback).where(jobs.c.job_id == job_id)) is None


def test_what_is_not_taken_in_time_is_given_up_and_says_so(told: Served):
    with serving(WebhookReceiver(SECRET, *[(500, {}, b"")] * 3)) as url:
        job_id = told.post(mpp=1.0, callback_url=url)["jobID"]
        told.client.delete(f"/v1/jobs/{job_id}")
        assert sender_of(told, destinations(deliver_give_up_s=1.0)).send_one()
        (given_up,) = listed(told, job_id)
        assert (given_up["state"], given_up["next_try"]) == ("failed", None)
        assert "gave up" in given_up["said"] and given_up["status"] == 500
        gone = told.post(mpp=1.0, callback_url=f"{url}/gone")["jobID"]
        told.client.delete(f"/v1/jobs/{gone}")
    with serving(WebhookReceiver(SECRET)) as _:
        narrower = read_destinations(callback_hosts="lis.example.org", webhook_secret=SECRET)
        assert sender_of(told, narrower).send_one(), "the operator allows it no more"
    assert listed(told, gone)[0]["state"] == "failed"


def test_a_receiver_that_hangs_holds_up_no_other(told: Served):
    hangs, over = threading.Event(), threading.Event()

    def hanging(_path: str, _headers: Message, _body: bytes) -> Answer:
        hangs.set()
        over.wait()
        return 204, {}, b""

    receiver = WebhookReceiver(SECRET)
    with serving(Paths(slow=hanging, fast=receiver)) as url:
        for path in ("slow", "fast"):
            told.client.delete(f"/v1/jobs/{told.post(mpp=1.0, callback_url=f'{url}/{path}')['jobID']}")
        sender = Sender(told.rooms.ledger, told.rooms.artifacts, "worker", destinations(), period_s=0.05)
        sender.start()
        try:
            assert hangs.wait(60)
            while not receiver.seen:
                assert sender._thread.is_alive()
                over.wait(0.05)
        finally:
            over.set()
            sender.stop()


@pytest.mark.parametrize(
    "address",
    [
        "http://lis.example.org/x", "https://evil.example.com/", "https://10.0.0.1/", "https://u:p@lis.example.org/",
        "https://169.254.169.254/latest", "file:///etc/passwd", "https://2130706433/", "", 7,
    ],
)  # fmt: skip
def test_an_address_that_may_not_be_called_is_refused_by_its_field(slide_folder: Path, tmp_path: Path, address: object):
    more = {"callback_hosts": "lis.example.org,10.0.0.1,169.254.169.254", "webhook_secret": SECRET}
    for served in serve(slide_folder, tmp_path / "data", **more):
        body = {"slide": "good.tif", "query": "nuclei", "callback_url": address}
        assert check_problem(served.client.post("/v1/jobs", json=body), 422, "bad-request")["field"] == "callback_url"
        good = body | {"callback_url": "https://lis.example.org/hook"}
        assert served.client.post("/v1/jobs", json=good).status_code == 202


def test_without_a_secret_or_hosts_it_says_what_the_operator_must_set(slide_folder: Path, tmp_path: Path):
    for number, more in enumerate(({}, {"webhook_secret": SECRET}, {"callback_hosts": "*"})):
        for served in serve(slide_folder, tmp_path / str(number), **more):
            body = {"slide": "good.tif", "query": "nuclei", "callback_url": "https://lis.example.org/"}
            problem = check_problem(served.client.post("/v1/jobs", json=body), 422, "bad-request")
            assert problem["field"] == "callback_url" and "SLIDEREASON_WEBHOOK_SECRET" in problem["detail"]


# ---- results that are pushed -------------------------------------------------------------------------------------


def test_results_reach_an_archive_and_a_fhir_server(slide_folder: Path, tmp_path: Path):
    archive, fhir = Archive(token="t0ken"), FhirServer()
    with serving(Paths(dicom_web=archive, fhir=fhir)) as url:
        for served in serve(slide_folder, tmp_path / "data", **settings_with(url)):
            job_id = served.post(mpp=1.0, min_region_um2=50)["jobID"]
            place = f"/v1/jobs/{job_id}/deliveries"
            check_problem(served.client.post(place, json={"to": "fhir"}), 409, "job-not-finished")
            served.run_jobs()
            first = served.client.post(place, json={"to": "dicomweb", "annotations": True})
            assert (first.status_code, first.headers["location"]) == (202, place)
            assert served.client.post(place, json={"to": "dicomweb", "annotations": True}).json() == first.json()
            assert served.client.post(place, json={"to": "fhir"}).status_code == 202
            sender = sender_of(served, destinations(url))
            while sender.send_one():
                pass
            assert {(d["state"], d["tries"]) for d in listed(served, job_id)} == {("waiting", 0)}
            assert all("to be made" in d["said"] for d in listed(served, job_id))
            served.run_jobs()
            now(served)
            while sender.send_one():
                pass
            assert {(d["to"], d["state"], d["tries"]) for d in listed(served, job_id)} == {
                ("dicomweb", "delivered", 1), ("fhir", "delivered", 1),
            }  # fmt: skip
            assert len(archive.stored) == 2 and len(fhir.stored) == 1
            again = served.client.post(place, json={"to": "fhir"}).json()
            assert again["id"] not in {d["id"] for d in listed(served, job_id)[:2]}, "who asks later is sent it anew"


def test_what_an_archive_refuses_is_said(slide_folder: Path, tmp_path: Path):
    archive = Archive(refused={"1.2.840.10008.5.1.4.1.1.66.4": 0x0122}, token="t0ken")
    with serving(Paths(dicom_web=archive)) as url:
        for served in serve(slide_folder, tmp_path / "data", **settings_with(url)):
            served.rooms.ledger.push = ("dicomweb",)
            job_id = served.post(mpp=1.0, min_region_um2=50)["jobID"]
            served.run_jobs()
            (pushed,) = listed(served, job_id)
            assert pushed["to"] == "dicomweb", "pushed unasked, as the operator wishes"
            sender = sender_of(served, destinations(url))
            sender.send_one()
            served.run_jobs()
            now(served)
            sender.send_one()
            (refused,) = listed(served, job_id)
            assert refused["state"] == "failed" and "refused (0122H)" in refused["said"]


def test_results_in_a_bucket_are_fetched_and_sent(
    slide_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(token="t0ken")
    with S3Server() as bucket, serving(Paths(dicom_web=archive)) as url:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "scratch").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
        more = settings_with(url) | {"artifacts": bucket.url("results/of/tests")}
        for served in serve(slide_folder, tmp_path / "data", **more):
            job_id = served.post(mpp=1.0, min_region_um2=50)["jobID"]
            served.run_jobs()
            served.client.post(f"/v1/jobs/{job_id}/deliveries", json={"to": "dicomweb"})
            served.run_jobs()
            assert sender_of(served, destinations(url)).send_one()
            (sent,) = listed(served, job_id)
            assert (sent["state"], sent["tries"], len(archive.stored)) == ("delivered", 1, 1), sent
            assert not list((tmp_path / "scratch").glob("slidereason-delivery-*")), "nothing is left of them here"


def test_places_that_are_not_set_up_and_jobs_of_others(slide_folder: Path, tmp_path: Path):
    for served in serve(slide_folder, tmp_path / "data", tenant_header="X-Tenant"):
        north, south = {"X-Tenant": "north"}, {"X-Tenant": "south"}
        asked = served.client.post("/v1/jobs", json={"slide": "good.tif", "query": "nuclei", "mpp": 1.0}, headers=north)
        place = f"/v1/jobs/{asked.json()['jobID']}/deliveries"
        served.run_jobs()
        for to in ("dicomweb", "fhir"):
            answer = served.client.post(place, json={"to": to}, headers=north)
            problem = check_problem(answer, 409, "delivery-not-set-up")
            assert f"SLIDEREASON_{to.upper()}_URL" in problem["detail"] and problem["field"] == "to"
        check_problem(served.client.post(place, json={"to": "ftp"}, headers=north), 422, "bad-request")
        check_problem(served.client.post(place, json={"to": "fhir"}, headers=south), 404, "job-not-found")
        check_problem(served.client.get(place, headers=south), 404, "job-not-found")
        link = served.client.post(place.replace("deliveries", "links"), json={}, headers=north).json()["url"]
        check_problem(served.client.get(f"{link}/deliveries"), 404, "link-not-found")


# ---- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("webhook_secret", {"webhook_secret": "hello"}),
        ("dicomweb_url", {"dicomweb_url": "ftp://archive"}),
        ("fhir_url", {"deliver": "fhir"}),
        ("deliver", {"deliver": "mail"}),
        ("deliver_give_up_s", {"deliver_give_up_s": 0.0}),
    ],
)
def test_settings_that_are_not_accepted_are_named_and_no_secret_is_repeated(name: str, more: dict):
    with pytest.raises(BadRequest) as caught:
        read_destinations(**more)
    assert caught.value.field == name and "hello" not in str(caught.value)


def test_settings_show_no_secret_and_reach_the_embedded_worker(slide_folder: Path, tmp_path: Path):
    settings: Settings = make_settings(slide_folder, tmp_path, **settings_with("http://10.1.2.3"))
    there = read_destinations(**{name.lower(): value for name, value in settings.of_deliveries.items()})
    assert there.times_s.keys() == {"webhook", "dicomweb", "fhir"}
    assert there.callbacks == settings.callbacks
    assert SECRET not in repr(settings) and str(there.key) not in repr(there)
