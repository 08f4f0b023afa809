"""Batched `<SEG>` decoding: many ragged answers in a few slots, finished rows leave and waiting tiles enter.

What several prompts begin with is prefilled once and shared: the question and the exemplar where many tiles are asked
the same (query first), the tile where it is asked several questions (tile first). All rows step together, each at its
own length; a step gives the host one small vector of tokens and nothing else. Only the final-norm states at `<SEG>` are
kept. `model/oracle.py` is the plain reference that this must equal.

Source: Liu et al. 2026, PathChat-SegR1, §3.1; continuous batching as in Yu et al. 2022, Orca, §3.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.attention import GROUPED
from model.cache import Prefix, SlotCache
from model.graphs import Graphs
from model.lanes import Lanes
from model.memory import fit_slots, is_out_of_memory
from model.pathchat import PathChatSegR1
from model.questions import Question, Questions
from model.stages import Stopwatch

log = logging.getLogger(__name__)

PREFILL_TOKENS = 16_384
"""Most tokens of one prefill, padding included; bounds its memory."""
SPAN_STEPS = 64
"""Lanes are made so much longer at a time, so that later calls find them long enough."""


@dataclass(frozen=True)
class Pace:
    """How host and device keep step.

    Attributes:
        rows, span: rows and spans of a step are rounded up to these, so that few graphs serve all steps.
        ahead: steps that the device goes on while the host reads the tokens of earlier ones.
    """

    rows: int = 1
    span: int = 1
    ahead: int = 0


PACES = {"cpu": Pace(), "cuda": Pace(rows=16, span=SPAN_STEPS, ahead=1)}


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


@dataclass
class _Row:
    """A question in a lane, as the host knows it: `length` is how far its cache is written."""

    question: int
    length: int
    ids: list[int] = field(default_factory=list)
    over: bool = False


@dataclass
class _Step:
    """Tokens on their way to the host, and the rows that they belong to."""

    rows: list[_Row]
    tokens: Tensor
    ready: torch.cuda.Event | None


class SlotDecoder:
    """Decodes questions about many tiles.

    Args:
        model: in evaluation mode; its language model attends by `grouped` from now on.
        slots: rows that step together; None fits them to the free memory. Halved when memory runs out after all.
        stopwatch: told of `prefill` and `steps`.
    """

    def __init__(self, model: PathChatSegR1, slots: int | None = None, stopwatch: Stopwatch | None = None):
        self.model = model
        self.slots = slots
        self.stopwatch = stopwatch or Stopwatch()
        model.language_model.text_model.set_attn_implementation(GROUPED)
        self._lanes: Lanes | None = None
        self._most = 0
        self._graphs = Graphs(model.device)

    @torch.inference_mode()
    def decode(
        self,
        queries: Sequence[str],
        mpps: Sequence[float | None],
        tokens: Tensor,
        cancelled: Callable[[], bool] | None = None,
        script: Tensor | None = None,
        *,
        temperature: float = 0.0,
        on_answer: Callable[[int, Answer], None] | None = None,
        **more: object,
    ) -> list[Answer]:
        """Answer one question about each of N tiles.

        Args:
            queries: N questions.
            mpps: N scales in µm/px, None where unknown.
            tokens: (N, n, H) image tokens.
            cancelled: polled at each step.
            script: (N, L) tokens that are chosen instead of the likeliest, each row ended by `<eos>`; the model works
                as always. For benchmarks and teacher forcing.
            temperature: 0 takes the likeliest token; above, tokens are drawn by torch's own generator.
            on_answer: told of each answer as soon as it is complete; its `log_probs` and `p_seg` come at the end.
            more: `pictures`, `tile_first`, `shown`: see `Questions`.

        Returns:
            N answers, in order.

        Raises:
            InterruptedError: `cancelled` said so.
            MemoryError: there is not even room for a single row.
        """
        questions = Questions.build(self.model, queries, mpps, tokens, **more)
        answers: list[Answer | None] = [None] * len(questions)
        while waiting := [i for i, answer in enumerate(answers) if answer is None]:
            lanes = self._make_lanes(len(waiting), questions.longest)
            lanes.temperature = temperature
            run = _Run(self.model, lanes, self._graphs, questions, script, self.stopwatch)
            try:
                run.go(waiting, answers, cancelled or (lambda: False), on_answer or (lambda *_: None))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            else:
                continue
            slots = lanes.slots
            del run, lanes  # outside the handler, whose traceback would hold their tensors
            self._halve(slots)
        return _on_host(answers)

    def _make_lanes(self, waiting: int, longest: int) -> Lanes:
        """Lanes of an earlier call where they are large enough, else new ones."""
        waiting = _round_up(waiting, PACES[self.model.device.type].rows)
        most, lanes = self.slots or self._most, self._lanes
        if lanes is not None and longest <= lanes.length and min(waiting, most) <= lanes.slots <= most:
            lanes.leave()
            return lanes
        self._drop()
        self._most = self.slots or fit_slots(self.model, longest)
        self._lanes = Lanes(self.model, min(waiting, self._most), _round_up(longest, SPAN_STEPS))
        return self._lanes

    def _halve(self, slots: int) -> None:
        if slots <= 1:
            raise MemoryError("decoding a single tile needs more memory than there is")
        self.slots = slots // 2
        self._drop()
        log.warning("out of memory with %d slots; going on with %d", slots, self.slots)

    def _drop(self) -> None:
        """Give the lanes and the graphs that point into them back."""
        self._lanes, self._graphs = None, Graphs(self.model.device)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


class _Run:
    """One decoding from the first prefill to the last answer."""

    def __init__(self, model, lanes: Lanes, graphs: Graphs, questions: Questions, script, stopwatch: Stopwatch):
        self.model, self.lanes, self.graphs, self.questions = model, lanes, graphs, questions
        self.script = None if script is None else script.to(model.device)
        self.stopwatch = stopwatch
        self.pace = PACES[model.device.type]
        self.rows: list[_Row] = []
        self.under_way: deque[_Step] = deque()
        self.prefixes: dict[object, Prefix] = {}

    def go(self, waiting: Sequence[int], answers: list, cancelled: Callable, on_answer: Callable) -> None:
        """Answer the waiting questions into `answers`."""
        queue = deque(sorted(waiting, key=self.questions.order))
        self.users = Counter(self.questions[i].head for i in queue)
        while queue or self.rows or self.under_way:
            if cancelled():
                raise InterruptedError("decoding was cancelled")
            free = self.lanes.slots - len(self.rows)
            # Refill in groups: a prefill for a single row costs nearly as much as one for many.
            if queue and (free >= max(1, self.lanes.slots // 4) or not self.rows):
                with self.stopwatch.stage("prefill"):
                    self._refill([queue.popleft() for _ in range(min(free, len(queue)))])
            with self.stopwatch.stage("steps"):
                if self.rows:
                    self._launch()
                while len(self.under_way) > (self.pace.ahead if self.rows else 0):
                    self._receive(answers, on_answer)

    def _refill(self, taken: list[int]) -> None:
        """Prefill the prompts of questions in groups of bounded size."""
        while taken:
            widest = max(len(self.questions[i].ids) for i in taken)
            size = max(1, PREFILL_TOKENS // widest)
            group, taken = taken[:size], taken[size:]
            self._prefill_heads([self.questions[i] for i in group])
            self._prefill_tails([(i, self.questions[i]) for i in group])

    def _prefill_heads(self, group: list[Question]) -> None:
        """Prefill what more than one waiting question begins with, unless it is at hand."""
        heads = {q.head: q for q in group if self.users[q.head] > 1 and q.head not in self.prefixes}
        if heads:
            asked = list(heads.values())
            longest = max(q.head_length for q in asked)
            dtype, config = self.model.dtype, self.model.config.language
            cache = SlotCache(config, len(asked), longest, self.model.device, dtype)
            begins = [0] * len(asked)
            self._forward(cache, 0, begins, asked, [q.head_length for q in asked])
            for row, question in enumerate(asked):
                self.prefixes[question.head] = cache.prefix(row, question.head_length)

    def _prefill_tails(self, group: list[tuple[int, Question]]) -> None:
        """Prefill the rest of the prompts of new rows, and choose their first tokens."""
        start, asked = len(self.rows), [q for _, q in group]
        begins = []
        for row, question in enumerate(asked, start):
            shared = self.prefixes.get(question.head)
            begins.append(0 if shared is None else question.head_length)
            if shared is not None:
                self.lanes.cache.begin(row, shared)
        self._let_go(asked)
        ends = [len(q.ids) for q in asked]
        states = self._forward(self.lanes.cache, start, begins, asked, ends)
        device = self.model.device
        rows = self.lanes.take(
            start,
            torch.tensor([i for i, _ in group], device=device),
            torch.tensor(ends, device=device),
            torch.tensor([q.next_position for q in asked], device=device),
            states,
        )
        chosen = self.lanes.choose(rows, states, self.script)
        fresh = [_Row(i, length) for (i, _), length in zip(group, ends, strict=True)]
        self.rows += fresh
        self._send(fresh, chosen)

    def _let_go(self, asked: list[Question]) -> None:
        """Forget the beginnings that no waiting question needs any more."""
        for question in asked:
            self.users[question.head] -= 1
            if self.users[question.head] == 0:
                self.prefixes.pop(question.head, None)

    def _forward(
        self, cache: SlotCache, start: int, begins: list[int], asked: list[Question], ends: list[int]
    ) -> Tensor:
        """Run `ids[begin:end]` of each question through the language model; returns (R, H) states at their ends.

        Shorter rows are padded on the right; what the padding writes is overwritten before it is ever read.
        """
        embeds, positions = self.questions.embed(self.model, asked, begins, ends)
        first = torch.tensor(begins, device=embeds.device)[:, None]
        places = first + torch.arange(embeds.shape[1], device=embeds.device)  # [R, L]
        places = places.clamp(max=cache.keys[0].shape[2] - 1)
        span = max(ends)
        cache.aim(start, start + len(asked), places, span)
        mask = torch.arange(span, device=embeds.device) <= places[..., None]  # [R, L, span]
        states = self.model.language_model(embeds, positions, mask[:, None], cache)
        last = torch.tensor([e - b - 1 for b, e in zip(begins, ends, strict=True)], device=embeds.device)
        return states[torch.arange(len(asked), device=embeds.device), last]

    def _launch(self) -> None:
        """Step all rows, and send their tokens to the host."""
        rows = min(self.lanes.slots, _round_up(len(self.rows), self.pace.rows))
        span = min(self.lanes.cache.length, _round_up(max(row.length for row in self.rows) + 1, self.pace.span))
        key = (rows, span, None if self.script is None else (self.script.data_ptr(), self.script.shape))
        chosen = self.graphs.run(key, lambda: self.lanes.step(rows, span, self.script))
        for row in self.rows:
            row.length += 1
        self._send(list(self.rows), chosen[: len(self.rows)])

    def _send(self, rows: list[_Row], tokens: Tensor) -> None:
        """The one small copy of a step."""
        ready = None
        if tokens.is_cuda:
            host = torch.empty(len(tokens), dtype=tokens.dtype, pin_memory=True)
            tokens = host.copy_(tokens, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self.under_way.append(_Step(rows, tokens, ready))

    def _receive(self, answers: list, on_answer: Callable) -> None:
        """Read the tokens of the oldest step; rows that are over leave."""
        step = self.under_way.popleft()
        if step.ready is not None:
            step.ready.synchronize()
        limit, eos = self.model.config.max_answer_tokens, self.model.tokenizer.eos
        for row, token in zip(step.rows, step.tokens.tolist(), strict=True):
            if row.over:
                continue
            # At the limit the last token is still fed, since a `<SEG>` there wants its state; what follows is dropped.
            row.over = token == eos or len(row.ids) == limit
            if not row.over:
                row.ids.append(token)
        for place in reversed([p for p, row in enumerate(self.rows) if row.over]):
            row = self.rows[place]
            answers[row.question] = answer = self._answer(place, row)
            self._vacate(place)
            on_answer(row.question, answer)

    def _answer(self, place: int, row: _Row) -> Answer:
        """What lane `place` holds; its numbers stay on the device until all are done."""
        pointed = row.ids.count(self.model.tokenizer.seg)
        lanes = self.lanes
        return Answer(
            row.ids, lanes.states[place, :pointed].clone(), lanes.log_probs[place, :pointed].clone(),
            lanes.p_seg[place].clone(),
        )  # fmt: skip

    def _vacate(self, place: int) -> None:
        """The last row takes the place of one that left, so that the rows stay the first ones."""
        last = self.rows.pop()
        self.lanes.move(len(self.rows), place, last.length)
        if place < len(self.rows):
            self.rows[place] = last


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _on_host(answers: list[Answer]) -> list[Answer]:
    """Fetch all probabilities in one copy."""
    if not answers:
        return answers
    p_seg = torch.stack([a.p_seg for a in answers]).tolist()
    log_probs = iter(torch.cat([a.log_probs for a in answers]).tolist())
    for answer, chance in zip(answers, p_seg, strict=True):
        answer.p_seg = chance
        answer.log_probs = [next(log_probs) for _ in range(len(answer.log_probs))]
    return answers
