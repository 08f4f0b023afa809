"""A stage by its name, with its data."""

from dataclasses import replace
from pathlib import Path

from model.pathchat import PathChatSegR1
from model.training.episodes import EpisodeMaker
from model.training.lm import Lm
from model.training.loop import Stage
from model.training.pools import ScenePool
from model.training.pretrain import Pretrain, objectives_of
from model.training.prompts import PromptMaker
from model.training.settings import StageSettings, TrainSettings
from model.training.sft import Sft, SftWeights
from model.training.so_grpo import RlSettings, SoGrpo
from model.training.ssl import Ssl, pool_statistics


def build_stage(
    section: StageSettings, model: PathChatSegR1, settings: TrainSettings, data: Path | None, out: Path, world: int = 1
) -> Stage:
    """The stage of a section.

    Args:
        section: what to do.
        model: gives sizes and the tokenizer.
        settings: of the run.
        data: folder of the data sets; None is `SLIDEREASON_DATASETS`.
        out: of the run; `ssl` writes the stain statistics there.
        world: processes that train together.
    """
    if section.name == "lm":
        return Lm(model.tokenizer, section.batch_size, settings.seed)
    config = model.config
    pool = ScenePool.load(
        "train", config.tile_px, settings.data.synthetic_scenes, settings.seed, data, weights=settings.data.weights
    )
    pool.stain, pool.balance = settings.data.stain, settings.data.balance
    print(f"scenes: {pool.sizes()}", flush=True)
    if section.name == "ssl":
        statistics = pool_statistics(pool)
        statistics.save(out / "stain.json")
        return Ssl(pool, statistics, config, section.batch_size, settings.seed, **section.own)
    if section.name == "so-grpo":
        rl = RlSettings.from_json(section.own.get("rl", {}))
        maker = PromptMaker(pool, config.mask_px, section.batch_size, rl.place_share)
        per_step = section.loop.accumulation * world
        return SoGrpo(maker, config.language.dim, settings.seed, rl, per_step)
    if section.name == "pretrain":
        objectives = objectives_of(section.own.get("objective", "dense"))
        maker = replace(make_episodes(pool, model, settings, section.batch_size), exemplar_share=0.0)
        return Pretrain(
            pool, config.dense_classes, config.patch_grid, section.batch_size, settings.seed, objectives, maker,
            section.own.get("mix", 0.0),
        )  # fmt: skip
    maker = make_episodes(pool, model, settings, section.batch_size)
    return Sft(maker, settings.seed, replace(SftWeights(), **section.own.get("weights", {})))


def make_episodes(pool: ScenePool, model: PathChatSegR1, settings: TrainSettings, batch_size: int) -> EpisodeMaker:
    """Questions about the pool's pictures, as `sft` asks them."""
    config, data = model.config, settings.data
    return EpisodeMaker(
        pool, model.tokenizer, config.dense_classes, config.patch_grid, config.image_grid, config.mask_px, batch_size,
        questions=data.questions, exemplar_share=data.exemplar_share, style=config.prompt,
    )  # fmt: skip
