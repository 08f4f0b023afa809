"""`slidereason dataset`: evaluation manifests, and data sets that are built, checked, counted and looked at.

What writes and reviews reasoning chains is in `chains_cli`.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from model.chains_cli import add_parsers

BAD_INPUT, LEAKS = 2, 1
_SHOWN = 20
"""Problems of a kind that are listed; the others are counted."""


def run_dataset(argv: Sequence[str]) -> int:
    """`slidereason dataset COMMAND …`.

    Returns:
        0; 1 when `build` or `check` finds that the sides of a set are not apart; 2 when the data is not there or an
        option is not accepted (said on stderr).
    """
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"slidereason dataset {options.command}: {error}", file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slidereason dataset", description="Work on data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_manifest, _add_build, _add_check, _add_stats, _add_inspect):
        add(commands)
    add_parsers(commands)
    return parser


def _add(commands: argparse._SubParsersAction, name: str, text: str, run: Callable) -> argparse.ArgumentParser:
    """A sub-command whose help says what it does."""
    parser = commands.add_parser(name, help=text[0].lower() + text[1:].rstrip("."), description=text)
    parser.set_defaults(run=run)
    return parser


def _add_manifest(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "manifest", "Write evaluation manifests, with the pictures they name.", run_manifest)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, e.g. runs/manifests")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: SLIDEREASON_DATASETS)")
    parser.add_argument("--split", default="test", choices=("val", "test"), help="whose patients (default: test)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the questions (default: 0)")


def run_manifest(options: argparse.Namespace) -> int:
    """Write the manifests of the sets that are there."""
    from model.evaluation.manifests import write_manifests

    for path, rows in write_manifests(options.out, options.data, options.split, options.seed).items():
        print(f"{path}: {rows} questions")
    return 0


def _add_build(commands: argparse._SubParsersAction) -> None:
    text = "Build train.jsonl, val.jsonl and test.jsonl, with pictures and masks, from data sets in their own layouts."
    parser = _add(commands, "build", text, run_build)
    parser.add_argument(
        "--source", action="append", required=True, metavar="NAME=FOLDER", help="a set to read; may be given several "
        "times; synthetic=N draws N scenes; the names and layouts are in docs/data.md",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; a build that was stopped goes on")
    parser.add_argument("--questions", type=int, default=2, help="about each picture (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of questions, chains, shares and tiles (default: 0)")
    parser.add_argument("--split-seed", type=int, help="of the split by patient (default: that of the shipped weights)")
    parser.add_argument("--share", type=float, default=1.0, help="of each source's pictures, above 0 (default: 1)")
    parser.add_argument(
        "--magnifications", type=float, nargs="+", default=[5, 10, 20, 40], help="slides: (default: 5 10 20 40)"
    )
    parser.add_argument("--tile-px", type=int, default=512, help="slides: edge of a tile (default: 512)")
    parser.add_argument("--min-tissue", type=float, default=0.25, help="slides: least share of tissue (default: 0.25)")
    parser.add_argument(
        "--tiles-per-slide", type=int, help="slides: at most so many at each magnification, half with a lesion "
        "(default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--train-on", action="append", default=[], metavar="SOURCE", help="split this source, which is kept for "
        "testing, like any other; may be given several times",
    )  # fmt: skip
    parser.add_argument("--shippable", action="store_true", help="refuse to train on what shipped weights may not see")


def run_build(options: argparse.Namespace) -> int:
    """Build a set, then check it."""
    from model.data.build import Plan, build
    from model.data.slide_tiles import Tiling
    from model.data.sources import parse_source
    from model.data.splits import SEED, TEST_ONLY_SOURCES

    for name, value in (("--questions", options.questions), ("--tile-px", options.tile_px)):
        _above_zero(name, value)
    _above_zero("--tiles-per-slide", options.tiles_per_slide or 1)
    if not 0 < options.share <= 1 or not 0 <= options.min_tissue <= 1 or min(options.magnifications) <= 0:
        raise ValueError("a share above 0 and up to 1, a tissue share of 0 to 1, magnifications above 0 are accepted")
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed}: 0 or more is accepted")
    for name in options.train_on:
        if name not in TEST_ONLY_SOURCES or options.shippable:
            accepted = ", ".join(sorted(TEST_ONLY_SOURCES))
            raise ValueError(f"--train-on {name}: {accepted} are accepted, and not with --shippable")
    tiling = Tiling(
        tuple(options.magnifications), options.tile_px, options.min_tissue, options.tiles_per_slide, options.seed
    )
    plan = Plan(
        sources=tuple(map(parse_source, options.source)), questions=options.questions, seed=options.seed,
        split_seed=SEED if options.split_seed is None else options.split_seed, share=options.share, tiling=tiling,
        train_on=tuple(sorted(options.train_on)), shippable=options.shippable,
    )  # fmt: skip
    report = build(plan, options.out, _progress())
    for side, count in report["samples"].items():
        print(f"{options.out / f'{side}.jsonl'}: {count} questions about {report['pictures'][side]} pictures")
    if report["left_out"]:
        print(f"left out, as too like a picture of another side: {len(report['left_out'])} (named in build.json)")
    return _tell(options.out, options.shippable)


def _above_zero(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} {value}: 1 or more is accepted")


def _progress() -> Callable[[str, int], None] | None:
    """One line on stderr that counts the pictures, when that is a terminal."""
    if not sys.stderr.isatty():
        return None
    return lambda source, done: print(f"\r{source}: {done} pictures", end="", file=sys.stderr, flush=True)


def _add_check(commands: argparse._SubParsersAction) -> None:
    text = "Check that train, val and test of a built set share no patient and no picture, nor one that looks like it."
    parser = _add(commands, "check", text, lambda options: _tell(options.folder, options.shippable, options.distance))
    parser.add_argument("folder", type=Path, help="of `slidereason dataset build`")
    parser.add_argument("--shippable", action="store_true", help="also that licences let trained weights be shipped")
    parser.add_argument(
        "--distance", type=int, help="bits of 64 by which the hashes of two pictures may differ to count as one "
        "(default: 6)",
    )  # fmt: skip


def _tell(folder: Path, shippable: bool, distance: int | None = None) -> int:
    """Say what is wrong with a built set."""
    from model.data.leaks import check_set
    from model.data.likeness import DISTANCE

    if distance is not None and not 0 <= distance <= 32:
        raise ValueError(f"--distance {distance}: 0 to 32 are accepted")
    problems = check_set(folder, shippable, DISTANCE if distance is None else distance)
    shown: Counter = Counter()
    for problem in problems:
        shown[problem.kind] += 1
        if shown[problem.kind] <= _SHOWN:
            print(f"{problem.kind}: {problem.text}")
    for kind, count in shown.items():
        if count > _SHOWN:
            print(f"{kind}: {count - _SHOWN} more")
    print("the sides are apart" if not problems else f"{len(problems)} problems")
    return LEAKS if problems else 0


def _add_stats(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "stats", "Count what a built set is made of.", run_stats)
    parser.add_argument("folder", type=Path, help="of `slidereason dataset build`")
    parser.add_argument("--out", type=Path, required=True, help="a figure (.png, .pdf, .svg) or the numbers (.json)")


def run_stats(options: argparse.Namespace) -> int:
    """Draw the composition, or write it as JSON."""
    from model.data.composition import compose, draw
    from model.data.leaks import read_sides

    endings = (".json", ".png", ".pdf", ".svg")
    if options.out.suffix not in endings:
        raise ValueError(f"--out {options.out}: a name that ends in {', '.join(endings)} is accepted")
    found = compose(read_sides(options.folder))
    if options.out.suffix == ".json":
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        draw(found, options.out, options.folder.resolve().name)
    print(f"composition: {options.out}")
    return 0


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    text = "Draw a sheet of samples: pictures with what is asked for outlined, question and chain beneath."
    parser = _add(commands, "inspect", text, run_inspect)
    parser.add_argument("folder", type=Path, help="of `slidereason dataset build`")
    parser.add_argument("--out", type=Path, required=True, help="the sheet, as PNG")
    parser.add_argument("--n", type=int, default=24, help="samples to show (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="of which ones (default: 0)")
    parser.add_argument("--side", choices=("train", "val", "test"), help="of one side (default: of all)")


def run_inspect(options: argparse.Namespace) -> int:
    """Draw the sheet."""
    from model.data.leaks import read_sides
    from model.data.sheet import choose, draw_sheet

    _above_zero("--n", options.n)
    sides = read_sides(options.folder)
    samples = [sample for side, part in sides.items() for sample in part if options.side in (None, side)]
    if not samples:
        raise ValueError(f"{options.folder} holds no sample{f' of {options.side}' if options.side else ''}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(choose(samples, options.n, options.seed), options.folder).save(options.out, format="PNG")
    print(f"sheet: {options.out}")
    return 0
