"""How others decode `<SEG>`: three competent loops over the same weights, prompts, number formats and mask arithmetic.

    lisa      one tile at a time, no cache: `model/oracle.py`, as LISA's `evaluate` does it (Lai et al. 2024)
    cached    one tile at a time, with a `DynamicCache`, one mask at a time, as GLaMM and PixelLM do it
    generate  `transformers`' own `generate()` on a static batch, then MedSAM's encoder in batches, then batched masks

Each encodes with MedSAM only the tiles that said `<SEG>`, which is more than their published code does; `generate_all`
encodes every tile, as published. So the ratios that the benchmark reports err on the side of the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from model.attention import GROUPED
from model.oracle import decode_one
from model.pathchat import PathChatSegR1
from model.predictor import EVIDENCE, EVIDENCE_FOR, PathChatPredictor, phrases_of
from model.prompt import Sequence as Prompt
from model.prompt import build_sequence
from model.segmenter import TileBatch
from model.stages import Stopwatch

ENCODE_TILES = 16
"""Tiles that the image encoders take at once; measured best for `tiny` on a CPU among 1 to 64."""
MASK_CHUNK = 64


@dataclass(frozen=True)
class Work:
    """One question about N tiles.

    Attributes:
        images: (N, H, W, 3) uint8.
        query: the question.
        mpp: µm/px of the tiles.
        script: (N, L) int64 tokens that every contender is made to choose, padded with `<eos>`; None lets it choose.
    """

    images: np.ndarray
    query: str
    mpp: float
    script: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: Sequence[int]) -> "Work":
        """The same about some of the tiles."""
        script = None if self.script is None else self.script[list(rows)]
        return Work(self.images[list(rows)], self.query, self.mpp, script)


@dataclass(frozen=True)
class Reply:
    """What a contender says of a tile: its text with `<SEG>`, and K masks (K, H, W) float16 probabilities."""

    text: str
    masks: np.ndarray


@dataclass(frozen=True)
class _Said:
    """What was decoded for one tile: ids without `<eos>`, and the (K, H) states of its `<SEG>`s."""

    ids: list[int]
    states: Tensor


Contender = Callable[[PathChatPredictor, Work, Stopwatch], list[Reply]]


def ours(predictor: PathChatPredictor, work: Work, watch: Stopwatch) -> list[Reply]:
    """The engine of this repository."""
    n = len(work)
    batch = TileBatch(work.images, np.full(n, work.mpp, np.float32), [work.query] * n, np.zeros(n, bool))
    predictor.stopwatch = predictor.decoder.stopwatch = watch
    predictor.model.language_model.text_model.set_attn_implementation(GROUPED)
    return [Reply(a.text, a.masks) for a in predictor.predict(batch, script=work.script)]


@torch.inference_mode()
def lisa(predictor: PathChatPredictor, work: Work, watch: Stopwatch) -> list[Reply]:
    """One tile, no cache, one mask at a time."""
    return _per_tile(predictor, work, watch, decode_one)


@torch.inference_mode()
def cached(predictor: PathChatPredictor, work: Work, watch: Stopwatch) -> list[Reply]:
    """One tile with a KV cache, one mask at a time."""
    return _per_tile(predictor, work, watch, decode_cached)


def generate(predictor: PathChatPredictor, work: Work, watch: Stopwatch) -> list[Reply]:
    """A static batch by `generate()`, then batched masks; MedSAM sees only tiles with a `<SEG>`."""
    return _static_batch(predictor, work, watch, every_tile=False)


def generate_all(predictor: PathChatPredictor, work: Work, watch: Stopwatch) -> list[Reply]:
    """The same, but MedSAM sees every tile, as published code has it."""
    return _static_batch(predictor, work, watch, every_tile=True)


CONTENDERS: dict[str, Contender] = {
    "ours": ours, "lisa": lisa, "cached": cached, "generate": generate, "generate_all": generate_all,
}  # fmt: skip


def _per_tile(predictor: PathChatPredictor, work: Work, watch: Stopwatch, decode: Callable[..., _Said]) -> list[Reply]:
    model, replies = _plain(predictor), []
    for row in range(len(work)):
        image = _pixels(model, work.images[row : row + 1])
        with watch.stage("see"), predictor._encoding():
            seen = model.see(image)
        script = None if work.script is None else work.script[row]
        with watch.stage("steps"):
            said = decode(model, work.query, work.mpp, seen.tokens.to(model.dtype), script=script)
        features, masks = None, []
        for k, state in enumerate(said.states):
            with watch.stage("survey"), predictor._encoding():
                features = features or [f.to(model.dtype) for f in model.survey(image)]
            with watch.stage("masks"):
                phrase = phrases_of(_text(model, said))[k]
                masks.append(_masks(model, features, [0], state[None], seen.classes, [phrase])[0])
        replies.append(Reply(_text(model, said), _stack(model, masks)))
    return replies


def decode_cached(model: PathChatSegR1, query: str, mpp: float, tokens: Tensor, script: Tensor | None = None) -> _Said:
    """Answer one question about one tile, one token at a time behind a `DynamicCache`."""
    t, config, language = model.tokenizer, model.config, model.language_model
    prompt = _prompt(model, query, mpp)
    cache = DynamicCache()
    ids = torch.from_numpy(prompt.ids)[None].to(model.device)
    positions = torch.from_numpy(prompt.positions)[:, None].to(model.device)
    state = language(model.embed(ids, tokens), positions, None, cache)[0, -1]
    last, place = -1, int(prompt.positions[0, -1])
    said, states = [], []
    while True:
        if last == t.seg and config.seg_state == "self":
            states.append(state)
        token = int(language.logits(state).argmax()) if script is None else int(script[len(said)])
        if token == t.eos or len(said) >= config.max_answer_tokens:
            break
        if token == t.seg and config.seg_state == "predict":
            states.append(state)
        said.append(token)
        last, place = token, place + 1
        position = torch.full((3, 1, 1), place, device=model.device)
        state = language(language.embed(torch.tensor([[token]], device=model.device)), position, None, cache)[0, -1]
    return _Said(said, torch.stack(states) if states else tokens.new_zeros(0, config.language.dim))


@torch.inference_mode()
def _static_batch(predictor: PathChatPredictor, work: Work, watch: Stopwatch, every_tile: bool) -> list[Reply]:
    model = _plain(predictor)
    images = _pixels(model, work.images)
    with watch.stage("see"), predictor._encoding():
        parts = [model.see(part) for part in images.split(ENCODE_TILES)]
        tokens, classes = torch.cat([p.tokens for p in parts]), torch.cat([p.classes for p in parts])
    with watch.stage("generate"):
        prompts = [_prompt(model, work.query, work.mpp)] * len(work)
        said = decode_generate(model, prompts, tokens.to(model.dtype), work.script)
    tiles = [i for i, s in enumerate(said) if every_tile or len(s.states)]
    with watch.stage("survey"), predictor._encoding():
        chunks = [tiles[start : start + ENCODE_TILES] for start in range(0, len(tiles), ENCODE_TILES)]
        surveyed = [model.survey(images[chunk]) for chunk in chunks]
        features = [torch.cat(level).to(model.dtype) for level in zip(*surveyed, strict=True)]
    texts = [_text(model, s) for s in said]
    index = [tiles.index(i) for i, s in enumerate(said) for _ in s.states]
    phrases = [phrase for text, s in zip(texts, said, strict=True) for phrase in phrases_of(text)[: len(s.states)]]
    with watch.stage("masks"):
        states = torch.cat([s.states for s in said])
        masks = _masks(model, features, index, states, classes[tiles], phrases) if index else []
    ends = np.cumsum([len(s.states) for s in said])
    return [
        Reply(text, _stack(model, masks[end - len(s.states) : end]))
        for text, s, end in zip(texts, said, ends, strict=True)
    ]


class Script(LogitsProcessor):
    """Makes `generate()` choose what is written: (N, L) tokens."""

    def __init__(self, tokens: Tensor):
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, so far) ids and (B, V) scores → scores that leave one token."""
        now = self.tokens[:, min(input_ids.shape[1], self.tokens.shape[1] - 1), None].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, now, 0.0)


def decode_generate(
    model: PathChatSegR1, prompts: Sequence[Prompt], tokens: Tensor, script: Tensor | None = None
) -> list[_Said]:
    """Answer N prompts with one call of `generate()`, padded on the left.

    Args:
        model: in evaluation mode.
        prompts: N prompts.
        tokens: (N, n, H) image tokens.
        script: (N, L) forced tokens, or None.

    Returns:
        N answers; the states are taken from the final norm by a hook, so that no layer's states are kept.
    """
    t, config, qwen = model.tokenizer, model.config, model.language_model.qwen
    length = max(len(p.ids) for p in prompts)
    ids = torch.full((len(prompts), length), t.pad)
    positions = torch.zeros(3, len(prompts), length, dtype=torch.long)
    attended = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, p in enumerate(prompts):
        start = length - len(p.ids)
        ids[row, start:], attended[row, start:] = torch.from_numpy(p.ids), 1
        positions[:, row, start:] = torch.from_numpy(p.positions)
    states: list[Tensor] = []
    norm = model.language_model.text_model.norm
    hook = norm.register_forward_hook(lambda _module, _in, out: states.append(out[:, -1].clone()))
    try:
        generated = qwen.generate(
            inputs_embeds=model.embed(ids.to(model.device), tokens),
            position_ids=positions.to(model.device),
            attention_mask=attended.to(model.device),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=config.max_answer_tokens + 1, eos_token_id=t.eos, pad_token_id=t.pad
            ),
            logits_processor=LogitsProcessorList([] if script is None else [Script(script)]),
        )
    finally:
        hook.remove()
    return [_said(model, row, generated_row, states) for row, generated_row in enumerate(generated.tolist())]


def _said(model: PathChatSegR1, row: int, generated: list[int], states: list[Tensor]) -> _Said:
    """One row of a generated batch, up to `<eos>`; step j's state is the one that chose token j."""
    t, config = model.tokenizer, model.config
    ids = (generated[: generated.index(t.eos)] if t.eos in generated else generated)[: config.max_answer_tokens]
    later = int(config.seg_state == "self")
    kept = [states[j + later][row] for j, token in enumerate(ids) if token == t.seg]
    return _Said(ids, torch.stack(kept) if kept else states[0].new_zeros(0, config.language.dim))


def _plain(predictor: PathChatPredictor) -> PathChatSegR1:
    """The model with the attention that `transformers` takes by itself; the engine sets its own."""
    predictor.model.language_model.text_model.set_attn_implementation("sdpa")
    return predictor.model


def _prompt(model: PathChatSegR1, query: str, mpp: float) -> Prompt:
    return build_sequence(model.tokenizer, query, mpp, model.config.image_grid, style=model.config.prompt)


def _pixels(model: PathChatSegR1, images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).to(model.device)


def _text(model: PathChatSegR1, said: _Said) -> str:
    return model.tokenizer.decode([model.tokenizer.think, *said.ids])


def _masks(
    model: PathChatSegR1,
    features: list[Tensor],
    index: list[int],
    states: Tensor,
    classes: Tensor,
    phrases: Sequence[str],
) -> np.ndarray:
    """(M, H, W) float16 probabilities of M masks, all of them in chunks."""
    out = []
    for start in range(0, len(index), MASK_CHUNK):
        part = slice(start, start + MASK_CHUNK)
        where = torch.tensor(index[part], device=model.device)
        logits, _ = model.decode_masks(features, where, states[part])
        out.append(_probabilities(model, logits, classes[where].float(), phrases[part]))
    return np.concatenate(out)


def _probabilities(model: PathChatSegR1, logits: Tensor, classes: Tensor, phrases: Sequence[str]) -> np.ndarray:
    """Mask logits (M, h, w) joined by class logits (M, N, C), at the tile's size: the predictor's own arithmetic."""
    config, logits = model.config, logits[:, None].float()
    if config.dense_classes:
        maps = torch.zeros(len(phrases), 1, config.patch_grid, config.patch_grid, device=logits.device)
        for row, phrase in enumerate(phrases):
            if (key := EVIDENCE_FOR.get(phrase)) in config.dense_classes:
                maps[row] = classes[row, :, config.dense_classes.index(key)].view_as(maps[row])
        maps = F.interpolate(maps.clamp(-6, 6), logits.shape[-2:], mode="bilinear", align_corners=False)
        logits = logits + EVIDENCE * maps
    logits = F.interpolate(logits, (config.tile_px, config.tile_px), mode="bilinear", align_corners=False)
    return logits[:, 0].sigmoid().to(torch.float16).cpu().numpy()


def _stack(model: PathChatSegR1, masks: Sequence[np.ndarray]) -> np.ndarray:
    size = model.config.tile_px
    return np.stack(masks) if len(masks) else np.zeros((0, size, size), np.float16)
