"""`slidereason train lm|ssl|pretrain|sft|so-grpo`: one stage, from a config file, resumed where it stopped.

The same command under `torchrun` (or `accelerate launch`) trains on several devices:
`torchrun --nproc-per-node 8 -m model.training so-grpo --config … --out …`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model import attention
from model.builders import fast_bf16
from model.checkpoint import CheckpointError
from model.pathchat import PathChatSegR1
from model.training.devices import PRECISIONS, Devices
from model.training.loop import train
from model.training.recompute import recompute_activations
from model.training.settings import STAGES, SettingsError, StageSettings, TrainSettings
from model.training.snapshot import ResumeError
from model.training.stage import build_stage
from model.training.trainable import FROZEN_DTYPES
from model.training.weights import save_trained, start_model

DEFAULT_CONFIG = Path(__file__).with_name("tiny.json")
REFUSED = (OSError, KeyError, SettingsError, CheckpointError, ResumeError, InterruptedError)


def main(argv: Sequence[str]) -> int:
    """Run one stage; returns 0, or 2 for input that is not accepted (or a run that SIGTERM stopped)."""
    options = _parser().parse_args(argv)
    try:
        settings = TrainSettings.read(options.config)
        told = {"steps": options.steps, "workers": options.workers, "precision": _precision(options)}
        told["frozen_dtype"] = _frozen_dtype(options)
        section = settings.stage(options.stage, **told)
        run_stage(section, settings, options)
    except REFUSED as error:
        said = error.args[0] if isinstance(error, KeyError) else error
        print(f"slidereason train {options.stage}: {said}", file=sys.stderr)
        return 2
    return 0


def run_stage(section: StageSettings, settings: TrainSettings, options: argparse.Namespace) -> None:
    """Build or resume a stage, train it, and leave `OUT/checkpoint` with the averaged weights."""
    torch.set_num_threads(options.threads)
    devices = Devices.join(options.device)
    try:
        torch.manual_seed(settings.seed)
        model = start_model(settings.model, options.out, options.init, settings.seed, section.trainable, devices)
        prepare(model, compiled=not options.no_compile, recomputed=options.recompute)
        section.trainable.prepare(model)
        try:
            stage = build_stage(section, model, settings, options.data, options.out, devices.world)
        except ValueError as error:
            raise SettingsError(f"{section.name}: {error}") from error
        average = train(stage, model, section.loop, options.out, devices=devices)
        if devices.first:
            average.apply(model)
            card = {"stage": section.name, "config": options.config.name, "seed": settings.seed}
            card["steps"] = section.loop.steps
            folder = options.out / "checkpoint"
            revision = save_trained(folder, model, card)
            print(f"{section.name}: {folder} revision {revision}")
        devices.wait()
    finally:
        devices.leave()


def prepare(model: PathChatSegR1, compiled: bool, recomputed: bool = False) -> None:
    """On a CPU: written-out attention, and the repeated blocks of the language model compiled: together 1.8×.

    On a GPU, or where `recomputed`: activations of the language model and of both encoders are computed again in the
    backward pass instead of kept.
    """
    if model.device.type != "cpu" or recomputed:
        recompute_activations(model)
    if model.device.type != "cpu":
        return
    model.language_model.qwen.set_attn_implementation(attention.NAME)
    model.pathology_encoder.vit.set_attn_implementation(attention.NAME)
    for block in model.sam_encoder.vit.blocks:
        block.written_out = True
    if compiled:
        for layer in model.language_model.text_model.layers:
            layer.compile()


def _precision(options: argparse.Namespace) -> str | None:
    """What was asked for; else bfloat16 where the config says so, but for CPUs that are slow in it."""
    if options.precision is not None:
        return options.precision
    on_gpu = torch.cuda.is_available() and options.device in (None, "cuda")
    return None if on_gpu or fast_bf16() else "fp32"


def _frozen_dtype(options: argparse.Namespace) -> str | None:
    """What was asked for; else what the config says on a GPU, and fp32 on a CPU."""
    if options.frozen_dtype is not None:
        return options.frozen_dtype
    return None if torch.cuda.is_available() and options.device != "cpu" else "fp32"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slidereason train", description=main.__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="JSON; default: the shipped model's")
    parser.add_argument("--out", type=Path, required=True, help="folder of this run; an earlier one is resumed")
    parser.add_argument(
        "--init", type=Path, action="append", default=[], help="a finished run or a checkpoint to start from; many"
    )
    parser.add_argument("--data", type=Path, default=None, help="default: SLIDEREASON_DATASETS")
    parser.add_argument("--steps", type=int, default=None, help="instead of the config's")
    parser.add_argument("--device", default=None, help="cpu or cuda; default: a GPU where there is one")
    parser.add_argument("--precision", choices=PRECISIONS, default=None, help="instead of the config's")
    parser.add_argument(
        "--frozen-dtype", choices=tuple(FROZEN_DTYPES), default=None, help="of what stays; on GPUs: the config's"
    )
    parser.add_argument("--recompute", action="store_true", help="keep no activations of blocks; always on GPUs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches")
    parser.add_argument("--no-compile", action="store_true", help="where no C++ compiler is at hand")
    return parser
