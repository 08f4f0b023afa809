"""Traces: one of a request and all the work it causes, or nothing at all."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs import HUE, hue_spec
from tests.segmenters import hue_segmenter
from worker import tracing
from worker.artifacts import open_artifacts
from worker.engine import Engine
from worker.ledger import Ledger
from worker.tasks import Runner

memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="needs the extra otel")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator:
    exporter = memory.InMemorySpanExporter()
    assert tracing.setup_tracing("tests", exporter)
    yield exporter
    tracing.stop_tracing()


def test_a_span_is_the_child_of_the_one_around_it(spans):
    with tracing.span("outer", slide="s", left_out=None) as outer, tracing.span("inner"):
        pass
    inner, done = spans.get_finished_spans()
    assert inner.parent.span_id == outer.get_span_context().span_id
    assert dict(done.attributes) == {"slide": "s"}
    assert done.resource.attributes["service.name"] == "tests"


def test_a_parent_may_be_another_process(spans):
    with tracing.span("here", PARENT):
        told = tracing.current_traceparent()
    (here,) = spans.get_finished_spans()
    assert f"{here.context.trace_id:032x}" == PARENT.split("-")[1] == told.split("-")[1]
    assert f"{here.parent.span_id:016x}" == PARENT.split("-")[2]
    assert told == f"00-{here.context.trace_id:032x}-{here.context.span_id:016x}-01"


@pytest.mark.parametrize("malformed", ["", "00-xyz", "not a traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_malformed_parent_counts_as_none(malformed: str, spans):
    with tracing.span("here", malformed):
        pass
    assert spans.get_finished_spans()[0].parent is None


def test_an_error_is_recorded_and_goes_on(spans):
    with pytest.raises(ZeroDivisionError), tracing.span("here"):
        raise ZeroDivisionError
    (here,) = spans.get_finished_spans()
    assert not here.status.is_ok
    assert here.events[0].attributes["exception.type"] == "ZeroDivisionError"


def test_without_an_endpoint_nothing_happens(monkeypatch):
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert not tracing.setup_tracing("tests")
    with tracing.span("here") as started:
        assert started is None
        assert tracing.current_traceparent() is None


def test_an_endpoint_without_the_extra_is_a_warning(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.WARNING):
        assert not tracing.setup_tracing("tests")
    assert "the extra `otel` is not installed" in caplog.text


def test_the_standard_switch_turns_it_off(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not tracing.setup_tracing("tests")


def test_without_traces_opentelemetry_is_not_even_imported():
    code = (
        "import sys; from worker import tracing; tracing.setup_tracing('tests')\n"
        "with tracing.span('a', 'b', c=1): tracing.past_span('d', 0, 1)\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.strip() == "[]"


def test_request_and_work_are_one_trace(pyramid_slide: Path, tmp_path: Path, spans):
    """What the gateway begins goes on in the worker, by way of the ledger alone."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with tracing.span("POST /v1/jobs") as request:
        asked = request.get_span_context()
        job_id, _ = ledger.create_job(hue_spec(pyramid_slide), trace=tracing.current_traceparent())
    with Engine(hue_segmenter()) as engine:
        runner = Runner(ledger, open_artifacts(tmp_path / "artifacts"), engine, "w", (HUE,))
        while runner.run_one():
            pass
    assert ledger.job(job_id).status == "successful"
    ledger.close()
    done = spans.get_finished_spans()
    assert {span.context.trace_id for span in done} == {asked.trace_id}
    units = {span.name: span for span in done if span.parent and span.parent.span_id == asked.span_id}
    blocks = [name for name in units if name.startswith("segment ")]
    assert set(units) == {"plan", "finish", *blocks} and blocks
    assert all(unit.attributes["job"] == job_id for unit in units.values())
    for name in blocks:
        parts = {span.name: span for span in done if span.parent and span.parent.span_id == units[name].context.span_id}
        assert {"read", "predict", "blend", "write", "save", "commit", "publish"} == set(parts)
        for part in parts.values():
            assert units[name].start_time <= part.start_time + 2_000_000
            assert 0 <= part.attributes["busy_s"] <= (part.end_time - part.start_time) / 1e9 + 1e-3
