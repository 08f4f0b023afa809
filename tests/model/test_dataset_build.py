"""Building a data set: what is written, that it can be stopped, and that its sides stay apart."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from model.data import build as building
from model.data.build import Done, Plan, ask, build, read_journal, whole, without_lookalikes
from model.data.chains import check_answer
from model.data.leaks import check_set
from model.data.likeness import DISTANCE, alike, difference_hashes
from model.data.sample import pixel_hash, read_samples, read_scenes, scene_of, write_samples
from model.data.scene import Scene
from model.data.slide_tiles import Tiling
from model.data.sources import Source, check_together, parse_source, side_of
from model.data.splits import split_of_patient
from tests.model.test_dataset_sample import SAMPLE

EDGE = 48


def noise(seed: int, edge: int = EDGE) -> np.ndarray:
    """A picture with large and small structure, its own for every seed."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(60, 230, (6, 6, 3)).astype(np.float32), (edge, edge))
    return np.clip(coarse + rng.normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)


def write_camelyon(folder: Path, count: int = 30, images=noise) -> Path:
    """Patches as the reader of `camelyon` takes them: every tenth number begins another patient."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        mask = np.zeros((EDGE, EDGE), np.uint8)
        mask[8:30, 4:40] = 255 * (number % 2)
        image = cv2.cvtColor(images(number), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / "images" / f"{10 * number:05d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
        cv2.imwrite(str(folder / "masks" / f"{10 * number:05d}.png"), mask)
    return folder


@pytest.fixture
def patches(tmp_path) -> Source:
    return Source("camelyon", str(write_camelyon(tmp_path / "camelyon")))


def everything(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_build_writes_every_picture_once_and_asks_it(tmp_path, patches):
    out = tmp_path / "out"
    report = build(Plan((patches,), questions=3, seed=1), out)
    samples = [sample for side in building.SIDES for sample in read_samples(out / f"{side}.jsonl")]
    assert len(samples) == 90 and sum(report["samples"].values()) == 90 and sum(report["pictures"].values()) == 30
    assert len({sample.image for sample in samples}) == len(list((out / "images").rglob("*.png"))) == 30
    assert len(list((out / "masks").rglob("*.png"))) == 15  # tumour nest and tumour share a file
    assert len({(sample.image, sample.query) for sample in samples}) == 90
    for sample in samples:
        assert check_answer(sample.chain, bool(sample.targets)) == []
        assert sample.provenance.reader == "model.data.readers.read_camelyon" and sample.provenance.seed == 1
        assert sample.provenance.generator == "template" and sample.provenance.review.state == "unreviewed"
    assert set(json.loads((out / "build.json").read_text())) == {"plan", "samples", "pictures", "left_out"}
    assert not (out / ".parts").exists() and not list(out.rglob(".*"))


def test_sides_are_those_of_the_split_by_patient(tmp_path, patches):
    out = tmp_path / "out"
    build(Plan((patches,), split_seed=5), out)
    for side in building.SIDES:
        for sample in read_samples(out / f"{side}.jsonl"):
            assert split_of_patient(f"camelyon/{sample.patient}", 5) == side
    assert all((out / f"{side}.jsonl").stat().st_size for side in building.SIDES)


def test_scenes_come_back_as_the_reader_gave_them(tmp_path, patches):
    out = tmp_path / "out"
    build(Plan((patches,)), out)
    given = {scene.id: scene for scene in patches.scenes(Tiling(), 0)}
    back = [pair for side in building.SIDES for pair in read_scenes(out / f"{side}.jsonl")]
    assert len(back) == 30
    for scene, episodes in back:
        old = given[scene.id]
        assert (scene.image == old.image).all() and scene.masks.keys() == old.masks.keys()
        assert all((scene.masks[key] == old.masks[key]).all() for key in old.masks)
        assert old.absent <= scene.absent and scene.mpp == old.mpp and len(episodes) == 2
        assert set(scene.facts) == set(scene.masks)


def test_a_stopped_build_goes_on_and_gives_the_same_set(tmp_path, patches, monkeypatch):
    plan = Plan((patches, Source("synthetic", "3")), seed=2)
    build(plan, tmp_path / "whole")
    done, calls = building._do, []

    def stops(*about):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return done(*about)

    monkeypatch.setattr(building, "_do", stops)
    with pytest.raises(KeyboardInterrupt):
        build(plan, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "train.jsonl").exists()
    journal = tmp_path / "stopped" / ".parts" / "camelyon.jsonl"
    with open(journal, "ab") as file:
        file.write(b'{"side": "tra')  # as when the power fails
    calls[:] = [1] * 20
    build(plan, tmp_path / "stopped")
    assert len(calls) == 20 + 33 - 11  # what was done was not done again
    assert everything(tmp_path / "whole") == everything(tmp_path / "stopped")


def test_a_build_that_is_done_is_not_done_again(tmp_path, patches, monkeypatch):
    plan, out = Plan((patches,)), tmp_path / "out"
    first = build(plan, out)
    monkeypatch.setattr(building, "_do", lambda *about: pytest.fail("read again"))
    assert build(plan, out) == first


def test_another_plan_or_another_folder_s_content_is_refused(tmp_path, patches):
    out = tmp_path / "out"
    build(Plan((patches,)), out)
    with pytest.raises(ValueError, match="was built with other questions, seed"):
        build(Plan((patches,), questions=3, seed=4), out)
    with pytest.raises(ValueError, match="is not empty and holds no build.json"):
        build(Plan((patches,)), tmp_path)


def test_a_share_is_drawn_by_id_and_a_larger_one_holds_a_smaller(tmp_path, patches):
    ids = []
    for share in (0.3, 0.6):
        out = tmp_path / f"out{share}"
        build(Plan((patches,), share=share), out)
        ids.append({s.scene for side in building.SIDES for s in read_samples(out / f"{side}.jsonl")})
    assert ids[0] < ids[1] and 3 <= len(ids[0]) <= 15


def test_parents_follow_from_what_is_known_and_empty_masks_go():
    half = np.zeros((EDGE, EDGE), bool)
    half[:, :20] = True
    gone = frozenset({"malignant_gland", "low_grade", "high_grade", "polyp", "serrated", "tumour_nest"})
    masks = {"normal_gland": half, "fat": np.zeros_like(half)}
    known = whole(Scene("a", "s", "p", noise(0), masks, gone, 1.0, "colon", "CC0"))
    assert set(known.masks) == {"normal_gland", "gland"} and (known.masks["gland"] == half).all()
    assert "tumour" in known.absent and "fat" not in known.absent and set(known.facts) == {"normal_gland", "gland"}


def test_a_fact_without_bounds_is_left_out():
    stained = np.full((EDGE, EDGE, 3), (70, 40, 110), np.uint8)
    stained += np.random.default_rng(0).integers(0, 2, stained.shape, np.uint8)
    known = whole(Scene("a", "s", "p", stained, {"fat": np.ones((EDGE, EDGE), bool)}, frozenset(), 1.0, "colon", "CC0"))
    assert known.facts["fat"]["share"] == 1.0
    assert all(np.isfinite(value) and value < 1e6 for value in known.facts["fat"].values())


def test_questions_differ_and_a_chain_that_fails_its_check_is_an_error(monkeypatch):
    half = np.zeros((EDGE, EDGE), bool)
    half[:, :20] = True
    scene = Scene("a", "s", "p", noise(0), {"fat": half}, frozenset({"polyp"}), 1.0, "colon", "CC0")
    episodes = ask(scene, 5, np.random.default_rng(0), "heldout")
    assert len({episode.query for episode in episodes}) == 5
    monkeypatch.setattr(building, "check_answer", lambda text, there: ["wrong"])
    with pytest.raises(ValueError, match="s/a: the chain .* is wrong: wrong"):
        ask(scene, 1, np.random.default_rng(0), "train")


# Pictures that look alike


def test_turned_mirrored_recoloured_and_smaller_copies_are_alike():
    image = noise(3, 96)
    copies = [
        np.rot90(image), np.rot90(image, 2)[:, ::-1], cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA),
        np.clip(image * 0.9 + 12, 0, 255).astype(np.uint8), cv2.GaussianBlur(image, (0, 0), 1.0),
    ]  # fmt: skip
    hashes = np.array([difference_hashes(np.ascontiguousarray(copy)) for copy in copies])
    assert [(n, m) for n, m, _ in alike(hashes, difference_hashes(image)[None])] == [(n, 0) for n in range(5)]


def test_other_pictures_and_flat_ones_are_not_alike():
    hashes = np.array([difference_hashes(noise(seed)) for seed in range(40)])
    assert [(n, m) for n, m, _ in alike(hashes, hashes)] == [(n, n) for n in range(40)]
    assert difference_hashes(np.full((32, 32, 3), 240, np.uint8)) is None
    assert list(alike(hashes[:0], hashes)) == []


def test_the_distance_is_in_bits():
    one = np.zeros((1, 8), np.uint64)
    other = np.full((1, 8), 2**7 - 1, np.uint64)
    assert list(alike(one, other, 7)) == [(0, 0, 7)] and list(alike(one, other, DISTANCE)) == []


def record(side: str, seed: int, flat: bool = False) -> Done:
    image = np.full((32, 32, 3), 240, np.uint8) if flat else noise(seed)
    hashes = difference_hashes(image)
    scene = replace(SAMPLE, scene=f"{side}{seed}")
    return Done(side, pixel_hash(image), None if hashes is None else tuple(map(int, hashes)), (scene,))


def test_test_pictures_stay_and_their_likes_go_from_train_and_val():
    records = [record("train", 1), record("val", 2), record("train", 3), record("test", 1), record("test", 2)]
    records += [record("train", 2), record("train", 4)]
    kept, left_out = without_lookalikes(records)
    assert [one.samples[0].scene for one in kept] == ["train3", "test1", "test2", "train4"]
    assert {one["picture"]: one["like"] for one in left_out} == {
        "crag/val2": "crag/test2", "crag/train1": "crag/test1", "crag/train2": "crag/test2",
    }  # fmt: skip


def test_identical_flat_pictures_go_too_and_what_left_val_bars_nothing():
    kept, _ = without_lookalikes([record("train", 1, flat=True), record("test", 1, flat=True)])
    assert [one.side for one in kept] == ["test"]
    kept, left_out = without_lookalikes([record("train", 5), record("val", 6), record("test", 6)])
    assert [one.side for one in kept] == ["train", "test"] and len(left_out) == 1


def test_a_build_leaves_a_copy_out_and_says_so(tmp_path):
    sides = [split_of_patient(f"camelyon/{number}") for number in range(30)]
    original, copied = sides.index("test"), [sides.index("train"), sides.index("val")]

    def images(number: int) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(noise(original))) if number in copied else noise(number)

    source = Source("camelyon", str(write_camelyon(tmp_path / "camelyon", images=images)))
    report = build(Plan((source,)), tmp_path / "out")
    assert {one["picture"] for one in report["left_out"]} == {f"camelyon/{10 * number:05d}" for number in copied}
    assert {one["like"] for one in report["left_out"]} == {f"camelyon/{10 * original:05d}"}
    assert sum(report["pictures"].values()) == 28
    assert check_set(tmp_path / "out") == []


# The check


def break_into(folder: Path, side: str, sample) -> None:
    """Add a sample to a side's file."""
    path = folder / f"{side}.jsonl"
    write_samples(path, [*read_samples(path), sample])


@pytest.fixture
def built(tmp_path, patches) -> Path:
    build(Plan((patches,)), tmp_path / "out")
    return tmp_path / "out"


def kinds(problems) -> list[str]:
    return sorted({problem.kind for problem in problems})


def test_a_good_set_has_no_problem_and_may_be_shipped(built):
    assert check_set(built, shippable=True) == []


def test_a_patient_on_two_sides_and_an_identical_picture_are_found(built):
    stolen = next(read_samples(built / "test.jsonl"))
    break_into(built, "train", replace(stolen, id="stolen"))
    problems = check_set(built)
    assert kinds(problems) == ["identical", "patient"]
    assert any(f"camelyon/{stolen.patient} is in test and train" == problem.text for problem in problems)


def test_a_turned_copy_under_another_name_is_found(built):
    stolen = next(read_samples(built / "test.jsonl"))
    image = np.ascontiguousarray(np.rot90(scene_of(stolen, built).image))
    Image.fromarray(image).save(built / "images" / "copy.png")
    provenance = replace(stolen.provenance, image_sha256=pixel_hash(image))
    copy = replace(
        stolen, id="copy", scene="copy", patient="other", image="images/copy.png", masks={}, targets=(), facts={},
        kind="unknown", concept=None, chain="<think> x </think> I cannot answer.", provenance=provenance,
    )  # fmt: skip
    break_into(built, "train", copy)
    (problem,) = check_set(built)
    assert problem.kind == "near" and "camelyon/copy of train looks like" in problem.text


def test_a_changed_picture_is_found(built):
    sample = next(read_samples(built / "train.jsonl"))
    Image.fromarray(noise(1234)).save(built / sample.image)
    assert kinds(check_set(built)) == ["hash"]


def test_sets_kept_for_testing_and_licences_are_found(built):
    sample = next(read_samples(built / "train.jsonl"))
    break_into(built, "train", replace(sample, id="g", source="glas", patient="3", licence="research-only"))
    assert kinds(check_set(built)) == ["test-only"]
    assert kinds(check_set(built, shippable=True)) == ["licence", "test-only"]
    plan = json.loads((built / "build.json").read_text())
    plan["plan"]["train_on"] = ["glas"]
    (built / "build.json").write_text(json.dumps(plan))
    assert kinds(check_set(built)) == []


def test_a_folder_that_is_no_set_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no train.jsonl; a folder of `slidereason dataset build`"):
        check_set(tmp_path)


# Sources


def test_sources_are_read_from_their_names():
    assert parse_source("ebhi-seg=a=b") == Source("ebhi-seg", "a=b")
    assert parse_source("camelyon16=x").reader == "model.data.camelyon_slides.read_camelyon16"
    for text in ("nothing=x", "glas", "glas=", "synthetic=0", "synthetic=x"):
        with pytest.raises(ValueError, match="is accepted"):
            parse_source(text)


def test_sources_of_the_same_patients_are_refused():
    check_together(["glas", "crag", "camelyon16", "camelyon17"])
    for names in (["glas", "glas-official"], ["camelyon", "camelyon17"]):
        with pytest.raises(ValueError, match="hold the same patients"):
            check_together(names)
    with pytest.raises(ValueError, match="glas is given twice"):
        check_together(["glas", "glas"])


def test_patients_kept_for_testing_stay_there_whatever_is_trained_on():
    kept = Scene("a", "bcss", "1008", noise(0), {}, frozenset(), 1.0, "breast", "CC0-1.0")
    assert side_of(kept, 1, frozenset({"bcss"})) == "test"


def test_a_source_that_is_not_there_or_empty_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="source glas: .*nowhere is not a folder"):
        next(Source("glas", str(tmp_path / "nowhere")).scenes(Tiling(), 0))
    with pytest.raises(FileNotFoundError, match="source camelyon: no picture in"):
        next(Source("camelyon", str(tmp_path)).scenes(Tiling(), 0))


def test_synthetic_scenes_are_the_same_every_time_and_shippable(tmp_path):
    first, second = ([s.id for s in Source("synthetic", "2").scenes(Tiling(), 4)] for _ in range(2))
    assert first == second and len(set(first)) == 2
    build(Plan((Source("synthetic", "2"),), shippable=True), tmp_path / "out")
    assert check_set(tmp_path / "out", shippable=True) == []


def test_what_may_not_be_shipped_is_refused_where_it_would_train(tmp_path):
    from tests.model.published_sets import write_crag

    source = Source("crag", str(write_crag(tmp_path / "crag")))
    with pytest.raises(ValueError, match="source crag: research-only may not train shipped weights"):
        build(Plan((source,), shippable=True), tmp_path / "out")


def test_a_journal_line_that_was_cut_is_cut_off(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"side"')
    assert read_journal(path) == [] and path.read_bytes() == b""


@pytest.mark.real
def test_no_two_patients_of_ebhi_share_a_picture(shared_data):
    scenes = list(Source("ebhi-seg", str(shared_data / "ebhi-seg")).scenes(Tiling(), 0))
    hashes = np.array([difference_hashes(scene.image) for scene in scenes])
    pairs = [(n, m) for n, m, _ in alike(hashes, hashes, 9) if n < m]
    assert [pair for pair in pairs if scenes[pair[0]].patient != scenes[pair[1]].patient] == []
    assert len(pairs) == 3  # one patient's picture that is there twice
