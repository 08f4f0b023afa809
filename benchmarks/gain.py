"""What new weights gain on old ones, paired: the same questions to both, over several seeds of held-out wordings.

Every picture of EBHI's held-out patients is asked for its diagnosis and for one that is absent, each named and implied;
GlaS, which never trains, is asked for glands at the default scale. A difference is model − against.
"""

from typing import Any

from benchmarks.record import Measurement
from benchmarks.rivals import AGAINST, MODEL, PairedBench, ask, data_hash, difference, names_of, rivals
from benchmarks.rivals import spread_over_patients as spread
from benchmarks.run import Unavailable
from model.data.concepts import DIAGNOSES
from model.data.readers import data_folder, read_ebhi, read_glas
from model.data.splits import split_of_scene
from model.evaluation import paired, question
from model.evaluation.manifest import read_manifest
from model.evaluation.manifests import write_manifest
from model.segmenter import Segmenter

SEEDS = (0, 1, 2)
QUICK = 4


def measure(bench: PairedBench) -> tuple[list[Measurement], str]:
    """Differences of every figure shown, pooled over seeds with intervals over patients; the values are the seeds'."""
    if bench.against is None and bench.against_revision is None:
        raise Unavailable("nothing to compare with; --against MODEL or --against-revision COMMIT is accepted")
    try:
        plans = _questions(bench)
        with rivals(bench) as models:
            found, hashes = [], []
            for name, by_seed in plans.items():
                told, hashed = _compare(name, by_seed, models, bench)
                found += told
                hashes += hashed
            described = names_of(models)
    except (ImportError, FileNotFoundError, ValueError) as error:
        raise Unavailable(str(error)) from error
    seeds = ", ".join(map(str, bench.seeds or SEEDS))
    return found, f"{bench.split} patients, seeds {seeds}; {', '.join(hashes)}; {described}"


def _questions(bench: PairedBench) -> dict[str, dict[int, list[question.Question]]]:
    """Set → seed → questions; GlaS is asked once, as its question is always the same."""
    folder, limit = data_folder(), QUICK if bench.quick else bench.limit
    seeds = bench.seeds or SEEDS
    ebhi = folder / "ebhi-seg"
    if not ebhi.is_dir():
        raise FileNotFoundError(f"no EBHI-SEG in {folder}; set SLIDEREASON_DATASETS to the folder of ebhi-seg, glas, …")
    scenes = spread([scene for scene in read_ebhi(ebhi) if split_of_scene(scene) == bench.split], limit)
    plans = {"ebhi": {seed: question.ask_each(scenes, DIAGNOSES, seed) for seed in seeds}}
    if bench.split == "test" and (folder / "glas").is_dir():
        glands = spread(list(read_glas(folder / "glas")), limit)
        plans["glas"] = {seeds[0]: question.ask(glands, ("gland",), seeds[0], absent_share=0.0, per_picture=1)}
    return plans


def _compare(
    name: str, by_seed: dict[int, list[question.Question]], models: dict[str, Segmenter], bench: PairedBench
) -> tuple[list[Measurement], list[str]]:
    """One set's differences, and the names of its data."""
    samples: dict[str, list[dict[str, Any]]] = {role: [] for role in models}
    per_seed, hashes, seconds = [], [], dict.fromkeys(models, 0.0)
    for seed, questions in by_seed.items():
        path = bench.work / f"{name}-{seed}.jsonl"
        write_manifest(path, questions)
        hashes.append(data_hash(path))
        rows = read_manifest(path)
        results = {role: ask(rows, segmenter, bench) for role, segmenter in models.items()}
        per_seed.append(paired.compare(*(results[role]["samples"] for role in (MODEL, AGAINST)), resamples=1))
        for role in models:
            samples[role] += results[role]["samples"]
            seconds[role] += results[role]["duration_s"]
    pooled = paired.compare(samples[MODEL], samples[AGAINST], bench.resamples, bench.seed)
    print(f"{name}\n{paired.comparison_text(pooled)}")
    found = [
        difference(name, pooled, figure, [one["difference"][figure] for one in per_seed]) for figure in paired.SHOWN
    ]
    found += [_by_kind(name, kind, part, figure) for kind, part in pooled["by_kind"].items() for figure in paired.SHOWN]
    found += [Measurement(f"{name}: {role}, duration", "s", (spent,)) for role, spent in seconds.items()]
    return [one for one in found if one is not None], hashes


def _by_kind(name: str, kind: str, part: dict[str, Any], figure: str) -> Measurement | None:
    """The pooled difference over the rows of one kind."""
    if part[figure] is None:
        return None
    notes = {"interval_95": part["intervals_95"][figure], "n": part["n"]}
    return Measurement(f"{name}, {kind}: {figure}, difference", "", (part[figure],), notes)
