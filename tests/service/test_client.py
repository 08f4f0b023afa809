"""The client, against a service on a socket with the real pipeline behind it."""

import csv
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import zarr

from service.client import Client, JobEndedError, ProblemError
from tests.service.conftest import OPENED, QUERY, Served, make_settings
from tests.service.live import listening


@pytest.fixture(scope="module")
def service(slide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Served]]:
    settings = make_settings(slide_folder, tmp_path_factory.mktemp("client") / "data")
    with listening(settings) as live:
        live.rooms.catalogue._known = OPENED
        yield Client(live.url, patience_s=5.0), Served(None, live.rooms, slide_folder)


def working(served: Served) -> threading.Timer:
    """A worker that comes a second later, as one that was busy would."""
    timer = threading.Timer(1.0, served.run_jobs)
    timer.start()
    return timer


def test_from_question_to_files(service: tuple[Client, Served], tmp_path: Path):
    client, served = service
    told, worker = [], working(served)
    job = client.ask("good.tif", [QUERY, "a gland?"], mpp=1.0, min_region_um2=50).wait(told.append, timeout_s=120)
    worker.join()
    assert told[0]["status"] in ("accepted", "running") and told[-1]["status"] == "successful"
    assert job.answer == job.report()["answer"]
    regions = list(job.regions())
    assert len(regions) == job.status["result"]["regions"] >= 2
    assert job.region(regions[0]["id"])["query"] == QUERY
    everything = [feature["id"] for feature in regions]
    assert [f["id"] for f in json.loads(job.save_regions(tmp_path / "r.geojson").read_text())["features"]] == everything
    assert zarr.open_group(job.overlay_url, mode="r")["labels/0/0"][:].max() >= 1
    assert "Research use only" in job.save_report(tmp_path / "report.html").read_text()
    worker = working(served)
    table = job.save_export("csv", tmp_path / "regions.csv").read_text(encoding="utf-8-sig")
    worker.join()
    assert [row["region_id"] for row in csv.DictReader(table.splitlines())] == everything
    assert client.job(job.id).status == job.status
    assert job.id in [known.id for known in client.jobs(status="successful")]
    assert not list(tmp_path.glob(".*")), "nothing half done is left"


def test_pages_are_walked_to_their_end(service: tuple[Client, Served]):
    client, served = service
    found = [entry["slide_id"] for entry in client.slides()]
    assert len(found) == len(set(found)) >= 5
    ids = [client.ask("good.tif", QUERY).id for _ in range(3)]
    assert {job.id for job in client.jobs(limit=1, status="accepted")} >= set(ids)
    for job in map(client.job, ids):
        assert job.dismiss().status["status"] == "dismissed"
        with pytest.raises(JobEndedError, match="dismissed"):
            job.wait()


def test_a_slide_is_sent(service: tuple[Client, Served], tmp_path: Path):
    client, served = service
    entry = client.upload(served.folder / "good.tif")
    assert (entry["width_px0"], entry["height_px0"]) == (1200, 900)
    with pytest.raises(ProblemError) as refused:
        client.upload(served.folder / "text.svs")
    assert (refused.value.status, refused.value.field) == (422, "file")


def test_the_same_key_is_the_same_job(service: tuple[Client, Served]):
    client, _ = service
    first, again = (client.ask("good.tif", QUERY, idempotency_key="once") for _ in range(2))
    assert first.id == again.id
    with pytest.raises(ProblemError, match="Idempotency-Key") as refused:
        client.ask("good.tif", "another question", idempotency_key="once")
    assert refused.value.status == 409
    first.dismiss()


def test_a_refusal_names_its_field(service: tuple[Client, Served]):
    client, _ = service
    with pytest.raises(ProblemError) as refused:
        client.ask("good.tif", QUERY, overlap=3)
    assert (refused.value.status, refused.value.field) == (422, "overlap")
    with pytest.raises(ProblemError) as refused:
        client.job("0" * 32)
    assert refused.value.code == "job-not-found"


class Busy(BaseHTTPRequestHandler):
    """Full twice, then not."""

    asked = 0

    def do_GET(self) -> None:  # noqa: N802
        type(self).asked += 1
        full = self.asked < 3
        body = json.dumps({"code": "queue-full", "detail": "come back"} if full else {"models": []}).encode()
        self.send_response(429 if full else 200)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


def test_it_comes_back_when_it_is_asked_to():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert Client(url).models() == [] and Busy.asked == 3
        Busy.asked = 0
        with pytest.raises(ProblemError, match="queue-full: come back"):
            Client(url, patience_s=-1.0).models()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
