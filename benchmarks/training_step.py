"""What steps of the paper's training take on one GPU: seconds, peak memory, and the share of its peak that they reach.

    python -m benchmarks.training_step --device cuda                                       paper-7b on one GPU
    python -m benchmarks.training_step --config model/training/paper-dry.json              its rehearsal, the same path

Weights are random and made on the device, pictures are synthetic and made before the clock starts: a step's time
depends on sizes alone, but for the length of drawn answers, which random weights do not end (so `so-grpo` draws the
most there may be). One process: no gradients of other GPUs are waited for. Operations are those of
`benchmarks.training_cost`, which says what the whole training takes if every step is as these.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import RESULTS, Bench, Measurement, write_result
from benchmarks.training_cost import GIB, PAPER, STAGES, Data, Machine, cost_of
from model.builders import build, complete
from model.data.corpus import text_episodes
from model.data.queries import normalise_query
from model.pathchat import PathChatSegR1
from model.tokenizer import PathTokenizer
from model.training.cli import prepare
from model.training.loop import Run
from model.training.settings import DataSettings, StageSettings, TrainSettings
from model.training.stage import build_stage
from model.training.weights import dtypes

CORPUS = 4000
"""Chains that the tokenizer is trained on."""


def measure_stage(name: str, settings: TrainSettings, device: torch.device, warm: int, steps: int) -> list[Measurement]:
    """Steps of one stage: seconds of each, peak memory, and the share of the GPU's peak.

    Args:
        name: the stage.
        settings: a config; its pictures become synthetic.
        device: where it runs.
        warm: steps before the clock starts; steps: steps that are timed.
    """
    section = settings.stage(name, steps=warm + steps, workers=0)
    torch.manual_seed(settings.seed)
    tokenizer = _tokenizer(settings)
    cost = cost_of(name, settings, Machine(gpus=1), Data())
    with tempfile.TemporaryDirectory() as folder:
        model = _model(section, settings, tokenizer, device)
        stage = build_stage(section, model, settings, None, Path(folder))
        run = Run(stage, model, section.loop, Path(folder))
        model.train()
        seconds, peak = _timed(run, section, warm, steps, device)
    of_peak = [cost.step_flops / s / Machine.peak_flops for s in seconds]
    notes = {"micro-batch": section.batch_size, "accumulation": section.loop.accumulation, "warm-up steps": warm}
    found = [Measurement(f"{name}: a step on one GPU", "s", tuple(seconds), notes)]
    if device.type == "cuda":
        by_formula = round(sum(cost.memory.values()) / GIB, 1)
        found += [
            Measurement(f"{name}: peak memory", "GiB", (round(peak / GIB, 2),), {"by formula, GiB": by_formula}),
            Measurement(
                f"{name}: operations of the formula, of 989 TFLOP/s", "share", tuple(of_peak),
                {"PFLOP a step": cost.step_flops / 1e15, "assumed": Machine.mfu},
            ),
        ]  # fmt: skip
    return found


def _model(
    section: StageSettings, settings: TrainSettings, tokenizer: PathTokenizer, device: torch.device
) -> PathChatSegR1:
    """Random weights, each as the stage holds it, on the device: `start_model`'s but for their values."""
    held = dtypes(settings.model, tokenizer, section.trainable)
    model = complete(build(settings.model, tokenizer, device, torch.bfloat16, seed=settings.seed))
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(held[name])
    prepare(model, compiled=False, recomputed=True)
    section.trainable.prepare(model)
    return model


def _tokenizer(settings: TrainSettings) -> PathTokenizer:
    episodes = text_episodes(np.random.default_rng([settings.seed, 4]), CORPUS)
    corpus = [text for e in episodes for text in (normalise_query(e.query), e.answer)]
    return PathTokenizer.train(corpus, settings.model.language.vocabulary)


def _timed(run: Run, section: StageSettings, warm: int, steps: int, device: torch.device) -> tuple[list[float], float]:
    """(seconds of each step, peak bytes): batches are there before the clock starts."""
    count = section.loop.accumulation * (warm + steps)
    batches = iter([run.stage.batch(i) for i in range(count)])
    seconds = []
    for step in range(warm + steps):
        _wait(device)
        started = time.perf_counter()
        run._step(step, batches)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return seconds[warm:], peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=PAPER, help="default: the paper's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--warm", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--scenes", type=int, default=8, help="synthetic pictures")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure stage by stage; what was found is written after each."""
    options = _parser().parse_args(argv)
    settings = TrainSettings.read(options.config)
    made = DataSettings(options.scenes, settings.data.questions, settings.data.exemplar_share, {"synthetic": 1})
    settings, device = replace(settings, data=made), torch.device(options.device)
    found, failed = [], 0
    bench = Bench(settings.seed, options.steps, Path(), settings.model.name, False, options.out)
    for name in options.stages:
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            of_stage = measure_stage(name, settings, device, options.warm, options.steps)
        except (RuntimeError, ValueError):
            traceback.print_exc()
            failed = 1
            continue
        found += of_stage
        for one in of_stage:
            print(f"{one.name}: {statistics.median(one.values):.4g} {one.unit} of {len(one.values)}", flush=True)
        data = f"{options.config.name}, {options.scenes} synthetic pictures, random weights, seed {settings.seed}"
        write_result("training_step", found, data, bench, options.out)
    return failed


if __name__ == "__main__":
    sys.exit(main())
