"""The FHIR bundle: R4 by the classes and by the schema, whole within itself, preliminary, and naming no patient."""

import base64
import hashlib
import json
import time
import tracemalloc
import xml.dom.minidom
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from fhir.resources.R4B.bundle import Bundle
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.report_jobs import changed, huge_job, real_job
from worker.exports import fhir
from worker.exports.fhir import write_fhir
from worker.exports.job_results import JobResults
from worker.exports.message import clean_text

SCHEMA = json.loads((Path(__file__).parent / "vendor/fhir_r4.schema.json").read_text(encoding="utf-8"))
NASTY = "\x0b\x00Tumour\u00a0& <b>stroma</b>\x85“]]>”\ud800 \ufffe腫瘍 😀\r\n\u2028"
RESEARCH_ONLY = "Research use only. Not for use in diagnostic procedures."


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> JobResults:
    return real_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def bundle(done, tmp_path_factory) -> dict:
    return written(done, tmp_path_factory.mktemp("fhir"))


def written(results: JobResults, folder: Path, base_url: str = "") -> dict:
    write_fhir(results, folder / "bundle.json", base_url)
    return json.loads((folder / "bundle.json").read_text(encoding="utf-8"))


def resources(bundle: dict, kind: str) -> list[dict]:
    return [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind]


def texts_of(value) -> list[str]:
    if isinstance(value, dict):
        return [text for child in value.values() for text in texts_of(child)]
    if isinstance(value, list):
        return [text for child in value for text in texts_of(child)]
    return [value] if isinstance(value, str) else []


def validate(bundle: dict) -> None:
    """By the classes of fhir.resources, which refuse unknown fields, and by HL7's own schema of 4.0.1."""
    Bundle.model_validate(bundle)
    jsonschema.Draft6Validator(SCHEMA).validate(bundle)


def test_the_bundle_is_valid_r4(bundle):
    validate(bundle)
    assert bundle["type"] == "collection"


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("DiagnosticReport", "issued", "2026-11-26"), ("Device", "colour", "green"), ("Observation", "code", None)],
)
def test_both_validators_find_faults(bundle, kind, field, value):
    broken = json.loads(json.dumps(bundle))
    resource = resources(broken, kind)[0]
    resource.pop(field, None)
    if value is not None:
        resource[field] = value
    assert not jsonschema.Draft6Validator(SCHEMA).is_valid(broken)
    with pytest.raises(ValueError):
        Bundle.model_validate(broken)


def test_the_report_is_preliminary_and_answers(bundle, done):
    (report,) = resources(bundle, "DiagnosticReport")
    assert report["status"] == "preliminary"
    assert report["category"][0]["coding"][0] == {
        "system": "http://loinc.org", "code": "LP7839-6", "display": "Pathology",
    }  # fmt: skip
    assert report["code"]["coding"][0]["code"] == "60567-5"
    assert report["conclusion"] == f"{done.report['answer']}\n{RESEARCH_ONLY}"
    assert report["issued"] == report["effectiveDateTime"] == "2026-11-26T12:00:30+00:00"
    assert RESEARCH_ONLY in report["text"]["div"]


def test_there_is_one_observation_for_each_feature(bundle, done):
    features = {feature["id"]: feature["properties"] for feature in done.features()}
    found = {entry["identifier"][0]["value"]: entry for entry in resources(bundle, "Observation")}
    assert set(found) == {f"urn:uuid:{region_id}" for region_id in features} and len(features) >= 4
    for region_id, properties in features.items():
        entry, measured = found[f"urn:uuid:{region_id}"], properties["measurements"]
        area = {"value": measured["Area µm^2"], "unit": "µm²", "system": "http://unitsofmeasure.org", "code": "um2"}
        parts = {part["code"]["coding"][0]["code"]: part for part in entry["component"]}
        assert (entry["id"], entry["status"], entry["valueQuantity"]) == (region_id, "preliminary", area)
        assert entry["derivedFrom"][0]["display"].endswith(region_id)
        assert parts["confidence"]["valueQuantity"]["value"] == measured["Confidence"]
        assert parts["perimeter"]["valueQuantity"]["code"] == "um"
        assert parts["perimeter"]["valueQuantity"]["value"] == measured["Perimeter µm"]
        assert parts["agreement"].get("valueQuantity", {}).get("value") == measured.get("Agreement")
        assert entry["code"]["text"] == properties["metadata"]["query"]
        assert entry["note"] == [{"text": RESEARCH_ONLY}]


def test_what_one_tile_alone_saw_has_no_agreement(done, tmp_path):
    def alone(report):
        report["regions"][0]["agreement"] = None

    bundle = written(changed(done, tmp_path / "job", alone), tmp_path)
    validate(bundle)
    parts = resources(bundle, "Observation")[0]["component"]
    (agreement,) = [part for part in parts if part["code"]["coding"][0]["code"] == "agreement"]
    assert "valueQuantity" not in agreement and agreement["dataAbsentReason"]["text"]


def parts_of(bundle: dict, index: int = 0) -> dict[str, dict]:
    """The components of an observation by their code."""
    return {part["code"]["coding"][0]["code"]: part for part in resources(bundle, "Observation")[index]["component"]}


def weigh(report: dict) -> None:
    """Evidence against the first region, nothing known of the second, and the third as an older report had it."""
    stain = {"shift_sd": 4.125, "limit_sd": 3.0, "far": True, "tiles": 5}
    against = {"chain": ["place", "size"], "checked": 7, "contradicted": 2, "by_aspect": {"place": 2, "size": 1}}
    report["regions"][0] |= {"stain": stain, "contradictions": against, "weak": ["stain", "contradiction"]}
    report["regions"][1] |= {"stain": None, "contradictions": None, "weak": []}
    for name in ("stain", "contradictions", "weak"):
        del report["regions"][2][name]


def test_stain_and_contradictions_are_components_with_their_range(done, tmp_path):
    bundle = written(changed(done, tmp_path / "job", weigh), tmp_path)
    validate(bundle)
    parts = parts_of(bundle)
    shift = parts["stain-shift"]
    assert (shift["valueQuantity"]["value"], shift["valueQuantity"]["code"]) == (4.125, "{SD}")
    assert shift["referenceRange"][0]["high"]["value"] == 3.0
    assert parts["chain-contradictions"]["valueString"] == "place, size"
    ratio = parts["tiles-contradicting"]["valueRatio"]
    assert (ratio["numerator"]["value"], ratio["denominator"]["value"]) == (2, 7)
    weak = {found["code"]: found["display"] for found in parts["weak-evidence"]["valueCodeableConcept"]["coding"]}
    assert weak.keys() == {"weak-stain", "weak-contradiction"} and "own mask" in weak["weak-contradiction"]


def test_what_is_not_known_of_the_evidence_is_said_to_be_absent(done, tmp_path):
    bundle = written(changed(done, tmp_path / "job", weigh), tmp_path)
    parts = parts_of(bundle, 1)
    for name in ("stain-shift", "chain-contradictions", "tiles-contradicting"):
        assert parts[name]["dataAbsentReason"]["coding"][0]["code"] == "unknown"
        assert not any(field.startswith("value") for field in parts[name])
    assert "weak-evidence" not in parts
    assert parts_of(bundle, 2).keys() & {"stain-shift", "chain-contradictions", "weak-evidence"} == set()


def test_the_evidence_of_a_real_job_is_that_of_its_report(bundle, done):
    for index, region in enumerate(done.report["regions"]):
        parts, against = parts_of(bundle, index), region["contradictions"]
        assert parts["tiles-contradicting"]["valueRatio"]["denominator"]["value"] == against["checked"] >= 1
        assert parts["chain-contradictions"]["valueString"] == (", ".join(against["chain"]) or "none")


def test_every_reference_leads_to_an_entry_of_its_type(bundle):
    kinds = {entry["fullUrl"]: entry["resource"]["resourceType"] for entry in bundle["entry"]}
    assert len(kinds) == len(bundle["entry"])
    references = []

    def walk(value):
        if isinstance(value, dict):
            references.extend([value] if "reference" in value else [])
            for child in value.values():
                walk(child)
        elif isinstance(value, list):
            for child in value:
                walk(child)

    walk(bundle)
    assert len(references) > 10
    assert [found for found in references if kinds.get(found["reference"]) != found["type"]] == []
    (report,) = resources(bundle, "DiagnosticReport")
    observations = [f"urn:uuid:{entry['id']}" for entry in resources(bundle, "Observation")]
    assert [entry["reference"] for entry in report["result"]] == observations


def test_the_software_and_its_model_are_named(bundle, done):
    (device,) = resources(bundle, "Device")
    assert {entry["type"]: entry["name"] for entry in device["deviceName"]} == {
        "user-friendly-name": "SlideReason", "model-name": "hue",
    }  # fmt: skip
    assert done.report["model"]["revision"] in [entry["value"] for entry in device["version"]]
    (provenance,) = resources(bundle, "Provenance")
    assert provenance["reason"][0]["coding"][0]["code"] == "HRESCH"
    assert provenance["agent"][0]["who"]["reference"] == f"urn:uuid:{device['id']}"


def test_no_patient_and_no_path(bundle, done):
    words = json.dumps(bundle)
    assert not resources(bundle, "Patient") and '"subject"' not in words
    assert done.spec.slide_path not in words and str(done.folder) not in words
    (specimen,) = resources(bundle, "Specimen")
    assert specimen["identifier"] == [{"system": "urn:slidereason:slide", "value": done.spec.slide_id}]


def test_the_page_is_embedded(bundle, done):
    (form,) = resources(bundle, "DiagnosticReport")[0]["presentedForm"]
    page = (done.folder / "report.html").read_bytes()
    assert base64.b64decode(form["data"]) == page and form["size"] == len(page)
    assert base64.b64decode(form["hash"]) == hashlib.sha1(page).digest() and "url" not in form


def test_a_large_or_missing_page_is_linked_to(done, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fhir, "HTML_BYTES", 1000)
        large = written(done, tmp_path, "https://slides.example/api/")
    missing = written(changed(done, tmp_path / "job", lambda report: None), tmp_path)
    for bundle, base in ((large, "https://slides.example/api/"), (missing, "")):
        validate(bundle)
        (form,) = resources(bundle, "DiagnosticReport")[0]["presentedForm"]
        assert form["url"] == f"{base}v1/jobs/{done.job_id}/report" and "data" not in form
        (outlines,) = resources(bundle, "DocumentReference")
        assert outlines["content"][0]["attachment"]["url"] == f"{base}v1/jobs/{done.job_id}/regions"


def test_nasty_words_are_carried_and_break_nothing(done, tmp_path):
    def spoil(report):
        report["answer"] = NASTY.replace("\ud800", "")
        report["queries"][0]["query"] = "\x1c\x1d"
        report["regions"][0]["conclusion"] = "\u2003"
        report["model"]["name"] = "a\u00a0b"

    bundle = written(changed(done, tmp_path / "job", spoil), tmp_path)
    validate(bundle)
    (report,) = resources(bundle, "DiagnosticReport")
    assert report["conclusion"].splitlines()[:2] == ["Tumour & <b>stroma</b>", "“]]>” 腫瘍 😀"]
    assert "&lt;b&gt;stroma" in report["text"]["div"]
    for text in texts_of(bundle):
        if text.startswith("<div"):
            xml.dom.minidom.parseString(text)
    assert "text" not in resources(bundle, "Observation")[0]["code"], "nothing is left of that question"


def test_nothing_found_has_no_results(done, tmp_path):
    bundle = written(changed(done, tmp_path / "job", lambda report: report["regions"].clear()), tmp_path)
    validate(bundle)
    assert "result" not in resources(bundle, "DiagnosticReport")[0]


def test_the_same_results_give_the_same_bytes(done, tmp_path):
    written(done, tmp_path)
    first = (tmp_path / "bundle.json").read_bytes()
    written(replace(done), tmp_path)
    assert (tmp_path / "bundle.json").read_bytes() == first
    other = written(replace(done, job_id="0" * 32), tmp_path)
    mine = json.loads(first)
    assert other["id"] != mine["id"] and resources(other, "Device") == resources(mine, "Device")


@pytest.mark.slow
def test_ten_thousand_regions(tmp_path):
    results = huge_job(tmp_path)
    assert len(results.report["regions"]) > 10_000, "read before the memory is looked at"
    started = time.monotonic()
    write_fhir(results, tmp_path / "bundle.json")
    took_s = time.monotonic() - started
    tracemalloc.start()
    write_fhir(results, tmp_path / "bundle.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "bundle.json").stat().st_size
    assert took_s < 10 and peak < size / 2 and peak < 16 * 2**20, f"{took_s:.1f} s, {peak:,} of {size:,} bytes"
    bundle = json.loads((tmp_path / "bundle.json").read_text(encoding="utf-8"))
    ids = {entry["id"] for entry in resources(bundle, "Observation")}
    assert ids == {feature["id"] for feature in results.features()}
    bundle["entry"] = [entry for entry in bundle["entry"] if entry["resource"]["resourceType"] != "Observation"]
    validate(bundle)


@given(st.text())
def test_clean_text_is_what_xml_and_fhir_accept(text):
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned == cleaned.strip()
    xml.dom.minidom.parseString(f"<a>{cleaned.replace('&', '').replace('<', '').replace(']]>', '')}</a>")
    assert all(character == "\n" or (character >= " " and character != "\u00a0") for character in cleaned)


def test_clean_text_keeps_what_people_write():
    words = "Tumör, 腫瘍, ‘αβγ’ – 12 µm² 👩‍⚕️"
    assert clean_text(words) == words and clean_text("a\r\n b \r\r\tc") == "a\nb\n\nc"
    assert clean_text(NASTY) == "Tumour & <b>stroma</b>\n“]]>” 腫瘍 😀"
