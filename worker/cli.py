"""Commands of the worker's room: `slidereason segment`, `worker`, `demo`. What is heavy is imported when one runs."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import (
    BadRequest,
    MppUnknown,
    SlideForbidden,
    SlideNotFound,
    SlideReasonError,
    SlideUnreadable,
    fields_of,
)
from worker.types import SAME_AS_EXAMPLE, ExemplarSpec, JobSpec

if TYPE_CHECKING:
    from model.segmenter import Segmenter
    from worker.inline import InlineResult

BAD_INPUT = 2
FAILED = 1
STOPPED = 130

UNTRAINED = "tests.segmenters:hue_segmenter"
"""Drives the demo of a checkout that has no trained model yet."""

DEMO_QUERY = "Where is the tumour?"
DEMO_CONCEPT = "tumour"


def run_segment(argv: Sequence[str]) -> int:
    """`slidereason segment SLIDE [QUERY] --out DIR`: one job in this process.

    Returns:
        0; 2 for input that is not accepted, 1 for a job that failed, each said in one line on stderr.
    """
    options = _segment_parser().parse_intermixed_args(argv)  # the query may follow the options, or be missing
    return _told("segment", lambda: _segment(options), options.slide, options.exemplar)


def run_worker(argv: Sequence[str]) -> int:
    """`slidereason worker`: one worker of a cluster, until it is told to stop.

    Returns:
        0; 2 when a setting is missing or not accepted.
    """
    parser = argparse.ArgumentParser(prog="slidereason worker", description="Run one worker; one per GPU.")
    parser.add_argument("--broker-url", help="redis://… (SLIDEREASON_BROKER_URL)")
    parser.add_argument("--database-url", help="postgresql+psycopg://… (SLIDEREASON_DATABASE_URL)")
    parser.add_argument("--artifacts", help="folder of the jobs' artifacts, or s3://… (SLIDEREASON_ARTIFACTS)")
    parser.add_argument("--scratch", help="folder for work in progress, with s3 (SLIDEREASON_SCRATCH)")
    parser.add_argument("--model", help="name of the segmenter (SLIDEREASON_MODEL, default tiny)")
    parser.add_argument(
        "--block-threads", "--threads", dest="block_threads",
        help="blocks worked on at once (SLIDEREASON_BLOCK_THREADS, default 2)",
    )  # fmt: skip
    parser.add_argument("--max-batch", help="tiles per call of the model (SLIDEREASON_MAX_BATCH, default 64)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (SLIDEREASON_DEVICE, default auto)")
    parser.add_argument("--drain-s", help="seconds running blocks get on SIGTERM (SLIDEREASON_DRAIN_S, default 25)")
    parser.add_argument(
        "--memory-limit-bytes",
        help="drain and end with 75 above it (SLIDEREASON_MEMORY_LIMIT_BYTES, default 90 %% of the control group's)",
    )  # fmt: skip
    parser.add_argument("--health-host", help="address of probes and metrics (SLIDEREASON_HEALTH_HOST, loopback)")
    parser.add_argument("--health-port", help="port of probes and metrics (SLIDEREASON_HEALTH_PORT, default 0: none)")
    parser.add_argument("--retention-days", help="how long ended jobs are kept (SLIDEREASON_RETENTION_DAYS, for ever)")
    parser.add_argument("--log-format", help="text or json (SLIDEREASON_LOG_FORMAT)")
    parser.add_argument("--log-level", help="DEBUG, INFO, WARNING, ERROR or CRITICAL (SLIDEREASON_LOG_LEVEL)")
    options = vars(parser.parse_args(argv))
    given = {f"SLIDEREASON_{name.upper()}": value for name, value in options.items() if value is not None}

    def serve() -> int:
        from worker import worker_main

        return worker_main.run_worker(worker_main.WorkerSettings.from_environment({**os.environ, **given}))

    return _told("worker", serve)


def run_demo(argv: Sequence[str]) -> int:
    """`slidereason demo`: the whole job on a synthetic slide with known truth, or on SLIDE with QUERY.

    Returns:
        0; 2 for input that is not accepted, 1 for a job that failed.
    """
    parser = _parser("demo", "The whole job on a synthetic slide, or on yours.")
    parser.add_argument("--slide", default=os.environ.get("SLIDE") or None, help="default: a synthetic slide (SLIDE)")
    parser.add_argument("--query", action="append", help="what to look for (QUERY)")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic slide")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results (default: demo)")
    options = parser.parse_args(argv)
    options.overwrite = True
    options.query = options.query or ([] if options.exemplar else [os.environ.get("QUERY") or DEMO_QUERY])
    return _told("demo", lambda: _demo(options), options.slide, options.exemplar)


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    """The options that `segment` and `demo` share."""
    parser = argparse.ArgumentParser(
        prog=f"slidereason {command}", description=description, epilog="Research use only."
    )
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--mpp", type=_positive, help="µm per pixel to look at (default: the model's)")
    scale.add_argument("--magnification", type=_positive, help="the same as 10/mpp: 40 is 0.25 µm/px")
    parser.add_argument("--mpp-override", type=_positive, help="µm per level-0 pixel, for slides that do not say")
    parser.add_argument("--roi", type=Path, help="GeoJSON polygons in level-0 pixels (default: all tissue)")
    parser.add_argument("--tissue", choices=("auto", "off"), default="auto", help="auto skips glass")
    parser.add_argument("--overlap", type=float, default=0.5, help="of neighbouring tiles, 0 to 0.75")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability from which a pixel belongs")
    parser.add_argument("--min-region-um2", type=float, default=500.0, help="smaller regions are dropped")
    parser.add_argument("--min-coverage", type=float, default=0.5, help="share of tiles that must be looked at")
    parser.add_argument("--no-second-look", action="store_true", help="do not ask silent tiles again")
    parser.add_argument("--exemplar", action=_Once, metavar="SLIDE", help="slide or picture: what to look for")
    parser.add_argument(
        "--exemplar-mask", action=_Once, type=Path, help="its outline there: GeoJSON, or a mask picture of that size"
    )
    parser.add_argument(
        "--exemplar-roi", action=_Once, type=Path, help="GeoJSON polygons outside which nothing of it is shown"
    )
    parser.add_argument(
        "--exemplar-mpp-override", action=_Once, type=_positive, help="µm per pixel, where it does not say"
    )
    parser.add_argument("--model", help="a model's name or folder, or module:factory (default: tiny)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (SLIDEREASON_DEVICE, default auto)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


class _Once(argparse.Action):
    """An option of which a job takes one, and where the last of several must not win unseen."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice; a job takes one exemplar, whose mask may have several parts")
        setattr(namespace, self.dest, values)


def _segment_parser() -> argparse.ArgumentParser:
    parser = _parser("segment", "Answer a question about one slide: overlay, regions and report into a folder.")
    parser.add_argument("slide", help="slide file, or DICOM folder")
    parser.add_argument(
        "query", nargs="*", help="what to look for; several are answered in one pass; may be left out with --exemplar"
    )
    parser.add_argument("--out", type=Path, required=True, help="empty or new folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run in --out")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _told(command: str, run: Callable[[], int], slide: str | None = None, exemplar: str | None = None) -> int:
    """Run a command; what went wrong is one line, and says of which slide or option."""
    try:
        return run()
    except KeyboardInterrupt:
        print(f"slidereason {command}: stopped; nothing was written", file=sys.stderr)
        return STOPPED
    except SlideReasonError as error:
        about = exemplar if error.field and error.field.startswith("exemplar") else slide
        subject = f"{about}: " if about and isinstance(error, SlideUnreadable | MppUnknown) else ""
        option = f" [--{_option(error.field)}]" if error.field not in (None, "slide", "query") else ""
        print(f"slidereason {command}: {subject}{' '.join(str(error).split())}{option}", file=sys.stderr)
        bad_input = isinstance(error, BadRequest | SlideNotFound | SlideForbidden | SlideUnreadable | MppUnknown)
        return BAD_INPUT if bad_input else FAILED
    except Exception as error:
        print(f"slidereason {command}: failed with {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED


def _option(field: str) -> str:
    """`exemplar.slide` → `exemplar`, `exemplar.mpp_override` → `exemplar-mpp-override`."""
    return field.removesuffix(".slide").replace("_", "-").replace(".", "-")


def _segment(options: argparse.Namespace) -> int:
    spec = _spec(options, options.slide)
    result = _run(spec, options, _load(options.model or "tiny", options.device))
    _print_result(result)
    return 0


def _spec(options: argparse.Namespace, slide: str | Path) -> JobSpec:
    from worker.outlines import read_roi

    path = Path(slide)
    if not path.exists():
        raise SlideNotFound(f"{slide} does not exist; give the path of a slide")
    exemplar = _exemplar(options)
    queries = tuple(query.strip() for query in options.query or ([SAME_AS_EXAMPLE] if options.exemplar else []))
    if not queries:
        raise BadRequest(
            'the query is missing; ask something, such as "Where is the tumour?", or show an --exemplar', field="query"
        )
    if not all(queries):
        raise BadRequest("the query is empty; ask something, such as \"Where is the tumour?\"", field="query")
    for name, low, high in (("overlap", 0, 0.75), ("threshold", 0, 1), ("min_coverage", 0, 1)):
        if not low <= getattr(options, name) <= high:
            raise BadRequest(f"{name} must be in [{low}, {high}]", field=name)
    if not 0 <= options.min_region_um2 < float("inf"):
        raise BadRequest("min_region_um2 must not be negative", field="min_region_um2")
    return JobSpec(
        slide_path=str(path.resolve()),
        slide_id=path.name,
        queries=queries,
        mpp=10 / options.magnification if options.magnification else options.mpp,
        roi=read_roi(options.roi) if options.roi else (),
        tissue=options.tissue,
        mpp_override=options.mpp_override,
        overlap=options.overlap,
        threshold=options.threshold,
        min_region_um2=options.min_region_um2,
        min_coverage=options.min_coverage,
        second_look=not options.no_second_look,
        model=options.model or "tiny",
        exemplar=exemplar,
    )


def _exemplar(options: argparse.Namespace) -> ExemplarSpec | None:
    from worker.outlines import read_mask, read_roi
    from worker.slide_process import inspect_slide

    if options.exemplar is None:
        for name in ("exemplar_mask", "exemplar_roi", "exemplar_mpp_override"):
            if getattr(options, name) is not None:
                raise BadRequest("an outline without its slide; give --exemplar SLIDE as well", field=name)
        return None
    if options.exemplar_mask is None:
        raise BadRequest(
            "the exemplar has no outline; give --exemplar-mask, a GeoJSON file in its level-0 pixels or a mask picture",
            field="exemplar_mask",
        )
    path = Path(options.exemplar)
    if not path.exists():
        raise SlideNotFound(f"{path} does not exist; give the path of a slide or picture", field="exemplar.slide")
    with fields_of("exemplar"):
        info = inspect_slide(path.resolve(), options.exemplar_mpp_override)
    return ExemplarSpec(
        slide_path=str(path.resolve()),
        slide_id=path.name,
        mask=read_mask(options.exemplar_mask, info),
        roi=read_roi(options.exemplar_roi, "exemplar.roi") if options.exemplar_roi else (),
        mpp_override=options.exemplar_mpp_override,
    )


def _load(name: str, device: str | None) -> "Segmenter":
    from worker.worker_main import load_segmenter

    return load_segmenter(name, device or os.environ.get("SLIDEREASON_DEVICE") or "auto")


def _run(spec: JobSpec, options: argparse.Namespace, segmenter: "Segmenter") -> "InlineResult":
    from tqdm import tqdm

    from worker.inline import run_job_inline

    interval_s = 0.2 if sys.stderr.isatty() else 5.0  # a log file is no place for a moving bar
    with tqdm(
        total=0, unit="tile", desc="planning", disable=options.quiet, dynamic_ncols=True, mininterval=interval_s,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} tiles, {elapsed}",
    ) as bar:  # fmt: skip

        def show(job, tiles: int) -> None:
            bar.total = job.tiles_total
            if tiles > bar.n:
                bar.set_description_str("segmenting" if tiles < job.tiles_total else "finishing", refresh=False)
                bar.update(min(tiles, job.tiles_total) - bar.n)
            elif sys.stderr.isatty():
                bar.refresh()

        result = run_job_inline(spec, options.out, segmenter, show, overwrite=options.overwrite)
        show(result.job, result.job.tiles_total)
        bar.set_description_str("done")
    return result


def _print_result(result: "InlineResult") -> None:
    job, out = result.job, result.folder
    print(result.answer)
    print()
    looked = f"{job.tiles_done} of {job.tiles_total} tiles looked at, {job.tiles_skipped} skipped"
    print(f"coverage  {job.result['coverage']:.1%} ({looked})")
    for name, file in (("overlay", "overlay.zarr"), ("regions", "regions.geojson"), ("report", "report.html")):
        print(f"{name:<9} {out / file}")
    print(f"{'':<9} {out / 'report.json'}")
    if job.spec.exemplar is not None:
        print(f"{'exemplar':<9} {out / 'exemplar.png'}")
    print("Research use only.")


def _demo(options: argparse.Namespace) -> int:
    options.model = options.model or default_demo_model()
    if options.slide:
        return _segment(options)
    from model.data.synthetic_slide import write_synthetic_slide

    path = options.out / f"synthetic-{options.seed}.tif"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"{options.out} cannot be written: {error.strerror}", field="out") from error
    print(f"writing a synthetic slide with known truth to {path}", file=sys.stderr)
    truth = write_synthetic_slide(path, seed=options.seed)
    result = _run(_spec(options, path), options, _load(options.model, options.device))
    _print_result(result)
    print(f"Dice of query 1 against the truth ({DEMO_CONCEPT}): {dice_of(result.folder, truth.mask(DEMO_CONCEPT)):.3f}")
    return 0


def default_demo_model() -> str:
    """`tiny` once it is trained and shipped; until then a segmenter of the tests, if this is a checkout."""
    import model

    trained = Path(model.__file__).parent / "checkpoints" / "tiny"
    return "tiny" if trained.is_dir() else UNTRAINED


def dice_of(folder: Path, truth) -> float:
    """Dice of the first query's regions against a mask of the whole slide.

    Args:
        folder: with `overlay.zarr`.
        truth: (H, W) bool of the slide at any scale.

    Returns:
        2 |A ∩ B| / (|A| + |B|) at the overlay's resolution; 1.0 when both are empty.
    """
    import cv2
    import numpy as np
    import zarr

    found = zarr.open_array(str(folder / "overlay.zarr" / "labels" / "0" / "0"), mode="r")[...] > 0
    truth = cv2.resize(truth.astype(np.uint8), found.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0
