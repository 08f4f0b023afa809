"""Our engine against how others decode `<SEG>`; every contender holds the same weights and gives the same answers.

    make bench ARGS=decode                                                        `tiny` on a CPU
    python -m benchmarks.decode --device cuda --variant paper-7b --minutes 9      the paper's size on a GPU
    python -m benchmarks.decode --device cpu --variant small-paper --tiles 12     its rehearsal, the very same path

It keeps to its budget of time: what no longer fits is left out and said so, and what was found is on disk at any time.
"""

import argparse
import dataclasses
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.baselines import Reply, Work
from benchmarks.ceilings import measure_ceilings
from benchmarks.flops import prefill_flops, see_flops, step_bytes, steps_flops, survey_flops
from benchmarks.journal import Journal, Stage, Study
from benchmarks.loading import load
from benchmarks.pairs import Clock, Timing, agreement, answer, take_turns
from benchmarks.record import RESULTS, Bench, Measurement, write_result
from benchmarks.run import UNAVAILABLE, Unavailable
from benchmarks.workload import QUERY, enlarged, evenly, natural, scripted, stated
from model.predictor import PathChatPredictor
from model.questions import Questions
from model.stages import Stopwatch

QUICK = ("ours", "generate", "generate_all")
SLOW = ("cached", "lisa")
SHARES = (0.1, 0.0, 0.5, 1.0)
TOLERANCE = {"cpu": 0.01, "cuda": 0.05}
"""Most that two contenders' probabilities may differ: the encoders, on a GPU all of the model, run in bfloat16."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        device, variant: the model, and where.
        tiles: of each workload; slow_tiles: of these for the loops that take one tile at a time.
        repeats: rounds of the main workloads; other_repeats: of the others.
        minutes: budget of all of it.
        seed: of everything random.
    """

    device: str = "cpu"
    variant: str = "tiny"
    tiles: int = 64
    slow_tiles: int = 16
    repeats: int = 3
    other_repeats: int = 1
    minutes: float = 8.0
    seed: int = 0


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """The CPU part of `make bench`; also writes `decode.md`."""
    sizes = {"tiles": 3, "slow_tiles": 1, "minutes": 2.0} if bench.quick else {}
    plan = Plan(variant=bench.model, seed=bench.seed, repeats=bench.repeats, other_repeats=bench.repeats, **sizes)
    bench.folder.mkdir(parents=True, exist_ok=True)
    table = bench.folder / "decode.md"
    journal = run(plan, lambda journal: table.write_text(journal.table(), encoding="utf-8"))
    if journal.disagreed:
        raise AssertionError(f"contenders disagree, see {table}")
    return journal.measurements(), journal.title


def run(plan: Plan, tell) -> Journal:
    """All workloads of a plan, the most telling first."""
    clock = Clock(plan.minutes)
    predictor = load(plan.variant, torch.device(plan.device), plan.seed)
    journal = Journal(f"Decoding: {plan.variant} on {_device_name(plan)}, seed {plan.seed}", tell)
    model = predictor.model
    if plan.device == "cuda" or plan.variant != "tiny":
        journal.ceilings = measure_ceilings(model.device, torch.bfloat16 if plan.device == "cuda" else model.dtype)
    size, mpp = model.config.tile_px, model.config.default_mpp
    if plan.variant == "tiny":
        images, shows = natural(plan.seed, plan.tiles, 0.1, size, mpp)
        label = f"its own answers, the target on {shows.sum()} of {plan.tiles} tiles by ground truth"
        _study(predictor, Work(images, QUERY, mpp), label, (*QUICK, *SLOW), plan, clock, journal, plan.repeats)
    else:
        images = enlarged(plan.seed, plan.tiles, size)
    works = {
        f"scripted answers, {share:.0%} of tiles point": scripted(model, images, share, plan.seed) for share in SHARES
    }
    main = next(iter(works))
    for label, work in works.items():
        names, repeats = ((*QUICK, *SLOW), plan.repeats) if label == main else (QUICK, plan.other_repeats)
        _study(predictor, work, label, names, plan, clock, journal, repeats)
    _peaks(plan, main, works[main], journal, clock)
    for label, work in works.items():
        _slow_too(predictor, work, label, plan, clock, journal)
    journal.note(f"{clock.left_s / 60:.1f} of {plan.minutes:g} minutes were left.")
    return journal


def _device_name(plan: Plan) -> str:
    return torch.cuda.get_device_name() if plan.device == "cuda" else "one CPU thread"


def _study(
    predictor: PathChatPredictor, work: Work, label: str, names: Sequence[str], plan: Plan, clock: Clock,
    journal: Journal, repeats: int,
) -> None:  # fmt: skip
    """One workload: do the contenders agree, what does each stage take, and how do they compare in turns."""
    if journal.studies and not clock.allows(3 * sum(journal.studies[-1].timings["ours"].stages.values())):
        return journal.note(f"{label}: left out, out of time.")
    needed_s = _warm_up(predictor, work, names, plan)
    replies, timing = _watched(predictor, "ours", work)
    lengths, points = _lengths(predictor, work, replies), np.array([len(r.masks) > 0 for r in replies])
    study = Study(label, len(work), stated(lengths), int(points.sum()), {"ours": timing})
    study.stages = _stages(predictor, work, timing, lengths, points)
    journal.studies.append(study)
    works = {"ours": work}
    for name in names[1:]:
        part = work.part(evenly(lengths, points, plan.slow_tiles)) if name in SLOW else work
        rows = evenly(lengths, points, plan.slow_tiles) if name in SLOW else range(len(work))
        if not clock.allows(2 * needed_s[name]):  # once to compare, once to time
            journal.note(f"{label}: {name} left out, out of time.")
            continue
        try:
            theirs, study.timings[name] = _watched(predictor, name, part)
        except torch.OutOfMemoryError:
            journal.note(f"{label}: {name} left out, out of memory.")
            continue
        works[name] = part
        study.agreements[name] = told = agreement([replies[i] for i in rows], theirs)
        if not told.holds(TOLERANCE[plan.device]):
            journal.disagreed = True
            journal.note(f"{label}: {name} DISAGREES: {told}.")
    done = take_turns(predictor, works, study.timings, repeats, clock, lambda: journal.tell(journal))
    if done < repeats:
        journal.note(f"{label}: {done} of {repeats} rounds, out of time.")


def _slow_too(
    predictor: PathChatPredictor, work: Work, label: str, plan: Plan, clock: Clock, journal: Journal
) -> None:
    """One round with the slow loops where a workload went without them and there is still time."""
    study = next((study for study in journal.studies if study.label == label), None)
    if study is None or any(name in study.timings for name in SLOW):
        return
    tokens = (work.script != predictor.model.tokenizer.eos).sum(1).cpu().numpy()
    points = (work.script == predictor.model.tokenizer.seg).any(1).cpu().numpy()
    rows = evenly(tokens, points, plan.slow_tiles)
    part = work.part(rows)
    known = journal.studies[0].timings
    needed_s = sum(sum(known[name].stages.values()) for name in ("ours", *SLOW) if name in known)
    if not clock.allows(1.5 * needed_s):
        return journal.note(f"{label}: {' and '.join(SLOW)} left out, out of time.")
    timings = {name: Timing(name, len(rows), int(tokens[rows].sum()) + len(rows)) for name in SLOW}
    timings["ours"] = study.timings["ours"]
    take_turns(predictor, {"ours": work} | dict.fromkeys(SLOW, part), timings, 1, clock)
    study.timings |= {name: timings[name] for name in SLOW}
    journal.tell(journal)


def _warm_up(predictor: PathChatPredictor, work: Work, names: Sequence[str], plan: Plan) -> dict[str, float]:
    """What happens once, kernels chosen and graphs captured, is not timed; returns about how long each will take."""
    few, cuda = work.part([0]), predictor.model.device.type == "cuda"
    needed_s = {name: answer(predictor, name, few, Stopwatch())[1] for name in names}
    for name in names:
        needed_s[name] *= min(plan.slow_tiles, len(work)) / len(few) if name in SLOW else 4
    if cuda:
        answer(predictor, "ours", work, Stopwatch())
    return needed_s


def _watched(predictor: PathChatPredictor, name: str, work: Work) -> tuple[list[Reply], Timing]:
    """A run whose stages are measured, which waits for a GPU at each; on a GPU also its memory."""
    watch, cuda = Stopwatch(on=True), predictor.model.device.type == "cuda"
    if cuda:
        weights = sum(p.numel() * p.element_size() for p in predictor.model.parameters())
        # What the engine keeps between calls is not the others' to bear.
        kept = 0 if name == "ours" else torch.cuda.memory_allocated() - weights
        torch.cuda.reset_peak_memory_stats()
    replies, _ = answer(predictor, name, work, watch)
    tokens = int(_lengths(predictor, work, replies).sum()) + len(replies)
    timing = Timing(name, len(work), tokens, stages=dict(watch.seconds))
    if cuda:
        timing.peak_mb = (torch.cuda.max_memory_allocated() - kept) / 1e6
    return replies, timing


def _lengths(predictor: PathChatPredictor, work: Work, replies: Sequence[Reply]) -> np.ndarray:
    """Tokens of each answer, without `<think>` and `<eos>`."""
    tokenizer = predictor.model.tokenizer
    if work.script is not None:
        return (work.script != tokenizer.eos).sum(1).cpu().numpy()
    return np.array([len(tokenizer.encode(reply.text)) - 1 for reply in replies])


def _stages(
    predictor: PathChatPredictor, work: Work, timing: Timing, lengths: np.ndarray, points: np.ndarray
) -> dict[str, Stage]:
    """Our stages with the operations, and for the steps the bytes, that they cannot do without."""
    model, n = predictor.model, len(work)
    c, width = model.config.language, model.dtype.itemsize
    none = torch.zeros(1, model.config.image_tokens, c.dim)
    prompt = Questions.build(model, [work.query], [work.mpp], none)[0]
    head, length = prompt.head_length, len(prompt.ids)
    slots = predictor.decoder._lanes.slots
    steps = max(int(lengths.max()), -(-int(lengths.sum()) // slots))  # no fewer can do
    cache = 2 * c.depth * c.kv_heads * (c.dim // c.heads) * width
    read = steps * step_bytes(c, width) + cache * sum(int(k) * length + int(k) * (int(k) + 1) // 2 for k in lengths)
    flops = {
        "see": n * see_flops(model.config),
        "prefill": prefill_flops(c, 0, head) + n * prefill_flops(c, head, length),
        "steps": steps_flops(c, length, lengths.tolist()),
        "survey": int(points.sum()) * survey_flops(model.config),
    }
    stages = {name: Stage(seconds, flops.get(name)) for name, seconds in timing.stages.items()}
    if "steps" in stages:
        stages["steps"].bytes = read
    return stages


def _peaks(plan: Plan, label: str, work: Work, journal: Journal, clock: Clock) -> None:
    """On a CPU, the most memory of each contender, answering in a process of its own."""
    study = next((study for study in journal.studies if study.label == label), None)
    if plan.device != "cpu" or study is None:
        return
    spawn, timings = multiprocessing.get_context("spawn"), study.timings
    for name, timing in list(timings.items())[: None if plan.tiles > 3 else 1]:
        if not clock.allows(20):
            return journal.note(f"peak memory of {name} left out, out of time.")
        part = work.part(range(2)) if name in SLOW else work  # they hold one tile at a time
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            timing.peak_mb = pool.submit(peak_mb, plan, name, part).result()
        journal.tell(journal)


def peak_mb(plan: Plan, name: str, work: Work) -> float:
    """Most resident memory of this process while it answers, in MB: libraries, weights and all."""
    torch.set_num_threads(1)
    predictor = load(plan.variant, torch.device(plan.device), plan.seed)
    Path("/proc/self/clear_refs").write_text("5")
    answer(predictor, name, work, Stopwatch())
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def parser() -> argparse.ArgumentParser:
    """Options of `python -m benchmarks.decode`: the fields of `Plan`."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__.splitlines()[0])
    for field in dataclasses.fields(Plan):
        kind = type(field.default)
        flag = "--" + field.name.replace("_", "-")
        options.add_argument(flag, type=kind, default=field.default, help=f"default: {field.default}")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of results (default: benchmarks/results)")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run a plan; 1 when contenders disagree, 3 when the model or the device is not here."""
    told = vars(parser().parse_args(argv))
    folder = told.pop("out")
    plan = Plan(**told)
    name = f"decode-{plan.variant.replace(':', '-')}"
    bench = Bench(plan.seed, plan.repeats, folder, plan.variant, False, folder)

    def tell(journal: Journal) -> None:
        data = json.dumps(dataclasses.asdict(plan))
        write_result(name, journal.measurements(), data, bench, folder)
        (folder / f"{name}.md").write_text(journal.table(), encoding="utf-8")

    folder.mkdir(parents=True, exist_ok=True)
    try:
        journal = run(plan, tell)
    except Unavailable as error:
        print(f"{name}: left out, {error}", file=sys.stderr)
        return UNAVAILABLE
    print(journal.table())
    return int(journal.disagreed)


if __name__ == "__main__":
    sys.exit(main())
