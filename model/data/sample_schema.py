"""What a line of a built data set must hold, field by field; errors name the line and the field."""

import json
import math
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

KINDS = ("named", "implied", "absent", "unknown")
STATES = ("unreviewed", "accepted", "edited", "rejected")


class SampleError(ValueError):
    """A sample is not accepted: says which line, which field, and what is wrong."""

    def __init__(self, where: str, field: str, problem: str):
        super().__init__(f"{where}: field {field} {problem}")
        self.where, self.field = where, field


Check = Callable[[Any], str | None]
"""What is wrong with a value, in words; None for a good one."""


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value.strip() else "must be a text that is not empty"


def _or_null(check: Check) -> Check:
    return lambda value: None if value is None else (problem := check(value)) and f"{problem}, or null"


def _file(value: Any) -> str | None:
    if _text(value) or value.startswith("/") or "\\" in value or ".." in value.split("/") or ":" in value:
        return "must be a file's name relative to the folder of this file, with / between its parts"
    return None


def _texts(value: Any) -> str | None:
    good = isinstance(value, list) and all(_text(one) is None for one in value) and len({*value}) == len(value)
    return None if good else "must be a list of different texts"


def _one_of(options: tuple[str, ...]) -> Check:
    return lambda value: None if value in options else f"is {value!r}; {', '.join(options)} are accepted"


def _positive(value: Any) -> str | None:
    return None if _number(value) is None and value > 0 else "must be a number above 0"


def _number(value: Any) -> str | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return None if good else "must be a number"


def _whole(value: Any) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else "must be a whole number"


def _by_name(check: Check, of: str) -> Check:
    """A check of an object whose names are free and whose values are all of one kind."""

    def checked(value: Any) -> str | None:
        if not isinstance(value, dict):
            return f"must be an object of {of}"
        wrong = next((f"{key!r} {told}" for key, one in value.items() if (told := _text(key) or check(one))), None)
        return wrong and f"must be an object of {of}: {wrong}"

    return checked


def _hash(value: Any) -> str | None:
    good = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)
    return None if good else "must be a SHA-256 in 64 hexadecimal digits"


def _time(value: Any) -> str | None:
    try:
        good = isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        good = False
    return None if good else "must be a time in ISO 8601 with its offset"


FIELDS: dict[str, Check] = {
    "id": _text, "scene": _text, "image": _file, "masks": _by_name(_file, "file names"), "absent": _texts,
    "query": _text, "chain": _text, "targets": _texts, "concept": _or_null(_text), "kind": _one_of(KINDS),
    "organ": _text, "mpp": _or_null(_positive), "magnification": _or_null(_positive), "stain": _text, "source": _text,
    "patient": _text, "licence": _text, "facts": _by_name(_by_name(_number, "numbers"), "facts"),
}  # fmt: skip
PROVENANCE: dict[str, Check] = {
    "reader": _text, "generator": _text, "versions": _by_name(_text, "texts"), "seed": _whole, "checks": _texts,
    "image_sha256": _hash,
}  # fmt: skip
REVIEW: dict[str, Check] = {"state": _one_of(STATES), "reviewer": _or_null(_text), "time": _or_null(_time)}


def parse_line(text: str, where: str) -> dict[str, Any]:
    """A line as a dictionary that holds every field of the schema, and no other.

    Raises:
        SampleError: it does not.
    """
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise SampleError(where, "(whole line)", f"is no JSON ({error})") from error
    _check(line, FIELDS, {"provenance"}, where, "")
    _check(line["provenance"], PROVENANCE, {"review"}, where, "provenance.")
    _check(line["provenance"]["review"], REVIEW, set(), where, "provenance.review.")
    _agree(line, where)
    return line


def _check(value: Any, fields: dict[str, Check], parts: set[str], where: str, prefix: str) -> None:
    """Every field there, none unknown, each as it must be."""
    if not isinstance(value, dict):
        raise SampleError(where, prefix.rstrip(".") or "(whole line)", "must be an object")
    for name in (*fields, *sorted(parts)):
        if name not in value:
            raise SampleError(where, f"{prefix}{name}", "is missing")
    for name in value.keys() - fields.keys() - parts:
        raise SampleError(where, f"{prefix}{name}", f"is unknown; {', '.join((*fields, *sorted(parts)))} are accepted")
    for name, check in fields.items():
        problem = check(value[name])
        if problem:
            raise SampleError(where, f"{prefix}{name}", problem)


def _agree(line: dict[str, Any], where: str) -> None:
    """What one field says of another."""
    both = sorted(line["masks"].keys() & set(line["absent"]))
    if both:
        raise SampleError(where, "absent", f"names {both[0]!r}, which has a mask")
    for key in line["targets"]:
        if key not in line["masks"]:
            raise SampleError(where, "targets", f"names {key!r}, which has no mask")
    kind, concept = line["kind"], line["concept"]
    if (kind in ("named", "implied")) != bool(line["targets"]):
        raise SampleError(where, "targets", f"are {line['targets']} in a question of kind {kind}")
    if kind == "absent" and concept not in line["absent"]:
        raise SampleError(where, "concept", f"is {concept!r}, which `absent` does not name")
    if (kind == "unknown") != (concept is None):
        raise SampleError(where, "concept", f"is {concept!r} in a question of kind {kind}")
    review = line["provenance"]["review"]
    for name in ("reviewer", "time"):
        if (review["state"] == "unreviewed") != (review[name] is None):
            raise SampleError(where, f"provenance.review.{name}", f"is {review[name]!r} while {review['state']}")
