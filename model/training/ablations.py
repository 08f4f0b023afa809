"""`slidereason evaluate --ablations`: every component left out once, trained and measured at a small scale.

Each finished stage and each finished arm is kept in `--out` under a hash of all it depends on: killed at any time, the
same command goes on, and arms that begin alike are trained alike once.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from model.builders import build, fast_bf16
from model.evaluation.evaluate import content_hash
from model.evaluation.manifest import ManifestError, ManifestRow
from model.training import ablation_report as report
from model.training.ablation_arms import ARMS, BUDGETS, FULL, Budget, Step, hash_of, resolve
from model.training.ablation_data import digest, small_pool, test_rows
from model.training.ablation_runs import Workshop, course
from model.training.cli import REFUSED
from model.training.settings import TrainSettings

CONFIG = Path(__file__).with_name("mini.json")
BAD_INPUT = 2


def main(argv: Sequence[str]) -> int:
    """Run what is missing of the ablations, and write results, tables and plot; returns 0, or 2 for bad input."""
    told = [word for word in argv if word != "--ablations"]
    options = parser().parse_args(told)
    try:
        results = run(options, ["slidereason", "evaluate", "--ablations", *told])
    except (*REFUSED, ManifestError, ValueError) as error:
        said = error.args[0] if isinstance(error, KeyError) else error
        print(f"slidereason evaluate --ablations: {said}", file=sys.stderr)
        return BAD_INPUT
    text = report.tables(results)
    _write(options.results or options.out / "ablations.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    report.write_table(options.table or options.out / "ablations.md", text)
    report.draw(results, options.plot or options.out / "ablations.png")
    print(text)
    return 0


def run(options: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    """Train and ask every arm under every seed, as far as that is not done.

    Raises:
        ValueError: no such arm.
        FileNotFoundError: the data is not there.
        InterruptedError: SIGTERM came; the same command goes on.
    """
    torch.set_num_threads(options.threads)
    budget = BUDGETS[options.budget]
    settings = read_settings(options.config, budget)
    tests = test_rows(options.out / "tests", budget, options.data)
    pool = small_pool(settings, options.data)
    print(f"scenes: {pool.sizes()}", flush=True)
    shop = Workshop(options.out, settings, pool, budget.corpus, options.workers)
    trained_on = digest(pool)
    data = hash_of([trained_on, settings.model.to_json(), asdict(settings.data), budget.corpus])
    asked = {path.stem: content_hash(path) for path in sorted((options.out / "tests").glob("*.jsonl"))}
    names = [FULL, *(arm for arm in dict.fromkeys(options.arms) if arm != FULL)]
    told: dict[str, dict[int, Any]] = {arm: {} for arm in names}
    steps: dict[str, dict[int, Step]] = {arm: {} for arm in names}
    for seed in options.seeds:
        for arm in names:
            step = steps[arm][seed] = resolve(ARMS[arm], settings, budget, seed, data)
            keep = options.out / "arms" / f"{arm}-{seed}-{hash_of([step.key, asked])}.json"
            told[arm][seed] = shop.ask(step, tests, keep)
            print(f"arm {arm}, seed {seed}: {keep.name}", flush=True)
    compared = report.compare_arms(told, options.bootstrap)
    return {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "budget": options.budget,
        "seeds": list(options.seeds),
        "machine": {"threads": options.threads, "cpus": os.cpu_count(), "bf16": fast_bf16()},
        "parameters": sum(weight.numel() for weight in build(settings.model, shop.tokenizer).parameters()),
        "data": {"train": trained_on, "scenes": pool.sizes(), "tests": asked},
        "tests": {name: _about(rows) for name, rows in tests.items()},
        "settings": {"model": settings.model.to_json(), "data": asdict(settings.data), **settings.stages},
        "arms": {arm: _arm(arm, steps[arm], compared[arm], shop) for arm in names},
    }


def read_settings(path: Path, budget: Budget) -> TrainSettings:
    """`mini.json` with a budget's changes, in fp32 where bfloat16 is slow."""
    told = json.loads(path.read_text())
    told["data"] = {**told.get("data", {}), **budget.data}
    for stage, changes in budget.stages.items():
        told[stage] = {**told[stage], **changes}
    if not fast_bf16():
        for stage in ("lm", "ssl", "pretrain", "sft", "so-grpo"):
            told[stage]["precision"] = "fp32"
    return TrainSettings.from_json(told)


def _about(rows: Sequence[ManifestRow]) -> dict[str, int]:
    return {
        "questions": len(rows), "absent": sum(row.mask is None for row in rows),
        "patients": len({row.group for row in rows}),
    }  # fmt: skip


def _arm(name: str, steps: dict[int, Step], compared: dict[str, Any], shop: Workshop) -> dict[str, Any]:
    """An arm's part of the results."""
    arm = ARMS[name]
    spent = {seed: [_done(shop, step) for step in last.lineage()] for seed, last in steps.items()}
    first = next(iter(spent.values()))
    kept = ("stage", "steps", "pictures", "answers_drawn")
    return {
        "words": arm.words, "kind": arm.kind, "note": arm.note,
        "budget": {
            "stages": [{name: one[name] for name in kept} for one in first],
            "pictures": sum(one["pictures"] for one in first if one["stage"] != "lm"),
            "answers_drawn": sum(one["answers_drawn"] for one in first),
            "seconds": sum(one["seconds"] for stages in spent.values() for one in stages) / len(spent),
            "by_seed": {str(seed): {one["key"]: one["seconds"] for one in stages} for seed, stages in spent.items()},
        },
        "course": {
            str(seed): course(shop.folder(step)) for seed, step in steps.items() if step.stage == "so-grpo"
        },
        "resolved": {str(seed): step.to_json() for seed, step in steps.items()},
        "sets": compared,
    }  # fmt: skip


def _done(shop: Workshop, step: Step) -> dict[str, Any]:
    return json.loads((shop.folder(step) / "done.json").read_text())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def parser() -> argparse.ArgumentParser:
    """Of the options beside `--ablations`."""
    parser = argparse.ArgumentParser(prog="slidereason evaluate --ablations", description=main.__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ablations"), help="what is kept; the same folder goes on"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM",
        help=f"beside the full model; of {', '.join(ARMS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--budget", choices=list(BUDGETS), default="default", help="`smoke`: a few steps a stage")
    parser.add_argument("--config", type=Path, default=CONFIG, help="JSON of the small model and its stages")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: SLIDEREASON_DATASETS)")
    parser.add_argument("--results", type=Path, help="JSON (default: OUT/ablations.json)")
    parser.add_argument("--table", type=Path, help="Markdown; between its marks where it has them (default: in OUT)")
    parser.add_argument("--plot", type=Path, help="PNG (default: OUT/ablations.png)")
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples of the intervals (default: 2000)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches (default: none)")
    return parser
