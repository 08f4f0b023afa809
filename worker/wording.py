"""Words of a report: areas, places, and what a reasoning chain concludes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.types import Point, SlideInfo

SEG = "<SEG>"
MM2_UM2 = 1e6
ROUNDING = 1e-4
"""Of an outline; less than this is a matter of whole pixels, not of a part left out."""
_TAG = re.compile(r"</?think>", re.IGNORECASE)
_THINK = re.compile(r"<think>(.*?)(?:</think>|$)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Chain:
    """A reasoning chain taken apart.

    Attributes:
        observations: what stands between `<think>` and `</think>`.
        conclusion: what follows, `<SEG>` included.
    """

    observations: str
    conclusion: str


def read_chain(text: str) -> Chain:
    """Take a model's answer apart.

    Args:
        text: `<think>` observations `</think>` conclusion; either part may be missing.

    Returns:
        Both parts, white space tidied.
    """
    observations = " ".join(match.group(1) for match in _THINK.finditer(text))
    conclusion = _TAG.sub("", _THINK.sub(" ", text))
    return Chain(_tidy(observations), _tidy(conclusion))


def conclusion_of(text: str) -> str:
    """What a chain concludes, in words a person reads: without tags and `<SEG>`."""
    chain = read_chain(text)
    return plain_words(chain.conclusion or chain.observations)


def plain_words(text: str) -> str:
    """Words without `<SEG>`, and without the gap it leaves before a comma or a full stop."""
    return re.sub(r"\s+([.,;:!?])", r"\1", _tidy(text.replace(SEG, " ")))


def _tidy(text: str) -> str:
    return " ".join(text.split())


def area_words(area_um2: float) -> str:
    """An area with the unit a reader expects: mm² from a tenth of one, else µm²."""
    if area_um2 >= MM2_UM2 / 10:
        return f"{area_um2 / MM2_UM2:,.2f} mm²"
    return f"{area_um2:,.0f} µm²"


def percent_words(share: float) -> str:
    """A share in percent; a small one is never rounded to nothing."""
    if 0 < share < 0.001:
        return "less than 0.1 %"
    if 0.999 < share < 1:
        return "more than 99.9 %"
    return f"{100 * share:.1f} %"


def count_words(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun: `no regions`, `1 region`, `1,204 regions`."""
    noun = one if count == 1 else many or f"{one}s"
    return f"{count:,} {noun}" if count else f"no {noun}"


def exemplar_words(exemplar: Mapping[str, Any], slide_id: str) -> str:
    """What the model was shown beside every tile, and where it came from.

    Args:
        exemplar: the report's `exemplar`.
        slide_id: the job's own slide.
    """
    same = exemplar["slide_id"] == slide_id
    where = "this slide" if same else f"slide {exemplar['slide_id']}"
    words = f"The example shown to the model is an outline of {area_words(exemplar['area_um2'])} on {where}"
    share = exemplar["area_um2"] / exemplar["outlined_um2"]
    if share < 1 - ROUNDING:
        words += f"; it is larger than a tile, and only its densest part was shown, {percent_words(share)} of it"
    return f"{words}."


def place_words(point_px0: Point, info: SlideInfo) -> str:
    """Where a point lies on the slide, as in a grid of three by three over its scanned area.

    Args:
        point_px0: (x, y) in level-0 pixels.
        info: size and bounds of the slide.

    Returns:
        E.g. `upper left`, `right`, `centre`.
    """
    left, top, width, height = info.bounds_px0 or (0, 0, info.width_px0, info.height_px0)
    column = _third((point_px0[0] - left) / width)
    row = _third((point_px0[1] - top) / height)
    words = [("upper", "", "lower")[row], ("left", "", "right")[column]]
    return " ".join(word for word in words if word) or "centre"


def place_phrase(point_px0: Point, info: SlideInfo) -> str:
    """The place as the end of a sentence: `in the upper left of the slide`."""
    place = place_words(point_px0, info)
    part = " part" if place in ("upper", "lower", "left", "right") else ""
    return f"in the {place}{part} of the slide"


def _third(position: float) -> int:
    return 0 if position < 1 / 3 else 1 if position < 2 / 3 else 2
