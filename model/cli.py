"""Commands of the model's room: `slidereason evaluate`, `calibrate`, `train`; torch waits until one runs."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from model.segmenter import Segmenter

BAD_INPUT = 2
_OPTIONS = ("batch", "mpp", "one_shot_control", "boundary_tolerance", "bootstrap", "seed")
"""Of `evaluate`; those that may change its results."""


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
    if "--ablations" in argv:
        from model.training.ablations import main

        return main(argv)
    options = _evaluate_parser().parse_args(argv)
    from model.evaluation.evaluate import content_hash
    from model.evaluation.paired import comparison_text

    try:
        paired = {} if options.against is None else {"against": _read_against(options)}
        _limit_threads(options.threads)
        results = _answers(options.model, options, options.masks)
        if paired:
            paired = _paired(results, paired["against"] or _answers(options.against, options, None), options)
    except (ValueError, OSError) as error:
        print(f"slidereason evaluate: {error}", file=sys.stderr)
        return BAD_INPUT
    head = {
        "command": ["slidereason", "evaluate", *argv],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "manifest": content_hash(options.manifest),
        "options": {key: getattr(options, key) for key in _OPTIONS},
    }
    _write_json(options.out, {**head, **results, **paired})
    print(summary_text(results["summary"]))
    if paired:
        print(comparison_text(paired["paired"]))
    print(f"results: {options.out}")
    return 0


def _answers(name: str, options: argparse.Namespace, masks: Path | None) -> dict:
    """One model's answers to the manifest: `duration_s`, `model`, `summary` and `samples` of the results."""
    from model.evaluation.boundary import Tolerance
    from model.evaluation.evaluate import evaluate
    from model.evaluation.manifest import read_manifest
    from model.evaluation.results import gather

    rows = read_manifest(options.manifest)
    tolerance = Tolerance.parse(options.boundary_tolerance)
    segmenter = segmenter_by_name(name)
    if masks is not None:
        masks.mkdir(parents=True, exist_ok=True)
    answers = evaluate(rows, segmenter, options.batch, options.mpp, options.one_shot_control, tolerance)
    return gather(answers, segmenter.card, masks, _progress(len(rows)), options.bootstrap, options.seed)


def _read_against(options: argparse.Namespace) -> dict | None:
    """What `--against` names where it is results on disk; None where it is a model."""
    if not options.against.endswith(".json"):
        return None
    from model.evaluation.results import read_results

    return read_results(Path(options.against))


def _paired(ours: dict, theirs: dict, options: argparse.Namespace) -> dict:
    """The other answers, and what the two differ by."""
    from model.evaluation.paired import compare

    told = {key: theirs[key] for key in ("duration_s", "model", "summary", "samples") if key in theirs}
    compared = compare(ours["samples"], theirs["samples"], options.bootstrap, options.seed)
    return {"against": told, "paired": compared}


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slidereason evaluate", description="Measure a model on the pictures and questions of a manifest.",
        epilog="`slidereason evaluate --ablations` trains and measures a small model without each of its components "
        "instead; see `slidereason evaluate --ablations --help`.",
    )  # fmt: skip
    parser.add_argument("manifest", type=Path, help="one JSON object a line: id, image, mask|null, query, mpp|null")
    parser.add_argument("--out", type=Path, required=True, help="results as JSON: samples and summary")
    parser.add_argument("--model", default="tiny", help="name, checkpoint folder or module:factory (default: tiny)")
    parser.add_argument(
        "--against", help="another model, or the .json results of one: paired differences, --model less this"
    )
    parser.add_argument("--batch", type=int, default=8, help="tiles the model takes at once (default: 8)")
    parser.add_argument(
        "--boundary-tolerance", default="0.008",
        help="of the boundary F-score: a share of the picture's diagonal, or pixels, as 3px (default: 0.008)",
    )  # fmt: skip
    parser.add_argument("--mpp", type=float, help="µm/px to look at where a row's is known (default: the model's own)")
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples of the intervals (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument("--threads", type=int, help="CPU threads of the network (default: torch's own choice)")
    parser.add_argument("--masks", type=Path, help="folder to write every mask to, as PNG, to look at")
    parser.add_argument(
        "--one-shot-control", action="store_true",
        help="ask rows with an exemplar also without it, and with its outline inverted",
    )  # fmt: skip
    return parser


def summary_text(summary: dict) -> str:
    """The figures as a small table for a terminal."""
    lines = [
        f"{summary['n']} questions, {summary['n_targets']} with a target, {summary['n_absent']} without, "
        f"{summary['n_groups']} groups"
    ]
    controls = summary["controls"].items()
    for name in summary["intervals_95"]:
        if summary[name] is not None:
            known = {key: figures[name] for key, figures in controls if figures.get(name) is not None}
            worth = "  ".join(f"{key} {value:.3f}" for key, value in known.items())
            lines.append(f"{name:24s} {_spread(summary, name):22s}  {worth}".rstrip())
    if "calibration" in summary:
        stated = summary["calibration"]
        lines.append(f"confidence of {stated['n_masks']} masks, {stated['n_right']} right")
        lines += [f"{name:20s} {_spread(stated, name)}" for name in ("ece", "brier")]
    for how, compared in summary.get("one_shot", {}).items():
        lines.append(f"{compared['n']} questions with their exemplar, against {how}")
        for name in ("dice_with_misses", "dice_emitted", "sensitivity", "specificity"):
            sides = [_spread(compared[side], name) for side in ("with_exemplar", "control", "difference")]
            lines.append(f"{name:20s} {sides[0]:22s} against {sides[1]:22s} difference {sides[2]}")
    return "\n".join(lines)


def _spread(figures: dict, name: str) -> str:
    """A figure with its interval."""
    value, interval = figures[name], figures["intervals_95"][name]
    spread = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return "–" if value is None else f"{value:.3f}{spread}"


def run_calibrate(argv: Sequence[str]) -> int:
    """`slidereason calibrate --val … --test … --out …`: slope and offset of the confidence, and what they give.

    Returns:
        0, or 2 when a file, the model or an option is not accepted (said on stderr).
    """
    options = _calibrate_parser().parse_args(argv)
    from model.evaluation.calibration import calibrate
    from model.evaluation.evaluate import content_hash
    from model.evaluation.reliability import draw

    try:
        _limit_threads(options.threads)
        val, test = (_masks_of(paths, options) for paths in (options.val, options.test))
        found = calibrate(val, test, options.bootstrap, options.seed)
        if options.plot is not None:
            options.plot.parent.mkdir(parents=True, exist_ok=True)
            draw({name: found["test"][name] for name in ("before", "after")}).save(options.plot)
    except (ValueError, OSError) as error:
        print(f"slidereason calibrate: {error}", file=sys.stderr)
        return BAD_INPUT
    files = {side: {str(path): content_hash(path) for path in getattr(options, side)} for side in ("val", "test")}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    command = ["slidereason", "calibrate", *argv]
    _write_json(options.out, {"command": command, "created": created, "model": options.model, "files": files, **found})
    print(calibration_text(found))
    print(f"calibration: {options.out}")
    return 0


def _calibrate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slidereason calibrate",
        description="Fit the confidence of masks on some patients and measure it on others. VAL and TEST are manifests "
        "(.jsonl), which the model is asked, or results of `slidereason evaluate` (.json), which are read.",
    )
    parser.add_argument("--val", type=Path, nargs="+", required=True, help="to fit on")
    parser.add_argument("--test", type=Path, nargs="+", required=True, help="to measure on: other patients")
    parser.add_argument("--out", type=Path, required=True, help="slope, offset and figures as JSON")
    parser.add_argument("--model", default="tiny", help="name, checkpoint folder or module:factory (default: tiny)")
    parser.add_argument("--plot", type=Path, help="reliability before and after, as PNG")
    parser.add_argument("--batch", type=int, default=8, help="tiles the model takes at once (default: 8)")
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples of the intervals (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument("--threads", type=int, help="CPU threads of the network (default: torch's own choice)")
    return parser


def _masks_of(paths: Sequence[Path], options: argparse.Namespace) -> list:
    """The masks of manifests and results together."""
    from model.evaluation.evaluate import masks_of
    from model.evaluation.manifest import read_manifest
    from model.evaluation.results import read_masks

    masks = []
    for path in paths:
        if path.suffix == ".json":
            masks += read_masks(path)
        else:
            rows = read_manifest(path)
            show = _progress(len(rows)) or (lambda done: None)
            answers = masks_of(rows, segmenter_by_name(options.model), options.batch)
            for done, told in enumerate(answers, start=1):
                masks += told
                show(done)
    return masks


def calibration_text(found: dict) -> str:
    """What a calibration gives, on patients it was not fitted on."""
    before, after, difference = (found["test"][name] for name in ("before", "after", "difference"))
    lines = [
        f"slope {found['slope']:.4f}, offset {found['offset']:.4f}, from {found['val']['before']['n_masks']} masks",
        f"{before['n_masks']} masks of other patients, {before['n_right']} right, {before['n_groups']} groups",
    ]
    for name in ("ece", "brier"):
        lines.append(
            f"{name:20s} before {_spread(before, name)}  after {_spread(after, name)}  "
            f"difference {_spread(difference, name)}"
        )
    lines.append(f"{'ece by chance':20s} before {before['ece_by_chance']:.3f}  after {after['ece_by_chance']:.3f}")
    return "\n".join(lines)


def run_train(argv: Sequence[str]) -> int:
    """`slidereason train …`: the stages of training; see `slidereason train --help`."""
    from model.training.cli import main

    return main(list(argv))


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
