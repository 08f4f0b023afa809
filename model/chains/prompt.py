"""What a language model is told: first to describe what is seen, then to reason from it in the grammar of answers.

Source: Liu et al. 2026, PathChat-SegR1, §4.1: one model describes the marked region against its surroundings, a second
one turns the description into a chain. The rules below are those that `checks.py` holds an answer against.
"""

import re
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from model.chains.checks import MAX_WORDS, Problem, Truth
from model.chains.description import name_of
from model.chains.endpoint import picture_part
from model.chains.lexicon import names_of
from model.data.chains import SEG
from model.data.concepts import CONCEPTS

VERSION = "1"
"""Raised whenever a word below changes; stored with every chain."""

Messages = list[dict[str, Any]]

_DESCRIBER = (
    "You are a pathologist who describes histology for teaching. Describe only what the measurements{look} bear out: "
    "number, size, place, tone and colour against the surroundings, nuclei, lumens, edges. Two to four plain "
    "sentences, no lists, no diagnosis that is not given, no advice. Research use only."
)
_WRITER = f"""You write short reasoning chains for a model that answers questions about histology pictures.

Form, on one line, between <answer> and </answer>:
<answer><think> what is looked for; what is seen, and where; what that fits </think> conclusion</answer>

Rules:
1. Say only what the description and the measurements bear out. Do not change a measured word: number, size, place, \
tone, nuclei, lumens, edges.
2. Places are those of the picture: left, right, upper, lower, top, bottom, center, area. Name the place in the \
thought and in the conclusion, before {SEG}.
3. {SEG} stands only in the conclusion, right after the words for what is found, once for each target, and never when \
the target is absent.
4. Speak of what is seen, as if nobody had marked anything: never of a mask, outline, contour, annotation, label or \
drawing, and never of measurements or numbers.
5. Name no other diagnosis, unless to deny it.
6. Plain English, 25 to 80 words, at most {MAX_WORDS}. No markup, no lists."""


def describe_messages(query: str, facts: str, image: np.ndarray | None = None, masks: Sequence = ()) -> Messages:
    """Step 1: describe the morphology.

    Args:
        query: the question.
        facts: `describe`'s list.
        image: (H, W, 3) uint8 RGB for a model that sees; None for one that reads.
        masks: (H, W) bool of the targets, to show where to look.
    """
    text = f"Question about the picture: {query}\n\nMeasurements:\n{facts}\n\nDescribe what is seen."
    content: Any = text
    if image is not None:
        content = [{"type": "text", "text": text}, picture_part(image)]
        if len(masks):
            text += " The second picture has a yellow line around the target, to show you where; do not speak of it."
            content = [{"type": "text", "text": text}, picture_part(image), picture_part(outlined(image, masks))]
    look = " and the picture" if image is not None else ""
    return [{"role": "system", "content": _DESCRIBER.format(look=look)}, {"role": "user", "content": content}]


def chain_messages(query: str, facts: str, description: str, truth: Truth) -> Messages:
    """Step 2: from the description to a chain.

    Args:
        query: the question.
        facts: `describe`'s list.
        description: what step 1 answered.
        truth: what is known; decides the conclusion that is due.
    """
    told = f"Question: {query}\n\nDescription:\n{description}\n\nMeasurements:\n{facts}\n\n{_due(truth)}"
    return [{"role": "system", "content": _WRITER}, {"role": "user", "content": told}]


def told_back(messages: Messages, answer: str, problems: Sequence[Problem]) -> Messages:
    """The conversation continued with what was wrong, for another attempt."""
    found = "\n".join(f"- {problem.message}" for problem in problems)
    again = f"Automatic checks found:\n{found}\nWrite the whole answer again; correct this and change nothing else."
    return [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": again}]


def _due(truth: Truth) -> str:
    """The conclusion that the truth asks for."""
    if truth.targets:
        parts = [f"'{name_of(key)} {SEG}' ({truth.seen[key].where})" for key in truth.targets]
        return f"The target is present. The conclusion names its place and ends with {' and '.join(parts)}."
    if truth.concept is None:
        return (
            "This was never taught. The thought says that something outside of what was taught is looked for; the "
            f"conclusion says 'I was not taught to recognise this, so I cannot answer.', without {SEG}."
        )
    known = f" (also called {', '.join(names_of(truth.concept)[1:3])})" if truth.concept in CONCEPTS else ""
    return (
        f"The target, {name_of(truth.concept)}{known}, is not in the picture. Say what is seen instead, as far as it "
        f"is described; the conclusion says plainly that no {name_of(truth.concept)} is found, without {SEG}."
    )


def answer_in(text: str) -> str:
    """The chain in a model's reply: between the last `<answer>` tags, or from the last `<think>` on, on one line.

    Models that think aloud open `<think>` blocks of their own before the answer; what lies before is theirs.
    """
    between = re.findall(r"<answer>(.*?)(?:</answer>|\Z)", text, re.S | re.I)
    chain = between[-1] if between else text[max(text.rfind("<think>"), 0) :]
    chain = " ".join(re.sub(r"```\w*", " ", chain).split())
    chain = re.sub(r"\s*<think>\s*", "<think> ", chain)
    chain = re.sub(r"\s*</think>\s*", " </think> ", chain)
    return chain.strip()


def outlined(image: np.ndarray, masks: Sequence) -> np.ndarray:
    """A copy of (H, W, 3) uint8 with a yellow line around each (H, W) bool mask."""
    drawn = np.ascontiguousarray(image.copy())
    for mask in masks:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, (255, 230, 0), max(1, round(min(mask.shape) / 160)))
    return drawn
