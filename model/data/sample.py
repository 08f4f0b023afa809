"""One line of a built data set: picture, masks, question and reasoning chain, with where each of them comes from.

A line is a JSON object; picture and masks are files whose names are relative to the folder of the file of lines, so a
built set can be moved as a whole. Source: Liu et al. 2026, PathChat-SegR1, §4.1 (image, mask, query, reasoning chain).
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from model.data.chains import SEG
from model.data.sample_schema import SampleError, parse_line
from model.data.scene import Episode, Scene


@dataclass(frozen=True)
class Review:
    """What a pathologist decided about the chain.

    Attributes:
        state: `unreviewed`, `accepted`, `edited` or `rejected`.
        reviewer: who; None while unreviewed.
        time: when, ISO 8601 with its offset; None while unreviewed.
    """

    state: str = "unreviewed"
    reviewer: str | None = None
    time: str | None = None


@dataclass(frozen=True)
class Provenance:
    """Where a sample comes from.

    Attributes:
        reader: what read picture and labels, e.g. `model.data.readers.read_ebhi`.
        generator: what wrote the chain: `template`, or the name of an endpoint's model.
        versions: of what took part, by name.
        seed: of the question and its chain.
        checks: the checks that the chain has passed.
        image_sha256: `pixel_hash` of the picture.
        review: what became of it.
    """

    reader: str
    generator: str
    versions: Mapping[str, str]
    seed: int
    checks: tuple[str, ...]
    image_sha256: str
    review: Review = field(default_factory=Review)


@dataclass(frozen=True)
class Sample:
    """One question about one picture, with its answer.

    Attributes:
        id: unique in the built set.
        scene: the picture's id within its source.
        image: its file.
        masks: concept key → file of its mask, for every concept that is in the picture; each not 0 where it is.
        absent: keys known not to be in the picture; what is in neither is unknown.
        query: the question.
        chain: the expected answer, `<think>…</think>` and every `<SEG>` included.
        targets: keys of the `<SEG>`s in order; empty where the target is absent or unknown.
        concept: what is asked for; None for a thing outside everything taught.
        kind: `named`, `implied`, `absent` or `unknown`.
        organ: as in `Scene`.
        mpp: µm/px, None when unknown.
        stain: `H&E`, or another one's name.
        source, patient, licence: as in `Scene`.
        facts: morphology by concept, as in `Scene`.
        provenance: where all this comes from.
    """

    id: str
    scene: str
    image: str
    masks: Mapping[str, str]
    absent: tuple[str, ...]
    query: str
    chain: str
    targets: tuple[str, ...]
    concept: str | None
    kind: str
    organ: str
    mpp: float | None
    stain: str
    source: str
    patient: str
    licence: str
    facts: Mapping[str, Mapping[str, float]]
    provenance: Provenance

    @property
    def magnification(self) -> float | None:
        """`magnification_of` the sample's µm/px."""
        return magnification_of(self.mpp)


def magnification_of(mpp: float | None) -> float | None:
    """The objective whose µm/px is nearest, 40× being 0.25 µm/px and each other one half or double; None if unknown.

    0.62 µm/px (GlaS) is 20×, 0.5 is 20×, 1.0 is 10×, 0.243 is 40×.
    """
    return None if mpp is None else 40.0 * 2.0 ** round(math.log2(0.25 / mpp))


def pixel_hash(image: np.ndarray) -> str:
    """SHA-256 of a picture's size and pixels, whatever file holds them.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    digest = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]}".encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def to_json(sample: Sample) -> str:
    """The sample as one line, without line break."""
    line = asdict(sample)
    line["magnification"] = sample.magnification
    return json.dumps(line, ensure_ascii=False, allow_nan=False)


def from_json(text: str, where: str = "line 1") -> Sample:
    """A sample from its line.

    Args:
        text: one JSON object.
        where: names the line in errors.

    Raises:
        SampleError: the line is no JSON object, or a field is missing, unknown, or not what the schema says.
    """
    line = parse_line(text, where)
    told = line.pop("provenance")
    review = Review(**told.pop("review"))
    told["checks"] = tuple(told["checks"])
    stated = line.pop("magnification")
    sample = Sample(
        **{name: tuple(value) if name in ("absent", "targets") else value for name, value in line.items()},
        provenance=Provenance(**told, review=review),
    )
    if stated != sample.magnification:
        raise SampleError(where, "magnification", f"is {stated}; {sample.magnification} follows from mpp {sample.mpp}")
    if sample.chain.count(SEG) != len(sample.targets):
        count = sample.chain.count(SEG)
        raise SampleError(where, "chain", f"holds {count} {SEG}, but there are {len(sample.targets)} targets")
    return sample


def write_samples(path: Path, samples: list[Sample]) -> None:
    """Write a file of lines, by rename, so that a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text("".join(f"{to_json(sample)}\n" for sample in samples), encoding="utf-8")
    partial.replace(path)


def read_samples(path: Path, check_files: bool = True) -> Iterator[Sample]:
    """The samples of a file, one by one.

    Args:
        path: a file of lines, such as `train.jsonl`.
        check_files: whether the picture and the masks of each must be there.

    Raises:
        SampleError: a line, its field, a repeated id or a missing file, by the number of the line.
        FileNotFoundError: there is no such file of lines.
    """
    seen: set[str] = set()
    there: set[str] = set()
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            where = f"{path.name}, line {number}"
            sample = from_json(text, where)
            if sample.id in seen:
                raise SampleError(where, "id", f"{sample.id!r} was there before; every id is accepted once")
            seen.add(sample.id)
            files = {"image": sample.image} | {f"masks.{key}": place for key, place in sample.masks.items()}
            for name, place in files.items():
                if check_files and place not in there and not (path.parent / place).is_file():
                    raise SampleError(where, name, f"{place!r} is not in {path.parent}")
                there.add(place)
            yield sample


def episode_of(sample: Sample) -> Episode:
    """The question and its answer, as training takes them."""
    return Episode(sample.query, sample.chain, sample.targets, sample.concept, sample.kind)


def scene_of(sample: Sample, folder: Path) -> Scene:
    """The picture and what is known of it, as the reader gave it.

    Args:
        sample: one of its samples.
        folder: what the files' names are relative to: the folder of the file of lines.

    Raises:
        SampleError: a file is missing or is not a picture, or a mask has another size.
    """
    image = np.array(_picture(sample, "image", folder / sample.image).convert("RGB"))
    loaded: dict[str, np.ndarray] = {}
    for key, place in sample.masks.items():
        if place not in loaded:
            mask = np.array(_picture(sample, f"masks.{key}", folder / place).convert("L")) > 0
            if mask.shape != image.shape[:2]:
                raise SampleError(sample.id, f"masks.{key}", f"is {mask.shape}, its picture {image.shape[:2]}")
            loaded[place] = mask
    return Scene(
        id=sample.scene, source=sample.source, patient=sample.patient, image=image,
        masks={key: loaded[place] for key, place in sample.masks.items()}, absent=frozenset(sample.absent),
        mpp=sample.mpp, organ=sample.organ, licence=sample.licence, facts={k: dict(v) for k, v in sample.facts.items()},
    )  # fmt: skip


def _picture(sample: Sample, name: str, path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except OSError as error:
        raise SampleError(sample.id, name, f"does not open ({error}); PNG is accepted") from error


def read_scenes(path: Path) -> Iterator[tuple[Scene, tuple[Episode, ...]]]:
    """Every picture of a file once, with all questions about it, in order: what a training pool takes.

    Lines about one picture must follow each other, as `slidereason dataset build` writes them.

    Raises:
        SampleError: as `read_samples` and `scene_of`.
    """
    group: list[Sample] = []
    for sample in read_samples(path):
        if group and (sample.source, sample.scene) != (group[0].source, group[0].scene):
            yield scene_of(group[0], path.parent), tuple(map(episode_of, group))
            group = []
        group.append(sample)
    if group:
        yield scene_of(group[0], path.parent), tuple(map(episode_of, group))
