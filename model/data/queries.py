"""Questions in plain words: the language model is trained from scratch, so what it understands is what this samples.

A query is a wording of a thing (`query_bank_*`) in a carrier sentence (`query_bank_carriers`), or a whole question that
implies it; carriers are shared by taught and never-taught things, so that only the thing decides. About 15 % of all
wordings are held out by a stable hash, made of words that other wordings teach, for evaluation.
"""

import re
from functools import cache

import numpy as np

from model.data import query_bank_glands, query_bank_implied, query_bank_tissue, unknown_things
from model.data.concepts import CONCEPTS
from model.data.grammar import expand, expansions, stable_share
from model.data.query_bank_carriers import CARRIERS, FILLERS, PREFIXES, TAILS

HELD_OUT_SHARE = 0.15
ALWAYS_TRAIN = 5
"""The first names of a concept (its own, and its data set's) are never held out."""
IMPLIED_SHARE = 0.4
NOISE = 0.35

NAMES = query_bank_glands.NAMES | query_bank_tissue.NAMES
LOOKS = query_bank_implied.LOOKS | query_bank_tissue.LOOKS
ASKS = query_bank_implied.ASKS | query_bank_tissue.ASKS

_SPELLINGS = (
    ("tumour", "tumor"), ("colour", "color"), ("anaemia", "anemia"), ("haem", "hem"), ("fibres", "fibers"),
    ("centre", "center"), ("oedema", "edema"), ("ischaemi", "ischemi"), ("defence", "defense"), ("grey", "gray"),
    ("leukaemia", "leukemia"), ("oestrogen", "estrogen"), ("naev", "nev"), ("neighbour", "neighbor"),
)


def normalise_query(text: str) -> str:
    """A query as the model reads it: lower case, `tumor` as `tumour`, `-_/` as spaces, single spaces, ASCII quotes.

    What carries no meaning is taken out before tokenising, in training and in serving alike.
    """
    text = text.lower().replace("’", "'").replace("‘", "'")
    text = re.sub(r"[-_/\u2010-\u2015\s]+", " ", text)
    text = re.sub(r"tumor\b|tumor(?=s\b|ous\b|al\b)", "tumour", text)
    return text.strip()


def words_of(text: str) -> set[str]:
    """The words of a wording, as `normalise_query` leaves them."""
    return set(re.findall(r"[a-z0-9']+", normalise_query(text)))


_CARRIER_WORDS = words_of(" ".join(CARRIERS + PREFIXES))


@cache
def _parted(lines: tuple[str, ...], always: int = 0, fresh: int = 0) -> dict[str, tuple[str, ...]]:
    """Lines as `train` and `heldout`: those of lowest hash are held out where training teaches their words.

    Args:
        lines: patterns.
        always: how many of the first are never held out.
        fresh: how many words of a held-out wording of at least five words may be new; a shorter one may hold none, as
            a new word alone can only mean "not taught".
    """
    wanted = max(2, round(HELD_OUT_SHARE * len(lines)))
    held: list[str] = []
    for line in sorted(lines[always:], key=stable_share):
        if len(held) == wanted:
            break
        rest = [other for other in lines if other != line and other not in held]
        known = words_of(" ".join(rest)) | _CARRIER_WORDS
        taught = all(len(words_of(w) - known) <= (fresh if len(words_of(w)) > 4 else 0) for w in expansions(line))
        if taught and not _texts(line) & set().union(*map(_texts, rest)):
            held.append(line)
    return {"train": tuple(line for line in lines if line not in held), "heldout": tuple(held)}


@cache
def _texts(line: str) -> frozenset[str]:
    """Every wording of a line, as the model would read it."""
    return frozenset(normalise_query(text.lstrip("+")) for text in expansions(line))


def wordings(concept: str, split: str) -> dict[str, tuple[str, ...]]:
    """The lines of a concept for one split: `names`, `looks`, `asks` (patterns of `model/data/grammar.py`).

    Raises:
        KeyError: no such concept.
    """
    return {
        "names": _parted(NAMES[concept], ALWAYS_TRAIN)[split],
        "looks": _parted(LOOKS[concept], fresh=1)[split],
        "asks": _parted(ASKS[concept], fresh=1)[split],
    }


def carriers(split: str) -> tuple[str, ...]:
    """The carrier sentences of one split."""
    return _parted(CARRIERS, 1)[split]


def sample_query(
    concept: str, rng: np.random.Generator, split: str = "train", implied: bool | None = None, noise: float = NOISE
) -> tuple[str, str]:
    """Ask for a concept.

    Args:
        concept: key of `CONCEPTS`.
        rng: the only source of chance.
        split: `train`, or `heldout` for a query of which a part was never in training.
        implied: True never names it, False always does, None draws.
        noise: chance of each kind of untidiness (case, punctuation, filler, a typo); 0 is clean.

    Returns:
        The question, and `named` or `implied`.

    Raises:
        KeyError: no such concept.
        ValueError: no such split.
    """
    _check(split)
    if implied is None:
        implied = bool(rng.random() < IMPLIED_SHARE)
    if not implied:
        thing_held = split == "heldout" and rng.random() < 0.7
        thing = _wording(concept, "names", "heldout" if thing_held else "train", rng)
        carrier_split = "heldout" if split == "heldout" and (not thing_held or rng.random() < 0.3) else "train"
        return untidy(_carry(thing, rng, carrier_split), rng, noise), "named"
    if rng.random() < 0.5:
        return untidy(_ask(expand(_pick(_lines(concept, "asks", split), rng), rng), rng), rng, noise), "implied"
    thing = _wording(concept, "looks", split, rng)
    return untidy(_carry(thing, rng, "train"), rng, noise), "implied"


def _check(split: str) -> None:
    """Raise ValueError unless the split exists."""
    if split not in ("train", "heldout"):
        raise ValueError(f"split is {split!r}; accepted: train, heldout")


def _lines(concept: str, kind: str, split: str) -> tuple[str, ...]:
    """Lines of one kind; where a split holds none, those of training."""
    return wordings(concept, split)[kind] or wordings(concept, "train")[kind]


def _wording(concept: str, kind: str, split: str, rng: np.random.Generator) -> str:
    """One noun phrase, its leading `+` kept; names favour the first lines, which everybody uses."""
    lines = _lines(concept, kind, split)
    if kind == "names" and split == "train" and rng.random() < 0.25:
        lines = lines[:ALWAYS_TRAIN]
    return expand(_pick(lines, rng), rng)


def _pick(lines: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of several lines, evenly."""
    return lines[int(rng.integers(len(lines)))]


def _carry(thing: str, rng: np.random.Generator, split: str) -> str:
    """A noun phrase in a carrier sentence; a quarter of them stand alone or nearly so."""
    lines = carriers(split) or carriers("train")
    if split == "train" and rng.random() < 0.12:
        lines = lines[:2]
    return fill(expand(_pick(lines, rng), rng), thing)


def fill(carrier: str, thing: str) -> str:
    """Put a noun phrase into an expanded carrier, with the verbs that fit its number; doubled articles are dropped.

    Args:
        carrier: with `{x}` and maybe `{is}`, `{exist}`, `{it}`, `{this}`, `{do}`.
        thing: the noun phrase; a leading `+` marks a plural.
    """
    plural = thing.startswith("+")
    thing = thing.lstrip("+").strip()
    if thing.split()[0] in ("the", "a", "an", "all", "any", "every", "only", "what", "everything", "no"):
        carrier = re.sub(r"\b(the|any|all|only|just the|all of the|every bit of) \{x\}", "{x}", carrier)
    slots = {
        "is": "are" if plural else "is",
        "exist": "are there" if plural else "is there",
        "it": "them" if plural else "it",
        "this": "these" if plural else "this",
        "do": "do" if plural else "does",
    }
    text = carrier.format(x=thing, **slots)
    return re.sub(r"\s+", " ", text).strip()


def _ask(question: str, rng: np.random.Generator) -> str:
    """A whole question, sometimes with something said before it."""
    return _pick(PREFIXES, rng) + question if rng.random() < 0.15 else question


def sample_unknown_query(rng: np.random.Generator, split: str = "train", noise: float = NOISE) -> str:
    """Ask for something that was never taught: a real thing, a made-up word, or a whole question beside the point.

    Half of the training queries are made-up words, so that *any* unseen word comes to mean "not taught".

    Raises:
        ValueError: no such split.
    """
    _check(split)
    kind = rng.random()
    if split == "heldout":
        if kind < 0.2:
            return untidy(expand(_pick(unknown_things.ASKS_HELD_OUT, rng), rng), rng, noise)
        return untidy(_carry(_pick(unknown_things.HELD_OUT, rng), rng, "train"), rng, noise)
    if kind < 0.12:
        return untidy(_ask(expand(_pick(unknown_things.ASKS_TRAIN, rng), rng), rng), rng, noise)
    if kind < 0.5:
        thing = _pick(unknown_things.TRAIN, rng)
    else:
        thing = _made_up_thing(rng)
    return untidy(_carry(thing, rng, "train"), rng, noise)


def _made_up_thing(rng: np.random.Generator) -> str:
    """One to three words of which the head is made up; taught adjectives and organs may stand around it."""
    word = made_up_word(rng)
    plural = "+" if word.endswith("s") or rng.random() < 0.2 else ""
    draw = rng.random()
    if draw < 0.55:
        return plural + word
    if draw < 0.8:
        return plural + f"{_pick(_MODIFIERS, rng)} {word}"
    if draw < 0.88:
        return f"{word} {_pick(_HEADS, rng)}"
    if draw < 0.94:
        return f"{_pick(('deposits', 'areas', 'signs', 'traces', 'foci', 'clusters', 'a piece'), rng)} of {word}"
    return plural + f"{word} of the {_pick(('colon', 'liver', 'node', 'mucosa', 'breast', 'skin', 'kidney'), rng)}"


_MODIFIERS = (
    "normal", "malignant", "low-grade", "high-grade", "invasive", "benign", "small", "large", "dark", "red", "serrated",
    "metastatic", "healthy", "mild", "severe", "colonic", "chronic", "acute", "old", "big", "green", "broken", "early",
)  # fmt: skip


_HEADS = (
    "bodies", "cells", "disease", "syndrome", "tissue", "virus", "fibres", "deposits", "crystals", "pigment",
    "granules", "nodules", "inclusions", "stain", "lesion", "infiltrate", "eggs", "machine", "sign", "structures",
)  # fmt: skip


def made_up_word(rng: np.random.Generator) -> str:
    """A word that means nothing, everyday (`blorpeck`) or medical (`chondrorhinosis`) in sound."""
    if rng.random() < 0.4:
        roots = [_pick(unknown_things.ROOTS, rng) for _ in range(int(rng.integers(1, 3)))]
        return "o".join(roots) + _pick(unknown_things.ENDINGS, rng)
    return "".join(
        _pick(unknown_things.ONSETS, rng) + _pick(unknown_things.VOWELS, rng) + _pick(unknown_things.CODAS, rng)
        for _ in range(int(rng.integers(1, 4)))
    )


EXEMPLAR: tuple[str, ...] = (
    "(find|outline|mark|show|segment) (more of |)(the same|this|the same thing|the same structure) as in the example",
    "(outline|mark|segment|find) what (the example|the reference) (shows|marks|points to)",
    "where is (the same|this) (tissue|structure|thing) as in the (example|reference)?",
    "(find|outline|mark|segment|show) (this|the same)( here|)",
    "(same as|like) the (example|reference)",
    "(find|show|outline) (anything|everything) (like|that looks like|similar to) the (example|reference|marked tissue)",
    "is there any of this (here|in this image)? (outline|mark|show) it",
    "(segment|outline|mark) (all |)tissue (of the same kind|like the marked one|like the example|as in the reference)",
    "do you see the marked (structure|tissue) here too? (outline|mark|show) it",
    "use the reference and (segment|outline|mark) the same (structure|tissue|thing)",
    "repeat (this|the example) here",
    "match the (example|reference)",
)


def sample_exemplar_query(rng: np.random.Generator, split: str = "train", noise: float = NOISE) -> str:
    """Ask for what an exemplar shows, without any name.

    Raises:
        ValueError: no such split.
    """
    _check(split)
    parts = _parted(EXEMPLAR)
    return untidy(expand(_pick(parts[split] or parts["train"], rng), rng), rng, noise)


def untidy(text: str, rng: np.random.Generator, amount: float = NOISE) -> str:
    """Write as people do: American spelling, other case, missing or odd punctuation, filler words, now and then a typo.

    Args:
        text: a clean query.
        rng: source of chance.
        amount: 0 leaves the text alone; 1 makes every kind of untidiness as likely as it gets.
    """
    if amount <= 0:
        return text
    if rng.random() < amount:
        for british, american in _SPELLINGS:
            text = text.replace(british, american)
    if rng.random() < 0.25 * amount:
        text = _pick(FILLERS, rng) + text
    if rng.random() < 0.2 * amount and "?" not in text:
        text += _pick(TAILS, rng)
    if rng.random() < 0.5 * amount:
        text = text.replace("-", _pick((" ", "", "-", "_"), rng))
    if rng.random() < 0.25 * amount:
        text = _typo(text, rng)
    if rng.random() < amount:
        bare = text.rstrip("?.")
        text = _pick((bare, bare + ".", text + "!", bare + " ?", text + "??"), rng)
    if rng.random() < 1.5 * amount:
        text = (str.upper, str.title, _sentence, _sentence, _sentence)[int(rng.integers(5))](text)
    return text


def _sentence(text: str) -> str:
    """First letter upper case."""
    return text[:1].upper() + text[1:]


def _typo(text: str, rng: np.random.Generator) -> str:
    """Drop, double or swap one letter inside one long word."""
    spots = [m.start() for m in re.finditer(r"(?<=[a-z]{2})[a-z](?=[a-z]{2})", text)]
    if not spots:
        return text
    at = spots[int(rng.integers(len(spots)))]
    kind = int(rng.integers(3))
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


assert NAMES.keys() == LOOKS.keys() == ASKS.keys() == CONCEPTS.keys()
