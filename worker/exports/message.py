"""What messages to a laboratory's systems share: ids, addresses, who made the results, and text they can carry."""

import unicodedata
import uuid
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PRODUCT = "SlideReason"
SPACE = "urn:slidereason"
"""Namespace of ids and codes that no standard has."""

LINE_ENDS = "\n\r\v\f\x85\u2028\u2029"


def named_uuid(*names: str) -> str:
    """A UUID that follows from names: the same names, the same UUID, on every machine."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, ":".join((SPACE, *names))))


def software_version() -> str:
    """The installed version of this product; `0` in a checkout that was never installed."""
    try:
        return version("slidereason")
    except PackageNotFoundError:
        return "0"


def model_words(report: dict[str, Any]) -> str:
    """Name and revision of the model that answered."""
    return clean_text(f"{report['model']['name']} {report['model'].get('revision', '')}")


def address_of(job_id: str, what: str, base_url: str = "") -> str:
    """Where the gateway serves a result.

    Args:
        job_id: the job.
        what: below the job, e.g. `report`.
        base_url: of the gateway as its clients reach it; without it the address is relative to the gateway.
    """
    return f"{base_url.rstrip('/')}/v1/jobs/{job_id}/{what}".removeprefix("" if base_url else "/")


def clean_text(text: str) -> str:
    r"""A text that neither XML, nor FHIR, nor HL7 v2 refuses or misreads.

    Args:
        text: anything that a person or a model wrote.

    Returns:
        The text with `\n` between its lines, plain spaces, no other control characters, half characters or
        non-characters, and nothing blank at its ends; it may be empty.
    """
    lines = text.replace("\r\n", "\n").translate(dict.fromkeys(map(ord, LINE_ENDS), "\n")).split("\n")
    return "\n".join("".join(map(_clean, line)).strip() for line in lines).strip()


def _clean(character: str) -> str:
    if character.isspace():
        return " "
    unwanted = unicodedata.category(character) in ("Cc", "Cs") or ord(character) & 0xFFFE == 0xFFFE
    return "" if unwanted else character
