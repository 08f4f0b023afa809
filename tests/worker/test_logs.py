"""Logs: each line says of which job and unit it speaks, in either form."""

import io
import json
import logging
import threading
from collections.abc import Iterator
from contextvars import copy_context

import pytest

from worker.errors import BadRequest
from worker.logs import log_context, setup_logs

log = logging.getLogger("tests.logs")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def lines() -> io.StringIO:
    stream = io.StringIO()
    setup_logs("json", "INFO", stream, worker_id="w1")
    return stream


def parsed(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_object_with_what_it_speaks_of(lines: io.StringIO):
    with log_context(job_id="j1", unit="segment 0_1"):
        log.info("half %s", "done")
    (line,) = parsed(lines)
    ts = line.pop("ts")
    assert ts.endswith("+00:00") and "T" in ts
    assert line == {
        "level": "INFO", "logger": "tests.logs", "message": "half done", "worker": "w1", "job": "j1",
        "unit": "segment 0_1",
    }  # fmt: skip


def test_names_end_with_their_block_and_inner_ones_win(lines: io.StringIO):
    with log_context(job="outer", request_id="r"):
        with log_context(job="inner", request_id=None):
            log.info("a")
        log.info("b")
    log.info("c")
    told = [(line.get("job"), line.get("request_id")) for line in parsed(lines)]
    assert told == [("inner", None), ("outer", "r"), (None, None)]


def test_names_end_also_when_something_is_raised(lines: io.StringIO):
    with pytest.raises(ValueError), log_context(job="j"):
        raise ValueError
    log.info("after")
    assert "job" not in parsed(lines)[0]


def test_threads_do_not_see_each_others_names_unless_they_are_handed_on(lines: io.StringIO):
    with log_context(job="j"):
        threads = [
            threading.Thread(target=log.info, args=("alone",)),
            threading.Thread(target=copy_context().run, args=(log.info, "handed on")),
        ]
        for thread in threads:
            thread.start()
            thread.join()
    assert [line.get("job") for line in parsed(lines)] == [None, "j"]


def test_an_exception_and_line_breaks_stay_in_their_line(lines: io.StringIO):
    try:
        raise ZeroDivisionError("bad\ntile")
    except ZeroDivisionError as error:
        log.error("failed:\n%s", error, exc_info=error)
    (line,) = parsed(lines)
    assert line["message"] == "failed:\nbad\ntile"
    assert line["exc"].startswith("Traceback") and "ZeroDivisionError" in line["exc"]


def test_text_names_them_as_well():
    stream = io.StringIO()
    setup_logs("text", "warning", stream)
    with log_context(job="j1"):
        log.info("too quiet")
        log.warning("heard")
    log.warning("plain")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("WARNING tests.logs [job=j1] heard")
    assert second.endswith("WARNING tests.logs: plain")


def test_set_up_twice_every_line_is_written_once():
    first, second = io.StringIO(), io.StringIO()
    setup_logs("text", "INFO", first)
    setup_logs("json", "INFO", second)
    log.info("once")
    assert first.getvalue() == ""
    assert len(parsed(second)) == 1


@pytest.mark.parametrize(("settings", "field"), [(("xml", "INFO"), "log_format"), (("json", "LOUD"), "log_level")])
def test_what_is_not_known_is_named(settings: tuple[str, str], field: str):
    with pytest.raises(BadRequest, match="accepted are") as caught:
        setup_logs(*settings)
    assert caught.value.field == field
