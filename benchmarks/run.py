"""`make bench`: run the benchmarks, each in a process of its own, and keep their results as JSON."""

import argparse
import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import RESULTS, write_result
from benchmarks.rivals import PairedBench

NAMES = (
    "reading", "segmenter", "pipeline", "memory", "grid", "evaluation", "oneshot", "calibration", "decode",
    "robustness", "gain", "known_optimum", "training_cost", "pollers", "cluster", "ledger_cost", "scale",
    "dicom_memory", "viewer",
)  # fmt: skip
UNAVAILABLE = 3


class Unavailable(Exception):
    """What a benchmark needs is not here (data, a checkpoint); it is left out and said so."""


def parser() -> argparse.ArgumentParser:
    """Options of `python -m benchmarks.run`."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)} (default: all)")
    options.add_argument("--repeats", type=int, default=3, help="repetitions of each measurement (default: 3)")
    options.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    options.add_argument("--model", default="tiny", help="name, checkpoint folder or module:factory (default: tiny)")
    options.add_argument("--quick", action="store_true", help="as little as shows that it works")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of results (default: benchmarks/results)")
    rivals = options.add_argument_group("comparisons", "of robustness and gain")
    other = rivals.add_mutually_exclusive_group()
    other.add_argument("--against", help="a second model, as --model takes it; differences are --model less this")
    other.add_argument("--against-revision", metavar="COMMIT", help="the tiny model of a commit, with its own code")
    rivals.add_argument("--limit", type=int, help="most pictures of a set (default: the benchmark's own)")
    rivals.add_argument("--seeds", type=int, nargs="+", help="of the questions (default: the benchmark's own)")
    rivals.add_argument("--split", default="test", choices=("val", "test"), help="whose patients (default: test)")
    options.add_argument("--here", action="store_true", help="run a single one in this process")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 when a benchmark failed, 2 when one is not known."""
    options = parser().parse_args(argv)
    names = options.names or list(NAMES)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; accepted: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if options.here:
        return _run_here(names[0], options)
    given = [option for option in (argv if argv is not None else sys.argv[1:]) if option not in NAMES]
    codes = [
        subprocess.run([sys.executable, "-m", "benchmarks.run", name, "--here", *given], check=False).returncode
        for name in names
    ]
    return int(any(code not in (0, UNAVAILABLE) for code in codes))


def _run_here(name: str, options: argparse.Namespace) -> int:
    work = Path(tempfile.mkdtemp(prefix="slidereason-bench-"))
    repeats = 1 if options.quick else options.repeats
    bench = PairedBench(
        options.seed, repeats, work, options.model, options.quick, options.out, options.against,
        options.against_revision, options.limit, options.seeds and tuple(options.seeds), options.split,
    )  # fmt: skip
    try:
        measurements, data = importlib.import_module(f"benchmarks.{name}").measure(bench)
    except Exception as error:
        if type(error).__name__ != "Unavailable":
            raise
        print(f"{name}: left out, {error}")
        return UNAVAILABLE
    finally:
        shutil.rmtree(work, ignore_errors=True)
    path = write_result(name, measurements, data, bench, options.out)
    for measurement in measurements:
        shown = measurement.to_json()
        spread = f"({shown['min']:.4g} to {shown['max']:.4g})"
        print(f"{name}: {shown['name']}: {shown['median']:.4g} {shown['unit']} {spread}")
    print(f"{name}: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
