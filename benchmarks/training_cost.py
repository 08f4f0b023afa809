"""What a training config costs at its real size, by formula; nothing is allocated and no GPU is needed.

Weights are counted on the model itself, built on `meta` and prepared as the stage prepares it. Memory of one GPU, in
bytes, of a model with W weights as they are held, of which P learn (in fp32):

    weights      Σ W · bytes of their type, and of what only the stage needs
    learning     P · (4 gradient + 8 Adam + 4 average + 4 gradients of all GPUs in one row + 2 copy in bfloat16)
    activations  what each block was given: rows · tokens · width · depth · bytes, 4 where the block's weights learn and
                 2 where they do not; and the inside of the one block that is computed again, see `inside_bytes`
    logits       answered tokens · vocabulary · 10 (`next_token_loss`) or 14 (`so-grpo`): bfloat16, fp32, its softmax
    masks        masks · what SAM's decoder keeps of one, see `mask_bytes`
    cache        of `so-grpo`: rows · tokens · 2 · depth · kv_heads · width of a head · 4

Operations of one step are those of `benchmarks.flops` (a multiplication and an addition are two) times the passes over
each part, see `Passes`: 1 forward, 1 more where activations are computed again, 1 backward for the gradient of what a
layer was given and 1 for that of its weights, where they learn. Attention's scores are products of two activations, so
that their backward pass is always 2. A step takes

    operations / (GPUs · peak · MFU) + drawn answers: tokens of the longest · bytes of weights / (bandwidth · its use)

Left out: optimiser, all-reduce (1.6 GB over NVLink, some 10 ms, where both encoders learn), the making of batches.

Source: Narayanan et al. 2021, Efficient large-scale language model training on GPU clusters, App. (operations with
recomputed activations); Korthikanti et al. 2022, Reducing activation recomputation in large transformer models.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import flops
from benchmarks.record import Bench, Measurement
from model.builders import build
from model.config import PathChatConfig
from model.pathchat import PathChatSegR1
from model.tokenizer import PathTokenizer
from model.training.mae import MaskedHead
from model.training.settings import StageSettings, TrainSettings
from model.training.so_grpo import RlSettings

PAPER = Path(__file__).parents[1] / "model" / "training" / "paper.json"
GIB, HOUR_S = 2**30, 3600


@dataclass(frozen=True)
class Machine:
    """H100 or H800 SXM: dense bfloat16 operations/s, bytes/s and bytes of one GPU, and what is assumed of their use."""

    gpus: int = 8
    peak_flops: float = 989e12
    mfu: float = 0.35
    bandwidth: float = 3.35e12
    bandwidth_use: float = 0.5
    memory: float = 80e9


@dataclass(frozen=True)
class Data:
    """The paper's data set, and tokens as assumed for Qwen's tokenizer (the templates' chains have 49 words).

    Attributes:
        samples, train_share: triplets, and how many of them train.
        prompt, answer: tokens of a question with its turns and scale, and of a chain; longest: of a batch's chains.
        masks: of a question, as 45 % of targets are absent.
        pad_to: sequences are padded to multiples of this.
    """

    samples: int = 118_667
    train_share: float = 0.8
    prompt: int = 48
    answer: int = 100
    longest: int = 160
    masks: float = 0.55
    pad_to: int = 32

    def tokens(self, c: PathChatConfig, exemplar: bool = False) -> int:
        """Of one row, padding included."""
        whole = self.prompt + self.answer + (2 * c.image_tokens + 1 if exemplar else c.image_tokens)
        return -(-whole // self.pad_to) * self.pad_to


@dataclass(frozen=True)
class Passes:
    """How often a part of the model is gone through: layers with weights, and attention's scores."""

    layers: float
    scores: float


FORWARD = Passes(1, 1)
LEARNS = Passes(4, 4)
"""Forward, again, and backward for inputs and weights."""
PASSES_ON = Passes(3, 4)
"""The same without the gradient of weights, which stay; adapters beside them are counted apart."""
STAGES = ("ssl", "pretrain", "sft", "so-grpo")
"""Those that are counted; `lm` takes minutes."""


@dataclass(frozen=True)
class Cost:
    """Of one stage.

    Attributes:
        weights: part → (all weights, those that learn).
        memory: what → bytes of one GPU.
        step_flops: of one optimiser step on all GPUs.
        step_s, steps, epochs: seconds of a step, steps of the config, and passes over the data that they are.
    """

    weights: dict[str, tuple[int, int]]
    memory: dict[str, float]
    step_flops: float
    step_s: float
    steps: int
    epochs: float

    @property
    def hours(self) -> float:
        """Of the whole stage."""
        return self.steps * self.step_s / HOUR_S


def prepared(section: StageSettings, config: PathChatConfig) -> PathChatSegR1:
    """The model as a stage trains it, on `meta`; which words its tokenizer knows changes no size."""
    model = build(config, PathTokenizer.train(["<think> A gland. </think> Found: gland <SEG>."], 300), empty=True)
    section.trainable.prepare(model)
    return model


def count_weights(model: PathChatSegR1) -> dict[str, tuple[int, int]]:
    """Part → all weights and those that learn, adapters included."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, weight in model.named_parameters():
        counts[name.partition(".")[0]][0] += weight.numel()
        counts[name.partition(".")[0]][1] += weight.numel() * weight.requires_grad
    return {part: (every, learns) for part, (every, learns) in counts.items()}


def passes_of(model: PathChatSegR1, part: str) -> Passes:
    """Over a part through which the gradient goes: whether it learns itself, or only what is beside it."""
    every, learns = count_weights(model)[part]
    return LEARNS if 2 * learns > every else PASSES_ON


def extras(section: StageSettings, c: PathChatConfig) -> int:
    """Weights of what only the stage needs."""
    if section.name == "so-grpo":
        return c.language.dim + 1
    if section.name != "ssl":
        return 0
    with torch.device("meta"):
        heads = (c.vision.dim, c.vision.dim, c.vision.patch_px), (c.sam.dim, c.sam.out_dim, c.sam.patch_px)
        return sum(weight.numel() for sizes in heads for weight in MaskedHead(*sizes).parameters())


def reads_text(section: StageSettings) -> bool:
    """Whether the language model takes part."""
    return section.name != "ssl" and (section.name != "pretrain" or "text" in section.own.get("objective", "dense"))


def rows_of(section: StageSettings, questions: int) -> int:
    """Sequences of a micro-batch."""
    if section.name == "so-grpo":
        return section.batch_size * RlSettings.from_json(section.own.get("rl", {})).rollouts
    return section.batch_size * questions


def memory_of(
    section: StageSettings, settings: TrainSettings, model: PathChatSegR1, data: Data
) -> dict[str, float]:  # fmt: skip
    """Bytes of one GPU, see the module's docstring."""
    c, stage, b = model.config, section.name, section.batch_size
    more = extras(section, c)
    learns = more + sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    told = {
        "weights": 4 * more + sum(weight.numel() * weight.itemsize for weight in model.parameters()),
        "learning": learns * (4 + 8 + 4 + 4 + 2),
    }
    rows = rows_of(section, settings.data.questions)
    exemplars = stage == "sft" and settings.data.exemplar_share > 0
    length = data.tokens(c, exemplar=exemplars)
    patches, squares = c.patch_grid**2 + 1 + c.vision.registers, (c.sam_px // c.sam.patch_px) ** 2
    pictures = {"ssl": 3 * b, "pretrain": b, "sft": 2 * b if exemplars else b}.get(stage, 0)
    surveyed = {"ssl": 3 * b, "sft": b}.get(stage, 0)
    stacks = (
        ("language_model", rows * length * reads_text(section), c.language.dim, c.language.depth,
         inside_bytes(c.language.dim, c.language.mlp_dim, 4)),
        ("pathology_encoder", pictures * patches, c.vision.dim, c.vision.depth,
         inside_bytes(c.vision.dim, c.vision.dim * c.vision.mlp_ratio, 2)),
        ("sam_encoder", surveyed * squares, c.sam.dim, c.sam.depth,
         inside_bytes(c.sam.dim, int(c.sam.dim * c.sam.mlp_ratio), 2)),
    )  # fmt: skip
    kept = sum(
        places * width * depth * (4 if passes_of(model, part) is LEARNS else 2)
        for part, places, width, depth, _ in stacks
    )
    inside = [places * within for _, places, _, _, within in stacks]
    told["activations"] = kept + max(inside)
    if reads_text(section):
        told["logits"] = rows * data.answer * c.language.vocabulary * 10
    if stage == "so-grpo":
        told["logits"] = rows * data.longest * c.language.vocabulary * 14
        told["cache"] = rows * length * 8 * c.language.depth * c.language.kv_heads * c.language.dim / c.language.heads
    if stage in ("sft", "so-grpo"):
        told["masks"] = rows * data.masks * mask_bytes(c)
    return told


def inside_bytes(dim: int, hidden: int, maps: int) -> float:
    """What one block keeps for its backward pass of each token, in bytes, and the gradients of its widest maps.

    Queries to values, what attention says, norms in fp32 with what they were given: 32 bytes a channel hold them all.
    Of the MLP `maps` tensors of its hidden width in bfloat16: gate, its activation, up and their product, or before and
    behind GELU. Measured on the paper's blocks, without gradients: language model 264 kB a token (this says 266), ViT
    39 kB (49), SAM 25 kB (37).
    """
    return 32 * dim + 2 * maps * hidden + 2 * 2 * hidden


def mask_bytes(c: PathChatConfig) -> float:
    """What SAM's decoder keeps for the backward pass of one mask: 18 feature maps in fp32.

    Measured at the paper's size: 70 MB, of which this says 75.
    """
    return 4 * 18 * (c.mask_px // 4) ** 2 * c.sam.out_dim


def flops_of(
    section: StageSettings, settings: TrainSettings, model: PathChatSegR1, data: Data
) -> float:  # fmt: skip
    """Operations of a micro-batch on one GPU; of `so-grpo` without the tokens that are drawn one by one."""
    c, stage, b = model.config, section.name, section.batch_size
    rows, vocabulary = rows_of(section, settings.data.questions), 2 * c.language.dim * c.language.vocabulary
    lora = defaultdict(int)
    for name, weight in model.named_parameters():
        lora[name.partition(".")[0]] += weight.numel() * (".lora_" in name)
    answered = rows * data.answer * vocabulary * 2  # the output layer stays

    def language(passes: Passes, length: int) -> float:
        layers = 2 * (flops.language_weights(c.language) * passes.layers + lora["language_model"] * 4) * length
        return layers + flops.scores_flops(c.language, length) * passes.scores

    see, survey, read = (passes_of(model, part) for part in ("pathology_encoder", "sam_encoder", "language_model"))
    if stage == "ssl":
        # Each head is about half of what only the stage needs.
        heads = 2 * 3 * b * (extras(section, c) / 2) * (c.patch_grid**2 + (c.sam_px // c.sam.patch_px) ** 2)
        return 3 * b * (_see(c, see, 0) + _survey(c, survey)) + heads
    if stage == "pretrain":
        text = rows * language(read, data.tokens(c)) + answered if reads_text(section) else 0
        return b * _see(c, see, 3) + text
    masks = rows * data.masks * 3 * flops.decode_masks_flops(c)
    if stage == "sft":
        shown = settings.data.exemplar_share
        seen = (1 + shown) * (_see(c, see, 2) + 2 * lora["pathology_encoder"] * 4 * (c.patch_grid**2 + 1))
        texts = (1 - shown) * language(read, data.tokens(c)) + shown * language(read, data.tokens(c, exemplar=True))
        return b * (seen + _survey(c, survey)) + rows * texts + answered + masks
    rl = RlSettings.from_json(section.own.get("rl", {}))
    length, prompt = data.tokens(c), data.prompt + c.image_tokens
    drawing = b * (_see(c, FORWARD, 1) + _survey(c, FORWARD)) + rows * flops.prefill_flops(c.language, 0, prompt)
    judging = rows * (language(FORWARD, length) + data.answer * vocabulary) if rl.kl else 0
    return (drawing + judging) / rl.epochs + rows * language(read, length) + answered + masks


def _see(c: PathChatConfig, passes: Passes, projector: float) -> float:
    """One picture through the pathology encoder, and so often through the projector."""
    scores, outlet = flops.see_scores_flops(c), flops.projector_flops(c)
    layers = flops.see_flops(c) - scores - outlet
    return layers * passes.layers + scores * passes.scores + outlet * projector


def _survey(c: PathChatConfig, passes: Passes) -> float:
    scores = flops.survey_scores_flops(c)
    return (flops.survey_flops(c) - scores) * passes.layers + scores * passes.scores


def cost_of(name: str, settings: TrainSettings, machine: Machine, data: Data) -> Cost:
    """What one stage of a config costs."""
    section = settings.stage(name)
    model = prepared(section, settings.model)
    c, accumulation = settings.model, section.loop.accumulation
    step_flops = machine.gpus * accumulation * flops_of(section, settings, model, data)
    step_s = step_flops / (machine.gpus * machine.peak_flops * machine.mfu)
    if name == "so-grpo":
        rl = RlSettings.from_json(section.own.get("rl", {}))
        read = flops.step_bytes(c.language, 2) / (machine.bandwidth * machine.bandwidth_use)
        step_s += accumulation * data.longest * read / rl.epochs
    a_step = machine.gpus * accumulation * section.batch_size * (settings.data.questions if name != "ssl" else 1)
    if name == "so-grpo":
        a_step = machine.gpus * accumulation * section.batch_size / rl.epochs
    epochs = section.loop.steps * a_step / (data.samples * data.train_share)
    return Cost(
        count_weights(model), memory_of(section, settings, model, data), step_flops, step_s, section.loop.steps, epochs
    )


def costs_of(settings: TrainSettings, machine: Machine, data: Data) -> dict[str, Cost]:
    """What every stage of a config costs."""
    return {name: cost_of(name, settings, machine, data) for name in settings.stages if name in STAGES}


def table_of(costs: dict[str, Cost]) -> str:
    """Two tables in Markdown: weights that learn, and memory with time."""
    told = list(costs.values())
    parts = list(dict.fromkeys(part for cost in told for part in cost.weights))
    kinds = list(dict.fromkeys(kind for cost in told for kind in cost.memory))
    learn = [sum(learns for _, learns in cost.weights.values()) for cost in told]
    memory = [sum(cost.memory.values()) for cost in told]
    without = {part: min(cost.weights[part][0] for cost in told) for part in parts}  # adapters are not in every stage
    lines = [
        _row("part", ["all", *costs]),
        "|---|" + "--:|" * (1 + len(costs)),
        *(_row(f"`{p}`", [f"{n:,}", *(f"{k.weights[p][1]:,}" for k in told)]) for p, n in without.items()),
        _row("**that learn**", ["", *(f"**{n:,}**" for n in learn)]),
        "",
        _row("of one GPU", costs),
        "|---|" + "--:|" * len(costs),
        *(_row(kind, [_gib(k.memory.get(kind, 0.0)) for k in told]) for kind in kinds),
        _row("**memory**", [f"**{_gib(count)}**" for count in memory]),
        _row("PFLOP a step, all GPUs", [f"{k.step_flops / 1e15:.2f}" for k in told]),
        _row("seconds a step", [f"{k.step_s:.2f}" for k in told]),
        _row("steps", [f"{k.steps:,}" for k in told]),
        _row("passes over the data", [f"{k.epochs:.1f}" for k in told]),
        _row("**hours**", [f"**{k.hours:.1f}**" for k in told]),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count else ""


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """The shipped paper config; the tables are left as `training_cost.md`."""
    settings, machine, data = TrainSettings.read(PAPER), Machine(), Data()
    costs = costs_of(settings, machine, data)
    bench.folder.mkdir(parents=True, exist_ok=True)
    (bench.folder / "training_cost.md").write_text(table_of(costs))
    measurements = []
    for name, cost in costs.items():
        gib = {kind: round(count / GIB, 2) for kind, count in cost.memory.items()}
        learns = {part: learns for part, (_, learns) in cost.weights.items() if learns}
        measurements += [
            Measurement(f"{name}: weights that learn", "weights", (sum(learns.values()),), learns),
            Measurement(f"{name}: memory of one GPU", "GiB", (round(sum(cost.memory.values()) / GIB, 1),), gib),
            Measurement(f"{name}: time", "h", (round(cost.hours, 1),), {
                "step_flops": cost.step_flops, "step_s": cost.step_s, "steps": cost.steps, "epochs": cost.epochs,
            }),
        ]  # fmt: skip
    return measurements, f"by formula, of {PAPER.name}; {machine}; {data}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of any config."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_cost", description=main.__doc__)
    parser.add_argument("--config", type=Path, default=PAPER, help="default: the paper's")
    parser.add_argument("--gpus", type=int, default=Machine.gpus)
    parser.add_argument("--mfu", type=float, default=Machine.mfu, help="share of the peak that a step reaches (0.35)")
    options = parser.parse_args(argv)
    settings, machine = TrainSettings.read(options.config), Machine(gpus=options.gpus, mfu=options.mfu)
    print(table_of(costs_of(settings, machine, Data())), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
