"""What holds for every route: problems, limits, headers, health, models, offline docs."""

import json
import logging
import re
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy.exc import OperationalError

from model.segmenter import SegmenterCard
from service.errors import MEDIA_TYPE
from tests.service.conftest import QUERY, Served, serve
from tests.service.live import CARD
from worker import embedded
from worker.errors import StorageAway
from worker.logs import setup_logs
from worker.queue import depth
from worker.tracing import setup_tracing, stop_tracing

JSON = {"Content-Type": "application/json"}


def check_problem(answer, status: int, code: str) -> dict:
    """The answer as a problem of this status and code."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, MEDIA_TYPE), answer.text
    body = answer.json()
    assert (body["status"], body["code"], body["type"]) == (status, code, f"urn:slidereason:problem:{code}")
    assert body["title"]
    assert body["detail"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    return body


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/job", "/v1/jobs/", "/docs/evil.js", "/docs/..%2f..%2fapp.py"])
def test_an_unknown_address_is_a_problem(served: Served, path: str) -> None:
    check_problem(served.client.get(path, follow_redirects=False), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", "GET, POST"), ("DELETE", "/v1/slides", "GET, POST"), ("POST", "/v1/models", "GET"),
        ("PATCH", "/v1/jobs/x", "GET, DELETE"), ("POST", "/v1/jobs/x/overlay/zarr.json", "GET, HEAD"),
    ],
)  # fmt: skip
def test_another_method_is_405_and_names_those_accepted(served: Served, method: str, path: str, allowed: str) -> None:
    answer = served.client.request(method, path)
    assert allowed in check_problem(answer, 405, "method-not-allowed")["detail"]
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", None]
)
def test_a_body_of_another_type_is_415(served: Served, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = served.client.post("/v1/jobs", content=b'{"slide": "good.tif"}', headers=headers)
    assert "application/json" in check_problem(answer, 415, "unsupported-media-type")["detail"]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "malformed-json"),
        (b"", "bad-request"),
        (b"\xff\xfe", "malformed-json"),
        (b"[" * 50_000, "malformed-request"),
    ],
)
def test_broken_json_is_refused(served: Served, content: bytes, code: str) -> None:
    answer = served.client.post("/v1/jobs", content=content, headers=JSON)
    check_problem(answer, 422 if code == "bad-request" else 400, code)


@pytest.mark.parametrize("content", [b"[]", b"null", b'"x"', b"7"])
def test_json_that_is_no_object_is_refused(served: Served, content: bytes) -> None:
    check_problem(served.client.post("/v1/jobs", content=content, headers=JSON), 422, "bad-request")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(served: Served, number: str) -> None:
    content = f'{{"slide": "good.tif", "query": "{QUERY}", "mpp": {number}}}'
    answer = served.client.post("/v1/jobs", content=content, headers=JSON)
    assert check_problem(answer, 422, "bad-request")["field"] == "mpp"


def test_half_a_character_is_refused(served: Served) -> None:
    content = rb'{"slide": "good.tif", "query": "\ud800"}'
    assert (
        check_problem(served.client.post("/v1/jobs", content=content, headers=JSON), 422, "bad-request")["field"]
        == "query"
    )


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_413_and_states_the_limit(slide_folder: Path, tmp_path: Path, announced: bool) -> None:
    body = json.dumps({"slide": "good.tif", "query": "x" * 5000}).encode()
    for served in serve(slide_folder, tmp_path / "data", max_body_bytes=4000):
        answer = served.client.post(
            "/v1/jobs", content=body if announced else iter([body[:100], body[100:]]), headers=JSON
        )
        assert "4000" in check_problem(answer, 413, "too-large")["detail"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "0.0.0.0"])
def test_a_rebound_name_is_not_served(served: Served, host: str) -> None:
    check_problem(served.client.get("/v1/jobs", headers={"Host": host}), 421, "host-not-allowed")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"])
def test_loopback_names_are_served(served: Served, host: str) -> None:
    assert served.client.get("/healthz", headers={"Host": host}).status_code == 200


def test_a_page_elsewhere_cannot_post(served: Served) -> None:
    body = {"slide": "good.tif", "query": QUERY}
    answer = served.client.post("/v1/jobs", json=body, headers={"Origin": "https://evil.example"})
    check_problem(answer, 403, "origin-not-allowed")
    assert served.client.post("/v1/jobs", json=body, headers={"Origin": "http://localhost:3000"}).status_code == 202


def test_what_nobody_foresaw_is_a_bare_500(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_args: object) -> None:
        raise RuntimeError("secret detail /root/path")

    monkeypatch.setattr(type(served.rooms.ledger), "job", break_down)
    answer = served.client.get("/v1/jobs/x")
    assert answer.status_code == 500
    assert (answer.headers["content-type"], answer.json()["code"]) == (MEDIA_TYPE, "internal")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_ready_needs_database_broker_artifacts_and_a_worker(slide_folder: Path, tmp_path: Path) -> None:
    for served in serve(slide_folder, tmp_path / "away"):
        answer = served.client.get("/readyz")
        checks = check_problem(answer, 503, "not-ready")["checks"]
        assert checks == {"database": True, "broker": False, "artifacts": True, "worker": False}
        assert served.client.get("/healthz").status_code == 200
    with embedded.start(tmp_path / "data", model="hue", workers=0) as running:
        more = {"broker_url": running.broker_url, "database_url": running.database_url}
        for served in serve(slide_folder, tmp_path / "data", **more):
            assert served.client.get("/readyz").json()["checks"]["worker"] is False
            add_worker(served)
            ready = served.client.get("/readyz").json()
            assert ready["status"] == "ready"
            assert ready["models"] == [{"name": "hue", "revision": "abc", "workers": 1}]


def test_who_scales_workers_from_none_need_not_require_one(served: Served) -> None:
    answer = served.client.get("/readyz?exclude=worker")
    assert check_problem(answer, 503, "not-ready")["detail"] == "away: broker"
    assert served.client.get("/readyz?exclude=worker&exclude=broker").json()["checks"]["worker"] is False
    assert check_problem(served.client.get("/readyz?exclude=all"), 422, "bad-request")["field"] == "exclude[0]"


def test_every_request_has_an_id_that_answers_problems_and_logs_repeat(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = {"X-Request-ID": "proxy-1.a_B"}
    assert served.client.get("/healthz", headers=mine).headers["x-request-id"] == "proxy-1.a_B"
    made = [served.client.get("/v1/jobs").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in made)
    for bad in ("", "a b", "x" * 129, "a\tb"):
        assert served.client.get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"] != bad
    missing = served.client.get(f"/v1/jobs/{'0' * 32}", headers=mine)
    assert check_problem(missing, 404, "job-not-found")["request_id"] == "proxy-1.a_B"
    foreign = served.client.get("/v1/jobs", headers={**mine, "Host": "evil.example"})
    assert check_problem(foreign, 421, "host-not-allowed")["request_id"] == "proxy-1.a_B"
    root, kept = logging.getLogger(), logging.getLogger().handlers[:]
    monkeypatch.setattr(served.rooms.ledger, "list_jobs", lambda **_: 1 / 0)
    try:
        setup_logs("json")
        broken = served.client.get("/v1/jobs", headers=mine)
    finally:
        root.handlers[:] = kept
    assert (broken.status_code, broken.json()["request_id"]) == (500, "proxy-1.a_B")
    assert broken.headers["x-request-id"] == "proxy-1.a_B"
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["level"] == "ERROR"]
    assert line["request_id"] == "proxy-1.a_B"
    assert "ZeroDivisionError" in line["exc"]


def test_a_database_that_is_away_is_503_with_retry_after(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = served.post()["jobID"]

    def refuse(*_args: object, **_given: object) -> None:
        raise OperationalError("SELECT secret", {}, ConnectionError("refused"))

    with monkeypatch.context() as patch:
        for name in ("job", "jobs", "list_jobs", "create_job", "dismiss", "workers", "slides"):
            patch.setattr(served.rooms.ledger, name, refuse)
        body = {"slide": "good.tif", "query": QUERY}
        answers = [served.client.get(url) for url in ("/v1/jobs", "/v1/models", f"/v1/jobs/{job_id}/report")]
        answers += [served.client.get(f"/v1/jobs/{job_id}{rest}") for rest in ("", "/events")]
        answers += [served.client.post("/v1/jobs", json=body), served.client.delete(f"/v1/jobs/{job_id}")]
        for answer in answers:
            assert "secret" not in str(check_problem(answer, 503, "database-away"))
            assert int(answer.headers["retry-after"]) > 0
    assert served.client.get(f"/v1/jobs/{job_id}").json()["status"] == "accepted"


def test_a_storage_that_is_away_is_503_with_retry_after(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str) -> None:
        raise StorageAway("the store at 10.0.0.7 does not answer")

    monkeypatch.setattr(served.rooms.ledger, "slide", refuse)
    answer = served.client.get(f"/v1/slides/{'0' * 32}")
    assert "10.0.0.7" not in check_problem(answer, 503, "storage-away")["detail"]
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("hosts", "name", "path", "status"),
    [
        ((), "slides.hospital.example", "/v1/jobs", 200),
        (("slides.hospital.example",), "slides.hospital.example", "/v1/jobs", 200),
        (("slides.hospital.example",), "evil.example", "/v1/jobs", 421),
        (("slides.hospital.example",), "10.1.2.3:8000", "/healthz", 200),
        (("slides.hospital.example",), "10.1.2.3:8000", "/metrics", 200),
    ],
)
def test_behind_a_proxy_its_names_and_probes_are_served(
    slide_folder: Path, tmp_path: Path, hosts: tuple[str, ...], name: str, path: str, status: int
) -> None:
    more = {"behind_proxy": True, "tenant_header": "X-Tenant", "allowed_hosts": hosts, "host": "0.0.0.0"}
    for served in serve(slide_folder, tmp_path / "data", **more):
        headers = {"Host": name, "X-Tenant": "a"}
        assert served.client.get(path, headers=headers).status_code == status
        if path == "/v1/jobs" and status == 200:
            body = {"slide": "good.tif", "query": QUERY}
            for origin, wanted in ((f"https://{name}", 202), ("https://evil.example", 403)):
                answer = served.client.post("/v1/jobs", json=body, headers={**headers, "Origin": origin})
                assert answer.status_code == wanted


def test_a_trace_goes_from_the_request_into_the_job(served: Served) -> None:
    exporter = InMemorySpanExporter()
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    body = {"slide": "good.tif", "query": QUERY}
    try:
        assert setup_tracing("gateway", exporter)
        served.client.post("/v1/jobs", json=body, headers={"traceparent": parent})
    finally:
        stop_tracing()
    (span,) = exporter.get_finished_spans()
    assert (span.name, f"{span.context.trace_id:032x}") == ("POST /v1/jobs", "a" * 32)
    work = served.rooms.ledger.claim("w", ["hue"], CARD)
    assert work.trace == f"00-{'a' * 32}-{span.context.span_id:016x}-01"
    served.client.post("/v1/jobs", json=body, headers={"traceparent": parent})
    assert served.rooms.ledger.claim("w", ["hue"], CARD).trace == parent, "passed on where the gateway traces nothing"
    served.client.post("/v1/jobs", json=body, headers={"traceparent": "nonsense"})
    assert served.rooms.ledger.claim("w", ["hue"], CARD).trace is None


def add_worker(served: Served, worker_id: str = "w1") -> None:
    card = SegmenterCard("hue", "abc", 256, 1.0, targets=("nuclei",), parameters=7, figures={"dice": 0.9})
    served.rooms.ledger.heartbeat(worker_id, card, ("hue", "tests.segmenters:hue_segmenter"))


def test_models_are_those_of_the_workers(served: Served) -> None:
    assert served.client.get("/v1/models").json() == {"models": [], "default": "hue"}
    add_worker(served, "w1")
    add_worker(served, "w2")
    (model,) = served.client.get("/v1/models").json()["models"]
    assert (model["name"], model["revision"], model["tile_size_px"], model["workers"]) == ("hue", "abc", 256, 2)
    assert (model["targets"], model["figures"], model["default"]) == (["nuclei"], {"dice": 0.9}, True)
    assert served.post(model="tests.segmenters:hue_segmenter")["model"] == "tests.segmenters:hue_segmenter"
    answer = served.client.post("/v1/jobs", json={"slide": "good.tif", "query": QUERY, "tile_size_px": 512})
    assert (answer.status_code, answer.json()["field"]) == (422, "tile_size_px")
    assert "256" in answer.json()["detail"]


def test_openapi_describes_every_route(served: Served) -> None:
    api = served.client.get("/openapi.json").json()
    assert api["openapi"].startswith("3.")
    paths = {
        "/v1/models", "/v1/slides", "/v1/slides/{slide_id}", "/v1/jobs", "/v1/jobs/{job_id}",
        "/v1/jobs/{job_id}/overlay/{key}", "/v1/jobs/{job_id}/overlay.zip", "/v1/jobs/{job_id}/regions",
        "/v1/jobs/{job_id}/regions.geojson.gz", "/v1/jobs/{job_id}/regions/{region_id}", "/v1/jobs/{job_id}/report",
        "/v1/jobs/{job_id}/dicom-seg", "/v1/jobs/{job_id}/dicom-ann",
        "/v1/jobs/{job_id}/links", "/v1/shared/{token}/{result}", "/v1/jobs/{job_id}/deliveries",
        "/v1/jobs/{job_id}/events", "/v1/jobs/{job_id}/exports", "/v1/jobs/{job_id}/exports/{name}",
        "/v1/slides/{slide_id}/dzi.dzi", "/v1/slides/{slide_id}/dzi_files/{level}/{col}_{row}.jpeg",
        "/v1/slides/{slide_id}/thumbnail.jpeg", "/v1/jobs/{job_id}/coverage", "/v1/jobs/{job_id}/tiles.dzi",
        "/v1/jobs/{job_id}/tiles_files/{level}/{col}_{row}.png", "/v1/schemas/report.json",
        "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    assert set(api["paths"]) == paths
    assert set(api["paths"]["/v1/slides"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
    }
    assert api["components"]["schemas"]["JobRequest"]["additionalProperties"] is False
    assert "HTTPValidationError" not in api["components"]["schemas"], "errors are problems, and described as such"
    default = api["paths"]["/v1/jobs"]["get"]["responses"]["default"]["content"]
    assert list(default) == [MEDIA_TYPE]
    assert default[MEDIA_TYPE]["schema"] == {"$ref": "#/components/schemas/ProblemBody"}
    for path in api["paths"].values():
        assert all(operation["summary"] for operation in path.values())


def test_docs_need_no_network(served: Served) -> None:
    page = served.client.get("/docs")
    assert "'self'" in page.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page.text)
    for name in re.findall(r"(?:src|href)=\"(/[^\"]+)\"", page.text):
        answer = served.client.get(name)
        assert answer.status_code == 200, name
        assert len(answer.content) > 40


def test_a_ticket_is_sent_for_a_new_job_only(slide_folder: Path, tmp_path: Path) -> None:
    with embedded.start(tmp_path / "data", model="hue", workers=0) as running:
        more = {"broker_url": running.broker_url, "database_url": running.database_url}
        for served in serve(slide_folder, tmp_path / "data", **more):
            body, headers = {"slide": "good.tif", "query": QUERY}, {"Idempotency-Key": "k"}
            for _ in range(3):
                assert served.client.post("/v1/jobs", json=body, headers=headers).status_code == 202
            assert depth(served.rooms.broker, "hue") == 1
