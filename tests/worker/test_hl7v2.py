"""The HL7 v2 message as another's parser reads it: whole, preliminary, with no identity, whatever the words are."""

import re
from dataclasses import replace
from pathlib import Path

import hl7
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.report_jobs import EVIL, changed, real_job
from tests.worker.test_fhir import weigh
from worker.exports import hl7v2
from worker.exports.hl7v2 import CUT, escape_text, write_hl7
from worker.exports.job_results import JobResults
from worker.exports.message import clean_text

RESEARCH_ONLY = "Research use only. Not for use in diagnostic procedures."
NASTY = "a|b^c&d~e\\f \\F\\ \\.br\\ \\X0D\\\rOBX|99|NM|AREA||7\nline\x0b\x1c\x00 \u2028腫瘍 µm² 😀"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> JobResults:
    return real_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def message(done, tmp_path_factory) -> hl7.Message:
    return parsed(done, tmp_path_factory.mktemp("hl7"))


def parsed(results: JobResults, folder: Path, base_url: str = "") -> hl7.Message:
    write_hl7(results, folder / "message.hl7", base_url)
    return hl7.parse((folder / "message.hl7").read_bytes(), encoding="utf-8")


def observations(message: hl7.Message) -> dict[tuple[str, str], hl7.Segment]:
    """OBX by its code and sub-id."""
    return {(str(segment[3][0][0]), str(segment[4])): segment for segment in message.segments("OBX")}


def unescaped(field: str) -> str:
    """The words of a field, by this test's own reading of the standard (v2.5.1, 2.7)."""
    meanings = {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\", ".br": "\n"}
    return re.sub(r"\\(F|S|T|R|E|\.br)\\", lambda found: meanings[found.group(1)], field)


def test_the_header(message, done):
    (header,) = message.segments("MSH")
    assert [str(header[place]) for place in (1, 2, 3, 9, 11, 12, 18)] == [
        "|", "^~\\&", "SlideReason", "ORU^R01^ORU_R01", "P", "2.5.1", "UNICODE UTF-8",
    ]  # fmt: skip
    assert str(header[7]) == "20261126120030+0000"
    assert re.fullmatch(r"[0-9a-f]{20}", str(header[10]))


def test_segments_stand_in_the_order_of_the_standard_and_end_with_cr(done, tmp_path):
    write_hl7(done, tmp_path / "message.hl7")
    data = (tmp_path / "message.hl7").read_bytes()
    segments = data.decode("utf-8").split("\r")
    assert segments.pop() == "" and b"\n" not in data
    names = [segment[:3] for segment in segments]
    obx = 1 + 3 * len(done.spec.queries) + 8 * len(done.report["regions"]) + 1
    assert names == ["MSH", "SFT", "PID", "OBR", "NTE", *["OBX"] * obx, "SPM"]
    assert [segment.split("|")[1] for segment in segments if segment.startswith("OBX")] == [
        str(number) for number in range(1, obx + 1)
    ]


def test_nobody_is_named(message, done, tmp_path):
    (patient,) = message.segments("PID")
    assert str(patient[5]) == "^^^^^^U" and len(patient) == 6
    assert re.fullmatch(r"[0-9a-f-]{36}\^\^\^SlideReason\^ANON", str(patient[3]))
    assert '""' not in str(message) and done.spec.slide_path not in str(message)
    assert str(message.segment("SPM")[2]) == f"^{done.spec.slide_id}&SlideReason"

    def move(report):
        report["slide"]["slide_id"] = "another"

    other = parsed(changed(done, tmp_path / "job", move), tmp_path)
    assert str(other.segment("PID")[3]) != str(patient[3]), "two slides are never one patient"
    again = parsed(replace(done, job_id="0" * 32), tmp_path)
    assert str(again.segment("PID")[3]) == str(patient[3])


def test_everything_is_preliminary_and_for_research(message, done):
    order = message.segment("OBR")
    assert str(order[3]) == f"{done.job_id}^SlideReason"
    assert str(order[4]) == "60567-5^Comprehensive pathology report panel^LN"
    assert (str(order[7]), str(order[22]), str(order[25])) == ("20261126120030+0000", "20261126120030+0000", "P")
    for segment in message.segments("OBX"):
        assert str(segment[11]) == ("P" if str(segment[5]) else "X"), "X is not obtained"
    assert str(message.segment("NTE")[3]) == RESEARCH_ONLY


def test_the_answer_and_what_was_found_for_each_question(message, done):
    found = observations(message)
    answer = found["CONCLUSION", ""]
    assert str(answer[2]) == "FT"
    assert unescaped(str(answer[5])) == f"{done.report['answer']}\n{RESEARCH_ONLY}"
    for query in done.report["queries"]:
        group = str(query["query_index"] + 1)
        area, count, question = (found[code, group] for code in ("AREA", "REGIONS", "QUESTION"))
        assert (str(area[2]), str(area[6])) == ("NM", "um2^square micrometer^UCUM")
        assert float(str(area[5])) == query["area_um2"] > 0
        assert (str(count[2]), int(str(count[5]))) == ("NM", query["regions"])
        assert unescaped(str(question[5])) == query["query"]
    assert unescaped(str(found["QUESTION", "1"][5])) == EVIL
    assert done.report["model"]["revision"] in str(message.segment("SFT")[5])


def test_the_largest_regions_are_told_with_their_evidence(done, tmp_path, monkeypatch):
    results = changed(done, tmp_path / "job", weigh)
    monkeypatch.setattr(hl7v2, "MOST_REGIONS", 3)
    found = observations(parsed(results, tmp_path))
    first, second, third = results.report["regions"][:3]
    groups = {str(segment[5]): group for (code, group), segment in found.items() if code == "REGION"}
    assert len(groups) == 3 * len(done.spec.queries)
    areas = [float(str(found["REGION_AREA", f"1.{number}"][5])) for number in (1, 2, 3)]
    of_first = [region["area_um2"] for region in results.report["regions"] if region["query_index"] == 0]
    assert areas == sorted(of_first, reverse=True)[:3]
    at = groups[first["region_id"]]
    shift, tiles = found["STAIN_SHIFT", at], found["TILES_CONTRADICTING", at]
    assert (str(shift[2]), str(shift[5]), str(shift[6])[:4], str(shift[7])) == ("NM", "4.125", "{SD}", "0-3.000")
    assert (str(tiles[2]), str(tiles[5])) == ("SN", "^2^/^7")
    assert str(found["CHAIN_CONTRADICTIONS", at][5]) == "place, size"
    assert "own mask" in str(found["WEAK_EVIDENCE", at][5])
    assert float(str(found["CONFIDENCE", at][5])) == first["confidence"]
    at = groups[second["region_id"]]
    for code in ("STAIN_SHIFT", "CHAIN_CONTRADICTIONS", "TILES_CONTRADICTING"):
        assert (str(found[code, at][5]), str(found[code, at][11])) == ("", "X"), code
    assert str(found["WEAK_EVIDENCE", at][5]) == "nothing"
    at = groups[third["region_id"]]
    assert ("REGION_AREA", at) in found and ("WEAK_EVIDENCE", at) not in found, "as an older report had it"


@pytest.mark.parametrize("base", ["", "https://slides.example/api/", "https://slides.example/?a=1&b=2~"])
def test_the_link_to_the_report(done, tmp_path, base):
    link = observations(parsed(done, tmp_path, base))["REPORT", ""]
    pointer, application, kind, subtype = (str(part[0]) for part in link[5][0])
    assert (str(link[2]), application, kind, subtype) == ("RP", "SlideReason", "TEXT", "HTML")
    slash = "/" if base else ""
    assert unescaped(pointer) == f"{base.rstrip('/')}{slash}v1/jobs/{done.job_id}/report"


def test_where_nothing_was_looked_at_nothing_is_said_to_be_absent(done, tmp_path):
    def blind(report):
        report["coverage"]["looked_at"] = 0

    found = observations(parsed(changed(done, tmp_path / "job", blind), tmp_path))
    for code in ("AREA", "REGIONS"):
        assert (str(found[code, "1"][5]), str(found[code, "1"][11])) == ("", "X")


def test_nasty_words_stay_in_their_field(done, tmp_path):
    def spoil(report):
        report["answer"] = report["queries"][0]["query"] = NASTY
        report["model"] |= {"name": NASTY * 9, "revision": NASTY}
        report["slide"]["slide_id"] = NASTY

    results = changed(done, tmp_path / "job", spoil)
    message = parsed(results, tmp_path)
    data = (tmp_path / "message.hl7").read_bytes()
    assert not re.search(rb"[\x00-\x0c\x0e-\x1f]", data), "no frame of MLLP, no other control character"
    assert [len(message.segments(name)) for name in ("MSH", "PID", "OBR", "OBX")] == [
        1, 1, 1, 8 + 8 * len(done.report["regions"]),
    ]  # fmt: skip
    found = observations(message)
    assert unescaped(str(found["QUESTION", "1"][5])) == clean_text(NASTY)
    assert unescaped(str(found["CONCLUSION", ""][5])) == f"{clean_text(NASTY)}\n{RESEARCH_ONLY}"
    method, equipment = found["CONCLUSION", ""][17][0], found["CONCLUSION", ""][18][0]
    assert len(str(method[1])) <= 199 and len(str(equipment[0])) <= 199 and str(equipment[1]) == "SlideReason"
    assert len(message.segment("OBX")) == 19 and len(message.segment("SPM")) == 5


def test_the_parsers_own_unescape_agrees(message):
    """That of `hl7` makes a CR of the break between lines; all else it reads as this test does."""
    words = "a|b^c&d~e\\f \\F\\ 腫瘍 µm²"
    assert message.unescape(escape_text(words)) == words == unescaped(escape_text(words))
    assert message.unescape(escape_text("a\nb")) == "a\rb"


@given(st.text(max_size=40))
def test_escaped_text_holds_no_delimiter_and_can_be_read_back(text):
    escaped = escape_text(text)
    assert not set(escaped) & set("|^&~\r\n")
    assert unescaped(escaped) == clean_text(text)


@given(st.text(alphabet="ab|^\\\n", min_size=200), st.integers(60, 150))
def test_too_long_a_text_is_cut_between_escapes_and_says_so(text, limit):
    escaped = escape_text(text, limit)
    if len(clean_text(text)) > limit:
        assert escaped.endswith(CUT)
    assert len(escaped) <= limit
    assert escaped.count("\\") % 2 == 0
    assert clean_text(text).startswith(unescaped(escaped.removesuffix(CUT)))


def test_the_same_results_give_the_same_bytes(done, tmp_path):
    parsed(done, tmp_path)
    first = (tmp_path / "message.hl7").read_bytes()
    parsed(replace(done), tmp_path)
    assert (tmp_path / "message.hl7").read_bytes() == first
    parsed(replace(done, job_id="0" * 32), tmp_path)
    second = (tmp_path / "message.hl7").read_bytes()
    assert first.split(b"|")[9] != second.split(b"|")[9], "each job has a control id of its own"
