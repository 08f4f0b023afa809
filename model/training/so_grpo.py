"""Stage `so-grpo`: the model answers, and what its answers were worth teaches it when to say `<SEG>`.

Trains: LoRA over the language model as `sft` left it, the Seg-Adapter, the mask decoder and a value head that is never
shipped. Data: questions about every shippable scene, 45 % of them about what is absent. Loss: the negative of Eq. 4,

    L = −E_t[min(ρ_t Â_t, clip(ρ_t) Â_t)] − λ_soft R_soft(∇) + λ_KL k3 + 0.5 (V − G)²,

where Â is GAE over the rewards of `model.training.rewards` and R_soft(∇) is the differentiable Dice of each matched
mask on a teacher-forced pass over the drawn answers. The paper adds its rewards to a sum over log-probabilities; a
reward that is a mere number has no gradient there, so they enter by Â alone. Dropout is off; the reference policy is
the model with its adapters switched off; drawn answers serve `epochs` steps. `advantage="group"` is standard GRPO's.

Source: Liu et al. 2026, PathChat-SegR1, §3.4, Eq. 3 and 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.pathchat import PathChatSegR1
from model.training.advantages import gae, group_advantages, k3, policy_loss, value_loss, whiten
from model.training.prompts import PromptBatch, PromptMaker
from model.training.rewards import Outcome, RewardWeights, reward_answer
from model.training.rollouts import Rollouts, roll_out
from model.training.trainable import without_lora

ADVANTAGES = ("gae", "group")
TRAINED = ("language_model.", "seg_adapter.", "mask_decoder.", "emission_head.")


@dataclass(frozen=True)
class RlSettings:
    """How the policy is improved.

    Attributes:
        rollouts: answers a question; temperature: they are drawn at; epochs: steps that they serve.
        advantage: `gae`, or `group` for standard GRPO's; gamma, lam: of GAE. With λ 0.95 and a linear value head an
            end that earns less than the head expects looks worse than going on: measured, answers then do not end.
        clip: of the ratio and the value; kl, value: weights of their terms.
        differentiable: λ of the differentiable R_soft; 0 leaves it out.
        emission: weight of the emission head's cross-entropy, which keeps up with the states it reads; not the paper's.
        value_warmup: steps that train the value head alone.
        place_share: see `PromptMaker`.
        rewards: λ's of the rewards.

    Raises:
        ValueError: a word or number that is not accepted.
    """

    rollouts: int = 8
    temperature: float = 1.0
    epochs: int = 2
    advantage: str = "gae"
    gamma: float = 1.0
    lam: float = 0.99
    clip: float = 0.2
    kl: float = 0.01
    value: float = 1.0
    differentiable: float = 0.3
    emission: float = 0.0
    value_warmup: int = 0
    place_share: float = 0.2
    rewards: RewardWeights = field(default_factory=RewardWeights)

    def __post_init__(self):
        if self.advantage not in ADVANTAGES:
            raise ValueError(f"rl.advantage={self.advantage!r}: accepted are {list(ADVANTAGES)}")
        for name in ("rollouts", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"rl.{name}={getattr(self, name)}: at least 1 is accepted")
        if self.advantage == "group" and self.rollouts < 2:
            raise ValueError("rl.rollouts=1: a group needs at least 2")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "RlSettings":
        """From a config's `rl`.

        Raises:
            ValueError: a field that is not accepted.
        """
        data = dict(data)
        try:
            return cls(**data | {"rewards": RewardWeights(**data.pop("rewards", {}))})
        except TypeError as error:
            raise ValueError(f"rl: {error}") from None


@dataclass
class Judged:
    """Drawn answers, and what they were worth when they were drawn.

    Attributes:
        drawn: the answers; outcomes: their rewards.
        old, reference: (R, T) log-probabilities; values: (R, T); advantages, returns: (R, T).
    """

    drawn: Rollouts
    outcomes: list[Outcome]
    old: Tensor
    reference: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass
class SoGrpo:
    """See the module's docstring.

    Attributes:
        maker: draws the questions.
        width: of the language model, for the value head.
        per_step: micro-batches of a step over all devices.
    """

    maker: PromptMaker
    width: int
    seed: int
    settings: RlSettings = field(default_factory=RlSettings)
    per_step: int = 1
    name: str = "so-grpo"

    def __post_init__(self):
        self._judged: dict[int, Judged] = {}
        self._value = nn.ModuleDict({"value": nn.Linear(self.width, 1)})
        nn.init.zeros_(self._value["value"].weight)
        nn.init.zeros_(self._value["value"].bias)

    def modules(self) -> nn.Module:
        """The value head."""
        return self._value

    def parameters(self, model: PathChatSegR1) -> list[nn.Parameter]:
        """Language model, Seg-Adapter, mask decoder and emission head, as far as they are not frozen."""
        return [weight for name, weight in model.named_parameters() if name.startswith(TRAINED)]

    def batch(self, index: int) -> PromptBatch:
        """Micro-batch `index`; all steps of the same answers ask the same."""
        step, slot = divmod(index, self.per_step)
        number = step // self.settings.epochs * self.per_step + slot
        return self.maker.make(np.random.default_rng([self.seed, 5, number]), slot)

    def settled(self, step: int) -> bool:
        """Whether `step` draws anew, and so depends on nothing but the weights."""
        return step % self.settings.epochs == 0

    def loss(self, model: PathChatSegR1, batch: PromptBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """The negative of Eq. 4 on one micro-batch."""
        model.eval()  # dropout off: the policy that is improved is the one that answered
        judged = self._judged.get(batch.slot)
        fresh = self.settled(step) or judged is None
        drawn = roll_out(model, batch, self.settings.rollouts, self.settings.temperature) if fresh else judged.drawn
        states = _states(model, drawn)
        log_probs, before = _log_probs(model, drawn, states)
        values = self._value["value"](before.detach().float())[..., 0]
        logits, quality = _masks(model, drawn, states, batch)
        if fresh:
            judged = self._judge(model, batch, drawn, (log_probs, values), (logits, quality))
            self._judged[batch.slot] = judged
        parts = self._terms(judged, log_probs, values)
        if self.settings.differentiable:
            parts["soft"] = -self.settings.differentiable * _matched_dice(judged, quality)
        if self.settings.emission:
            parts["emission"] = self.settings.emission * _emission_loss(model, drawn, states, batch)
        if step < self.settings.value_warmup:
            parts = {"value": parts["value"]}
        figures = {f"loss_{name}": float(part.detach()) for name, part in parts.items()}
        return sum(parts.values()), figures | _figures(judged, batch, log_probs)

    def _judge(self, model, batch: PromptBatch, drawn: Rollouts, told: tuple, masks: tuple) -> Judged:
        """Reward the answers and find how much better than expected each token was."""
        log_probs, values = (part.detach() for part in told)
        outcomes = judge_answers(model, batch, drawn, *masks, self.settings.rewards)
        said, rewards = drawn.said, values.new_zeros(values.shape)
        for row, outcome in enumerate(outcomes):
            rewards[row, : len(outcome.rewards)] = torch.from_numpy(outcome.rewards)
        advantages, returns = gae(rewards, values, said, self.settings.gamma, self.settings.lam)
        if self.settings.advantage == "group":
            advantages = group_advantages(rewards, said, self.settings.rollouts)
        else:
            advantages = whiten(advantages, said)
        reference = log_probs
        if self.settings.kl:
            with torch.no_grad(), without_lora(model):
                reference = _log_probs(model, drawn, _states(model, drawn))[0]
        return Judged(drawn, outcomes, log_probs, reference, values, advantages, returns)

    def _terms(self, judged: Judged, log_probs: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Policy, KL and value."""
        said, s = judged.drawn.said, self.settings
        return {
            "policy": policy_loss(log_probs, judged.old, judged.advantages, said, s.clip),
            "kl": s.kl * k3(log_probs, judged.reference, said),
            "value": s.value * value_loss(values, judged.values, judged.returns, said, s.clip),
        }


def judge_answers(
    model: PathChatSegR1, batch: PromptBatch, drawn: Rollouts, logits: Tensor, quality: list[Tensor],
    weights: RewardWeights,
) -> list[Outcome]:
    """The rewards of every answer.

    Args:
        model: gives the tokenizer.
        batch: the questions; drawn: R answers.
        logits: (M, P, P) masks of all `<SEG>`s, in order of answer and place.
        quality: for each answer (K, n) soft Dice of its masks against its question's targets.
        weights: λ's.
    """
    tokenizer, outcomes, begin = model.tokenizer, [], 0
    chances = logits.detach().float().sigmoid()
    targets = batch.masks.split(batch.counts)
    for row, segs in enumerate(drawn.seg_places(tokenizer.seg)):
        question = int(drawn.image_of[row])
        masks = chances[begin : begin + len(segs)]
        begin += len(segs)
        start, length = int(drawn.starts[row]), int(drawn.lengths[row])
        said = drawn.ids[row, start : start + length].tolist()
        dice = quality[row].detach()
        if weights.hard and len(segs):
            dice = _pairwise(masks > 0.5, targets[question] > 0.5)
        outcomes.append(
            reward_answer(
                [tokenizer.decode(said[:place]) for place in segs], drawn.texts[row], length, segs,
                dice.float().cpu().numpy(), batch.queries[question], masks.cpu().numpy(), weights,
            )
        )  # fmt: skip
    return outcomes


@torch.no_grad()
def answers_worth(
    model: PathChatSegR1, batch: PromptBatch, n: int, temperature: float, weights: RewardWeights
) -> Iterator[tuple[int, str, Outcome]]:
    """Draw n answers to each question and reward them: question, text behind `<think>` and outcome of each."""
    drawn = roll_out(model, batch, n, temperature)
    logits, quality = _masks(model, drawn, _states(model, drawn), batch)
    outcomes = judge_answers(model, batch, drawn, logits, quality, weights)
    yield from zip(drawn.image_of.tolist(), drawn.texts, outcomes, strict=True)


def _states(model: PathChatSegR1, drawn: Rollouts) -> Tensor:
    """(R, L, H) final states of the drawn sequences."""
    return model.language_model(model.embed(drawn.ids, drawn.tokens[drawn.image_of]), drawn.positions)


def _log_probs(model: PathChatSegR1, drawn: Rollouts, states: Tensor) -> tuple[Tensor, Tensor]:
    """(R, T) log-probability of each answered token, and (R, T, H) the states that they were drawn from."""
    before = states.gather(1, (drawn.places - 1)[..., None].expand(-1, -1, states.shape[-1]))
    unsaid = torch.tensor(model.tokenizer.unsaid, device=states.device)
    logits = model.language_model.logits(before).float().index_fill(2, unsaid, float("-inf"))
    chosen = drawn.ids.gather(1, drawn.places)
    return logits.log_softmax(-1).gather(2, chosen[..., None])[..., 0], before


def _masks(
    model: PathChatSegR1, drawn: Rollouts, states: Tensor, batch: PromptBatch
) -> tuple[Tensor, list[Tensor]]:
    """Masks of all `<SEG>`s (M, P, P), and the soft Dice of each answer's against its targets."""
    seg, rows = model.seg_states(states, drawn.ids)
    targets = batch.masks.split(batch.counts)
    if not len(seg):
        empty = states.new_zeros(0, *batch.masks.shape[1:])
        return empty, [states.new_zeros(0, len(targets[int(b)])) for b in drawn.image_of]
    logits, _ = model.decode_masks(drawn.features, drawn.image_of[rows], seg)
    quality = []
    counts = torch.bincount(rows, minlength=len(drawn.ids)).tolist()
    for of, part in zip(drawn.image_of, logits.split(counts), strict=True):
        quality.append(_pairwise(part.float().sigmoid(), targets[int(of)]))
    return logits, quality


def _pairwise(masks: Tensor, targets: Tensor) -> Tensor:
    """(K, P, P) weights and (n, P, P) → (K, n) Dice."""
    p, g = masks.flatten(1).float(), targets.flatten(1).float()
    return (2 * p @ g.T + 1e-8) / (p.sum(1)[:, None] + g.sum(1)[None] + 1e-8)


def _matched_dice(judged: Judged, quality: list[Tensor]) -> Tensor:
    """Mean over answers of the differentiable R_soft of their matched masks."""
    pairs = [quality[r][k, n] for r, outcome in enumerate(judged.outcomes) for k, n in outcome.matched.items()]
    total = torch.stack(pairs).sum() if pairs else judged.old.new_zeros(())
    return total / len(judged.outcomes)


def _emission_loss(model: PathChatSegR1, drawn: Rollouts, states: Tensor, batch: PromptBatch) -> Tensor:
    """The emission head against whether the target is there."""
    ends = states[torch.arange(len(drawn.ids), device=states.device), drawn.starts - 1]
    present = torch.tensor([float(n > 0) for n in batch.counts], device=states.device)[drawn.image_of]
    return F.binary_cross_entropy_with_logits(model.emission_head(ends)[:, 0].float(), present)


def _figures(judged: Judged, batch: PromptBatch, log_probs: Tensor) -> dict[str, float]:
    """What a line of the journal tells about the answers."""
    drawn, outcomes = judged.drawn, judged.outcomes
    names = outcomes[0].parts
    present = [batch.counts[int(b)] > 0 for b in drawn.image_of]
    pointed = ["<SEG>" in text for text in drawn.texts]
    with torch.no_grad():
        moved = ((log_probs - judged.old).exp() - 1).abs() > 0.2
    return {
        "reward": float(np.mean([outcome.total for outcome in outcomes])),
        **{f"reward_{name}": float(np.mean([outcome.parts[name] for outcome in outcomes])) for name in names},
        "emission_hit": float(np.mean(np.array(present) == np.array(pointed))),
        "segs": float(np.mean([text.count("<SEG>") for text in drawn.texts])),
        "tokens": float(drawn.lengths.float().mean()),
        "explained": _explained(judged.returns[drawn.said], judged.values[drawn.said]),
        "clipped": float((moved & drawn.said).sum() / drawn.said.sum()),
    }


def _explained(returns: Tensor, values: Tensor) -> float:
    """The share of the returns' variance that the value head knew; below 0 it says less than a constant."""
    return float(1 - (returns - values).var(correction=0) / (returns.var(correction=0) + 1e-8))
