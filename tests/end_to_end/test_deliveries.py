"""Deliveries by processes as they run: `slidereason serve` with its worker, and workers that are killed amid a call."""

import re
import subprocess
import sys
import threading
from email.message import Message
from pathlib import Path

import pytest
from sqlalchemy import select

from service.client import Client
from tests.end_to_end.test_serve import ROOT, serving, wait_for
from tests.jobs import HUE, hue_spec
from tests.receivers import Answer, Archive, FhirServer, WebhookReceiver
from tests.receivers import serving as receiving
from tests.service.test_deliveries import INSIDE, SECRET, Paths
from tests.worker.worker_process import Cluster, cluster, wait_until
from worker.deliveries_webhook import send_webhook
from worker.destinations import read_destinations
from worker.ledger_schema import database_now, deliveries

LEASE_S = 4.0


def test_a_job_on_a_served_slide_tells_of_its_end_and_is_pushed(pyramid_slide: Path, tmp_path: Path):
    hook, archive, fhir = WebhookReceiver(SECRET, (500, {}, b"")), Archive(token="t0ken"), FhirServer()
    with receiving(Paths(hook=hook, dicom_web=archive, fhir=fhir)) as url:
        settings = {
            "callback_inside_hosts": INSIDE, "webhook_secret": SECRET, "deliver": "fhir",
            "dicomweb_url": f"{url}/dicom-web", "dicomweb_token": "t0ken", "fhir_url": f"{url}/fhir",
        }  # fmt: skip
        with serving(pyramid_slide.parent, tmp_path / "data", **settings) as service:
            service.ready()
            question = {"mpp": 1.0, "min_region_um2": 50, "callback_url": f"{url}/hook"}
            job = Client(service.url).ask(pyramid_slide.name, "Where are the nuclei?", **question).wait()
            assert job.deliver("dicomweb")["to"] == "dicomweb"
            wait_for(
                lambda: all(delivery["state"] == "delivered" for delivery in job.deliveries()), service.process, 300
            )
            tries = {delivery["to"]: delivery["tries"] for delivery in job.deliveries()}
            assert tries == {"webhook": 2, "dicomweb": 1, "fhir": 1}
    assert hook.seen[0] == hook.seen[1] and hook.seen[0][1]["data"]["jobID"] == job.id
    assert len(archive.stored) == 1 and len(fhir.stored) == 1


def test_a_worker_killed_between_sending_and_recording_loses_nothing(pyramid_slide: Path, tmp_path: Path):
    arrived, over, receiver = threading.Event(), threading.Event(), WebhookReceiver(SECRET)

    def answer(path: str, headers: Message, body: bytes) -> Answer:
        said = receiver(path, headers, body)
        arrived.set()
        if len(receiver.seen) == 1:
            over.wait()  # it has the message, and its answer never comes
        return said

    with receiving(answer) as url, cluster(tmp_path) as servers:
        try:
            first = start_worker(servers)
            job_id, _ = servers.ledger.create_job(hue_spec(pyramid_slide), callback=url)
            servers.ledger.dismiss(job_id)
            wait_until(lambda: arrived.is_set() or first.poll() is not None, 180)
            assert first.poll() is None
            first.kill()
            first.wait()
            (row,) = servers.ledger.deliveries(job_id)
            assert row.state == "sending", "nothing was written down"
            with servers.ledger.engine.connect() as connection:
                left_s = connection.scalar(select(deliveries.c.not_before - database_now()))
            assert left_s <= LEASE_S, "so long at most until another may take it"
            second = start_worker(servers)
            wait_until(
                lambda: servers.ledger.deliveries(job_id)[0].state == "delivered" or second.poll() is not None, 180
            )
        finally:
            over.set()
        (row,) = servers.ledger.deliveries(job_id)
    assert (row.state, row.tries) == ("delivered", 2)
    assert receiver.seen[0] == receiver.seen[1] and len(receiver.seen) == 2
    assert receiver.seen[0][0] == row.delivery_id


def start_worker(servers: Cluster) -> subprocess.Popen:
    """A worker that may call this machine."""
    return servers.start_worker(HUE, callback_inside_hosts=INSIDE, webhook_secret=SECRET, lease_s=LEASE_S)


def test_the_receiver_of_the_document_takes_what_is_signed_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    page = (ROOT / "docs" / "integration.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = (
        code.replace("9000", "0")
        .replace("HTTPServer((", "server = HTTPServer((")
        .replace(").serve_forever()", "); print(server.server_port, flush=True); server.serve_forever()")
    )
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/"
        there = read_destinations(callback_inside_hosts=INSIDE, webhook_secret=SECRET)
        message = {"type": "job.successful", "data": {"jobID": "a" * 32}}
        states = [
            send_webhook(there.callbacks, url, key, "msg_1", message).state for key in (bytes(32), there.key, there.key)
        ]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert states == ["failed", "delivered", "delivered"]
