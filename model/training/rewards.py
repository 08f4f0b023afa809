"""The rewards of SO-GRPO, token by token: pure functions of text and masks.

    R = λ_soft R_soft + λ_sparse R_sparse + λ_spatial R_spatial + λ_format R_format + R_len

R_soft and R_sparse are paid at the `<SEG>` that earned them, the others at the end of the answer. As the paper states
them, a false `<SEG>` would earn as much as a correct silence and every further one 0.2 more; so each target counts once
(Hungarian matching), every `<SEG>` beyond the targets costs, and silence about what is absent earns what a perfect mask
does. A `<SEG>` is paid what it adds to those before it, so that no later one can take that away.

Source: Liu et al. 2026, PathChat-SegR1, §3.4, Eq. 3 and 4; Kuhn 1955 (matching).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from model.data.chains import SEG, SPATIAL_WORDS

EPSILON = 1e-8
GRACE_WORDS = 50
"""L₀: longer answers cost."""
_GRAMMAR = re.compile(r"\s*(?P<thought>[^<]+?)\s*</think>\s*(?P<conclusion>.+?)\s*", re.S)
_PHRASE = re.compile(r"[a-z]{2,}\s*$", re.I)
_NAMED = re.compile(
    r"\b(?:in|on|at|near|towards?) the (upper|lower|top|bottom|center|centre|left|right)(?:[ -](left|right))?\b", re.I
)
"""A place in a question; "glands left untreated" names none."""
_PLACES = {"left": (0.0, -1.0), "right": (0.0, 1.0), "upper": (-1.0, 0.0), "top": (-1.0, 0.0), "lower": (1.0, 0.0),
           "bottom": (1.0, 0.0), "center": (0.0, 0.0), "centre": (0.0, 0.0)}  # fmt: skip


@dataclass(frozen=True)
class RewardWeights:
    """λ of each reward; β and γ of Eq. 3.

    Attributes:
        soft, sparse, spatial, format: λ's of the paper.
        length: λ_len, of the logarithm.
        beta, gamma: what a `<SEG>` that has a target earns in a spatial state, and what any other costs.
        hard: R_soft of the thresholded mask, as standard GRPO has it.
    """

    soft: float = 0.3
    sparse: float = 0.2
    spatial: float = 0.1
    format: float = 0.1
    length: float = 0.01
    beta: float = 1.0
    gamma: float = 0.5
    hard: bool = False


def soft_dice(logits: Tensor, target: Tensor) -> Tensor:
    """R_soft: (M, H, W) logits against (M, H, W) targets in [0, 1] → (M,) differentiable Dice."""
    p, g = logits.float().sigmoid().flatten(1), target.float().flatten(1)
    return (2 * (p * g).sum(1) + EPSILON) / (p.sum(1) + g.sum(1) + EPSILON)


def match_masks(quality: np.ndarray) -> dict[int, int]:
    """The best pairing of masks and targets.

    Args:
        quality: (K, T) Dice of each of K masks against each of T targets.

    Returns:
        Mask → target, each at most once. Among equal masks the earlier one is taken: the first `<SEG>` is meant.
    """
    if not quality.size:
        return {}
    late = 1e-9 * np.arange(quality.shape[0])[:, None]
    rows, columns = linear_sum_assignment(-(quality - late))
    return {int(r): int(c) for r, c in zip(rows, columns, strict=True)}


def marginal_gains(quality: np.ndarray) -> list[float]:
    """What each mask adds to the best pairing of those before it; together they are worth the best pairing of all.

    Paid at the `<SEG>`s of the final pairing instead, the reward would move: a second, slightly better mask would take
    it from the first one, which cannot be blamed any more. Measured, SO-GRPO then learns to point again and again.

    Args:
        quality: (K, T) Dice of each of K masks against each of T targets.
    """
    worth = [0.0]
    for k in range(1, quality.shape[0] + 1):
        worth.append(sum(float(quality[mask, target]) for mask, target in match_masks(quality[:k]).items()))
    return [after - before for before, after in zip(worth, worth[1:], strict=False)]


def in_spatial_state(before: str) -> bool:
    """𝕀(s_t ∈ S_spatial): a location word stands in the answer before the `<SEG>`."""
    return bool(set(re.findall(r"[a-z]+", before.lower())) & SPATIAL_WORDS)


def well_formed(text: str, has_target: bool) -> bool:
    """R_format: thought, end of thought, conclusion; every `<SEG>` there behind its phrase; some iff there is a target.

    Args:
        text: the answer behind `<think>`.
        has_target: whether what was asked for is there.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None or text.count("</think>") != 1:
        return False
    conclusion = match["conclusion"]
    phrases = conclusion.split(SEG)[:-1]
    return bool(phrases) == has_target and all(_PHRASE.search(phrase) for phrase in phrases)


def length_penalty(words: int, weight: float = 0.01, grace: int = GRACE_WORDS) -> float:
    """R_len = −λ_len · ln(1 + max(0, L − L₀))."""
    return -weight * math.log1p(max(0, words - grace))


def place_reward(query: str, mask: np.ndarray) -> float:
    """R_spatial: how near the mask's centroid is to the place that the query names.

    Args:
        query: the question.
        mask: (H, W) weights in [0, 1].

    Returns:
        1 − distance to the place over half the diagonal, at least 0; 0 when the query names no place or the mask is
        empty.
    """
    named = [_PLACES[word.lower()] for words in _NAMED.findall(query) for word in words if word]
    total = float(mask.sum())
    if not named or total <= 0:
        return 0.0
    # "Upper left" is two words, each of one axis: the place is their sum, two thirds of the way to the edge.
    place = np.clip(np.sum(named, 0), -1, 1) * (2 / 3)
    height, width = mask.shape
    rows, columns = (np.arange(n) * 2 / (n - 1) - 1 for n in (height, width))
    centroid = np.array([(mask.sum(1) * rows).sum(), (mask.sum(0) * columns).sum()]) / total
    return max(0.0, 1 - float(np.linalg.norm(centroid - place)) / math.sqrt(2))


@dataclass(frozen=True)
class Outcome:
    """What one answer came to.

    Attributes:
        rewards: (T,) reward of each token.
        matched: `<SEG>` number → target number.
        parts: name → what it earned in all, weighted.
    """

    rewards: np.ndarray
    matched: dict[int, int]
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Sum over tokens."""
        return float(self.rewards.sum())


def reward_answer(
    text_before: Sequence[str],
    text: str,
    length: int,
    seg_at: Sequence[int],
    quality: np.ndarray,
    query: str,
    masks: np.ndarray,
    weights: RewardWeights = RewardWeights(),
) -> Outcome:
    """The rewards of one answer.

    Args:
        text_before: for each of K `<SEG>`s the text of the answer before it.
        text: the whole answer, behind `<think>`.
        length: T, its tokens, the end token included.
        seg_at: K places of the `<SEG>`s among them.
        quality: (K, n) Dice of each mask against each of n targets; n = 0 where the target is absent.
        query: the question.
        masks: (K, H, W) probabilities.
        weights: λ's.

    Returns:
        Rewards by token, the matching and the parts.
    """
    rewards, end = np.zeros(length), length - 1
    matched = match_masks(quality)
    n_targets = quality.shape[1]
    parts = dict.fromkeys(("soft", "sparse", "spatial", "format", "length"), 0.0)

    def pay(part: str, place: int, value: float) -> None:
        parts[part] += value
        rewards[place] += value

    for k, (place, gain) in enumerate(zip(seg_at, marginal_gains(quality), strict=True)):
        pay("soft", place, weights.soft * gain)
        earned = weights.beta if k < n_targets and in_spatial_state(text_before[k]) else -weights.gamma
        pay("sparse", place, weights.sparse * earned)
    if not n_targets and not len(seg_at):
        pay("soft", end, weights.soft)
    if matched:
        pay("spatial", end, weights.spatial * place_reward(query, masks[list(matched)].max(0)))
    pay("format", end, weights.format * well_formed(text, n_targets > 0))
    pay("length", end, length_penalty(len(text.split()), weights.length))
    return Outcome(rewards, matched, parts)
