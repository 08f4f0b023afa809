"""Batched `<SEG>` decoding: many ragged answers in a few slots, finished rows leave and waiting tiles enter.

Where all tiles are asked the same, the text before the image is prefilled once and its keys and values are shared by
every row; the rest is prefilled a group of rows at a time; then all slots step together, each row at its own length.
Only the final-norm states at `<SEG>` are kept. `model/oracle.py` is the plain reference that this must equal.

Source: Liu et al. 2026, PathChat-SegR1, §3.1; continuous batching as in Yu et al. 2022, Orca, §3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.pathchat import PathChatSegR1
from model.prompt import Sequence as Prompt
from model.prompt import build_sequence


@dataclass
class Answer:
    """What was decoded for one tile.

    Attributes:
        ids: generated token ids, without `<eos>`.
        states: (K, H) states of its `<SEG>`s, in order.
        log_probs: (K,) log-probability of each `<SEG>` when it was chosen.
        p_seg: the emission head's probability that the answer carries a `<SEG>`.
    """

    ids: list[int]
    states: Tensor
    log_probs: list[float]
    p_seg: float


class SlotCache:
    """Keys and values of S rows with a write position each; quacks like a `transformers` cache.

    Attributes:
        rows: the slots that the next call writes to, (R,) int64.
        places: (R, L) where its L tokens go.
        span: keys up to here are read.
    """

    def __init__(self, layers: int, slots: int, heads: int, length: int, dim: int, like: Tensor):
        shape = (slots, heads, length, dim)
        self.keys = [like.new_zeros(shape) for _ in range(layers)]
        self.values = [like.new_zeros(shape) for _ in range(layers)]
        self.rows = self.places = torch.zeros(0, dtype=torch.long)
        self.span = 0

    def aim(self, rows: Tensor, places: Tensor, span: int) -> None:
        """Say where the next forward pass writes and how far it reads."""
        self.rows, self.places, self.span = rows, places, span

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write (R, heads, L, d) at `places`; return what the rows read, (R, heads, span, d)."""
        keys, values = self.keys[layer], self.values[layer]
        # Advanced indices on both sides of the heads put the written axes first: [R, L, heads, d].
        keys[self.rows[:, None], :, self.places] = key.transpose(1, 2).to(keys.dtype)
        values[self.rows[:, None], :, self.places] = value.transpose(1, 2).to(values.dtype)
        return keys[self.rows, :, : self.span].to(key.dtype), values[self.rows, :, : self.span].to(value.dtype)

    def share(self, rows: Tensor, source: int, length: int) -> None:
        """Copy the first `length` keys and values of slot `source` into `rows`."""
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[rows, :, :length] = keys[source, :, :length]
            values[rows, :, :length] = values[source, :, :length]


@dataclass
class _Slot:
    tile: int
    length: int
    position: int
    last: int
    ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    p_seg: float = 0.0


class SlotDecoder:
    """Greedy decoding of questions about many tiles.

    Args:
        model: in evaluation mode.
        slots: rows that step together.
    """

    def __init__(self, model: PathChatSegR1, slots: int = 16):
        self.model = model
        self.slots = slots

    @torch.no_grad()
    def decode(
        self,
        queries: Sequence[str],
        mpps: Sequence[float | None],
        tokens: Tensor,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Answer]:
        """Answer one question about each of N tiles.

        Args:
            queries: N questions; where they are all the same, the text before the image is prefilled once.
            mpps: N scales in µm/px, None where unknown.
            tokens: (N, n, H) image tokens.
            cancelled: polled at each step.

        Returns:
            N answers, in order.

        Raises:
            InterruptedError: `cancelled` said so.
        """
        prompts = self._prompts(queries, mpps)
        slots = min(self.slots, len(prompts))
        longest = max(len(p.ids) for p in prompts)
        cache = self._cache(slots + 1, longest + self.model.config.max_answer_tokens, tokens)
        prefix = self._prefill_shared(prompts, cache, source=slots)
        answers: list[Answer | None] = [None] * len(prompts)
        active: dict[int, _Slot] = {}
        waiting = list(range(len(prompts)))
        while waiting or active:
            if cancelled and cancelled():
                raise InterruptedError("decoding was cancelled")
            free = [row for row in range(slots) if row not in active]
            # Refill in groups: a prefill for a single row costs nearly as much as one for many.
            if waiting and (len(free) >= max(1, slots // 4) or not active):
                group = list(zip(free, waiting, strict=False))
                waiting = waiting[len(group) :]
                cache.share(torch.tensor([row for row, _ in group]), slots, prefix)
                active |= self._prefill_tiles(group, prompts, prefix, cache, tokens)
            self._step(active, cache, answers)
        return answers

    def _prompts(self, queries: Sequence[str], mpps: Sequence[float | None]) -> list[Prompt]:
        """One prompt per tile; the same question at the same scale is the same object."""
        built: dict[tuple[str, float | None], Prompt] = {}
        for key in zip(queries, mpps, strict=True):
            if key not in built:
                built[key] = build_sequence(self.model.tokenizer, *key, self.model.config.image_grid)
        return [built[key] for key in zip(queries, mpps, strict=True)]

    def _cache(self, slots: int, length: int, like: Tensor) -> SlotCache:
        config = self.model.config.language
        return SlotCache(config.depth, slots, config.kv_heads, length, config.dim // config.heads, like)

    def _prefill_shared(self, prompts: list[Prompt], cache: SlotCache, source: int) -> int:
        """Prefill what all prompts begin with into slot `source`; returns its length, 0 when they differ."""
        prompt = prompts[0]
        if any(other is not prompt for other in prompts):
            return 0
        prefix = int(np.argmax(prompt.ids == self.model.tokenizer.image))
        ids = torch.from_numpy(prompt.ids[:prefix])[None]
        positions = torch.from_numpy(prompt.positions[:, None, :prefix])
        places = torch.arange(prefix)[None]
        cache.aim(torch.tensor([source]), places, prefix)
        mask = places[..., None] >= places[:, None]  # [1, L, L]
        self.model.language_model(self.model.language_model.embed(ids), positions, mask[:, None], cache)
        return prefix

    def _prefill_tiles(
        self, group: list[tuple[int, int]], prompts: list[Prompt], prefix: int, cache: SlotCache, tokens: Tensor
    ) -> dict[int, _Slot]:
        """The rest of the prompts of a group of rows, ragged; returns their slots with the first token chosen.

        Shorter rows are padded on the right; what the padding writes is overwritten before it is ever read.
        """
        model = self.model
        rows, tiles = (torch.tensor(part) for part in zip(*group, strict=True))
        chosen = [prompts[tile] for tile in tiles.tolist()]
        lengths = torch.tensor([len(p.ids) for p in chosen])
        longest = int(lengths.max())
        ids = torch.full((len(chosen), longest - prefix), model.tokenizer.pad)
        positions = torch.zeros(3, len(chosen), longest - prefix, dtype=torch.long)
        for r, p in enumerate(chosen):
            ids[r, : len(p.ids) - prefix] = torch.from_numpy(p.ids[prefix:])
            positions[:, r, : len(p.ids) - prefix] = torch.from_numpy(p.positions[:, prefix:])
        places = torch.arange(prefix, longest)[None].expand(len(chosen), -1)
        cache.aim(rows, places, longest)
        mask = torch.arange(longest)[None, None] <= places[..., None]  # [R, L, longest]
        states = model.language_model(model.embed(ids, tokens[tiles]), positions, mask[:, None], cache)
        states = states[torch.arange(len(chosen)), lengths - 1 - prefix]
        p_seg = model.emission_head(states).float().sigmoid()[:, 0].tolist()
        slots = [
            _Slot(tile, len(p.ids), int(p.positions[0, -1]) + 1, -1, p_seg=chance)
            for tile, p, chance in zip(tiles.tolist(), chosen, p_seg, strict=True)
        ]
        self._choose(slots, states)
        return dict(zip(rows.tolist(), slots, strict=True))

    def _step(self, active: dict[int, _Slot], cache: SlotCache, answers: list[Answer | None]) -> None:
        """Feed every row its last token; rows that are done leave."""
        tokenizer, limit = self.model.tokenizer, self.model.config.max_answer_tokens
        for row in [row for row, s in active.items() if s.last == tokenizer.eos or len(s.ids) >= limit]:
            slot = active.pop(row)
            answers[slot.tile] = self._answer(slot)
        if not active:
            return
        rows, slots = torch.tensor(list(active)), list(active.values())
        lengths = torch.tensor([s.length for s in slots])
        span = int(lengths.max()) + 1
        cache.aim(rows, lengths[:, None], span)
        mask = torch.arange(span)[None] <= lengths[:, None]  # [R, span]
        positions = torch.tensor([s.position for s in slots])[None, :, None].expand(3, -1, -1)
        embeds = self.model.language_model.embed(torch.tensor([[s.last] for s in slots]))
        states = self.model.language_model(embeds, positions, mask[:, None, None], cache)[:, -1]
        for slot, state in zip(slots, states, strict=True):
            slot.length, slot.position = slot.length + 1, slot.position + 1
            if slot.last == tokenizer.seg and self.model.config.seg_state == "self":
                slot.states.append(state)
        self._choose(slots, states)

    def _choose(self, slots: list[_Slot], states: Tensor) -> None:
        """Greedy choice of the next token from (R, H) states."""
        log_probs = self.model.language_model.logits(states).float().log_softmax(-1)
        best, chosen = log_probs.max(-1)
        for slot, state, token, log_prob in zip(slots, states, chosen.tolist(), best.tolist(), strict=True):
            slot.last = token
            if token == self.model.tokenizer.eos:
                continue
            slot.ids.append(token)
            if token == self.model.tokenizer.seg:
                slot.log_probs.append(log_prob)
                if self.model.config.seg_state == "predict":
                    slot.states.append(state)

    def _answer(self, slot: _Slot) -> Answer:
        states = slot.states[: len(slot.log_probs)]
        width = self.model.config.language.dim
        stacked = torch.stack(states) if states else torch.zeros(0, width)
        return Answer(slot.ids, stacked, slot.log_probs[: len(states)], slot.p_seg)
