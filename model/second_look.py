"""A mask on demand: the model's own chain, ended as if the target were there.

A tile that stayed silent beside a neighbour whose mask crosses into it is asked again. What it looked for and what it
saw stays as it said it; only the last thought and the conclusion are replaced, and the state at the `<SEG>` that then
follows prompts the mask.
"""

import re

import numpy as np
import torch
from torch import Tensor

from model.pathchat import PathChatSegR1
from model.questions import Questions
from model.tokenizer import SEG

_SOUGHT = re.compile(r"Looking for ([^.:<]+)[.:]")
_VERDICT = re.compile(r"This (?:fits|looks like)\b")
NOT_TAUGHT = "I was not taught"


def as_if_present(text: str) -> tuple[str, str] | None:
    """Rewrite a silent answer to end in `<SEG>`.

    Args:
        text: `<think> Looking for X. … This looks like Y. </think> No X is found here.`

    Returns:
        The answer up to and with `<SEG>`, and the phrase before it; None when the answer looked for nothing it was
        taught, so that there is nothing to point at.
    """
    sought = _SOUGHT.search(text)
    if sought is None or sought.group(1).startswith("something"):
        return None
    phrase = sought.group(1).strip()
    thought = text.split("</think>")[0]
    verdict = _VERDICT.search(thought)
    if verdict:
        thought = thought[: verdict.start()]
    return f"{thought.rstrip()} This fits {phrase}. </think> Found in the area: {phrase} {SEG}", phrase


@torch.inference_mode()
def forced_states(model: PathChatSegR1, questions: Questions) -> Tensor:
    """The states at the forced `<SEG>`s, by one teacher-forced pass.

    Args:
        model: in evaluation mode.
        questions: N, each with an answer from `as_if_present`.

    Returns:
        (N, H).
    """
    asked = list(questions)
    embeds, positions = questions.embed(model, asked, [0] * len(asked), [len(q.ids) for q in asked])
    states = model.language_model(embeds, positions)
    places = [int(np.flatnonzero(q.ids == model.tokenizer.seg)[-1]) for q in asked]
    if model.config.seg_state == "predict":
        places = [place - 1 for place in places]
    return states[torch.arange(len(asked)), places]
