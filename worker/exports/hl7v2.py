r"""Results as an HL7 v2.5.1 message, ORU^R01, for laboratories whose systems do not speak FHIR.

The standard wants a patient id and a name. The id is an anonymous one (`ANON`, table 0203) that follows from the slide,
so that two slides never become one patient; the name is `^^^^^^U`, unspecified (table 0200). `""` is never written: it
would tell the receiver to delete what it knows.

Source: HL7 v2.5.1, chapters 2 (control), 3 (PID) and 7 (ORU).
"""

from collections.abc import Iterator
from datetime import UTC
from operator import itemgetter
from pathlib import Path
from typing import Any

from worker.exports.job_results import JobResults
from worker.exports.message import PRODUCT, address_of, clean_text, named_uuid, software_version
from worker.report_parts import WEAK_WORDS

LOCAL = "99SLR"
"""Coding system of codes that are this product's own; `99` and three letters, as the standard has it."""

PRELIMINARY = "P"
NOT_OBTAINED = "X"
MOST_REGIONS = 50
"""The largest regions of each question that are told one by one; the report has all."""

SQUARE_UM, UNITY, SDS = "um2^square micrometer^UCUM", "1^unity^UCUM", "{SD}^standard deviations^UCUM"
CONTROL_ID_LENGTH = 20
BINARY_LENGTH = 20
FT_LENGTH = 65_536
ST_LENGTH = 199
CUT = " … (cut here; the report has all of it)"

_ESCAPES = str.maketrans(
    {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\n": "\\.br\\"}
)  # fmt: skip


def write_hl7(results: JobResults, path: Path, base_url: str = "") -> None:
    """Write one ORU^R01 message in UTF-8, each segment ended by CR, without the frame that MLLP puts around it.

    Args:
        results: of a finished job.
        path: the file.
        base_url: of the gateway, for the link to the report; without it the link is relative to the gateway.
    """
    path.write_bytes("".join(f"{segment}\r" for segment in _segments(results, base_url)).encode("utf-8"))


def escape_text(text: str, limit: int = FT_LENGTH) -> str:
    r"""A text as a field of type FT holds it.

    Args:
        text: anything that a person or a model wrote.
        limit: characters, escapes counted, after which it is cut and says so.

    Returns:
        The text with delimiters as `\F\`, `\S\`, `\T\`, `\R\` and `\E\`, and `\.br\` between lines.
    """
    text = clean_text(text)
    escaped = text.translate(_ESCAPES)
    if len(escaped) <= limit:
        return escaped
    room, kept = limit - len(CUT), []
    for character in text:
        part = character.translate(_ESCAPES)
        room -= len(part)
        if room < 0:
            break
        kept.append(part)
    return "".join(kept) + CUT


def _segments(results: JobResults, base_url: str) -> Iterator[str]:
    report = results.report
    time = results.finished.astimezone(UTC).strftime("%Y%m%d%H%M%S+0000")
    slide_id = report["slide"]["slide_id"]
    yield _header(results.job_id, time)
    yield _software(report)
    yield _segment("PID", {1: "1", 3: f"{named_uuid('patient-of', slide_id)}^^^{PRODUCT}^ANON", 5: "^^^^^^U"})
    yield _segment(
        "OBR",
        {
            1: "1",
            3: f"{results.job_id}^{PRODUCT}",
            4: "60567-5^Comprehensive pathology report panel^LN",
            7: time,
            22: time,
            25: PRELIMINARY,
        },
    )
    yield _segment("NTE", {1: "1", 2: "L", 3: escape_text(report["use"]), 4: "RE^Remark^HL70364"})
    for number, fields in enumerate(_observations(results, base_url), 1):
        yield _segment("OBX", {1: str(number), 11: PRELIMINARY, 14: time, **_maker(report), **fields})
    specimen = f"SLIDE^Digital whole-slide image^{LOCAL}"
    yield _segment("SPM", {1: "1", 2: f"^{escape_text(slide_id)}&{PRODUCT}", 4: specimen})


def _header(job_id: str, time: str) -> str:
    """MSH; its first field is the separator itself. A message's control id says which job it is from."""
    control_id = named_uuid(job_id, "oru").replace("-", "")[:CONTROL_ID_LENGTH]
    fields = {2: "^~\\&", 3: PRODUCT, 7: time, 9: "ORU^R01^ORU_R01", 10: control_id, 11: "P", 12: "2.5.1"}
    return _segment("MSH", {**{place - 1: value for place, value in fields.items()}, 17: "UNICODE UTF-8"})


def _software(report: dict[str, Any]) -> str:
    """SFT: product, version, and the model as its binary."""
    name, revision = report["model"]["name"], report["model"].get("revision", "")
    fields = {1: PRODUCT, 2: software_version(), 3: PRODUCT, 4: escape_text(revision[:BINARY_LENGTH] or "unknown")}
    return _segment("SFT", {**fields, 5: escape_text(f"Model {name}, revision {revision}")})


def _maker(report: dict[str, Any]) -> dict[int, str]:
    """Method and equipment of an observation."""
    name, parameters = report["model"]["name"], report["parameters"]
    words = f"Segmentation by {name}, {parameters['mpp']:g} µm/px, threshold {parameters['threshold']:g}"
    return {
        17: f"SEGMENTATION^{escape_text(words, ST_LENGTH)}^{LOCAL}",
        18: f"{escape_text(name, ST_LENGTH)}^{PRODUCT}",
    }


def _observations(results: JobResults, base_url: str) -> Iterator[dict[int, str]]:
    """The answer, what was found for each question, its largest regions, and the link. Fields of OBX by their number.

    The sub-id (OBX-4) groups them: `2` is of the second question, `2.1` of its largest region.
    """
    report = results.report
    conclusion = escape_text(f"{report['answer']}\n{report['use']}")
    yield {2: "FT", 3: f"CONCLUSION^Answer in words^{LOCAL}", 5: conclusion}
    for query in report["queries"]:
        group = str(query["query_index"] + 1)
        yield {2: "FT", 3: f"QUESTION^Question^{LOCAL}", 4: group, 5: escape_text(query["query"])}
        area = {2: "NM", 3: f"AREA^Area of all regions^{LOCAL}", 4: group, 6: SQUARE_UM}
        count = {2: "NM", 3: f"REGIONS^Number of regions^{LOCAL}", 4: group, 6: UNITY}
        if report["coverage"]["looked_at"]:
            yield {**area, 5: f"{query['area_um2']:.3f}"}
            yield {**count, 5: str(query["regions"])}
        else:
            yield {**area, 11: NOT_OBTAINED}
            yield {**count, 11: NOT_OBTAINED}
        for number, region in enumerate(_largest(report, query["query_index"]), 1):
            yield from _region(region, f"{group}.{number}")
    link = escape_text(address_of(results.job_id, "report", base_url))
    yield {2: "RP", 3: f"REPORT^Report with pictures^{LOCAL}", 5: f"{link}^{PRODUCT}^TEXT^HTML"}


def _largest(report: dict[str, Any], query_index: int) -> list[dict[str, Any]]:
    """The regions of a question that are told, the largest first."""
    found = [region for region in report["regions"] if region["query_index"] == query_index]
    return sorted(found, key=itemgetter("area_um2"), reverse=True)[:MOST_REGIONS]


def _region(region: dict[str, Any], group: str) -> Iterator[dict[int, str]]:
    """A region: its id, measures, and the evidence for and against it. What is not known is `X`, not obtained."""
    yield {2: "ST", 3: f"REGION^Id of the region^{LOCAL}", 4: group, 5: region["region_id"]}
    yield _number("REGION_AREA^Area of the region", group, f"{region['area_um2']:.3f}", SQUARE_UM)
    yield _number("CONFIDENCE^Mean probability inside the region", group, f"{region['confidence']:.4f}", UNITY)
    agreement = None if region["agreement"] is None else f"{region['agreement']:.4f}"
    yield _number("AGREEMENT^Agreement of the tiles that saw the region", group, agreement, UNITY)
    if "weak" not in region:  # reports of older jobs know less
        return
    stain, against = region["stain"], region["contradictions"]
    shift = None if stain is None else f"{stain['shift_sd']:.3f}"
    shift = _number("STAIN_SHIFT^Distance of the stain from the trained stains", group, shift, SDS)
    # OBX-7: within this range, stains are like those the model was trained on.
    yield shift if stain is None else {**shift, 7: f"0-{stain['limit_sd']:.3f}"}
    chain = {2: "ST", 3: f"CHAIN_CONTRADICTIONS^What its chain says that its own mask contradicts^{LOCAL}", 4: group}
    tiles = {2: "SN", 3: f"TILES_CONTRADICTING^Tiles whose masks contradict what is said of them^{LOCAL}", 4: group}
    if against is None:
        yield from ({**chain, 11: NOT_OBTAINED}, {**tiles, 11: NOT_OBTAINED})
    else:
        yield {**chain, 5: escape_text(", ".join(against["chain"]) or "none", ST_LENGTH)}
        yield {**tiles, 5: f"^{against['contradicted']}^/^{against['checked']}"}
    weak = ", ".join(WEAK_WORDS[name] for name in region["weak"]) or "nothing"
    what = f"WEAK_EVIDENCE^What speaks against the region^{LOCAL}"
    yield {2: "ST", 3: what, 4: group, 5: escape_text(weak, ST_LENGTH)}


def _number(code: str, group: str, value: str | None, unit: str) -> dict[int, str]:
    """An observation of type NM; without a value it says that none was obtained."""
    fields = {2: "NM", 3: f"{code}^{LOCAL}", 4: group, 6: unit}
    return {**fields, 11: NOT_OBTAINED} if value is None else {**fields, 5: value}


def _segment(name: str, fields: dict[int, str]) -> str:
    """A segment from its fields by number; what lies between is empty."""
    return "|".join([name, *(fields.get(place, "") for place in range(1, max(fields) + 1))])
