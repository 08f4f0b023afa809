"""Stages and answers of the ablations, each made once and kept under the hash of all it depends on.

    OUT/stages/{stage}-{hash}/checkpoint, metrics.jsonl, done.json      OUT/arms/{arm}-{seed}-{hash}.json
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.builders import build
from model.checkpoint import load_checkpoint, revision_of, weights_of
from model.config import PathChatConfig
from model.data.chains import SEG
from model.data.corpus import text_episodes
from model.data.queries import normalise_query
from model.data.scene import Episode
from model.data.stain import StainStatistics
from model.evaluation.evaluate import collect, evaluate
from model.evaluation.manifest import ManifestRow
from model.pathchat import PathChatSegR1
from model.predictor import PathChatPredictor
from model.segmenter import SegmenterCard, TileAnswer, TileBatch
from model.tokenizer import PathTokenizer
from model.training.ablation_arms import Step
from model.training.cli import prepare
from model.training.episodes import EpisodeBatch, EpisodeMaker
from model.training.lm import Lm
from model.training.loop import Stage, train
from model.training.pools import ScenePool
from model.training.pretrain import Pretrain, objectives_of
from model.training.prompts import PromptMaker
from model.training.settings import StageSettings, TrainSettings
from model.training.sft import Sft, SftWeights
from model.training.so_grpo import RlSettings, SoGrpo
from model.training.ssl import Ssl, pool_statistics
from model.training.weights import save_trained

_SOUGHT = re.compile(r"Looking for ([^.:<]+)")
BATCH = 32
"""Tiles that are asked together."""


def fixed_insertion(answer: str) -> str:
    """A chain with its one `<SEG>` at a preset place: behind the name of the target, before anything is observed.

    Args:
        answer: of a present, absent or unknown target, as `model/data/chains.py` writes it.
    """
    bare = answer.replace(f" {SEG}", "")
    return _SOUGHT.sub(lambda match: f"Looking for: {match[1]} {SEG}", bare, count=1)


class FixedEpisodes(EpisodeMaker):
    """Questions of `sft` whose every answer carries one `<SEG>`, see `fixed_insertion`; absent targets are empty masks.

    The draws are those of `EpisodeMaker`.
    """

    def _tensors(
        self, views: list, asked: list[tuple[int, Episode]], references: list | None, rng: np.random.Generator
    ) -> EpisodeBatch:
        fixed = [(view, replace(episode, answer=fixed_insertion(episode.answer))) for view, episode in asked]
        batch = super()._tensors(views, fixed, references, rng)
        there = iter(batch.masks)
        empty = torch.zeros(self.mask_px, self.mask_px)
        return replace(batch, masks=torch.stack([next(there) if e.targets else empty for _, e in fixed]))


class FixedSegmenter:
    """A segmenter whose answers carry one `<SEG>` at the preset place: one that lacks it is said again with it.

    Args:
        predictor: trained with `FixedEpisodes`.
    """

    def __init__(self, predictor: PathChatPredictor):
        self.predictor, self.card = predictor, predictor.card

    def predict(self, batch: TileBatch, cancelled: Callable[[], bool] | None = None) -> list[TileAnswer]:
        """As `Segmenter.predict`."""
        answers = self.predictor.predict(batch, cancelled)
        silent = [row for row, answer in enumerate(answers) if not answer.emitted]
        if silent:
            said = [fixed_insertion(answers[row].text) for row in silent]
            again = self.predictor.predict(_rows(batch, silent), cancelled, self._script(said))
            for row, answer in zip(silent, again, strict=True):
                answers[row] = answer
        return answers

    def _script(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, L) tokens behind `<think>`, each row ended by `<eos>`; a text that looks for nothing is made to."""
        tokenizer, limit = self.predictor.model.tokenizer, self.predictor.model.config.max_answer_tokens
        rows = []
        for text in texts:
            text = text if SEG in text else f"<think> Looking for: it {SEG}."
            rows.append([*tokenizer.encode(text)[1 : limit + 1], tokenizer.eos])
        script = torch.full((len(rows), max(map(len, rows))), tokenizer.eos)
        for place, row in enumerate(rows):
            script[place, : len(row)] = torch.tensor(row)
        return script


def _rows(batch: TileBatch, rows: list[int]) -> TileBatch:
    """Some rows of a batch, not asked for a second look."""
    return TileBatch(
        images=batch.images[rows], mpp=batch.mpp[rows], queries=[batch.queries[row] for row in rows],
        forced=np.zeros(len(rows), bool),
    )  # fmt: skip


@dataclass
class Workshop:
    """Where stages are trained and models are asked.

    Attributes:
        out: of everything that is kept.
        settings: of `mini.json`, with the budget's changes.
        pool: see `small_pool`.
        corpus: texts that the tokenizer is trained on.
        precision, workers: of the loop; the precision is part of every section, see `Step`.
    """

    out: Path
    settings: TrainSettings
    pool: ScenePool
    corpus: int
    workers: int = 0

    @cached_property
    def statistics(self) -> StainStatistics:
        """Of the pool's stains."""
        return pool_statistics(self.pool)

    @cached_property
    def tokenizer(self) -> PathTokenizer:
        """One for all arms and seeds."""
        path = self.out / f"tokenizer-{self.settings.model.language.vocabulary}-{self.corpus}.json"
        if not path.is_file():
            episodes = text_episodes(np.random.default_rng([self.settings.seed, 4]), self.corpus)
            corpus = [text for e in episodes for text in (normalise_query(e.query), e.answer)]
            path.parent.mkdir(parents=True, exist_ok=True)
            PathTokenizer.train(corpus, self.settings.model.language.vocabulary).save(path)
        return PathTokenizer.load(path)

    def folder(self, step: Step) -> Path:
        """Of a stage."""
        return self.out / "stages" / f"{step.stage}-{step.key}"

    def train(self, step: Step) -> Path:
        """Train a stage, or find it trained; what leads to it is trained first.

        Raises:
            InterruptedError: SIGTERM came; the same command goes on.
        """
        folder = self.folder(step)
        if (folder / "done.json").is_file():
            return folder
        for parent, _ in step.parents:
            self.train(parent)
        print(f"{folder.name}: {step.section}", flush=True)
        section = replace(self.settings, seed=step.seed, stages={step.stage: step.section}).stage(
            step.stage, workers=self.workers
        )
        model = self._begin(step)
        prepare(model, compiled=False)
        section.trainable.prepare(model)
        average = train(self._stage(step, section, model), model, section.loop, folder)
        average.apply(model)
        save_trained(folder / "checkpoint", model, {"stage": step.stage, "seed": step.seed})
        (folder / "done.json").write_text(json.dumps(_spent(step, section, folder), indent=1) + "\n")
        (folder / "last.pt").unlink(missing_ok=True)
        return folder

    def _begin(self, step: Step) -> PathChatSegR1:
        """Weights of the seed, the same in every arm but for its Seg-Adapter, and over them what was trained before."""
        model = self._fresh(step.seed, self.settings.model)
        if step.adapter != self.settings.model.adapter:
            own = self._fresh(step.seed, replace(self.settings.model, adapter=step.adapter))
            same = {k: v for k, v in weights_of(model).items() if not k.startswith("seg_adapter.")}
            own.load_state_dict(same, strict=False)
            model = own
        for parent, taken in step.parents:
            weights = weights_of(load_checkpoint(self.folder(parent) / "checkpoint"))
            model.load_state_dict({k: v for k, v in weights.items() if k.startswith(taken)}, strict=False)
        return model

    def _fresh(self, seed: int, config: PathChatConfig) -> PathChatSegR1:
        torch.manual_seed(seed)
        return build(config, self.tokenizer)

    def _stage(self, step: Step, section: StageSettings, model: PathChatSegR1) -> Stage:
        """The stage itself, over the shrunk scenes."""
        config, own, seed = model.config, section.own, step.seed
        if step.stage == "lm":
            return Lm(model.tokenizer, section.batch_size, seed)
        if step.stage == "ssl":
            return Ssl(self.pool, self.statistics, config, section.batch_size, seed, **own)
        if step.stage == "so-grpo":
            rl = RlSettings.from_json(own.get("rl", {}))
            maker = PromptMaker(self.pool, config.mask_px, section.batch_size, rl.place_share)
            return SoGrpo(maker, config.language.dim, seed, rl, section.loop.accumulation)
        maker = self._episodes(model, section.batch_size, step.fixed)
        if step.stage == "pretrain":
            return Pretrain(
                self.pool, config.dense_classes, config.patch_grid, section.batch_size, seed,
                objectives_of(own.get("objective", "dense")), replace(maker, exemplar_share=0.0), own.get("mix", 0.0),
            )  # fmt: skip
        return Sft(maker, seed, SftWeights(**own.get("weights", {})))

    def _episodes(self, model: PathChatSegR1, batch_size: int, fixed: bool) -> EpisodeMaker:
        config, data = model.config, self.settings.data
        return (FixedEpisodes if fixed else EpisodeMaker)(
            self.pool, model.tokenizer, config.dense_classes, config.patch_grid, config.image_grid, config.mask_px,
            batch_size, questions=data.questions, exemplar_share=data.exemplar_share,
        )  # fmt: skip

    def ask(self, step: Step, tests: dict[str, list[ManifestRow]], keep: Path) -> dict[str, Any]:
        """What the model that a stage left behind answers; read from `keep` where it is there.

        Returns:
            Set → rows, each with `id`, `group`, `text` and the `terms` that its figures are made of.
        """
        if keep.is_file():
            return json.loads(keep.read_text(encoding="utf-8"))
        folder = self.train(step) / "checkpoint"
        model = load_checkpoint(folder)
        card = SegmenterCard(model.config.name, revision_of(folder), model.config.tile_px, model.config.default_mpp)
        segmenter = PathChatPredictor(model, card)
        if step.fixed:
            segmenter = FixedSegmenter(segmenter)
        told = {
            name: [
                {"id": s.row.id, "group": s.row.group, "text": s.text, "terms": s.terms()}
                for s in collect(evaluate(rows, segmenter, BATCH))
            ]
            for name, rows in tests.items()
        }
        keep.parent.mkdir(parents=True, exist_ok=True)
        part = keep.with_suffix(".part")
        part.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
        part.replace(keep)
        return told


def _spent(step: Step, section: StageSettings, folder: Path) -> dict[str, Any]:
    """What a stage took: steps, pictures (texts of `lm`), answers drawn, and seconds at the pace it had at its end."""
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    steps, drawn = section.loop.steps, 0
    pictures = steps * section.loop.accumulation * section.batch_size
    if step.stage == "so-grpo":
        rl = RlSettings.from_json(section.own.get("rl", {}))
        pictures = -(-steps // rl.epochs) * section.loop.accumulation * section.batch_size
        drawn = pictures * rl.rollouts
    return {
        "stage": step.stage, "key": step.key, "steps": steps, "pictures": pictures, "answers_drawn": drawn,
        "seconds": round(last["s_per_step"] * steps, 1), "settings": step.to_json(), "loop": asdict(section.loop),
    }  # fmt: skip


def course(folder: Path, window: int = 10) -> dict[str, float]:
    """How a stage of SO-GRPO went: Table 5's steps to the best reward, and variance of the gradient.

    Args:
        folder: of the stage; its journal has a line each step.
        window: steps that the reward is averaged over before its best is looked for.

    Returns:
        `best_step`, the last of the steps whose mean reward is the highest; `best_reward`, that mean; and
        `gradient_variance`, of the norm before clipping, over the steps that train the policy.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rewards = np.array([line["reward"] for line in lines])
    window = min(window, len(rewards))
    means = np.convolve(rewards, np.full(window, 1 / window), "valid")
    norms = [line["norm"] for line in lines if "norm" in line and "loss_policy" in line]
    return {
        "best_step": int(lines[int(means.argmax()) + window - 1]["step"]), "best_reward": float(means.max()),
        "gradient_variance": float(np.var(norms)),
    }  # fmt: skip
