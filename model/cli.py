"""Commands of the model's room: `slidereason evaluate`, `train`, `dataset`. torch is imported only when one runs."""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from model.segmenter import Segmenter

BAD_INPUT = 2


def segmenter_by_name(name: str) -> Segmenter:
    """A segmenter by its name (`tiny`, or a checkpoint folder), or by `module:factory`.

    Raises:
        ValueError: the module or factory does not exist, or what it made is no segmenter.
        FileNotFoundError: no checkpoint of that name.
    """
    module_name, colon, factory = name.partition(":")
    if not colon:
        from model.predictor import load_segmenter

        return load_segmenter(name)
    if os.getcwd() not in sys.path:  # as `python -m` does; the console script does not
        sys.path.insert(0, os.getcwd())
    try:
        segmenter = getattr(importlib.import_module(module_name), factory)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model {name!r}: {error}; a name, a folder or module:factory is accepted") from error
    if not isinstance(segmenter, Segmenter):
        raise ValueError(f"model {name!r} made a {type(segmenter).__name__}; a Segmenter is accepted")
    return segmenter


def run_evaluate(argv: Sequence[str]) -> int:
    """`slidereason evaluate MANIFEST.jsonl --out RESULTS.json`: figures of a segmenter on labelled pictures.

    Returns:
        0, or 2 when the manifest, the model or an option is not accepted (said on stderr).
    """
    options = _evaluate_parser().parse_args(argv)
    from model.evaluation import evaluate as evaluation
    from model.evaluation.manifest import read_manifest

    try:
        rows = read_manifest(options.manifest)
        _limit_threads(options.threads)
        segmenter = segmenter_by_name(options.model)
        if options.masks is not None:
            options.masks.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        answers = evaluation.evaluate(rows, segmenter, options.batch, options.mpp)
        samples = evaluation.collect(answers, options.masks, _progress(len(rows)))
        duration_s = time.monotonic() - started
    except (ValueError, OSError) as error:
        print(f"slidereason evaluate: {error}", file=sys.stderr)
        return BAD_INPUT
    summary = evaluation.summarise(samples, options.bootstrap, options.seed)
    _write_json(
        options.out,
        {
            "command": ["slidereason", "evaluate", *argv],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "duration_s": round(duration_s, 1),
            "manifest": evaluation.content_hash(options.manifest),
            "model": asdict(segmenter.card),
            "options": {key: getattr(options, key) for key in ("batch", "mpp", "bootstrap", "seed")},
            "summary": summary,
            "samples": [sample.to_json() for sample in samples],
        },
    )
    print(summary_text(summary))
    print(f"results: {options.out}")
    return 0


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slidereason evaluate", description="Measure a model on the pictures and questions of a manifest."
    )
    parser.add_argument("manifest", type=Path, help="one JSON object a line: id, image, mask|null, query, mpp|null")
    parser.add_argument("--out", type=Path, required=True, help="results as JSON: samples and summary")
    parser.add_argument("--model", default="tiny", help="name, checkpoint folder or module:factory (default: tiny)")
    parser.add_argument("--batch", type=int, default=8, help="tiles the model takes at once (default: 8)")
    parser.add_argument("--mpp", type=float, help="µm/px to look at where a row's is known (default: the model's own)")
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples of the intervals (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument("--threads", type=int, help="CPU threads of the network (default: torch's own choice)")
    parser.add_argument("--masks", type=Path, help="folder to write every mask to, as PNG, to look at")
    return parser


def summary_text(summary: dict) -> str:
    """The figures as a small table for a terminal."""
    lines = [
        f"{summary['n']} questions, {summary['n_targets']} with a target, {summary['n_absent']} without, "
        f"{summary['n_groups']} groups"
    ]
    for name, interval in summary["intervals_95"].items():
        if summary[name] is not None:
            spread = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            known = {key: values[name] for key, values in summary["controls"].items() if values[name] is not None}
            controls = "  ".join(f"{key} {value:.3f}" for key, value in known.items())
            lines.append(f"{name:20s} {summary[name]:.3f} {spread:16s}  {controls}")
    return "\n".join(lines)


def run_train(argv: Sequence[str]) -> int:
    """`slidereason train …`: the stages of training; see `slidereason train --help`."""
    from model.training.cli import main

    return main(list(argv))


def run_dataset(argv: Sequence[str]) -> int:
    """`slidereason dataset manifest --out DIR`: evaluation manifests from the folders of real data.

    Returns:
        0, or 2 when the data is not there or an option is not accepted (said on stderr).
    """
    parser = argparse.ArgumentParser(prog="slidereason dataset", description="Work on data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    manifest = commands.add_parser("manifest", help="write evaluation manifests, with the pictures they name")
    manifest.add_argument("--out", type=Path, required=True, help="folder to write to, e.g. runs/manifests")
    manifest.add_argument("--data", type=Path, help="folder of the data sets (default: SLIDEREASON_DATASETS)")
    manifest.add_argument("--split", default="test", choices=("val", "test"), help="whose patients (default: test)")
    manifest.add_argument("--seed", type=int, default=0, help="seed of the questions (default: 0)")
    options = parser.parse_args(argv)
    from model.evaluation.manifests import write_manifests

    try:
        written = write_manifests(options.out, options.data, options.split, options.seed)
    except (ValueError, OSError) as error:
        print(f"slidereason dataset: {error}", file=sys.stderr)
        return BAD_INPUT
    for path, rows in written.items():
        print(f"{path}: {rows} questions")
    return 0


def _limit_threads(threads: int | None) -> None:
    """Set torch's CPU threads when asked to."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _progress(total: int) -> Callable[[int], None] | None:
    """A callback that keeps one line of progress on stderr, when that is a terminal."""
    if not sys.stderr.isatty():
        return None

    def show(done: int) -> None:
        print(f"\r{done}/{total} questions", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _write_json(path: Path, data: dict) -> None:
    """Write by rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
