"""The arms of the ablations: what each leaves out, and the stages it takes, each named by a hash of all it depends on.

Two arms that begin alike have stages with the same hash, so that what they share is trained once.

Source: Liu et al. 2026, PathChat-SegR1, Tables 4 and 5.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from model.training.settings import TrainSettings
from model.training.weights import TRAINED

FULL = "full"
MORE_SEED = 1000
"""Added to the seed where a stage goes on with what it did before, so that it sees other batches."""


@dataclass(frozen=True)
class Budget:
    """How much is spent.

    Attributes:
        stages: stage → fields of its section that differ from `mini.json`.
        data: fields of `data` that differ.
        more_steps: of SFT in place of SO-GRPO, about as long as that takes.
        corpus: texts that the tokenizer is trained on.
        real: measure on real pictures; False makes synthetic ones.
        per_picture: questions about each picture that is measured on.
    """

    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    more_steps: int = 62
    corpus: int = 20_000
    real: bool = True
    per_picture: int = 2


def _smoke_stage(**more: object) -> dict[str, Any]:
    return {"steps": 2, "batch_size": 3, "warmup_steps": 1, "decay_steps": 1, **more}


BUDGETS = {
    "default": Budget(),
    "smoke": Budget(
        stages={
            **{stage: _smoke_stage() for stage in ("lm", "ssl", "pretrain", "sft")},
            "so-grpo": _smoke_stage(batch_size=2, rl={"rollouts": 2, "epochs": 2, "value_warmup": 1}),
        },
        data={"synthetic_scenes": 18, "weights": {"synthetic": 1.0}},
        more_steps=2, corpus=400, real=False, per_picture=1,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        name: as the command line calls it; words: as the tables call it.
        kind: `full`, `architecture`, `training`, `reward` or `rl`: which table it stands in.
        note: how what is left out is replaced.
        without: stages that are left out.
        ssl_parts: beginnings of names of what is taken from the `ssl` stage.
        adapter: the Seg-Adapter's kind.
        fixed: every answer carries one `<SEG>` at a preset place, see `fixed_insertion`.
        more_sft: more SFT instead of SO-GRPO.
        section: fields of the `so-grpo` section that differ; rl, rewards: the same of its `rl`, and of that's rewards.
    """

    name: str
    words: str
    kind: str
    note: str = ""
    without: frozenset[str] = frozenset()
    ssl_parts: tuple[str, ...] = TRAINED["ssl"]
    adapter: str = "mlp"
    fixed: bool = False
    more_sft: bool = False
    section: Mapping[str, Any] = field(default_factory=dict)
    rl: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, Any] = field(default_factory=dict)


ARMS = {
    arm.name: arm
    for arm in (
        Arm(FULL, "full model", "full"),
        Arm(
            "no-pathology-encoder", "w/o pathology encoder's pretraining", "architecture",
            "no `pretrain` stage, and of `ssl` only MedSAM's encoder: the pathology encoder starts SFT at random",
            without=frozenset({"pretrain"}), ssl_parts=("sam_encoder.",),
        ),
        Arm(
            "no-seg-adapter", "w/o Seg-Adapter", "architecture",
            "one linear layer to the prompt's width instead of h→h→C with ReLU", adapter="linear",
        ),
        Arm(
            "no-auto-emission", "w/o auto-emission", "architecture",
            "one `<SEG>` behind the name of the target, before anything is observed, in every answer, whether the "
            "target is there or not (trained so, with empty masks where it is not, and enforced when asked); no "
            "rewards for when to point (λ_sparse = λ_format = 0). Its specificity is 0 by construction",
            fixed=True, rewards={"sparse": 0.0, "format": 0.0},
        ),
        Arm("no-ssl", "w/o stain-invariant pretraining", "training", "no `ssl` stage", without=frozenset({"ssl"})),
        Arm(
            "no-sft", "w/o SFT", "training", "SO-GRPO straight from `lm`, `ssl` and `pretrain`, with the same steps",
            without=frozenset({"sft"}),
        ),
        Arm(
            "no-rl", "w/o RL (SFT only)", "training", "SFT goes on instead, for about as long as SO-GRPO takes",
            without=frozenset({"so-grpo"}), more_sft=True,
        ),
        Arm("no-length-reward", "w/o length reward", "reward", "λ_len = 0", rewards={"length": 0.0}),
        Arm(
            "no-spatial-reward", "w/o spatial reward", "reward", "λ_spatial = 0; questions still name places",
            rewards={"spatial": 0.0},
        ),
        Arm(
            "standard-grpo", "standard GRPO", "rl",
            "group-normalised returns, Dice of the thresholded mask, format reward; no sparse, spatial and length "
            "rewards, no differentiable reward, a constant learning rate",
            section={"schedule": "constant"},
            rl={"advantage": "group", "value": 0.0, "value_warmup": 0, "differentiable": 0.0},
            rewards={"sparse": 0.0, "spatial": 0.0, "length": 0.0, "hard": True},
        ),
        Arm(
            "no-gae", "w/o GAE", "rl", "group-normalised returns, no value head",
            rl={"advantage": "group", "value": 0.0, "value_warmup": 0},
        ),
        Arm(
            "no-differentiable-reward", "w/o differentiable reward", "rl",
            "no gradient through R_soft, which is still paid as a number", rl={"differentiable": 0.0},
        ),
        Arm("no-sparse-reward", "w/o sparsity-aware reward", "rl", "λ_sparse = 0", rewards={"sparse": 0.0}),
        Arm("no-scheduling", "w/o adaptive scheduling", "rl", "a constant rate", section={"schedule": "constant"}),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One stage of one arm.

    Attributes:
        stage: its name.
        section: its settings.
        seed: of weights and batches.
        adapter, fixed: as in `Arm`; as in the full model where the stage has nothing of it.
        parents: stages whose weights it takes, in order, with the beginnings of the names of what it takes.
        data: hash of the pictures, the model's numbers and the tokenizer's corpus.
    """

    stage: str
    section: Mapping[str, Any]
    seed: int
    adapter: str
    fixed: bool
    parents: tuple[tuple["Step", tuple[str, ...]], ...]
    data: str

    def to_json(self) -> dict[str, Any]:
        """All that its weights depend on."""
        return {
            "stage": self.stage, "section": self.section, "seed": self.seed, "adapter": self.adapter,
            "fixed": self.fixed, "parents": [[parent.key, list(taken)] for parent, taken in self.parents],
            "data": self.data,
        }  # fmt: skip

    @cached_property
    def key(self) -> str:
        """Twelve hex digits; equal for what gives the same weights."""
        return hash_of(self.to_json())

    def lineage(self) -> "Iterator[Step]":
        """Every stage that leads here, each once, in the order they run; this one last."""
        seen: set[str] = set()
        for parent, _ in self.parents:
            for step in parent.lineage():
                if step.key not in seen:
                    seen.add(step.key)
                    yield step
        yield self


def hash_of(told: Any) -> str:
    """Twelve hex digits of anything JSON can say."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def resolve(arm: Arm, settings: TrainSettings, budget: Budget, seed: int, data: str) -> Step:
    """The last stage of an arm, with all that leads to it.

    Args:
        arm: which.
        settings: of `mini.json`, with the budget's changes.
        budget: tells how much more SFT takes the place of SO-GRPO.
        seed: of everything.
        data: see `Step`.
    """

    def step(stage: str, parents: tuple = (), **changes: Any) -> Step:
        late = stage in ("sft", "so-grpo")
        section = {**settings.stages[stage], **changes}
        return Step(stage, section, seed, arm.adapter if late else "mlp", late and arm.fixed, parents, data)

    lm = step("lm")
    first: tuple[tuple[Step, tuple[str, ...]], ...] = ((lm, TRAINED["lm"]),)
    below: tuple[tuple[Step, tuple[str, ...]], ...] = ()
    if "ssl" not in arm.without:
        ssl = step("ssl")
        below = ((ssl, ("pathology_encoder.",)),)
        first += ((ssl, arm.ssl_parts),)
    if "pretrain" not in arm.without:
        first += ((step("pretrain", below), TRAINED["pretrain"]),)
    if "sft" not in arm.without:
        first = ((step("sft", first), ("",)),)
    if arm.more_sft:
        return _seeded(step("sft", first, steps=budget.more_steps), seed + MORE_SEED)
    if "so-grpo" in arm.without:
        return first[-1][0]
    rl = dict(settings.stages["so-grpo"].get("rl", {}))
    rewards = {**rl.pop("rewards", {}), **arm.rewards}
    rl |= {**arm.rl, **({"rewards": rewards} if rewards else {})}
    return step("so-grpo", first, rl=rl, **arm.section)


def _seeded(step: Step, seed: int) -> Step:
    """The same stage with other batches."""
    return Step(step.stage, step.section, seed, step.adapter, step.fixed, step.parents, step.data)
