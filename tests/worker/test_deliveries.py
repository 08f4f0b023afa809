"""Webhooks, DICOM objects and FHIR bundles against servers that read what they receive."""

import base64
import json
import random
import threading
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    MicroscopyBulkSimpleAnnotationsStorage,
    SegmentationStorage,
    generate_uid,
)

from tests.receivers import Archive, FhirServer, WebhookReceiver, serving
from tests.worker.report_jobs import real_job
from worker.deliveries import LONGEST_PAUSE_S, Outcome, judge, pause_s, retry_after_s
from worker.deliveries_fhir import post_bundle
from worker.deliveries_stow import read_answer, store
from worker.deliveries_webhook import read_secret, send_webhook, signature
from worker.errors import BadRequest
from worker.exports.dicom_ann import write_dicom_ann
from worker.exports.dicom_seg import write_dicom_seg
from worker.exports.fhir import write_fhir
from worker.exports.job_results import JobResults
from worker.outbound import Outbound, Reply

HERE = Outbound(inside=("127.0.0.1",))
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
KEY = read_secret(SECRET)
MESSAGE = {"type": "job.successful", "data": {"jobID": "a" * 32}}


def made_object(path: Path, sop_class: str) -> Path:
    """A small DICOM Part 10 file whose content looks like a boundary."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.ImageComments = "\r\n--boundary--\r\n"
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def objects(tmp_path: Path) -> list[Path]:
    return [
        made_object(tmp_path / "seg.dcm", SegmentationStorage),
        made_object(tmp_path / "ann.dcm", MicroscopyBulkSimpleAnnotationsStorage),
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> JobResults:
    return real_job(tmp_path_factory.mktemp("job"))


# ---- webhooks ----------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_standard_webhooks():
    """The example of the specification's reference libraries."""
    key = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_§", base64.b64encode(bytes(32)).decode()])
def test_a_secret_that_is_none_is_refused_and_not_repeated(secret: str):
    with pytest.raises(BadRequest, match="24 to 64 random bytes") as caught:
        read_secret(secret)
    assert not secret or secret == "whsec_" or secret not in str(caught.value)


def test_the_same_event_comes_again_until_it_is_taken():
    busy = (429, {"Retry-After": "7"}, b"")
    receiver = WebhookReceiver(SECRET, (500, {}, b""), (500, {}, b""), busy)
    with serving(receiver) as url:
        outcomes = [send_webhook(HERE, url, KEY, "evt_1", MESSAGE) for _ in range(4)]
    assert [outcome.state for outcome in outcomes] == ["again", "again", "again", "delivered"]
    assert outcomes[2].retry_after_s == 7.0 and pause_s(1, outcomes[2]) == 7.0
    assert receiver.seen == [("evt_1", MESSAGE)] * 4


def test_a_forged_message_is_seen_by_its_receiver():
    receiver = WebhookReceiver(SECRET)
    with serving(receiver) as url:
        outcome = send_webhook(
            HERE, url, read_secret("whsec_" + base64.b64encode(bytes(32)).decode()), "evt_1", MESSAGE
        )
    assert (outcome.state, outcome.status, receiver.seen) == ("failed", 401, [])


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 410])
def test_redirects_and_refusals_are_final(status: int):
    receiver = WebhookReceiver(SECRET, (status, {"Location": "http://127.0.0.1:1/"}, b""))
    with serving(receiver) as url:
        assert send_webhook(HERE, url, KEY, "evt_1", MESSAGE).state == "failed"
    assert len(receiver.seen) == 1


def test_who_hangs_is_asked_again_later():
    over = threading.Event()
    with serving(lambda *_request: (over.wait(30), (204, {}, b""))[1]) as url:
        outcome = send_webhook(HERE, url, KEY, "evt_1", MESSAGE, limit_s=0.3)
        over.set()
    assert outcome.state == "again" and "longer than" in outcome.said


def test_an_address_that_may_not_be_called_any_more_is_final():
    outcome = send_webhook(Outbound(), "http://127.0.0.1:9/", KEY, "evt_1", MESSAGE)
    assert outcome.state == "failed" and "callback_url" in outcome.said


def test_pauses_double_up_to_an_hour_and_are_drawn():
    draw = random.Random(1)
    for tries in range(1, 40):
        full = min(5.0 * 2 ** (tries - 1), LONGEST_PAUSE_S)
        drawn = {pause_s(tries, Outcome("again", ""), draw) for _ in range(5)}
        assert len(drawn) > 1 and all(full / 2 <= pause <= full for pause in drawn)


def test_retry_after_is_a_number_or_a_date():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    said = ["30", "Thu, 01 Jan 2026 00:01:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "99999999999", "soon", "-1", ""]
    found = [retry_after_s(Reply(503, {"retry-after": text}), now) for text in said]
    assert found == [30.0, 60.0, 0.0, 21600.0, None, None, None]


# ---- DICOM -------------------------------------------------------------------------------------------------------


def test_the_archive_gets_the_objects_byte_for_byte(objects: list[Path]):
    archive = Archive(token="opensesame")
    with serving(archive) as url:
        assert store(HERE, f"{url}/dicom-web/", objects).status == 401
        assert store(HERE, f"{url}/dicom-web/", objects, "opensesame").state == "delivered"
    assert [found.SOPClassUID for found in archive.stored] == [
        SegmentationStorage, MicroscopyBulkSimpleAnnotationsStorage
    ]  # fmt: skip
    assert {found.ImageComments.strip() for found in archive.stored} == {"--boundary--"}


def test_the_exports_of_a_job_are_stored(done: JobResults, tmp_path: Path):
    write_dicom_seg(done, tmp_path / "seg.dcm")
    write_dicom_ann(done, tmp_path / "ann.dcm")
    archive = Archive()
    with serving(archive) as url:
        outcome = store(HERE, f"{url}/dicom-web", [tmp_path / "seg.dcm", tmp_path / "ann.dcm"])
    assert outcome.state == "delivered" and len(archive.stored) == 2
    sent = pydicom.dcmread(tmp_path / "seg.dcm")
    assert archive.stored[0].PixelData == sent.PixelData and any(sent.PixelData)


@pytest.mark.parametrize(("reason", "state"), [(0x0122, "failed"), (0xA700, "again")])
def test_an_object_that_was_refused_is_named(objects: list[Path], reason: int, state: str):
    archive = Archive(refused={MicroscopyBulkSimpleAnnotationsStorage: reason})
    with serving(archive) as url:
        some = store(HERE, f"{url}/dicom-web", objects)
        none = store(HERE, f"{url}/dicom-web", objects[1:])
    assert (some.state, some.status, none.state, none.status) == (state, 202, state, 409)
    assert f"refused ({reason:04X}H)" in some.said and len(archive.stored) == 1


def test_answers_that_cannot_be_read_are_judged_by_their_status():
    states = {status: read_answer(Reply(status, {}, b"<xml/>")).state for status in (200, 202, 400, 409, 503)}
    assert states == {200: "delivered", 202: "failed", 400: "failed", 409: "failed", 503: "again"}
    for body in (b"[]", b"[1]", b"null", b'{"00081198": {"Value": []}}'):
        assert read_answer(Reply(200, {}, body)).state == "delivered"
    broken = {status: read_answer(Reply(status, {}, b'{"00081', whole=False)).state for status in (200, 202, 409)}
    assert broken == {200: "again", 202: "again", 409: "failed"}, "what it refused may have been in the rest"


@pytest.mark.parametrize("failed", [1, {"Value": [1]}, {"Value": [{}]}, {"Value": [{"00081197": {"Value": ["x"]}}]}])
def test_a_list_of_refused_objects_that_cannot_be_read_is_no_success(failed: object):
    outcome = read_answer(Reply(200, {}, json.dumps({"00081198": failed}).encode()))
    assert outcome.state == "failed" and "an object refused (0110H)" in outcome.said


# ---- FHIR --------------------------------------------------------------------------------------------------------


def test_the_bundle_of_a_job_is_created(done: JobResults, tmp_path: Path):
    write_fhir(done, tmp_path / "bundle.json")
    server = FhirServer()
    with serving(server) as url:
        outcome = post_bundle(HERE, f"{url}/fhir/", (tmp_path / "bundle.json").read_bytes())
    assert (outcome.state, outcome.status) == ("delivered", 201)
    assert server.stored[0].type == "collection" and server.stored[0].entry


def test_what_a_fhir_server_says_is_kept():
    with serving(FhirServer()) as url:
        outcome = post_bundle(HERE, f"{url}/fhir", json.dumps({"resourceType": "Bundle", "typ": "x"}).encode())
    assert outcome.state == "failed" and outcome.said.startswith("422: ") and len(outcome.said) > 10


def test_said_is_short_whatever_came():
    assert len(judge(Reply(302, {}, b""), "x" * 5000).said) == 500
