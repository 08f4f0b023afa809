"""What a sentence claims of the structure it speaks of, as ranges that a measured value must lie in.

Only plain statements are read: `darker than around`, `many small glands`, `in the upper left area`. What is said of
the surroundings, of single cells or under a negation is left alone, unless it is a negation with a meaning of its own
(`no lumens`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from model.chains.lexicon import clauses
from model.chains.measures import Seen
from model.chains.words import BANDS, INF, band_of, word_for
from model.data.concepts import CONCEPTS

_ONES = {one for concept in CONCEPTS.values() for one in concept.appearance[:1]}
_MANY = {many for concept in CONCEPTS.values() for many in concept.appearance[1:]}
_GENERIC = "structure lesion nest group focus cluster island aggregate crypt piece band patch region area".split()
_ONE = "|".join(sorted({*map(re.escape, _ONES), *_GENERIC}, key=len, reverse=True))
_SEVERAL = "|".join(
    sorted({*map(re.escape, _MANY), *(f"{noun}s" for noun in _GENERIC), "foci", "patches"}, key=len, reverse=True)
)
_NOUN = rf"(?:{_SEVERAL}|{_ONE})\b"
_FILL = r"(?:[\w-]+,? ){0,2}?"
_AROUND = r"(?:around|surround\w*|background|rest|adjacent|neighbou?r\w*|outside|elsewhere|nearby)"
_OF_SURROUNDINGS = re.compile(
    r"\b(?:surroundings?|surrounding|background|adjacent|neighbou?ring|elsewhere|around)\b", re.I
)
_DENIES = re.compile(r"\b(?:no|not|without|none|nothing|lacks?|lacking|absent|neither|nor|unlike)\b", re.I)

_NUMBERS = (
    (r"a single|only one|one|a solitary|an isolated", 1, 1), (r"two|a pair of|both", 2, 2), (r"three", 3, 3),
    (r"four", 4, 4), (r"five", 5, 5), (r"six", 6, 6), (r"seven", 7, 7), (r"eight", 8, 8),
    (r"several|a few|some|multiple", 2, 9), (r"many|numerous|countless", 4, INF),
)  # fmt: skip
_SIZES = (("small|tiny|little", "small"), ("medium|medium-sized|mid-sized|moderate-sized", "medium"),
          ("large|big|huge|broad|extensive", "large"))  # fmt: skip
_DARK, _PALE = r"darker|deeper[- ]stained|more deeply stained|more basophilic", r"paler|lighter|brighter|less stained"
_NUCLEI = (("sparse|few|scant|scattered|scarce", "sparse"), ("moderate|moderately (?:dense|many)", "moderate"),
           ("dense|densely packed|crowded|packed|numerous|abundant|many", "dense"))  # fmt: skip
_EDGES = (("smooth|even|regular", "smooth"), ("wavy|undulating", "wavy"), ("irregular|ragged|jagged", "irregular"))
_LUMENS = (("closed|obliterated|absent|no|without", "closed"), ("narrow|slit-like|narrowed|small", "narrow"),
           ("open|wide|dilated|wide open|patent", "open"))  # fmt: skip
_SIDE = r"(?:upper|lower|top|bottom|left|right|center|centre|central|middle)"
_PLACE = re.compile(
    r"\b(?:in|at|on|near|along|across|over|within|towards?|to|from|occup\w+|fill\w*|cover\w*|lies?|lying)\s+"
    rf"(?:the |both |its )?(?:far |very |outer )?(?P<words>{_SIDE}(?:(?:[- ]| and (?:the )?){_SIDE})*)\b"
    r"(?! of (?:each|every|the gland|the nest|the lumen|its|their|a))"
    r"(?! (?:lumens?|spaces?|nucle\w+|cells?|necrosis|glands?|gland)\b)",
    re.I,
)
_FIELD = "(?:area|field|picture|image|region)"
_EXTENTS = (
    (rf"(?:the )?(?:whole|entire) (?:of the )?{_FIELD}|all of the {_FIELD}", "share", 0.75, INF),
    (rf"most of the {_FIELD}", "share", 0.4, INF),
    (rf"many parts of the {_FIELD}|scattered (?:over|across) the {_FIELD}|throughout the {_FIELD}", "touched", 5, INF),
)
_X = {"left": (-INF, 0.45), "right": (0.55, INF)}
_Y = {"upper": (-INF, 0.45), "top": (-INF, 0.45), "lower": (0.55, INF), "bottom": (0.55, INF)}
_MIDDLE = (0.3, 0.7)


@dataclass(frozen=True)
class Claim:
    """Something said that can be measured.

    Attributes:
        code: what kind of statement: `location`, `number`, `size`, `tone`, `nuclei`, `edges` or `lumens`.
        quote: the words.
        fact: which of `Seen.facts` it is about; "" for a place.
        least, most: the fact must lie between.
        x, y: for a place, where a spot must lie, as shares of width and height.
    """

    code: str
    quote: str
    fact: str = ""
    least: float = -INF
    most: float = INF
    x: tuple[float, float] = (-INF, INF)
    y: tuple[float, float] = (-INF, INF)

    def contradicted_by(self, seen: Seen) -> bool:
        """Whether what was measured says otherwise; what was not measured never does."""
        if self.code == "location" and not self.fact:
            return not any(
                self.x[0] <= x <= self.x[1] and self.y[0] <= y <= self.y[1] for x, y in seen.spots
            )  # fmt: skip
        value = seen.facts.get(self.fact)
        return value is not None and not self.least <= value <= self.most

    def measured(self, seen: Seen) -> str:
        """What was measured instead, in words."""
        if self.code == "location":
            return seen.where
        value = seen.facts[self.fact]
        return f"{word_for(self.fact, value)} ({value:.2f})" if self.fact in BANDS else f"{value:.0f}"


def claims_of(sentence: str) -> Iterator[Claim]:
    """Everything measurable that a sentence says of its subject."""
    before = ""
    for clause in clauses(sentence):
        yield from _tones(clause)
        turned = re.match(r"\W*(?:which|that|where|whose)\b", clause) and _OF_SURROUNDINGS.search(before[-24:])
        before = clause
        if turned or _of_surroundings(clause):
            continue
        yield from _lumens(clause)
        if _DENIES.search(clause):
            continue
        yield from _numbers(clause)
        yield from _adjectives(clause, "size", "piece_share", _SIZES, rf"{_FILL}{_NOUN}")
        yield from _adjectives(clause, "nuclei", "nuclei", _NUCLEI, rf"{_FILL}nuclei\b")
        yield from _adjectives(clause, "edges", "solidity", _EDGES, r"(?:[\w-]+ )?(?:edges|borders|rims)\b")
        yield from _places(clause)


def _tones(clause: str) -> Iterator[Claim]:
    """`darker than around`, `paler surroundings`, `as bright as around`; never of nuclei or single cells."""
    compared = rf"(?P<much>(?:much|far|clearly|markedly) )?(?P<tone>{_DARK}|{_PALE}) than (?:the |its |their )?"
    for match in re.finditer(compared + _AROUND, clause, re.I):
        if re.search(r"\b(?:nuclei|nucleus|cells?|not|no)\b", clause[: match.start()], re.I):
            continue
        dark = bool(re.fullmatch(_DARK, match["tone"], re.I))
        word = "darker than around" if dark else "paler than around"
        yield _claim("tone", match.group(), "darker", "much darker than around" if dark and match["much"] else word)
    tone = "darker|paler|lighter"
    around = rf"\b(?P<a>{tone}) (?:surround\w*|background)|{_AROUND} \w+ (?:is|are|appears?) (?P<b>{tone})"
    for match in re.finditer(around, clause, re.I):
        dark_around = (match["a"] or match["b"]).lower() == "darker"
        yield _claim("tone", match.group(), "darker", "paler than around" if dark_around else "darker than around")
    alike = rf"as (?:bright|dark|pale) as (?:the |its |their )?{_AROUND}"
    for match in re.finditer(alike, clause, re.I):
        if not _DENIES.search(clause[: match.start()]):
            yield _claim("tone", match.group(), "darker", "as bright as around")


def _numbers(clause: str) -> Iterator[Claim]:
    """`two glands`, `many small dark cells`; a plain `a gland` counts at the start of a sentence only."""
    for words, least, most in _NUMBERS:
        for match in re.finditer(rf"\b(?:{words}) (?:of the )?{_FILL}{_NOUN}(?! of\b)", clause, re.I):
            yield Claim("number", match.group(), "pieces", least, most)
    start = re.match(rf"\s*An? {_FILL}(?:{_ONE})\b(?! of\b)", clause)
    if start and not re.search(r"\b(?:single|solitary|isolated)\b", start.group()):
        yield Claim("number", start.group().strip(), "pieces", 1, 1)
    for match in re.finditer(rf"\b(\d{{1,3}}) {_FILL}(?:{_SEVERAL})\b", clause, re.I):
        count, slack = int(match[1]), max(1, round(int(match[1]) * 0.25))
        yield Claim("number", match.group(), "pieces", count - slack, count + slack)


def _adjectives(clause: str, code: str, fact: str, words: tuple, noun: str) -> Iterator[Claim]:
    """`dense nuclei` and `the nuclei are dense`, `large glands`."""
    for pattern, word in words:
        for match in re.finditer(rf"\b(?:{pattern}) {noun}", clause, re.I):
            yield _claim(code, match.group(), fact, word)
        if fact in ("nuclei", "solidity"):
            plain = "nuclei" if fact == "nuclei" else "(?:edges|borders|rims)"
            for match in re.finditer(rf"\b{plain} (?:is|are|appear|look) (?:\w+ )?(?:{pattern})\b", clause, re.I):
                yield _claim(code, match.group(), fact, word)


def _lumens(clause: str) -> Iterator[Claim]:
    """`open lumens`, `lumens are slit-like`, `no lumens`; `no open lumens` says nothing sure."""
    for pattern, word in _LUMENS:
        found = [
            *re.finditer(rf"\b(?:{pattern}) (?:visible |clear |glandular )?lum(?:ens?|ina)\b", clause, re.I),
            *re.finditer(rf"\blum(?:ens?|ina) (?:is|are|appear|look) (?:\w+ )?(?:{pattern})\b", clause, re.I),
        ]
        for match in found:
            if not re.search(r"\b(?:no|not|without|nor|never)\s+(?:\w+\s+)?$", clause[: match.start()], re.I):
                yield _claim("lumens", match.group(), "lumen", word)


def _places(clause: str) -> Iterator[Claim]:
    """Ninths, halves and extents of the picture."""
    for match in _PLACE.finditer(clause):
        for words in re.split(r" and (?:the )?", match["words"].lower()):
            yield _place(match.group().strip(), set(re.findall(r"[a-z]+", words.lower())))
    for pattern, fact, least, most in _EXTENTS:
        for match in re.finditer(rf"\b(?:{pattern})", clause, re.I):
            yield Claim("location", match.group(), fact, least, most)


def _place(quote: str, words: set[str]) -> Claim:
    """The ranges of a place: a row, a column, or the middle of what is not said."""
    x = next((_X[word] for word in ("left", "right") if word in words), None)
    y = next((_Y[word] for word in ("upper", "top", "lower", "bottom") if word in words), None)
    if words & {"center", "centre", "central", "middle"}:
        x, y = x or _MIDDLE, y or _MIDDLE
    return Claim("location", quote, x=x or (-INF, INF), y=y or (-INF, INF))


def _of_surroundings(before: str) -> bool:
    """Whether the words speak of the surroundings, not of the structure compared with them."""
    return bool(_OF_SURROUNDINGS.search(before)) and not re.search(r"\b(?:than|as)\b", before, re.I)


def _claim(code: str, quote: str, fact: str, word: str) -> Claim:
    """A claim that one of the template's words allows."""
    band = band_of(fact, word)
    return Claim(code, quote.strip(), fact, band.least, band.most)
