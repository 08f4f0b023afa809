"""The plain reference of decoding: one tile, no cache, one token and one mask at a time, as LISA does it.

Slow on purpose. `model/decode.py` and the batched mask decoder must give the same; tests hold them to it.
"""

import numpy as np
import torch
from torch import Tensor

from model.decode import Answer
from model.pathchat import PathChatSegR1
from model.prompt import build_sequence, positions_of


@torch.inference_mode()
def decode_one(
    model: PathChatSegR1,
    query: str,
    mpp: float | None,
    tokens: Tensor,
    script: Tensor | None = None,
    *,
    reference: Tensor | None = None,
    memory: Tensor | None = None,
    tile_first: bool = False,
) -> Answer:
    """Answer one question about one tile, recomputing everything at every token.

    Args:
        model: in evaluation mode.
        query: the question; mpp: µm/px of the tile, None when unknown.
        tokens: (1, n, H) image tokens.
        script: (L,) tokens that are chosen instead of the likeliest, ended by `<eos>`.
        reference, memory: (1, n, H) and (1, H) of an exemplar, or None.
        tile_first: the tile comes before the question.

    Returns:
        The answer.
    """
    t, grid = model.tokenizer, model.config.image_grid
    how = {"exemplar": reference is not None, "tile_first": tile_first, "style": model.config.prompt}
    ids = build_sequence(t, query, mpp, grid, **how).ids
    prompt = len(ids)
    states_at_seg, log_probs, p_seg = [], [], None
    while True:
        row = torch.from_numpy(ids)[None].to(tokens.device)
        positions = torch.from_numpy(positions_of(ids, frozenset({t.image, t.ref}), grid))[:, None].to(tokens.device)
        states = model.language_model(model.embed(row, tokens, reference, memory), positions)[0]
        if p_seg is None:
            p_seg = float(model.emission_head(states[-1]).sigmoid())
        if ids[-1] == t.seg and model.config.seg_state == "self":
            states_at_seg.append(states[-1])
        logits = model.language_model.logits(states[-1]).float()
        logits[t.unsaid] = -torch.inf
        chances = logits.log_softmax(-1)
        said = len(ids) - prompt
        token = int(chances.argmax()) if script is None else int(script[min(said, len(script) - 1)])
        if said >= model.config.max_answer_tokens or token == t.eos:
            break
        if token == t.seg:
            log_probs.append(float(chances[token]))
            if model.config.seg_state == "predict":
                states_at_seg.append(states[-1])
        ids = np.append(ids, token)
    stacked = torch.stack(states_at_seg) if states_at_seg else tokens.new_zeros(0, model.config.language.dim)
    return Answer(ids[prompt:].tolist(), stacked, log_probs, p_seg)


@torch.inference_mode()
def masks_one_by_one(model: PathChatSegR1, image: Tensor, states: Tensor) -> list[Tensor]:
    """Decode each mask by itself: (1, H, W, 3) uint8 and (K, H) → K logits (mask_px, mask_px)."""
    one = torch.zeros(1, dtype=torch.long)
    return [model.decode_masks(model.survey(image), one, state[None])[0][0] for state in states]
