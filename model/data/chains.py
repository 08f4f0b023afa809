"""Answers that reason: what is looked for, what is seen and where, what that fits, and then `<SEG>` or none.

    <think> Looking for serrated adenoma: glands with saw-tooth lumens. Several large glands, darker than around, with
    sparse nuclei, wavy edges and open lumens, lie across most of the area. This fits serrated adenoma. </think> Found
    across most of the area: serrated adenoma <SEG>.

Every observation is measured (`model/data/morphology.py`) or seen in the mask after augmentation; nothing is claimed
that the mask contradicts. The first half reads the same whether the target is present or absent, so that the emission
of `<SEG>` follows from what was asked and what was seen. The vocabulary is small on purpose: `tiny` learns to write
from it.
"""

import re
from collections.abc import Mapping

import numpy as np

from model.data.concepts import CONCEPTS, DIAGNOSES, most_specific
from model.data.morphology import count_pieces, location_words

SEG = "<SEG>"
SPATIAL_WORDS = frozenset(
    "boundary region area location position center centre left right top bottom upper lower".split()
)
OUTLINE_WORDS = re.compile(
    r"\b(masks?|masked|outlines?|outlined|contours?|annotat\w*|highlight\w*|drawn|polygons?|label\w*|ground truth)\b",
    re.I,
)
MIN_SHARE = 0.002
"""A structure below this share of the field is too small to be spoken of."""

_GLANDULAR = frozenset(DIAGNOSES) | {"gland"}
Facts = Mapping[str, Mapping[str, float]]
Masks = Mapping[str, np.ndarray]


def answer_present(
    masks: Masks, concept: str, facts: Facts, rng: np.random.Generator, phrase: str | None = None
) -> str:
    """The answer to a question about something that is there.

    Args:
        masks: concept key → (H, W) bool after augmentation; holds `concept`, not empty.
        concept: what was asked about.
        facts: concept key → `measure`'s facts; may lack any of them.
        rng: chooses between templates.
        phrase: words before `<SEG>` instead of the concept's own (exemplar episodes).

    Returns:
        `<think> … </think> …: phrase <SEG>.`

    Raises:
        KeyError: the mask is missing. ValueError: it is empty.
    """
    mask = masks[concept]
    where = location_words(mask)
    if not where:
        raise ValueError(f"the mask of {concept!r} is empty: answer_absent is for that")
    name = phrase or CONCEPTS[concept].phrase
    thought = f"{_looking_for(concept, phrase, rng)} {observation(mask, concept, facts.get(concept, {}))}"
    verdict = _fits(name, rng)
    conclusion = _pick((f"Found {_at(where)}: {name} {SEG}.", f"Present {_at(where)}: {name} {SEG}."), rng)
    return f"<think> {thought} {verdict} </think> {conclusion}"


def answer_absent(
    concept: str, seen: Masks, facts: Facts, rng: np.random.Generator, phrase: str | None = None
) -> str:
    """The answer to a question about something that is known not to be there.

    Args:
        concept: what was asked about.
        seen: concept key → (H, W) bool of what is there instead, after augmentation; may be empty.
        facts: as in `answer_present`.
        rng: chooses between templates.
        phrase: what the target is called instead of the concept's own words (exemplar episodes).

    Returns:
        `<think> … </think> …`, without `<SEG>`.
    """
    name = phrase or CONCEPTS[concept].phrase
    other = largest(seen, excluding=concept)
    if other is None:
        thought = _pick(("Nothing of this kind is seen in the area.", "No such structure is seen in the area."), rng)
    else:
        fits = _fits(CONCEPTS[other].phrase, rng)
        thought = f"{observation(seen[other], other, facts.get(other, {}))} {fits}"
    verb = "are" if phrase is None and CONCEPTS[concept].plural else "is"
    conclusion = _pick((f"No {name} {verb} found here.", f"No {name} {verb} present here."), rng)
    return f"<think> {_looking_for(concept, phrase, rng)} {thought} </think> {conclusion}"


def answer_unknown(query: str, rng: np.random.Generator) -> str:
    """The answer to a question about something never taught: says so, without `<SEG>`.

    Args:
        query: the question; not repeated, as the model cannot vouch for words it was not taught.
        rng: chooses between templates.
    """
    thought = _pick(
        (
            "Looking for something I was not taught to recognise.",
            "Looking for something outside of what I was taught.",
        ),
        rng,
    )
    conclusion = _pick(
        (
            "I was not taught to recognise this, so I cannot answer.",
            "I cannot answer: this is not among the things I was taught to recognise.",
        ),
        rng,
    )
    return f"<think> {thought} </think> {conclusion}"


EXEMPLAR_PHRASE = "tissue like the example"


def answer_exemplar(masks: Masks, concept: str, facts: Facts, rng: np.random.Generator, present: bool) -> str:
    """The answer to an exemplar question: the concept is never named.

    Args:
        masks: what is in the queried image after augmentation; holds `concept` when `present`.
        concept: what the exemplar shows.
        facts: as in `answer_present`.
        rng: chooses between templates.
        present: whether the same is in the queried image.
    """
    if present:
        return answer_present(masks, concept, facts, rng, phrase=EXEMPLAR_PHRASE)
    return answer_absent(concept, masks, facts, rng, phrase=EXEMPLAR_PHRASE)


def largest(masks: Masks, excluding: str) -> str | None:
    """What to speak of where `excluding` is not: the most specific concept that covers most, its own kind first.

    Args:
        masks: concept key → (H, W) bool.
        excluding: what was asked for.

    Returns:
        A key, glands being told from glands and tumours from tumours where there are any; None when nothing is there.
    """
    keys = [key for key in most_specific(set(masks)) if key != excluding and masks[key].mean() >= MIN_SHARE]
    family = set(CONCEPTS[excluding].parents) if excluding in CONCEPTS else set()
    kin = [key for key in keys if family & {key, *CONCEPTS[key].parents}]
    return max(kin or keys, key=lambda key: masks[key].mean(), default=None)


def observation(mask: np.ndarray, concept: str, facts: Mapping[str, float]) -> str:
    """One sentence on what is seen and where, in words that name nothing: number, size, tone, nuclei, lumens, place.

    Args:
        mask: (H, W) bool after augmentation, not empty; number, size and place come from it.
        concept: chooses the neutral noun, and which facts matter.
        facts: `measure`'s facts, or nothing.
    """
    pieces = count_pieces(mask)
    one, several = CONCEPTS[concept].appearance if concept in CONCEPTS else ("structure", "structures")
    size = _size(mask.mean() / max(pieces, 1))
    subject = f"A {size} {one}" if pieces == 1 else f"{_number(pieces)} {size} {several}"
    details = _details(concept, facts)
    verb = "lies" if pieces == 1 else "lie"
    middle = f", {details}," if details else ""
    return f"{subject}{middle} {verb} {_at(location_words(mask))}."


def _details(concept: str, facts: Mapping[str, float]) -> str:
    """Tone, nuclei, edges and lumens in words, as far as measured."""
    if not facts:
        return ""
    words = f"{_tone(facts['darker'])}, with {_nuclei(facts['nuclei'])} nuclei"
    if concept in _GLANDULAR:
        words += f", {_edges(facts['solidity'])} edges and {_lumens(facts['lumen'])} lumens"
    return words


def _number(pieces: int) -> str:
    """Pieces as a word; edges of the classes where EBHI's diagnoses part best."""
    return "Two" if pieces == 2 else "Several" if pieces <= 6 else "Many"


def _size(piece_share: float) -> str:
    """Mean size of a piece against the field."""
    return "small" if piece_share < 0.06 else "medium" if piece_share < 0.15 else "large"


def _tone(darker: float) -> str:
    """Brightness against the surroundings."""
    if darker > 0.16:
        return "much darker than around"
    if darker > 0.05:
        return "darker than around"
    return "paler than around" if darker < -0.05 else "as bright as around"


def _nuclei(share: float) -> str:
    """Share of nuclear pixels inside."""
    return "sparse" if share < 0.3 else "moderate" if share < 0.42 else "dense"


def _edges(solidity: float) -> str:
    """Area over convex hull."""
    return "smooth" if solidity >= 0.93 else "wavy" if solidity >= 0.85 else "irregular"


def _lumens(share: float) -> str:
    """Share of empty pixels inside."""
    return "closed" if share < 0.01 else "narrow" if share < 0.05 else "open"


def _at(where: str) -> str:
    """A location with its preposition: `in the upper left area`, `across most of the area`."""
    return f"across {where}" if where.endswith("area") else f"in the {where} area"


def _looking_for(concept: str, phrase: str | None, rng: np.random.Generator) -> str:
    """The task in the model's own words; now and then with what the concept is known by."""
    if phrase is not None:
        return f"Looking for {phrase}."
    name, hallmark = CONCEPTS[concept].phrase, CONCEPTS[concept].hallmark
    return f"Looking for {name}: {hallmark}." if rng.random() < 0.3 else f"Looking for {name}."


def _fits(name: str, rng: np.random.Generator) -> str:
    """The verdict."""
    return _pick((f"This fits {name}.", f"This looks like {name}."), rng)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of several sentences, evenly."""
    return options[int(rng.integers(len(options)))]


_GRAMMAR = re.compile(r"<think> (?P<thought>.+?) </think> (?P<conclusion>.+)", re.S)


def check_answer(text: str, has_target: bool) -> list[str]:
    """What is wrong with an answer, in words; an empty list for a good one.

    Args:
        text: the whole answer, without end token.
        has_target: whether the target is in the image, so that a `<SEG>` is due.

    Returns:
        Problems: the grammar `<think> … </think> …`; `<SEG>` inside the thought; `<SEG>` iff there is a target; no
        location word before the first `<SEG>`; a `<SEG>` without a phrase; talk of a mask or an outline, which nobody
        showed the model; a silent answer that neither denies nor declines.
    """
    problems = []
    match = _GRAMMAR.fullmatch(text.strip())
    if match is None or text.count("<think>") != 1 or text.count("</think>") != 1:
        problems.append("grammar: expected '<think> … </think> conclusion'")
    conclusion = match["conclusion"] if match else text
    if match and SEG in match["thought"]:
        problems.append(f"{SEG} inside the thought")
    count = text.count(SEG)
    if has_target and not count:
        problems.append(f"the target is present but there is no {SEG}")
    if not has_target and count:
        problems.append(f"the target is absent but there is a {SEG}")
    if count:
        before = set(re.findall(r"[a-z]+", text.split(SEG)[0].lower()))
        if not before & SPATIAL_WORDS:
            problems.append(f"no location word before {SEG}")
        for part in conclusion.split(SEG)[:-1]:
            if not re.search(r"[a-z]{2,}\s*$", part, re.I):
                problems.append(f"a {SEG} without its phrase")
    elif not re.search(r"\b(no|not|cannot|absent|none)\b", conclusion, re.I):
        problems.append(f"without {SEG}, but the conclusion neither denies nor declines")
    if OUTLINE_WORDS.search(text):
        problems.append("names an outline, a mask or an annotation")
    return problems
