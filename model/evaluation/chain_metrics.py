"""How close an answer's words are to those of a reference chain: BLEU-4 and token F1.

Both are of answers without their `<think>` tags, which are format, and with `<SEG>` as one word. BLEU is that of
sacrebleu (13a words, case kept) without smoothing, from counts that add up over rows, so that it can be bootstrapped.
Source: Papineni et al. 2002; Post 2018; token F1 as in SQuAD (Rajpurkar et al. 2016, §6.1), over bags of words.
"""

import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np

from model.data.chains import SEG

ORDERS = 4
BLEU_TERMS = (
    *(f"same_{n}" for n in range(1, ORDERS + 1)), *(f"said_{n}" for n in range(1, ORDERS + 1)),
    "said_words", "reference_words",
)  # fmt: skip
"""Counts behind BLEU: n-grams that agree, n-grams said, words said, words of the reference."""


def plain(text: str) -> str:
    """An answer as it is compared: no `<think>` tags, `<SEG>` as a word, single spaces."""
    return " ".join(re.sub(r"</?think>", " ", text).replace(SEG, " SEG ").split())


def tokens(text: str) -> list[str]:
    """Words and marks of an answer in lower case."""
    return re.findall(r"\w+|[^\w\s]", plain(text).lower())


def token_f1(text: str, reference: str) -> float:
    """F1 of the words that two answers share, each counted as often as both say it; in [0, 1]."""
    said, due = Counter(tokens(text)), Counter(tokens(reference))
    shared = sum((said & due).values())
    total = sum(said.values()) + sum(due.values())
    return 2 * shared / total if total else 1.0


@cache
def _sacrebleu() -> Any:
    """The metric, loaded when a reference chain is there.

    Raises:
        ValueError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ValueError(f"BLEU of chains needs sacrebleu ({error}); install slidereason[train]") from error
    return BLEU(effective_order=True)


def require_bleu() -> None:
    """Raise ValueError where BLEU cannot be computed, before anything is asked."""
    _sacrebleu()


def bleu_terms(text: str, reference: str) -> dict[str, float]:
    """The counts of one row, under `BLEU_TERMS`."""
    score = _sacrebleu().sentence_score(plain(text), [plain(reference)])
    return dict(zip(BLEU_TERMS, (*score.counts, *score.totals, score.sys_len, score.ref_len), strict=True))


def bleu(column: dict[str, np.ndarray]) -> np.ndarray:
    """BLEU-4 in [0, 1] of summed counts; 0 where no n-gram of some order agrees, NaN where there is no reference.

    Args:
        column: each of `BLEU_TERMS` → (...) float64.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = sum(np.log(column[f"same_{n}"] / column[f"said_{n}"]) for n in range(1, ORDERS + 1)) / ORDERS
        brevity = np.minimum(0.0, 1 - column["reference_words"] / column["said_words"])
        value = np.where(column["same_4"] > 0, np.exp(logs + brevity), 0.0)
    return np.where(column["reference_words"] > 0, value, np.nan)
