"""What a text names, and whether it affirms or denies it: concepts, diagnoses never taught, negations.

A small lexicon and windows of words, no parser: sentences of answers are short. Where a sentence could be read either
way it is read as saying nothing, so that what is flagged is flagged for a reason.
"""

import re
from dataclasses import dataclass
from functools import cache

from model.data.concepts import CONCEPTS

SENTENCE = re.compile(r"[^.!?;]+(?:\.(?=\d)[^.!?;]+)*[.!?;]?")
"""A sentence or half of one; a decimal point ends none."""

_FOREIGN = (
    r"[a-z-]*(?:carcinoma|adenoma|sarcoma|lymphoma|melanoma|glioma|blastoma|myeloma|neoplasia|dysplasia|metaplasia)s?"
    r"|[a-z]*metastas[ei]s|leuka?emias?|hamartomas?|[a-z]*colitis"
)
"""Words that are diagnoses, whether or not they were taught."""

_NEGATION = re.compile(
    r"\b(?:no|not|non|none|nothing|without|absent|absence|lacks?|lacking|neither|nor|never|cannot|unlike|than|against"
    r"|excludes?|excluded|excluding|rules? out|ruled out|rather|instead|free of|differs?|unlikely|n't)\b",
    re.I,
)
_AFTER = re.compile(
    r"^(?:\W+\w+){0,3}?\W+(?:not|absent|excluded|unlikely|ruled out|cannot|lacking|missing|nowhere|never)\b", re.I
)
_AFFIRMS = re.compile(
    r"\b(?:fits?|looks? like|consistent|favou?rs?|suggests?|indicates?|supports?|typical|is|are)\b", re.I
)
_NEUTRAL = re.compile(
    r"^\W*(?:looking|searching|asked|task|query|question|goal|aim|(?:the|this) (?:question|query|task)"
    r"|i (?:am|look|search|need|must|should))\b"
    r"|\?\s*$|\b(?:would|whether|expected|known by|hallmarks?|if (?:there|it|this|any)|usually|by definition)\b",
    re.I,
)
NEAR, FAR = 3, 10
"""Words between a negation and what it negates: a plain denial; anything that may be one."""


@dataclass(frozen=True)
class Mention:
    """A name in a text.

    Attributes:
        start, end: where in the text.
        words: as written.
        key: the concept; None for a diagnosis that is none of ours, or too wide a word to be one.
    """

    start: int
    end: int
    words: str
    key: str | None


def sentences(text: str) -> list[str]:
    """Sentences in order, `<think>` tags taken out."""
    plain = re.sub(r"</?think>", ".", text)
    found = (match.group().strip() for match in SENTENCE.finditer(plain))
    return [sentence for sentence in found if re.search(r"\w", sentence)]


def clauses(sentence: str) -> list[str]:
    """Parts of a sentence between commas, colons, brackets and the words that turn to something else."""
    around = r"(?:the |its |their )?(?:surround|background|adjacent|rest)"
    turn = rf"while|whereas|but|although|though|compared|and(?= {around})"
    parts = re.split(rf"[,:()]|\b(?:{turn})\b|\s[–—-]\s", sentence)
    return [part for part in parts if part.strip()]


def is_neutral(sentence: str) -> bool:
    """Whether a sentence says what is looked for or would be expected, and nothing of what is seen."""
    return bool(_NEUTRAL.search(sentence))


def mentions(text: str) -> list[Mention]:
    """Every concept and diagnosis named, the longest name first: `carcinoma in situ` is no `carcinoma`."""
    pattern, keys = _names()
    found = []
    for match in pattern.finditer(text):
        key = keys.get(_plain(match.group()))
        found.append(Mention(match.start(), match.end(), match.group(), key))
    return found


def names_of(key: str) -> tuple[str, ...]:
    """Everything a concept is called in an answer."""
    concept = CONCEPTS[key]
    return tuple(dict.fromkeys((concept.phrase, concept.name, *concept.synonyms)))


def is_denied(text: str, mention: Mention, reach: int = FAR) -> bool:
    """Whether a name stands under a negation.

    Args:
        text: a sentence.
        mention: of that text.
        reach: how many words may stand between; `NEAR` finds plain denials only.
    """
    before = re.split(r"[,:;()]|\bbut\b", text[: mention.start])[-1]
    negation = list(_NEGATION.finditer(before))
    if negation:
        between = before[negation[-1].end() :]
        turns = list(_AFFIRMS.finditer(between))
        direct = not turns or len(between[: turns[-1].start()].split()) <= 1
        if direct and len(between.split()) <= reach:
            return True
    return bool(_AFTER.search(re.split(r"[,:;()]|\bbut\b", text[mention.end :])[0]))


@cache
def _names() -> tuple[re.Pattern, dict[str, str]]:
    """One pattern of all names, and which concept each is."""
    keys: dict[str, str] = {}
    for concept in CONCEPTS:
        for name in names_of(concept):
            keys.setdefault(_plain(name), concept)
    ordered = sorted(keys, key=len, reverse=True)
    ours = "|".join(_loose(name) for name in ordered)
    return re.compile(rf"(?<![\w-])(?:{ours}|{_FOREIGN})(?![\w-]|<)", re.I), keys


def _plain(name: str) -> str:
    """A name without case, hyphens, spelling and plural."""
    name = re.sub(r"[\s-]+", " ", name.lower()).replace("tumor", "tumour")
    return re.sub(r"ies$", "y", name) if name.endswith("ies") else re.sub(r"(?<=[^s])s$", "", name)


def _loose(plain: str) -> str:
    """A plain name as a pattern for all its spellings, singular or plural."""
    words = [re.escape(word).replace("tumour", "tumou?r") for word in plain.split()]
    last = words.pop()
    last = f"{last[:-1]}(?:y|ies)" if last.endswith("y") else f"{last}s?"
    return r"[\s-]+".join([*words, last])
