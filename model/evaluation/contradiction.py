"""Whether what an answer says of its mask is so: place, number, size, and whether there is anything at all.

A pure function of text and mask. Only what is plainly said is held against the mask, and only what is plainly wrong
counts: every class of the chains' vocabulary (`model/data/chains.py`, `model/data/morphology.py`) is given slack, so
that a mask one step beside the class does not contradict the word.
"""

import math
import re

import cv2
import numpy as np

from model.data.chains import SEG
from model.data.morphology import count_pieces

ASPECTS = ("place", "number", "size", "emptiness")

_DENIES = re.compile(
    r"(?:^|[.:;,]\s*)no\b|\bthere (?:is|are) no\b|\b(?:cannot|can't|absent|none)\b"
    r"|\bnot (?:found|present|seen|visible|identified|detected|here|taught)\b", re.I,
)  # fmt: skip
_AFFIRMS = re.compile(r"\b(?:found|present|seen|visible|identified|here (?:is|are)|located|lies?)\b", re.I)

_DIRECTION = (
    r"(?P<row>upper|top|lower|bottom)(?:[ -](?P<column>left|right))?|(?P<side>left|right)"
    r"|(?P<middle>cent(?:re|er|ral)|middle)"
)
_PLACE = re.compile(
    rf"\b(?:in|at|on|to|toward|towards|near|along|across|over)\s+(?:the\s+)?(?:{_DIRECTION})\b", re.I
)
_EXTENT = re.compile(
    r"\b(?:(?P<whole>whole|entire)|(?P<most>most) of the|(?P<many>many parts) of the)\s+(?:area|field)"
)
_COUNTS = {
    "a": (1, 1), "an": (1, 1), "one": (1, 1), "single": (1, 1), "two": (2, 2), "three": (3, 3), "four": (4, 4),
    "five": (5, 5), "six": (6, 6), "few": (2, 8), "several": (2, 8), "multiple": (2, math.inf), "many": (5, math.inf),
    "numerous": (5, math.inf),
}  # fmt: skip
"""Word → fewest and most pieces; the chains say `several` of 3 to 6 and `many` of 7 and more."""
_SIZES = {"small": (0.0, 0.06), "medium": (0.06, 0.15), "large": (0.15, 1.0)}
"""Word → mean piece as a share of the field, as the chains use it; contradicted beyond `SIZE_SLACK` times an edge."""
SIZE_SLACK = 2.0
_THINGS = re.compile(
    rf"\b(?P<number>{'|'.join(_COUNTS)}|\d+)\s+(?:(?P<size>small|medium|large)(?:-sized)?\s+)?(?:[\w-]+\s+){{0,2}}?"
    r"(?:glands?|structures?|cell groups?|groups? of|clusters? of|dark cells|clear round cells|patch(?:es)? of"
    r"|bands? of|tubes?|nests?|foci|focus)\b", re.I,
)  # fmt: skip
BRIDGE = 0.03
"""Pieces may be counted apart that a bridge narrower than this share of the field joins: either count will do."""
FAR, CENTRE = 0.6, (0.25, 0.75)
"""A mask whose middle lies beyond this share of the field is not `upper` (nor `left`); `center` holds these shares."""
EVERYWHERE = 0.85


def contradictions(text: str, masks: np.ndarray | None) -> dict[str, bool]:
    """Which claims an answer makes of its mask, and whether the mask contradicts them.

    Args:
        text: the whole answer.
        masks: (H, W) or (K, H, W) bool of what it pointed at, in the frame it saw; None when silent. K are united.

    Returns:
        Aspect → contradicted; only the `ASPECTS` that are claimed. Place, number and size are claims about a mask, so
        that an answer that points at nothing can only be wrong about emptiness.
    """
    mask = None if masks is None else np.asarray(masks, bool).reshape(-1, *np.shape(masks)[-2:]).any(axis=0)
    empty = mask is None or not bool(mask.any())
    found: dict[str, bool] = {}
    if (there := says_there(text)) is not None:
        found["emptiness"] = there == empty
    if mask is None or empty or SEG not in text:
        return found
    spoken = _about_target(text)
    if places := _places(spoken):
        found["place"] = all(_misplaced(place, mask) for place in places)
    if (things := _THINGS.search(spoken)) is not None:
        fewest = count_pieces(mask)
        most = max(fewest, count_pieces(_parted(mask)))
        low, high = _COUNTS.get(things["number"].lower()) or (int(things["number"]),) * 2
        found["number"] = most < low or fewest > high
        if things["size"]:
            low, high = _SIZES[things["size"].lower()]
            share = float(mask.mean())
            found["size"] = share / fewest < low / SIZE_SLACK or share / most > high * SIZE_SLACK
    return found


def _parted(mask: np.ndarray) -> np.ndarray:
    """A mask without its thin bridges: things that touch are several all the same."""
    edge = 2 * round(BRIDGE * min(mask.shape) / 2) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (edge, edge))
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, disc, borderType=cv2.BORDER_REPLICATE) > 0


def says_there(text: str) -> bool | None:
    """Whether the conclusion says that something is there; None where it says neither."""
    conclusion = text.rpartition("</think>")[2].strip()
    if _DENIES.search(conclusion.split(SEG)[0]):
        return False
    return True if SEG in conclusion or _AFFIRMS.search(conclusion) else None


def _about_target(text: str) -> str:
    """What is said up to the first `<SEG>`, without the sentence on what is looked for."""
    said = re.sub(r"</?think>", " ", text.split(SEG)[0])
    return re.sub(r"\bLooking for\b[^.]*\.", " ", said, flags=re.I)


def _places(spoken: str) -> list[str]:
    """The places that the last sentence with a place names: `upper left`, `left`, `center`, `whole`, `most`, `many`."""
    for sentence in reversed(re.split(r"[.!?]", spoken)):
        named = [_direction(match) for match in _PLACE.finditer(sentence)]
        named += [match.lastgroup for match in _EXTENT.finditer(sentence.lower())]
        if named:
            return named
    return []


def _direction(match: re.Match) -> str:
    if match["middle"]:
        return "center"
    row = {"top": "upper", "bottom": "lower"}.get((match["row"] or "").lower(), (match["row"] or "").lower())
    return f"{row} {(match['column'] or match['side'] or '').lower()}".strip()


def _misplaced(place: str, mask: np.ndarray) -> bool:
    """Whether a mask, not empty, plainly lies elsewhere."""
    share = float(mask.mean())
    if place == "whole":
        return share < 0.5
    if place == "most":
        return share < 0.3
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    if place == "many":
        ninths = {*zip((3 * rows // height).tolist(), (3 * columns // width).tolist(), strict=True)}
        return len(ninths) <= 3
    y, x = (rows.mean() + 0.5) / height, (columns.mean() + 0.5) / width
    if share >= EVERYWHERE:
        return True
    if place == "center":
        return not all(CENTRE[0] <= position <= CENTRE[1] for position in (y, x))
    beyond = {"upper": y > FAR, "lower": y < 1 - FAR, "left": x > FAR, "right": x < 1 - FAR}
    return any(bool(beyond[word]) for word in place.split())
