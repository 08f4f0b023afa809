"""A tiny grammar for wordings: `(a|b|)` stands for one of its alternatives, nested as deep as needed.

`(please |)(outline|mark) the {x}` is "please mark the {x}", "outline the {x}", …
"""

import hashlib
from functools import cache

import numpy as np


@cache
def parse(pattern: str) -> tuple:
    """A pattern as nested tuples: a sequence of strings and of choices, each choice a tuple of sequences.

    Raises:
        ValueError: a parenthesis is not closed or not opened.
    """
    sequence, end = _sequence(pattern, 0)
    if end != len(pattern):
        raise ValueError(f"unbalanced parenthesis at {end} in {pattern!r}")
    return sequence


def _sequence(pattern: str, at: int) -> tuple[tuple, int]:
    """Read until the end, or until the `|` or `)` that closes this alternative."""
    parts: list = []
    text = ""
    while at < len(pattern) and pattern[at] not in "|)":
        if pattern[at] == "(":
            choice, at = _choice(pattern, at + 1)
            parts += [text, choice]
            text = ""
        else:
            text += pattern[at]
            at += 1
    return (*parts, text), at


def _choice(pattern: str, at: int) -> tuple[tuple, int]:
    """Read the alternatives behind an opening parenthesis."""
    alternatives = []
    while True:
        sequence, at = _sequence(pattern, at)
        alternatives.append(sequence)
        if at >= len(pattern):
            raise ValueError(f"parenthesis never closed in {pattern!r}")
        at += 1
        if pattern[at - 1] == ")":
            return tuple(alternatives), at


def expand(pattern: str, rng: np.random.Generator) -> str:
    """One wording of the pattern, every alternative equally likely."""
    return _expand(parse(pattern), rng)


def _expand(sequence: tuple, rng: np.random.Generator) -> str:
    """Join a parsed sequence, drawing each choice."""
    return "".join(
        part if isinstance(part, str) else _expand(part[int(rng.integers(len(part)))], rng) for part in sequence
    )


def expansions(pattern: str) -> list[str]:
    """Every wording of the pattern, in order."""
    return _expansions(parse(pattern))


def _expansions(sequence: tuple) -> list[str]:
    """All joins of a parsed sequence."""
    found = [""]
    for part in sequence:
        tails = [part] if isinstance(part, str) else [text for option in part for text in _expansions(option)]
        found = [head + tail for head in found for tail in tails]
    return found


def stable_share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, the same in every process and year."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
