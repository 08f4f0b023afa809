"""Whether a built data set keeps its sides apart: patients, pictures, near copies, sets kept for testing, licences."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.data.build import SHIPPABLE_LICENCES
from model.data.likeness import DISTANCE, alike, difference_hashes
from model.data.sample import Sample, pixel_hash, read_samples, scene_of
from model.data.sources import may_train
from model.data.splits import NAMES as SIDES


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: `patient`, `identical`, `near`, `hash`, `test-only` or `licence`.
        text: which pictures, and where.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Picture:
    """One picture of one side: its first sample, the hash of its pixels and those of its orientations."""

    side: str
    sample: Sample
    sha: str
    hashes: np.ndarray | None

    @property
    def name(self) -> str:
        """Source and id."""
        return f"{self.sample.source}/{self.sample.scene}"


def read_sides(folder: Path) -> dict[str, list[Sample]]:
    """The samples of a built set by side.

    Raises:
        FileNotFoundError: a side's file is not there.
        SampleError: a line is not accepted.
    """
    missing = [f"{side}.jsonl" for side in SIDES if not (folder / f"{side}.jsonl").is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} holds no {missing[0]}; a folder of `slidereason dataset build` is accepted")
    return {side: list(read_samples(folder / f"{side}.jsonl")) for side in SIDES}


def check_set(folder: Path, shippable: bool = False, distance: int = DISTANCE) -> list[Problem]:
    """Everything that is wrong with a built set; empty for a good one.

    Args:
        folder: of the built set.
        shippable: also ask of train and val that their licences let weights be shipped.
        distance: Hamming distance up to which two pictures count as one.

    Raises:
        FileNotFoundError, SampleError: as `read_sides` and `scene_of`.
    """
    sides = read_sides(folder)
    pictures = [picture for side, samples in sides.items() for picture in _pictures(side, samples, folder)]
    problems = [*_patients(sides), *_hashes(pictures), *_identical(pictures), *_near(pictures, distance)]
    problems += _kept_for_testing(sides, _train_on(folder))
    return problems + (list(_licences(sides)) if shippable else [])


def _train_on(folder: Path) -> frozenset[str]:
    """The sources that the build was told to train on."""
    path = folder / "build.json"
    return frozenset(json.loads(path.read_text(encoding="utf-8"))["plan"]["train_on"]) if path.exists() else frozenset()


def _pictures(side: str, samples: list[Sample], folder: Path) -> Iterator[Picture]:
    """Every picture of a side once."""
    seen = set()
    for sample in samples:
        if sample.image not in seen:
            seen.add(sample.image)
            image = scene_of(sample, folder).image
            yield Picture(side, sample, pixel_hash(image), difference_hashes(image))


def _patients(sides: dict[str, list[Sample]]) -> Iterator[Problem]:
    where: dict[tuple[str, str], set[str]] = {}
    for side, samples in sides.items():
        for sample in samples:
            where.setdefault((sample.source, sample.patient), set()).add(side)
    for (source, patient), found in sorted(where.items()):
        if len(found) > 1:
            yield Problem("patient", f"{source}/{patient} is in {' and '.join(sorted(found))}")


def _hashes(pictures: list[Picture]) -> Iterator[Problem]:
    for picture in pictures:
        if picture.sha != picture.sample.provenance.image_sha256:
            yield Problem("hash", f"{picture.sample.image} is not the picture that was built")


def _identical(pictures: list[Picture]) -> Iterator[Problem]:
    first: dict[str, Picture] = {}
    for picture in pictures:
        other = first.setdefault(picture.sha, picture)
        if other.side != picture.side:
            yield Problem("identical", f"{other.name} of {other.side} is {picture.name} of {picture.side}")


def _near(pictures: list[Picture], distance: int) -> Iterator[Problem]:
    """Pairs that are not identical, but look it."""
    parts = {side: [one for one in pictures if one.side == side and one.hashes is not None] for side in SIDES}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        first, second = (np.array([p.hashes for p in parts[side]], np.uint64).reshape(-1, 8) for side in (one, other))
        for n, m, bits in alike(first, second, distance):
            a, b = parts[one][n], parts[other][m]
            if a.sha != b.sha:
                yield Problem("near", f"{a.name} of {one} looks like {b.name} of {other} ({bits} of 64 bits differ)")


def _kept_for_testing(sides: dict[str, list[Sample]], train_on: frozenset[str]) -> Iterator[Problem]:
    for side in ("train", "val"):
        found = Counter(
            f"{sample.source}/{sample.patient}"
            for sample in sides[side]
            if not may_train(sample.source, sample.patient, train_on)
        )
        yield from (Problem("test-only", f"{name} is for testing only, but {n} samples of it are in {side}")
                    for name, n in sorted(found.items()))  # fmt: skip


def _licences(sides: dict[str, list[Sample]]) -> Iterator[Problem]:
    for side in ("train", "val"):
        found = Counter((one.source, one.licence) for one in sides[side] if one.licence not in SHIPPABLE_LICENCES)
        for (source, licence), count in sorted(found.items()):
            yield Problem("licence", f"{source} ({licence}) may not train shipped weights: {count} samples in {side}")
