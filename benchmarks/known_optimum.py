"""SO-GRPO where the best that can be done is known: a demonstrator that errs in all the ways there are, and rewards.

Pictures show one dark disc or none. The demonstrator that `sft` imitates points at the disc once and rightly in only a
part of its answers; in others it says nothing, points twice, points before it has said where, or points at nothing. The
best policy is known: exactly one `<SEG>` behind a location word where there is a disc, none where there is none, worth
0.3 · Dice + 0.2 + 0.1 and 0.3 + 0.1. From the same imitator go on, for the same number of steps over as many answers:
SO-GRPO, standard GRPO, and more of `sft`.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.record import Bench, Measurement
from model.builders import build, tiny_config
from model.config import LanguageConfig, PathChatConfig, SamConfig, VisionConfig
from model.data.scene import Episode, Scene
from model.tokenizer import PathTokenizer
from model.training.episodes import EpisodeBatch, EpisodeMaker
from model.training.loop import LoopConfig, train
from model.training.pools import ScenePool, View
from model.training.prompts import PromptBatch, PromptMaker
from model.training.rewards import RewardWeights
from model.training.sft import Sft
from model.training.so_grpo import RlSettings, SoGrpo, answers_worth
from model.training.trainable import LoraSettings, Trainable, merge_lora

PX = 64
QUERY = "Where is the tumour?"
PLACES = (("upper left", 18, 18), ("upper right", 46, 18), ("lower left", 18, 46), ("lower right", 46, 46))
PRESENT = {"right": 0.25, "silent": 0.35, "twice": 0.2, "early": 0.2}
ABSENT = {"right": 0.5, "false": 0.5}
"""How often the demonstrator does what."""
OPTIMUM = {"present": 0.3 + 0.2 + 0.1, "absent": 0.3 + 0.1}
"""What the best policy earns with perfect masks."""
ARMS = {
    "so-grpo": RlSettings(value_warmup=40, place_share=0.0),
    "standard-grpo": RlSettings(
        advantage="group", differentiable=0.0, value=0.0, place_share=0.0,
        rewards=RewardWeights(hard=True, sparse=0.0, spatial=0.0, length=0.0),
    ),
    "sft only": None,
}  # fmt: skip


def measure(bench: Bench) -> tuple[list[Measurement], dict[str, Any]]:
    """Mean reward of each arm over the seeds, beside the optimum."""
    steps = {"sft": 12, "arm": 4, "pictures": 8} if bench.quick else {"sft": 300, "arm": 240, "pictures": 96}
    seeds = [bench.seed + n for n in range(1 if bench.quick else 3)]
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in ("sft before", *ARMS)}
    for seed in seeds:
        for name, found in _one_seed(seed, steps, bench.work / str(seed)).items():
            figures[name].append(found)
            print(f"seed {seed} {name}: " + " ".join(f"{k}={v:.3f}" for k, v in found.items()), flush=True)
    measurements = [
        Measurement(f"{name}: reward of drawn answers", "reward", tuple(f["reward"] for f in found), {"seeds": found})
        for name, found in figures.items()
    ]
    best = (OPTIMUM["present"] + OPTIMUM["absent"]) / 2
    measurements.append(Measurement("optimum with perfect masks", "reward", (best,), OPTIMUM))
    return measurements, {"seeds": seeds, "steps": steps, "demonstrator": {"present": PRESENT, "absent": ABSENT}}


def _one_seed(seed: int, steps: dict[str, int], folder: Path) -> dict[str, dict[str, float]]:
    """All arms from one imitator."""
    torch.manual_seed(seed)
    model = build(_config(), _tokenizer())
    pool = ScenePool({"discs": [disc_scenes(np.random.default_rng([seed, 0]), 240)]}, PX, {"discs": 1.0})
    maker = Demonstrator(pool, model.tokenizer, (), 4, 2, 16, batch_size=16, questions=1)
    loop = LoopConfig(
        steps["sft"], lr=2e-3, schedule="cosine", warmup_steps=20, ema=0.98, workers=0, seed=seed, tensorboard=False,
        log_every=100,
    )  # fmt: skip
    train(Sft(maker, seed), model, loop, folder / "sft").apply(model)
    asked = Discs(ScenePool({"discs": [disc_scenes(np.random.default_rng([seed, 1]), 96)]}, PX, {"discs": 1.0}), 16, 8)
    judge = partial(_judged, asked=asked, pictures=steps["pictures"])
    found = {"sft before": judge(model)}
    for name, settings in ARMS.items():
        arm = copy.deepcopy(model)
        _go_on(arm, name, settings, pool, maker, seed, replace(loop, steps=steps["arm"], log_every=40), folder)
        found[name] = judge(arm)
    return found


def _go_on(model, name, settings, pool, maker, seed, loop: LoopConfig, folder: Path) -> None:
    """Train one arm."""
    if settings is None:
        stage = Sft(replace(maker, batch_size=64), seed + 1)
        train(stage, model, replace(loop, lr=5e-4), folder / name).apply(model)
        return
    trained = ("seg_adapter.*", "mask_decoder.*")
    Trainable(trained=trained, lora=LoraSettings(parts=("language_model.",), dropout=0.0)).prepare(model)
    stage = SoGrpo(Discs(pool, 16, 8), model.config.language.dim, seed, settings)
    schedule = "adaptive" if name == "so-grpo" else "constant"
    loop = replace(loop, lr=3e-3, schedule=schedule, warmup_steps=5, weight_decay=0.0, ema=0.9, faster={"extras.": 0.5})
    train(stage, model, loop, folder / name).apply(model)
    merge_lora(model)


@torch.no_grad()
def _judged(model, asked: "Discs", pictures: int) -> dict[str, float]:
    """Rewards and habits of drawn and of greedy answers about pictures that nobody trained on."""
    model.eval()
    figures: dict[str, list[float]] = {}
    for number in range(pictures // asked.batch_size):
        batch = asked.make(np.random.default_rng([9, number]), 0)
        for kind, temperature, n in (("", 1.0, 4), ("greedy_", 1e-4, 1)):
            torch.manual_seed(number)
            for question, text, outcome in answers_worth(model, batch, n, temperature, RewardWeights(spatial=0.0)):
                present, segs = batch.counts[question] > 0, text.count("<SEG>")
                _add(figures, f"{kind}reward", outcome.total)
                _add(figures, f"{kind}reward_{'present' if present else 'absent'}", outcome.total)
                _add(figures, f"{kind}emission_right", float(present == (segs > 0)))
                _add(figures, f"{kind}as_best", float(segs == present and outcome.parts["format"] > 0))
                if present and segs:
                    _add(figures, f"{kind}dice", outcome.parts["soft"] / 0.3)
    return {name: float(np.mean(values)) for name, values in figures.items()}


def _add(figures: dict[str, list[float]], name: str, value: float) -> None:
    figures.setdefault(name, []).append(value)


def disc_scenes(rng: np.random.Generator, n: int) -> list[Scene]:
    """Pink noise with a dark disc in one of four places, or with none."""
    scenes = []
    for i in range(n):
        image = np.clip(rng.normal((225, 170, 200), 12, (PX, PX, 3)), 0, 255).astype(np.uint8)
        masks, absent = {}, frozenset({"tumour"})
        if i % 2:
            _, x, y = PLACES[int(rng.integers(4))]
            mask = np.zeros((PX, PX), np.uint8)
            centre = (x + int(rng.integers(-4, 5)), y + int(rng.integers(-4, 5)))
            cv2.circle(mask, centre, int(rng.integers(8, 13)), 1, -1)
            image[mask > 0] = np.clip(rng.normal((90, 40, 120), 12, (int(mask.sum()), 3)), 0, 255)
            masks, absent = {"tumour": mask > 0}, frozenset()
        scenes.append(Scene(f"disc{i}", "discs", str(i), image, masks, absent, 1.0, "synthetic", "CC0-1.0"))
    return scenes


def _view(scene: Scene) -> View:
    return View(scene.image, scene.masks, scene.absent, 1.0, scene)


def _draw(pool: ScenePool, rng: np.random.Generator, n: int) -> list[View]:
    scenes = pool.groups["discs"][0]
    return [_view(scenes[int(rng.integers(len(scenes)))]) for _ in range(n)]


@dataclass
class Discs(PromptMaker):
    """Asks for the disc, as it is, without augmentation."""

    def make(self, rng: np.random.Generator, slot: int) -> PromptBatch:
        """See `PromptMaker.make`."""
        views = _draw(self.pool, rng, self.batch_size)
        masks = [self._mask(view, "tumour") for view in views if view.masks]
        return PromptBatch(
            slot, torch.from_numpy(np.stack([view.image for view in views])), [QUERY] * len(views), [1.0] * len(views),
            [False] * len(views), torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, 16, 16),
            [len(view.masks) for view in views],
        )  # fmt: skip


@dataclass
class Demonstrator(EpisodeMaker):
    """Answers as `PRESENT` and `ABSENT` say."""

    def make(self, rng: np.random.Generator) -> EpisodeBatch:
        """See `EpisodeMaker.make`."""
        views, asked = [], []
        for b, view in enumerate(_draw(self.pool, rng, self.batch_size)):
            way = str(rng.choice(list(PRESENT), p=list(PRESENT.values()))) if view.masks else (
                str(rng.choice(list(ABSENT), p=list(ABSENT.values()))))  # fmt: skip
            told, n = ANSWERS[bool(view.masks), way]
            if n and not view.masks:
                view = replace(view, masks={"tumour": _view(disc_scenes(rng, 2)[1]).masks["tumour"]})
            where = _place(view.masks["tumour"]) if view.masks else "center"
            views.append(view)
            asked.append((b, Episode(QUERY, told.format(where=where), ("tumour",) * n, "tumour", "named")))
        return self._tensors(views, asked, None, rng)


def _place(mask: np.ndarray) -> str:
    y, x = (float(axis.mean()) for axis in np.nonzero(mask))
    return min(PLACES, key=lambda place: (place[1] - x) ** 2 + (place[2] - y) ** 2)[0]


_ONE = "<think> A dark disc lies in the {where} area. </think> Found in the {where} area: tumour <SEG>."
_NONE = "<think> Nothing of this kind is seen. </think> No tumour is found here."
ANSWERS: dict[tuple[bool, str], tuple[str, int]] = {
    (True, "right"): (_ONE, 1),
    (True, "silent"): (_NONE, 0),
    (True, "twice"): (_ONE.replace("<SEG>.", "<SEG> and tumour <SEG>."), 2),
    (True, "early"): ("<think> A dark disc. </think> Tumour <SEG> found.", 1),
    (False, "right"): (_NONE, 0),
    (False, "false"): (_ONE, 1),
}


def _config() -> PathChatConfig:
    return tiny_config(
        dense_classes=(), tile_px=PX, max_answer_tokens=48,
        vision=VisionConfig(dim=64, depth=2, heads=2, stem_channels=(16, 16, 32, 32), drop_path=0.0),
        language=LanguageConfig(64, 2, 2, 1, 128, mrope_section=(4, 6, 6), vocabulary=420),
        sam=SamConfig(
            dim=32, depth=2, heads=2, stem_channels=(8, 8, 16, 16), out_dim=32, decoder_heads=2, decoder_mlp_dim=64
        ),
    )  # fmt: skip


def _tokenizer() -> PathTokenizer:
    texts = [told.format(where=place) for told, _ in ANSWERS.values() for place, _, _ in PLACES]
    return PathTokenizer.train([*texts, f"{QUERY.lower()} Scale 1.0 µm/px. {QUERY}"], 420)


