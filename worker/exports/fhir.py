"""Results as a FHIR R4 bundle: a preliminary DiagnosticReport, an Observation for each region, and who made them.

The bundle is a `collection`. A `transaction` tells a server to store everything under ids and a patient of its own, and
neither is known here; every entry has a `urn:uuid:`, so whoever files it adds `request` to the entries and has one.

Source: HL7 FHIR 4.0.1, https://hl7.org/fhir/R4/diagnosticreport.html.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from functools import cached_property
from pathlib import Path
from typing import Any

from worker.artifacts import REPORT_HTML
from worker.exports.job_results import JobResults
from worker.exports.message import PRODUCT, SPACE, address_of, clean_text, model_words, named_uuid, software_version
from worker.report_parts import WEAK_WORDS

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"
ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
PARTICIPANT = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
URI = "urn:ietf:rfc3986"
"""The system of identifiers that are URIs themselves."""

HTML_BYTES = 4 << 20
"""A larger report is linked to, not embedded: base64 adds a third, and servers take some megabytes at once."""

NO_PATIENT = "No patient is known to the software: the identifier is that of the slide."
RESEARCH = {"system": ACT_REASON, "code": "HRESCH", "display": "healthcare research"}


def write_fhir(results: JobResults, path: Path, base_url: str = "") -> None:
    """Write a Bundle, an entry on each line, holding one region at a time.

    Args:
        results: of a finished job. Its `report.html` is embedded where it is there and not too large.
        path: the file.
        base_url: of the gateway; without it links are relative, which FHIR reads as relative to the service.
    """
    case = _Case(results, base_url)
    head = {
        "resourceType": "Bundle",
        "id": named_uuid(results.job_id, "bundle"),
        "meta": {"security": [RESEARCH]},
        "identifier": {"system": f"{SPACE}:job", "value": results.job_id},
        "type": "collection",
        "timestamp": case.time,
    }
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write(_dumps(head)[:-1] + ', "entry": [')
        for index, resource in enumerate(_resources(case)):
            out.write(",\n" if index else "\n")
            out.write(_dumps({"fullUrl": f"urn:uuid:{resource['id']}", "resource": resource}))
        out.write("\n]}\n")


@dataclass(frozen=True)
class _Case:
    """A job as the bundle's resources see it.

    Attributes:
        results: of the job.
        base_url: of the gateway.
    """

    results: JobResults
    base_url: str

    @cached_property
    def report(self) -> dict[str, Any]:
        return self.results.report

    @cached_property
    def time(self) -> str:
        """When the job ended, as an instant."""
        return self.results.finished.astimezone(UTC).isoformat(timespec="seconds")

    @cached_property
    def use(self) -> str:
        return self.report["use"]

    @cached_property
    def device_id(self) -> str:
        """The same in all jobs of one model and one version."""
        return named_uuid("device", software_version(), model_words(self.report))

    @cached_property
    def specimen_id(self) -> str:
        """The same in all jobs on one slide."""
        return named_uuid("slide", self.report["slide"]["slide_id"])

    def id_of(self, name: str) -> str:
        """The id of a resource of this job alone."""
        return named_uuid(self.results.job_id, name)

    def address(self, what: str) -> str:
        return address_of(self.results.job_id, what, self.base_url)


def _resources(case: _Case) -> Iterator[dict[str, Any]]:
    yield _diagnostic_report(case)
    yield _specimen(case)
    yield _device(case)
    yield _outlines(case)
    yield _provenance(case)
    for region in case.report["regions"]:
        yield _observation(region, case)


def _diagnostic_report(case: _Case) -> dict[str, Any]:
    """The answer in words. A patient's place, `subject`, stays empty; it may not name a specimen."""
    answer = clean_text(case.report["answer"])
    return {
        "resourceType": "DiagnosticReport",
        "id": case.id_of("report"),
        "meta": {"security": [RESEARCH]},
        "text": _narrative("Preliminary report", case.use, *answer.split("\n"), NO_PATIENT),
        "identifier": [{"system": f"{SPACE}:job", "value": case.results.job_id}],
        "status": "preliminary",
        "category": [{"coding": [{"system": LOINC, "code": "LP7839-6", "display": "Pathology"}]}],
        "code": {"coding": [{"system": LOINC, "code": "60567-5", "display": "Comprehensive pathology report panel"}]},
        "effectiveDateTime": case.time,
        "issued": case.time,
        "specimen": [_reference("Specimen", case.specimen_id)],
        **_some(result=[_reference("Observation", region["region_id"]) for region in case.report["regions"]]),
        "conclusion": f"{answer}\n{case.use}",
        "presentedForm": [_presented_form(case)],
    }


def _presented_form(case: _Case) -> dict[str, Any]:
    """The page, embedded or, if it is large or not at hand, where the gateway serves it."""
    form = {"contentType": "text/html; charset=utf-8", "title": f"{PRODUCT} report. {case.use}", "creation": case.time}
    path = case.results.folder / REPORT_HTML
    if not path.is_file() or path.stat().st_size > HTML_BYTES:
        return {**form, "url": case.address("report")}
    page = path.read_bytes()
    return {
        **form,
        "data": base64.b64encode(page).decode("ascii"),
        "size": len(page),
        "hash": base64.b64encode(hashlib.sha1(page, usedforsecurity=False).digest()).decode("ascii"),
    }


def _specimen(case: _Case) -> dict[str, Any]:
    """The slide, by the only name it has here."""
    slide_id = clean_text(case.report["slide"]["slide_id"])
    return {
        "resourceType": "Specimen",
        "id": case.specimen_id,
        "text": _narrative(f"Digital slide {slide_id}", NO_PATIENT),
        "identifier": [{"system": f"{SPACE}:slide", "value": slide_id}],
        "type": {"text": "Digital whole-slide image"},
        "note": [{"text": NO_PATIENT}],
    }


def _device(case: _Case) -> dict[str, Any]:
    model = case.report["model"]
    versions = [("software", software_version()), ("model revision", clean_text(model.get("revision", "")))]
    return {
        "resourceType": "Device",
        "id": case.device_id,
        "text": _narrative(f"{PRODUCT} {software_version()}, model {model_words(case.report)}", case.use),
        "identifier": [{"system": URI, "value": f"urn:uuid:{case.device_id}"}],
        "deviceName": [
            {"name": PRODUCT, "type": "user-friendly-name"},
            {"name": clean_text(model["name"]), "type": "model-name"},
        ],
        "type": {"text": "Software that segments whole-slide images"},
        "version": [{"type": {"text": name}, "value": value} for name, value in versions if value],
        "note": [{"text": case.use}],
    }


def _outlines(case: _Case) -> dict[str, Any]:
    """The GeoJSON with the outlines, which the observations come from."""
    outlines = {"contentType": "application/geo+json", "url": case.address("regions"), "title": "Outlines as GeoJSON"}
    return {
        "resourceType": "DocumentReference",
        "id": case.id_of("regions"),
        "text": _narrative("Outlines of the regions in level-0 pixels of the slide, as GeoJSON", case.use),
        "status": "current",
        "docStatus": "preliminary",
        "type": {"text": "Outlines of regions"},
        "date": case.time,
        "description": f"Polygons in level-0 pixels; the id of a feature is that of its region. {case.use}",
        "content": [{"attachment": outlines}],
    }


def _provenance(case: _Case) -> dict[str, Any]:
    """That software made the report, for research; DiagnosticReport has no place for a device."""
    assembler = {"system": PARTICIPANT, "code": "assembler", "display": "Assembler"}
    return {
        "resourceType": "Provenance",
        "id": case.id_of("provenance"),
        "text": _narrative(case.use),
        "target": [_reference("DiagnosticReport", case.id_of("report"))],
        "recorded": case.time,
        "reason": [{"coding": [RESEARCH], "text": case.use}],
        "agent": [{"type": {"coding": [assembler]}, "who": _reference("Device", case.device_id)}],
        "entity": [{"role": "source", "what": _reference("Specimen", case.specimen_id)}],
    }


def _observation(region: dict[str, Any], case: _Case) -> dict[str, Any]:
    """One region; it has the region's own id, which is that of its GeoJSON feature too."""
    region_id, parameters = region["region_id"], case.report["parameters"]
    question = clean_text(case.report["queries"][region["query_index"]]["query"])
    outline = _reference("DocumentReference", case.id_of("regions"))
    words = f"{model_words(case.report)}, {parameters['mpp']:g} µm/px, threshold {parameters['threshold']:g}"
    return {
        "resourceType": "Observation",
        "id": region_id,
        "identifier": [{"system": URI, "value": f"urn:uuid:{region_id}"}],
        "status": "preliminary",
        "code": {"coding": [_code("region-area", "Area of a region")], **_some(text=question)},
        "effectiveDateTime": case.time,
        "issued": case.time,
        "valueQuantity": _quantity(region["area_um2"], "µm²", "um2"),
        "note": [{"text": case.use}],
        "method": {"coding": [_code("segmentation", "Segmentation of a whole slide by software")], "text": words},
        "specimen": _reference("Specimen", case.specimen_id),
        "device": _reference("Device", case.device_id),
        "derivedFrom": [{**outline, "display": f"GeoJSON feature {region_id}"}],
        "component": list(_components(region)),
    }


def _components(region: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Measures beside the area. Words are strings here, since a note would be read as Markdown."""
    yield {
        "code": {"coding": [_code("confidence", "Mean probability inside the region")]},
        "valueQuantity": _quantity(region["confidence"], "1", "1"),
    }
    agreement = {"code": {"coding": [_code("agreement", "Agreement of the tiles that saw the region")]}}
    if region["agreement"] is None:
        absent = {"text": "Only one tile saw the region"}
        yield {**agreement, "dataAbsentReason": absent}
    else:
        yield {**agreement, "valueQuantity": _quantity(region["agreement"], "1", "1")}
    yield {
        "code": {"coding": [_code("perimeter", "Perimeter of the region")]},
        "valueQuantity": _quantity(region["perimeter_um"], "µm", "um"),
    }
    yield {"code": {"coding": [_code("place", "Place on the slide")]}, "valueString": region["place"]}
    if "weak" in region:  # reports of older jobs know less
        yield _stain(region["stain"])
        yield from _contradictions(region["contradictions"])
        yield from _weakness(region["weak"])
    conclusion = clean_text(region["conclusion"])
    if conclusion:
        yield {"code": {"coding": [_code("conclusion", "What the chain concludes")]}, "valueString": conclusion}


def _stain(stain: dict[str, Any] | None) -> dict[str, Any]:
    """How far the region's stain is from those the model was trained on; the limit is the range of reference."""
    code = {"code": {"coding": [_code("stain-shift", "Distance of the stain from the trained stains")]}}
    if stain is None:
        return {**code, "dataAbsentReason": _unknown("The trained stains are not known, or no tile holds tissue")}
    limit = {"high": _quantity(stain["limit_sd"], "SD", "{SD}"), "text": "Stains the model was trained on"}
    return {**code, "valueQuantity": _quantity(stain["shift_sd"], "SD", "{SD}"), "referenceRange": [limit]}


def _contradictions(against: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """What chains say of masks that the masks contradict: the region's own chain, and the tiles that made it."""
    own = {"code": {"coding": [_code("chain-contradictions", "What its chain says that its own mask contradicts")]}}
    tiles = {"code": {"coding": [_code("tiles-contradicting", "Tiles whose masks contradict what is said of them")]}}
    if against is None:
        absent = _unknown("Nobody compared chains with masks")
        yield {**own, "dataAbsentReason": absent}
        yield {**tiles, "dataAbsentReason": absent}
        return
    yield {**own, "valueString": ", ".join(against["chain"]) or "none"}
    counts = {"numerator": against["contradicted"], "denominator": against["checked"]}
    yield {**tiles, "valueRatio": {part: _quantity(count, "tiles", "{tiles}") for part, count in counts.items()}}


def _weakness(weak: list[str]) -> Iterator[dict[str, Any]]:
    """What speaks against a region, where anything does."""
    if weak:
        found = [_code(f"weak-{name}", WEAK_WORDS[name]) for name in weak]
        code = {"coding": [_code("weak-evidence", "What speaks against the region")]}
        yield {"code": code, "valueCodeableConcept": {"coding": found}}


def _unknown(why: str) -> dict[str, Any]:
    return {"coding": [{"system": ABSENT, "code": "unknown", "display": "Unknown"}], "text": why}


def _code(code: str, display: str) -> dict[str, str]:
    """A code of this product; LOINC has none for the area of a region."""
    return {"system": f"{SPACE}:code", "code": code, "display": display}


def _quantity(value: float, unit: str, ucum: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "system": UCUM, "code": ucum}


def _reference(kind: str, resource_id: str) -> dict[str, str]:
    """A reference within the bundle."""
    return {"reference": f"urn:uuid:{resource_id}", "type": kind}


def _narrative(*paragraphs: str) -> dict[str, str]:
    """The human-readable part that a resource should have."""
    words = "".join(f"<p>{html.escape(words)}</p>" for words in paragraphs if words)
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{words}</div>'}


def _some(**fields: Any) -> dict[str, Any]:
    """The fields that hold something; FHIR knows no empty ones."""
    return {name: value for name, value in fields.items() if value}


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
