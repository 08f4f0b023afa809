"""A mask on demand: the model's own chain, ended as if the target were there.

A tile that stayed silent beside a neighbour whose mask crosses into it is asked again. What it looked for and what it
saw stays as it said it; only the last thought and the conclusion are replaced, and the state at the `<SEG>` that then
follows prompts the mask.
"""

import re

import torch
from torch import Tensor

from model.pathchat import PathChatSegR1
from model.prompt import build_sequence
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


@torch.no_grad()
def forced_states(
    model: PathChatSegR1, queries: list[str], mpps: list[float | None], tokens: Tensor, answers: list[str]
) -> Tensor:
    """The states at the forced `<SEG>`s, by one teacher-forced pass.

    Args:
        model: in evaluation mode.
        queries: N questions; mpps: N scales in µm/px, None where unknown.
        tokens: (N, n, H) image tokens.
        answers: N texts from `as_if_present`.

    Returns:
        (N, H).
    """
    tokenizer, grid = model.tokenizer, model.config.image_grid
    asked = zip(queries, mpps, answers, strict=True)
    sequences = [build_sequence(tokenizer, query, mpp, grid, answer=answer) for query, mpp, answer in asked]
    length = max(len(s.ids) for s in sequences)
    ids = torch.full((len(sequences), length), tokenizer.pad)
    positions = torch.zeros(3, len(sequences), length, dtype=torch.long)
    for row, s in enumerate(sequences):
        ids[row, : len(s.ids)] = torch.from_numpy(s.ids)
        positions[:, row, : len(s.ids)] = torch.from_numpy(s.positions)
    states = model.language_model(model.embed(ids, tokens), positions)
    return model.seg_states(states, ids)[0]
