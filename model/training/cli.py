"""`slidereason train lm|pretrain|sft`: one stage, from a config file, resumed where it stopped."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model import attention
from model.builders import build, fast_bf16, tiny_config
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, weights_of
from model.config import PathChatConfig
from model.data.corpus import text_episodes
from model.data.queries import normalise_query
from model.pathchat import PathChatSegR1
from model.tokenizer import PathTokenizer
from model.training.episodes import EpisodeMaker
from model.training.lm import Lm
from model.training.loop import LoopConfig, Stage, train
from model.training.pools import ScenePool
from model.training.pretrain import Pretrain
from model.training.sft import Sft

DEFAULT_CONFIG = Path(__file__).with_name("tiny.json")
TRAINED = {"lm": ("language_model.",), "pretrain": ("pathology_encoder.", "dense_head."), "sft": ("",)}
"""What of a stage's checkpoint a later stage takes."""
CORPUS_SIZE = 20_000


def main(argv: Sequence[str]) -> int:
    """Run one stage; returns 0, or 2 for input that is not accepted."""
    options = _parser().parse_args(argv)
    try:
        settings = json.loads(options.config.read_text())
        run_stage(options.stage, settings, options)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, CheckpointError) as error:
        print(f"slidereason train {options.stage}: {error}", file=sys.stderr)
        return 2
    return 0


def run_stage(name: str, settings: dict, options: argparse.Namespace) -> None:
    """Build or resume a stage, train it, and leave `OUT/checkpoint` with the averaged weights."""
    torch.set_num_threads(options.threads)
    seed = settings["seed"]
    torch.manual_seed(seed)
    model = start_model(tiny_config(), options.out, options.init, seed)
    prepare_for_cpu(model, compiled=not options.no_compile)
    chosen = dict(settings[name])
    batch_size = chosen.pop("batch_size")
    freeze(model, chosen.pop("frozen", []))
    if options.steps is not None:
        chosen["steps"] = options.steps
    loop = LoopConfig(**{"seed": seed, "workers": options.workers, "bf16": fast_bf16()} | chosen)
    stage = build_stage(name, model, settings, batch_size, options.data)
    average = train(stage, model, loop, options.out)
    model.load_state_dict(average.weights)
    revision = save_checkpoint(options.out / "checkpoint", model, dtype=torch.float32, card={"stage": name})
    print(f"{name}: {options.out / 'checkpoint'} revision {revision}")


def freeze(model: PathChatSegR1, frozen: Sequence[str]) -> None:
    """Leave the parts whose names begin so as they are.

    Raises:
        KeyError: the model has no such part; the message names it.
    """
    for begin in frozen:
        parts = [weight for name, weight in model.named_parameters() if name.startswith(begin)]
        if not parts:
            raise KeyError(f"frozen: the model has no part {begin!r}")
        for weight in parts:
            weight.requires_grad_(False)


def start_model(config: PathChatConfig, out: Path, init: list[Path], seed: int) -> PathChatSegR1:
    """A fresh model that takes from each `init` run what its stage trained, and the first tokenizer there is."""
    tokenizers = [path / "checkpoint" / "tokenizer.json" for path in init] + [out / "tokenizer.json"]
    found = next((path for path in tokenizers if path.is_file()), None)
    if found:
        tokenizer = PathTokenizer.load(found)
    else:
        episodes = text_episodes(np.random.default_rng([seed, 4]), CORPUS_SIZE)
        corpus = [text for e in episodes for text in (normalise_query(e.query), e.answer)]
        tokenizer = PathTokenizer.train(corpus, config.language.vocabulary)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer.json")
    model = build(config, tokenizer)
    for run in init:
        take_from(model, run)
    return model


def take_from(model: PathChatSegR1, run: Path) -> None:
    """Copy into `model` what the stage of a finished run trained.

    Raises:
        CheckpointError: the run has no checkpoint, or it does not fit.
    """
    donor = load_checkpoint(run / "checkpoint")
    stage = json.loads((run / "checkpoint" / "card.json").read_text()).get("stage", "sft")
    own = weights_of(model)
    taken = {k: v for k, v in weights_of(donor).items() if k.startswith(TRAINED[stage])}
    misfits = sorted(k for k, v in taken.items() if k not in own or own[k].shape != v.shape)
    if misfits:
        raise CheckpointError(f"checkpoint {run}: does not fit this model: {misfits}")
    model.load_state_dict(taken, strict=False)
    print(f"took {len(taken)} tensors of stage {stage} from {run}")


def prepare_for_cpu(model: PathChatSegR1, compiled: bool) -> None:
    """Written-out attention, and the repeated blocks of the language model compiled: together 1.8× on one core."""
    model.language_model.qwen.set_attn_implementation(attention.NAME)
    model.pathology_encoder.vit.set_attn_implementation(attention.NAME)
    for block in model.sam_encoder.vit.blocks:
        block.written_out = True
    if compiled:
        for layer in model.language_model.text_model.layers:
            layer.compile()


def build_stage(name: str, model: PathChatSegR1, settings: dict, batch_size: int, data: Path | None) -> Stage:
    """The stage by name, with its data."""
    config, seed = model.config, settings["seed"]
    if name == "lm":
        return Lm(model.tokenizer, batch_size, seed)
    pool = ScenePool.load("train", config.tile_px, settings["synthetic_scenes"], seed, data)
    print(f"scenes: {pool.sizes()}", flush=True)
    if name == "pretrain":
        return Pretrain(pool, config.dense_classes, config.patch_grid, batch_size, seed)
    maker = EpisodeMaker(
        pool, model.tokenizer, config.dense_classes, config.patch_grid, config.image_grid, config.mask_px, batch_size,
        questions=settings["questions"], exemplar_share=settings.get("exemplar_share", EpisodeMaker.exemplar_share),
    )  # fmt: skip
    return Sft(maker, seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slidereason train", description=main.__doc__)
    parser.add_argument("stage", choices=sorted(TRAINED))
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="JSON; default: the shipped model's")
    parser.add_argument("--out", type=Path, required=True, help="folder of this run; an earlier one is resumed")
    parser.add_argument("--init", type=Path, action="append", default=[], help="a finished run to start from; many")
    parser.add_argument("--data", type=Path, default=None, help="default: SLIDEREASON_DATASETS")
    parser.add_argument("--steps", type=int, default=None, help="instead of the config's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches")
    parser.add_argument("--no-compile", action="store_true", help="where no C++ compiler is at hand")
    return parser
