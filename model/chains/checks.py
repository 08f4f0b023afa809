"""Automatic checks of a reasoning chain: its form, and that it says nothing the mask and the picture contradict.

    text, Truth ──▶ form (`check_answer`, markup, length) ──▶ names (target, other diagnoses, negations)
                 ──▶ claims (place, number, size, tone, nuclei, edges, lumens) ──▶ [Problem, …]
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from model.chains.claims import claims_of
from model.chains.lexicon import NEAR, Mention, is_denied, is_neutral, mentions, names_of, sentences
from model.chains.measures import Seen, see
from model.chains.rows import Row
from model.data.chains import EXEMPLAR_PHRASE, SEG, check_answer
from model.data.concepts import CONCEPTS, DIAGNOSES, known_in

MAX_WORDS = 130
BLOCKING = frozenset({"grammar", "seg-count", "seg-missing", "seg-unexpected", "seg-in-thought", "seg-phrase"})
"""What no reviewer may let pass: training could not read such an answer."""

NAMES = (
    "grammar", "seg-in-thought", "seg-missing", "seg-unexpected", "seg-count", "seg-phrase", "no-location", "no-denial",
    "outline", "markup", "too-long", "wrong-phrase", "names-class", "denies-target", "affirms-absent",
    "other-diagnosis", "no-decline", "location", "number", "size", "tone", "nuclei", "edges", "lumens",
)  # fmt: skip
"""Every check, by the code of its problem."""

_FORM = {
    "grammar": "grammar", f"{SEG} inside": "seg-in-thought", "the target is present": "seg-missing",
    "the target is absent": "seg-unexpected", "no location word": "no-location", f"a {SEG} without": "seg-phrase",
    f"without {SEG}": "no-denial", "names an outline": "outline",
}  # fmt: skip
"""Start of a message of `check_answer` → code."""
_DECISIVE = frozenset({*DIAGNOSES, "tumour", "tumour_nest"})
"""Concepts that exclude each other enough for an unasked one to be a mistake."""
_DECLINES = re.compile(r"\b(?:not taught|cannot answer|can ?not tell|do not know|not able)\b", re.I)
_MARKUP = re.compile(r"```|\*\*|^\s*[#>*-] |\n\s*[-*\d]|<(?!/?think>|SEG>)|\[/?[A-Z]+\]", re.M)


@dataclass(frozen=True)
class Problem:
    """Something wrong with a chain.

    Attributes:
        code: stable, e.g. `location`; see docs/chains.md.
        message: for a person, and for the writer that tries again.
        quote: the words at fault, "" where it is the whole.
    """

    code: str
    message: str
    quote: str = ""

    def to_json(self) -> dict[str, str]:
        """As it is stored and served."""
        return asdict(self)


@dataclass(frozen=True)
class Truth:
    """What is known of a picture and a question, to hold an answer against.

    Attributes:
        targets: concept keys of the `<SEG>`s, in order.
        concept: what was asked for; None for a thing outside everything taught.
        kind: as `Episode.kind`; None where unknown.
        seen: concept key → what was measured, of everything present.
        absent: concept keys known not to be there.
    """

    targets: tuple[str, ...]
    concept: str | None
    kind: str | None
    seen: Mapping[str, Seen]
    absent: frozenset[str] = field(default_factory=frozenset)

    @property
    def subjects(self) -> list[Seen]:
        """What a sentence that names nothing may speak of: the targets, or else anything that is there."""
        return [self.seen[key] for key in self.targets] if self.targets else list(self.seen.values())


def truth_of(row: Row) -> Truth:
    """Measure a sample's picture and masks.

    Raises:
        ValueError: a file is missing, no picture, or of another size than its picture; nothing says what is asked for.
    """
    if row.concept is None and row.kind != "unknown":
        raise ValueError(f"{row.id}: neither targets nor concept say what is asked for; only kind 'unknown' may do so")
    image = row.read_image()
    masks = row.read_masks()
    for key, mask in masks.items():
        if mask.shape != image.shape[:2]:
            raise ValueError(f"{row.id}: mask {key} is {mask.shape}, its picture {image.shape[:2]}; equal accepted")
    gone = [key for key in row.targets if key not in masks]
    if gone:
        raise ValueError(f"{row.id}: the mask of the target {gone[0]!r} is empty")
    return truth_from(masks, row.targets, row.concept, row.kind, row.absent, image, row.mpp)


def truth_from(
    masks: Mapping[str, np.ndarray], targets: tuple[str, ...], concept: str | None, kind: str | None = None,
    absent: frozenset[str] = frozenset(), image: np.ndarray | None = None, mpp: float | None = None,
    facts: Mapping[str, Mapping[str, float]] | None = None,
) -> Truth:  # fmt: skip
    """`Truth` from arrays; parents of what is there are there too.

    Args:
        masks: concept key → (H, W) bool, not empty.
        targets, concept, kind, absent: as in `Truth`.
        image: (H, W, 3) uint8; None checks only what masks and facts say.
        mpp: µm/px, None when unknown.
        facts: concept key → facts that count instead of measured ones.
    """
    present, gone = known_in(masks, absent)
    everything = {**present, **masks}
    known: dict[int, Seen] = {}
    seen = {}
    for key, mask in everything.items():
        told = (facts or {}).get(key)
        if told is not None or id(mask) not in known:
            known[id(mask)] = see(key, mask, image, mpp, told)
        seen[key] = replace(known[id(mask)], key=key)
    return Truth(tuple(targets), concept, kind, seen, gone - everything.keys())


def check_chain(text: str, truth: Truth, max_words: int = MAX_WORDS) -> list[Problem]:
    """What is wrong with a chain; an empty list for a good one.

    Args:
        text: the whole answer, without end token.
        truth: what is known.
        max_words: longest accepted answer.
    """
    problems = [*_form(text, truth, max_words), *_phrases(text, truth)]
    conclusion = text.rpartition("</think>")[2]
    for sentence in sentences(text):
        if not is_neutral(sentence):
            problems += [*_naming(sentence, truth), *_contradictions(sentence, truth)]
    if truth.kind == "unknown" and not _DECLINES.search(conclusion):
        problems.append(Problem("no-decline", "was never taught this, but the conclusion does not say so"))
    return list(dict.fromkeys(problems))


def _form(text: str, truth: Truth, max_words: int) -> list[Problem]:
    """Grammar, `<SEG>`s, outline words, markup and length."""
    problems = []
    for message in check_answer(text, bool(truth.targets)):
        code = next(code for start, code in _FORM.items() if message.startswith(start))
        problems.append(Problem(code, message))
    count, due = text.count(SEG), len(truth.targets)
    if count and due and count != due:
        problems.append(Problem("seg-count", f"{due} {SEG} due, one for each target, but there are {count}"))
    markup = _MARKUP.search(text)
    if markup:
        problems.append(Problem("markup", "holds markup, lists or tags other than the grammar's", markup.group()))
    words = len(text.split())
    if words > max_words:
        problems.append(Problem("too-long", f"{words} words; at most {max_words} are accepted"))
    return problems


def _phrases(text: str, truth: Truth) -> list[Problem]:
    """The words before each `<SEG>` must name its target."""
    problems = []
    parts = text.rpartition("</think>")[2].split(SEG)[:-1]
    for key, part in zip(truth.targets, parts, strict=False):
        phrase = re.split(r"[.:;,]|\band\b", part)[-1].strip()
        named = [mention.key for mention in mentions(phrase)]
        good = (
            phrase.lower().endswith(EXEMPLAR_PHRASE)
            if truth.kind == "exemplar" or key not in CONCEPTS
            else named[-1:] == [key]
        )
        if not good:
            due = EXEMPLAR_PHRASE if truth.kind == "exemplar" or key not in CONCEPTS else CONCEPTS[key].phrase
            problems.append(Problem("wrong-phrase", f"expected '{due} {SEG}'", f"{phrase} {SEG}"))
    return problems


def _naming(sentence: str, truth: Truth) -> list[Problem]:
    """Targets denied, absent things affirmed, other diagnoses named, a class named that must not be."""
    problems = []
    for mention in mentions(sentence):
        key, words = mention.key, mention.words
        if truth.kind == "exemplar" and key in truth.targets and not _is_noun(mention, truth):
            problems.append(Problem("names-class", "names what was asked for by example, without a name", words))
        if key in truth.targets:
            if is_denied(sentence, mention, NEAR) and not _is_noun(mention, truth):
                problems.append(Problem("denies-target", f"denies {words}, which is there", words))
        elif not is_denied(sentence, mention) and _is_wrong(mention, truth):
            if key is not None and key == truth.concept:
                problems.append(Problem("affirms-absent", f"affirms {words}, which is not there", words))
            else:
                problems.append(Problem("other-diagnosis", f"names {words}, which is not there", words))
    return problems


def _is_noun(mention: Mention, truth: Truth) -> bool:
    """Whether a name is also the neutral word for what is seen (`glands`)."""
    nouns = {noun for key in (*truth.targets, *truth.seen) if key in CONCEPTS for noun in CONCEPTS[key].appearance}
    return mention.words.lower() in nouns


def _is_wrong(mention: Mention, truth: Truth) -> bool:
    """Whether naming this as seen contradicts what is known."""
    if _is_noun(mention, truth):
        return False
    if mention.key is None:
        allowed = " ".join(name for key in truth.seen if key in CONCEPTS for name in names_of(key))
        return mention.words.lower().rstrip("s") not in allowed
    if mention.key in truth.seen:
        return False
    if mention.key in truth.absent or mention.key == truth.concept:
        return True
    parents = {parent for key in truth.seen if key in CONCEPTS for parent in CONCEPTS[key].parents}
    return mention.key in _DECISIVE and mention.key not in parents and bool(truth.seen)


def _contradictions(sentence: str, truth: Truth) -> list[Problem]:
    """Claims that nothing the sentence may speak of bears out."""
    named = [truth.seen[m.key] for m in mentions(sentence) if m.key in truth.seen and m.key not in truth.targets]
    subjects = [*truth.subjects, *named]
    problems = []
    for claim in claims_of(sentence) if subjects else ():
        if all(claim.contradicted_by(seen) for seen in subjects):
            found = claim.measured(subjects[0])
            problems.append(Problem(claim.code, f"'{claim.quote}' is contradicted: measured {found}", claim.quote))
    return problems
