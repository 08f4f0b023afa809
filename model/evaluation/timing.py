"""When an answer says `<SEG>`: after how many words, in which share of the answer, and whether a place was named first.

Source: the spatial states of PathChat-SegR1 (Liu et al. 2026, §3.3): a `<SEG>` should follow words about location.
"""

import re
from dataclasses import dataclass

from model.data.chains import SEG, SPATIAL_WORDS

_TAGS = re.compile(r"</?think>")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class SegTiming:
    """Of one answer that holds a `<SEG>`.

    Attributes:
        words: how many stand before the first `<SEG>`; tags are no words.
        share: of the answer's words that stand before it, in [0, 1]; 1 where nothing follows.
        placed: whether one of `SPATIAL_WORDS` stands before it.
        extra: how many more `<SEG>` follow; every question asks for one thing.
    """

    words: int
    share: float
    placed: bool
    extra: int


def seg_timing(text: str) -> SegTiming | None:
    """When the first `<SEG>` is said; None for an answer without one."""
    if SEG not in text:
        return None
    before, *after = (_words(part) for part in _TAGS.sub(" ", text).split(SEG))
    total = len(before) + sum(len(part) for part in after)
    return SegTiming(
        words=len(before), share=len(before) / total if total else 1.0, placed=bool(SPATIAL_WORDS & set(before)),
        extra=len(after) - 1,
    )  # fmt: skip


def _words(text: str) -> list[str]:
    """Words in lower case; numbers count, marks do not."""
    return _WORD.findall(text.lower())
