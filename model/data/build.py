"""Build a data set: read the sources, split by patient, ask each picture, write PNG and lines; resumable and atomic.

Every picture done is one line of a journal in `DIR/.parts`, with the files it names already written, so a build that
was stopped goes on where it was, and gives the same set. `train.jsonl`, `val.jsonl` and `test.jsonl` appear at the
end, by rename, and `build.json` says how they were made.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from model.data.chains import check_answer
from model.data.concepts import known_in
from model.data.episodes import sample_episode
from model.data.likeness import DISTANCE, alike, difference_hashes
from model.data.readers import TRAINABLE_LICENCES, with_facts
from model.data.sample import Provenance, Sample, from_json, pixel_hash, to_json, write_samples
from model.data.scene import Episode, Scene
from model.data.slide_tiles import Tiling
from model.data.sources import Source, check_together, side_of
from model.data.splits import NAMES as SIDES
from model.data.splits import SEED

SHIPPABLE_LICENCES = TRAINABLE_LICENCES | {"Apache-2.0"}
"""Of what may train weights that are shipped; synthetic scenes carry the project's own licence."""
CHECK = "model.data.chains.check_answer"
STAIN = "H&E"
MAX_FACT = 1e6
"""No measure of a picture is as large; what is, was not measured, and is left out."""
_TRIES = 8
"""Draws for each question, so that a picture is not asked the same twice."""


@dataclass(frozen=True)
class Plan:
    """All that decides what a built set holds.

    Attributes:
        sources: what to read.
        questions: about each picture.
        seed: of questions, chains, shares, tiles and synthetic scenes.
        split_seed: of the split by patient.
        share: of the pictures of each source, drawn by their ids.
        tiling: how slides are cut.
        train_on: sources kept for testing that this set may train on.
        shippable: refuse what may not train shipped weights.
    """

    sources: tuple[Source, ...]
    questions: int = 2
    seed: int = 0
    split_seed: int = SEED
    share: float = 1.0
    tiling: Tiling = field(default_factory=Tiling)
    train_on: tuple[str, ...] = ()
    shippable: bool = False

    def to_json(self) -> dict:
        """The plan as it stands in `build.json`."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Done:
    """One picture of the journal: its side, its hashes (None when flat) and its samples."""

    side: str
    sha: str
    hashes: tuple[int, ...] | None
    samples: tuple[Sample, ...]


def build(plan: Plan, out: Path, progress: Callable[[str, int], None] | None = None) -> dict:
    """Build, or go on building, the set of a plan.

    Args:
        plan: what to build.
        out: folder to write to; empty, new, or of the same plan.
        progress: told the source and how many of its pictures are done.

    Returns:
        What `build.json` holds: `plan`, `samples` and `pictures` by side, `left_out` as too like a picture of another
        side.

    Raises:
        ValueError: the sources do not go together, the folder holds another build, a file or a chain is not accepted,
            or a source may not train shipped weights.
        FileNotFoundError: a source is not there.
    """
    check_together([source.name for source in plan.sources])
    out.mkdir(parents=True, exist_ok=True)
    done = _begin(plan, out)
    if "samples" in done:
        return done
    for source in plan.sources:
        _read_source(source, plan, out, progress)
    records = [record for source in plan.sources for record in read_journal(_journal(out, source))]
    kept, left_out = without_lookalikes(records)
    report = {"plan": plan.to_json(), "left_out": left_out, "samples": {}, "pictures": {}}
    for side in SIDES:
        mine = [record for record in kept if record.side == side]
        samples = [sample for record in mine for sample in record.samples]
        write_samples(out / f"{side}.jsonl", samples)
        report["samples"][side], report["pictures"][side] = len(samples), len(mine)
    _write_json(out / "build.json", report)
    shutil.rmtree(out / ".parts")
    return report


def _begin(plan: Plan, out: Path) -> dict:
    """What `build.json` holds; written first when the folder is new.

    Raises:
        ValueError: the folder was built, or begun, by another plan, or holds something else.
    """
    path = out / "build.json"
    if not path.exists():
        if any(out.iterdir()):
            raise ValueError(f"{out} is not empty and holds no build.json; a new or empty folder is accepted")
        _write_json(path, {"plan": plan.to_json()})
    (out / ".parts").mkdir(exist_ok=True)
    known, mine = json.loads(path.read_text(encoding="utf-8")), plan.to_json()
    different = [name for name in mine if known.get("plan", {}).get(name) != mine[name]]
    if different:
        raise ValueError(f"{out} was built with other {', '.join(different)}; the same, or a new folder is accepted")
    if "samples" in known:
        shutil.rmtree(out / ".parts")
    return known


def _journal(out: Path, source: Source) -> Path:
    return out / ".parts" / f"{source.name}.jsonl"


def read_journal(path: Path) -> list[Done]:
    """The pictures that are done; a last line that was cut off is removed from the file."""
    if not path.exists():
        return []
    whole, records = 0, []
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            told = json.loads(line)
            hashes = told["hashes"] and tuple(int(one, 16) for one in told["hashes"])
            samples = tuple(from_json(text, path.name) for text in told["samples"])
            records.append(Done(told["side"], told["sha"], hashes, samples))
            whole += len(line)
    if whole < path.stat().st_size:
        with open(path, "r+b") as file:
            file.truncate(whole)
    return records


def _read_source(source: Source, plan: Plan, out: Path, progress: Callable[[str, int], None] | None) -> None:
    """Bring the journal of one source to its end."""
    path = _journal(out, source)
    done = {record.samples[0].scene for record in read_journal(path)}
    seen: set[str] = set()
    with open(path, "a", encoding="utf-8") as journal:
        for scene in source.scenes(plan.tiling, plan.seed):
            if scene.id in seen:
                raise ValueError(f"source {source.name}: the id {scene.id!r} is there twice; each is accepted once")
            seen.add(scene.id)
            if scene.id in done or not _drawn(scene, plan):
                continue
            record = _do(scene, source, plan, out)
            line = {
                "side": record.side, "sha": record.sha,
                "hashes": record.hashes and [f"{one:016x}" for one in record.hashes],
                "samples": [to_json(sample) for sample in record.samples],
            }  # fmt: skip
            journal.write(json.dumps(line, ensure_ascii=False) + "\n")
            journal.flush()
            if progress is not None:
                progress(source.name, len(seen))


def _drawn(scene: Scene, plan: Plan) -> bool:
    """Whether the picture is one of the plan's share: by its id, so that no order or stop changes it."""
    return _entropy(plan.seed, "share", scene)[1] / 2**32 < plan.share


def _entropy(seed: int, what: str, scene: Scene) -> list[int]:
    """Seed words of one picture."""
    digest = hashlib.sha256(f"{what}/{scene.source}/{scene.id}".encode()).digest()
    return [seed, *np.frombuffer(digest, ">u4").tolist()]


def _do(scene: Scene, source: Source, plan: Plan, out: Path) -> Done:
    """Place one picture, ask about it, and write its files."""
    side = side_of(scene, plan.split_seed, frozenset(plan.train_on))
    if plan.shippable and side != "test" and scene.licence not in SHIPPABLE_LICENCES:
        accepted = f"{', '.join(sorted(SHIPPABLE_LICENCES))} are accepted"
        raise ValueError(f"source {source.name}: {scene.licence} may not train shipped weights; {accepted}")
    scene = whole(scene)
    rng = np.random.default_rng(_entropy(plan.seed, "questions", scene))
    episodes = ask(scene, plan.questions, rng, "train" if side == "train" else "heldout")
    image, masks = write_files(scene, out)
    hashes = difference_hashes(scene.image)
    provenance = Provenance(
        reader=source.reader, generator="template", versions=_versions(), seed=plan.seed, checks=(CHECK,),
        image_sha256=pixel_hash(scene.image),
    )  # fmt: skip
    samples = tuple(
        Sample(
            id=f"{scene.source}/{scene.id}#{number}", scene=scene.id, image=image, masks=masks,
            absent=tuple(sorted(scene.absent)), query=episode.query, chain=episode.answer, targets=episode.targets,
            concept=episode.concept, kind=episode.kind, organ=scene.organ, mpp=scene.mpp, stain=STAIN,
            source=scene.source, patient=scene.patient, licence=scene.licence, facts=scene.facts,
            provenance=provenance,
        )
        for number, episode in enumerate(episodes)
    )  # fmt: skip
    known = None if hashes is None else tuple(int(one) for one in hashes)
    return Done(side, provenance.image_sha256, known, samples)


def whole(scene: Scene) -> Scene:
    """The scene with the parents that follow from what is known, measured, and without empty masks."""
    masks = {key: mask for key, mask in scene.masks.items() if mask.any()}
    present, gone = known_in(masks, scene.absent)
    known = with_facts(replace(scene, masks=masks | present, absent=(scene.absent | gone) - masks.keys()))
    # Where nuclei fill the picture there is no edge to measure them from, and their size comes out beyond all bounds.
    facts = {key: {n: value for n, value in one.items() if abs(value) < MAX_FACT} for key, one in known.facts.items()}
    return replace(known, facts=facts)


def ask(scene: Scene, count: int, rng: np.random.Generator, wordings: str) -> list[Episode]:
    """Different questions about a scene, each with a chain that passes its check; as many as asked for, or fewer.

    Raises:
        ValueError: a chain does not pass.
    """
    episodes: dict[str, Episode] = {}
    for _ in range(count * _TRIES):
        episode = sample_episode(scene.masks, scene.absent, scene.facts, rng, wordings)
        problems = check_answer(episode.answer, bool(episode.targets))
        if problems:
            raise ValueError(f"{scene.source}/{scene.id}: the chain {episode.answer!r} is wrong: {'; '.join(problems)}")
        episodes.setdefault(episode.query, episode)
        if len(episodes) == count:
            break
    return list(episodes.values())


def write_files(scene: Scene, out: Path) -> tuple[str, dict[str, str]]:
    """Write picture and masks as PNG, equal masks once; returns their names below `out`."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", scene.id)
    if name != scene.id:
        name += f"-{hashlib.sha256(scene.id.encode()).hexdigest()[:6]}"
    image = f"images/{scene.source}/{name}.png"
    _write_png(out / image, scene.image)
    masks: dict[str, str] = {}
    places: dict[bytes, str] = {}
    for key, mask in scene.masks.items():
        content = np.packbits(mask).tobytes()
        if content not in places:
            places[content] = f"masks/{scene.source}/{name}.{key}.png"
            _write_png(out / places[content], mask)
        masks[key] = places[content]
    return image, masks


def _write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    Image.fromarray(pixels).save(partial, format="PNG", compress_level=1)
    partial.replace(path)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("slidereason", "numpy", "opencv-python-headless")}


def without_lookalikes(records: list[Done], distance: int = DISTANCE) -> tuple[list[Done], list[dict]]:
    """Leave out of train what looks like a picture of val or test, and out of val what looks like one of test.

    Returns:
        What is kept, in order, and what was left out: `picture`, `side`, `like` and `distance`.
    """
    left_out: dict[int, dict] = {}
    for side, others in (("val", ("test",)), ("train", ("val", "test"))):
        mine = [i for i, record in enumerate(records) if record.side == side]
        theirs = [i for i, record in enumerate(records) if record.side in others and i not in left_out]
        for i, j, bits in _lookalikes(records, mine, theirs, distance):
            names = [f"{records[k].samples[0].source}/{records[k].samples[0].scene}" for k in (i, j)]
            left_out.setdefault(i, {"picture": names[0], "side": side, "like": names[1], "distance": bits})
    return [record for i, record in enumerate(records) if i not in left_out], list(left_out.values())


def _lookalikes(
    records: list[Done], mine: list[int], theirs: list[int], distance: int
) -> Iterator[tuple[int, int, int]]:
    """Pairs that are identical, flat ones too, or nearly so."""
    same = {records[j].sha: j for j in theirs}
    yield from ((i, same[records[i].sha], 0) for i in mine if records[i].sha in same)
    mine, theirs = ([i for i in part if records[i].hashes is not None] for part in (mine, theirs))
    hashes = [np.array([records[i].hashes for i in part], np.uint64).reshape(-1, 8) for part in (mine, theirs)]
    yield from ((mine[n], theirs[m], bits) for n, m, bits in alike(*hashes, distance))


def _write_json(path: Path, data: dict) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
