"""What benchmarks that compare two models share: their options, the models, their answers, the names of the data."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import Bench, Measurement
from benchmarks.revision import RevisionSegmenter, extract
from model.cli import segmenter_by_name
from model.data.scene import Scene
from model.evaluation.evaluate import evaluate
from model.evaluation.manifest import ManifestRow
from model.evaluation.results import gather
from model.segmenter import Segmenter

MODEL, AGAINST = "model", "against"


@dataclass(frozen=True)
class PairedBench(Bench):
    """A `Bench` that may ask a second model.

    Attributes:
        against: name of the second segmenter; None for none.
        against_revision: commit whose `tiny` is asked instead, with that commit's code.
        limit: most pictures of a set; None for the benchmark's own.
        seeds: of the questions; None for the benchmark's own.
        split: whose patients: `val` or `test`.
        resamples: of the bootstrap.
    """

    against: str | None = None
    against_revision: str | None = None
    limit: int | None = None
    seeds: tuple[int, ...] | None = None
    split: str = "test"
    resamples: int = 2000


@contextmanager
def rivals(bench: PairedBench) -> Iterator[dict[str, Segmenter]]:
    """The models, by `MODEL` and, where a second is asked for, `AGAINST`.

    Raises:
        ValueError, FileNotFoundError, ImportError: a model or a revision is not here.
    """
    with ExitStack() as stack:
        models = {MODEL: segmenter_by_name(bench.model)}
        if bench.against is not None:
            models[AGAINST] = segmenter_by_name(bench.against)
        elif bench.against_revision is not None:
            tree = extract(bench.against_revision, bench.work / "revision")
            models[AGAINST] = stack.enter_context(RevisionSegmenter(tree))
        yield models


def spread_over_patients(scenes: Sequence[Scene], count: int | None) -> list[Scene]:
    """At most `count` scenes, one of each patient in turn, so that few pictures still are many patients."""
    turn: dict[tuple[str, str], int] = {}
    order = []
    for index, scene in enumerate(scenes):
        key = (scene.source, scene.patient)
        turn[key] = turn.get(key, -1) + 1
        order.append((turn[key], index))
    return [scenes[index] for _, index in sorted(order)[:count]]


def ask(rows: Sequence[ManifestRow], segmenter: Segmenter, bench: PairedBench) -> dict[str, Any]:
    """One model's results on some rows, as `slidereason evaluate` writes them."""
    return gather(evaluate(rows, segmenter), segmenter.card, resamples=bench.resamples, seed=bench.seed)


def without_chains(rows: Sequence[ManifestRow]) -> list[ManifestRow]:
    """The rows without their reference answers, where words are not what is measured."""
    return [replace(row, chain=None) for row in rows]


def data_hash(manifest: Path) -> str:
    """`NAME sha256:…` of a manifest with every picture and mask beside it, in the order of their names."""
    digest = hashlib.sha256(manifest.read_bytes())
    for path in sorted((manifest.parent / manifest.stem).iterdir()):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return f"{manifest.stem} sha256:{digest.hexdigest()[:16]}"


def names_of(models: dict[str, Segmenter]) -> str:
    """The models as results tell them."""
    return "; ".join(f"{role} {segmenter.card.name}, {segmenter.card.revision}" for role, segmenter in models.items())


def difference(name: str, compared: dict[str, Any], figure: str, values: Sequence[float] = ()) -> Measurement | None:
    """A paired difference with its interval and both sides; None where it is undefined.

    Args:
        name: what was compared.
        compared: of `paired.compare`.
        figure: which.
        values: repetitions, e.g. one a seed; the pooled one is in the notes. Without any, it is the value.
    """
    pooled = compared["difference"][figure]
    if pooled is None:
        return None
    notes = {
        "pooled": pooled, "interval_95": compared["difference"]["intervals_95"][figure],
        **{side: compared[side][figure] for side in (MODEL, AGAINST)},
        "n": compared["n"], "n_groups": compared["n_groups"],
    }  # fmt: skip
    known = tuple(value for value in values if value is not None and not np.isnan(value))
    return Measurement(f"{name}: {figure}, difference", "", known or (pooled,), notes)
