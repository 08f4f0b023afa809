"""The rows that step together, as the device knows them: a step reads and writes nothing but what lies here.

Every buffer keeps its address for as long as the lanes live, so that a step can be captured as a CUDA graph; nothing in
a step waits for the device.
"""

import torch
from torch import Tensor

from model.cache import SlotCache
from model.pathchat import PathChatSegR1


class Lanes:
    """S rows of a step: their cache, their last token, and what their `<SEG>`s left behind.

    A lane that is `done` steps on without effect until it is taken again: it stays at its place and keeps nothing.

    Args:
        model: in evaluation mode.
        slots: rows.
        length: most tokens of a row, prompt and answer together.
    """

    def __init__(self, model: PathChatSegR1, slots: int, length: int):
        config, self.model = model.config, model
        device, dtype = model.device, model.dtype
        # A row that has reached its limit is stepped once to feed its last token, and on a GPU once more before the
        # host has seen that it is over.
        room = config.max_answer_tokens + 3
        self.slots, self.length = slots, length
        self.cache = SlotCache(config.language, slots, length + room, device, dtype)
        self.last, self.places, self.positions, self.question, self.said, self.pointed = (
            torch.zeros(slots, dtype=torch.long, device=device) for _ in range(6)
        )
        self.done = torch.ones(slots, dtype=torch.bool, device=device)
        self.states = torch.zeros(slots, room, config.language.dim, device=device, dtype=dtype)
        self.log_probs = torch.zeros(slots, room, device=device)
        self.p_seg = torch.zeros(slots, device=device)
        self.temperature = 0.0
        self._unsaid = torch.tensor(model.tokenizer.unsaid, device=device)
        self._index = torch.arange(slots, device=device)
        self._places = torch.arange(length + room, device=device)

    def leave(self) -> None:
        """Let no row be anybody's; a row that is stepped nevertheless may look up question 0, which is always there."""
        self.done.fill_(True)
        self.question.zero_()

    def take(self, start: int, questions: Tensor, places: Tensor, positions: Tensor, states: Tensor) -> slice:
        """Let rows from `start` on be new questions.

        Args:
            start: the first row.
            questions: (R,) which.
            places, positions: (R,) where their next token goes in the cache, and which position it has.
            states: (R, H) final states of their prompts.

        Returns:
            The rows.
        """
        rows = slice(start, start + len(questions))
        self.question[rows], self.places[rows], self.positions[rows] = questions, places, positions
        self.said[rows] = self.pointed[rows] = 0
        self.done[rows] = False
        self.p_seg[rows] = self.model.emission_head(states)[:, 0].float().sigmoid()
        return rows

    def step(self, rows: int, span: int, script: Tensor | None) -> Tensor:
        """Feed the first `rows` rows their last token, and choose the next.

        Args:
            rows: how many.
            span: places that hold anything, the one that is written included.
            script: (N, L) tokens that are chosen instead of the likeliest, or None.

        Returns:
            (rows,) the chosen tokens.
        """
        model, now = self.model, slice(0, rows)
        places, positions = self.places[now], self.positions[now]
        self.cache.aim(0, rows, places[:, None], span)
        mask = (self._places[:span] <= places[:, None])[:, None, None]  # [R, 1, 1, span]
        embeds = model.language_model.embed(self.last[now, None])
        states = model.language_model(embeds, positions[None, :, None].expand(3, -1, -1), mask, self.cache)[:, -1]
        alive = ~self.done[now]
        if model.config.seg_state == "self":
            fed = alive & (self.last[now] == model.tokenizer.seg)
            self._keep(self.states, now, self.pointed[now] - 1, fed, states)
        self.places[now] = places + alive
        self.positions[now] = positions + alive
        return self.choose(now, states, script)

    def choose(self, rows: slice, states: Tensor, script: Tensor | None) -> Tensor:
        """Choose the next token of some rows from their (R, H) states: the likeliest, or at a temperature above 0 one
        drawn by its probability (the largest after adding Gumbel noise); returns (R,) tokens.
        """
        model = self.model
        logits = model.language_model.logits(states).float().index_fill(1, self._unsaid, float("-inf"))
        chosen = logits.argmax(-1)
        if self.temperature > 0:
            noise = -torch.empty_like(logits).exponential_().log()
            chosen = (logits / self.temperature + noise).argmax(-1)
        if script is not None:
            chosen = script[self.question[rows], self.said[rows].clamp(max=script.shape[1] - 1)]
        points = ~self.done[rows] & (chosen == model.tokenizer.seg)
        log_prob = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
        self._keep(self.log_probs, rows, self.pointed[rows], points, log_prob)
        if model.config.seg_state == "predict":
            self._keep(self.states, rows, self.pointed[rows], points, states)
        self.pointed[rows] += points
        self.done[rows] |= chosen == model.tokenizer.eos
        self.said[rows] += 1
        self.last[rows] = chosen
        return chosen

    def _keep(self, buffer: Tensor, rows: slice, order: Tensor, which: Tensor, values: Tensor) -> None:
        """Write the values of the rows that are meant into their `order`-th place; the others keep theirs."""
        index, order = self._index[rows], order.clamp(0, buffer.shape[1] - 1)
        which = which.view(-1, *[1] * (values.ndim - 1))
        buffer[index, order] = torch.where(which, values.to(buffer.dtype), buffer[index, order])

    def move(self, source: int, target: int, length: int) -> None:
        """Let one row go on in another's place."""
        if source != target:
            self.cache.move(source, target, length)
            for part in (
                self.last, self.places, self.positions, self.question, self.said, self.pointed, self.done, self.states,
                self.log_probs, self.p_seg,
            ):  # fmt: skip
                part[target] = part[source]
        self.done[source] = True
