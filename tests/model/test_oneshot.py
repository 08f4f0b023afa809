"""Rows with an exemplar: how they are checked, brought to scale, asked with and without, and written."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.cli import run_evaluate, summary_text
from model.data.scene import Scene
from model.evaluation.evaluate import collect, evaluate
from model.evaluation.manifest import ManifestError, read_manifest, read_mask, read_picture
from model.evaluation.manifests import write_manifest
from model.evaluation.oneshot import ask_foreign, ask_like, ask_nuclei, nuclei_crops
from model.evaluation.summary import summarise
from model.evaluation.views import cut, cut_exemplar, cut_mask
from model.segmenter import SegmenterCard, TileAnswer, TileBatch

TILE = 64
GLASS, PURPLE, ORANGE = (240, 225, 238), (90, 40, 130), (220, 140, 40)


class LikeSegmenter:
    """Finds the mean colour under an exemplar's outline; without one it knows purple by name, and nothing else."""

    card = SegmenterCard("like", "like-1", TILE, 1.0, ("purple",))

    def __init__(self):
        self.seen: list[TileBatch] = []

    def predict(self, batch: TileBatch, cancelled: Callable[[], bool] | None = None) -> list[TileAnswer]:
        """See `model.segmenter.Segmenter.predict`."""
        self.seen.append(batch)
        exemplars = batch.exemplars or [None] * len(batch)
        answers = []
        for image, query, exemplar in zip(batch.images, batch.queries, exemplars, strict=True):
            wanted = exemplar.image[exemplar.mask].mean(axis=0) if exemplar else PURPLE if "purple" in query else None
            close = np.zeros(image.shape[:2], bool)
            if wanted is not None:
                close = np.abs(image - np.asarray(wanted)).max(axis=-1) < 40
            n = int(close.mean() > 0.01)
            answers.append(
                TileAnswer(
                    "It is <SEG>." if n else "Nothing.", close[None][:n].astype(np.float16), ("it",) * n,
                    np.full(n, 0.8, np.float32), 0.9 * n, False, np.full(n, 0.6, np.float32),
                )
            )  # fmt: skip
        return answers


like_segmenter = LikeSegmenter


def paint(path: Path, colour: tuple | None, box: tuple[int, int, int, int], size: tuple[int, int] = (TILE, TILE)):
    """Write a picture with a box (x, y, w, h) of a colour, and its mask."""
    image = np.full((*size, 3), GLASS, np.uint8)
    mask = np.zeros(size, bool)
    x, y, w, h = box
    if colour is not None:
        mask[y : y + h, x : x + w] = True
        image[mask] = colour
    Image.fromarray(image).save(path)
    Image.fromarray(mask).save(path.with_name(f"{path.stem}_mask.png"))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures with a target, one without, and exemplars of both colours."""
    paint(tmp_path / "purple.png", PURPLE, (10, 10, 20, 30))
    paint(tmp_path / "orange.png", ORANGE, (30, 20, 20, 20))
    paint(tmp_path / "pale.png", None, (0, 0, 0, 0))
    paint(tmp_path / "shown_purple.png", PURPLE, (40, 5, 15, 15))
    paint(tmp_path / "shown_orange.png", ORANGE, (5, 40, 15, 15))
    return tmp_path


def row(name: str, shown: str | None, **changes) -> dict:
    exemplar = None if shown is None else {"image": f"shown_{shown}.png", "mask": f"shown_{shown}_mask.png"}
    return {
        "id": name, "image": f"{name}.png", "mask": f"{name}_mask.png", "query": "The same as in the example.",
        "mpp": 1.0, "exemplar": exemplar, **changes,
    }  # fmt: skip


def manifest(folder: Path, *rows: dict) -> Path:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


# The manifest


def test_an_exemplar_takes_its_rows_scale_unless_it_has_its_own(folder: Path):
    own, unknown = row("purple", "purple", id="own"), row("purple", "purple", id="unknown")
    own["exemplar"]["mpp"], unknown["exemplar"]["mpp"] = 0.5, None
    rows = read_manifest(manifest(folder, row("purple", "purple"), own, unknown, row("pale", None)))
    assert [one.exemplar and one.exemplar.mpp for one in rows] == [1.0, 0.5, None, None]
    assert rows[0].exemplar.image == folder / "shown_purple.png" and rows[0].zero_shot_query is None


@pytest.mark.parametrize(
    ("exemplar", "words"),
    [
        ("shown.png", ["field exemplar:", "an object with image and mask", "shown.png"]),
        ({"image": "shown_purple.png"}, ["field exemplar.mask is missing"]),
        ({"image": 3, "mask": "pale_mask.png"}, ["field exemplar.image", "a path is accepted", "3"]),
        ({"image": "shown_purple.png", "mask": None}, ["field exemplar.mask", "a path is accepted", "None"]),
        ({"image": "gone.png", "mask": "pale_mask.png"}, ["field exemplar.image", "no file", "gone.png"]),
        ({"image": "shown_purple.png", "mask": "gone.png"}, ["field exemplar.mask", "no file", "gone.png"]),
        ({"image": "shown_purple.png", "mask": "big_mask.png"}, ["field exemplar.mask", "80 × 70", "64 × 64"]),
        ({"image": "shown_purple.png", "mask": "pale_mask.png"}, ["field exemplar.mask", "outlines nothing"]),
        ({"image": "shown_purple.png", "mask": "cut_mask.png"}, ["field exemplar.mask", "cannot be read"]),
        ({"image": "shown_purple.png", "mask": "shown_purple_mask.png", "mpp": 0}, ["exemplar.mpp", "positive"]),
        ({"image": "shown_purple.png", "mask": "shown_purple_mask.png", "mpp": "1"}, ["exemplar.mpp", "or null"]),
    ],
)
def test_a_bad_exemplar_is_named_with_its_field(folder: Path, exemplar, words):
    paint(folder / "big.png", PURPLE, (0, 0, 9, 9), (70, 80))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 2, (64, 64)).astype(bool))
    noise.save(folder / "cut_mask.png")
    (folder / "cut_mask.png").write_bytes((folder / "cut_mask.png").read_bytes()[:200])
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest(folder, row("purple", "purple", exemplar=exemplar)))
    assert all(word in str(caught.value) for word in ["line 1", *words])


@pytest.mark.parametrize("query", ["", " ", 3])
def test_a_bad_zero_shot_query_is_named(folder: Path, query):
    with pytest.raises(ManifestError, match="line 1: field zero_shot_query"):
        read_manifest(manifest(folder, row("purple", "purple", zero_shot_query=query)))


# Exemplars as tiles


def test_an_exemplar_comes_at_the_scale_of_the_tiles():
    image, mask = np.zeros((256, 256, 3), np.uint8), np.zeros((256, 256), bool)
    mask[100:140, 60:120] = True
    picture, inside = cut_exemplar(image, mask, 0.5, TILE, 1.0)
    assert picture.shape == (TILE, TILE, 3) and inside.sum() == 20 * 30
    _, coarse = cut_exemplar(image, mask, 0.25, TILE, 1.0)
    assert coarse.sum() == 10 * 15


def test_the_window_holds_the_whole_outline_in_its_middle_where_it_can():
    mask = np.zeros((300, 400), bool)
    mask[200:220, 300:330] = True
    image = np.repeat(mask[..., None], 3, -1).astype(np.uint8) * 200
    picture, inside = cut_exemplar(image, mask, 1.0, TILE, 1.0)
    assert inside.sum() == mask.sum() and np.array_equal(picture[..., 0] == 200, inside)
    rows, columns = np.nonzero(inside)
    assert (rows.min(), columns.min()) == (22, 17)


def test_of_an_outline_larger_than_a_tile_the_fullest_part_is_shown():
    mask = np.zeros((64, 400), bool)
    mask[30:34, :] = True
    mask[:, 250:300] = True
    _, inside = cut_exemplar(np.zeros((64, 400, 3), np.uint8), mask, 1.0, TILE, 1.0)
    assert inside.sum() == 64 * 50 + 4 * 14


def test_a_small_exemplar_stands_on_white_and_an_unknown_scale_is_resized():
    image, mask = np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), bool)
    picture, inside = cut_exemplar(image, mask, 1.0, TILE, 1.0)
    assert inside.sum() == 32 * 32 and picture[0, 0, 0] == 255 and picture[32, 32, 0] == 0
    for mpp, tile_mpp in ((None, 1.0), (1.0, math.nan)):
        assert cut_exemplar(image, mask, mpp, TILE, tile_mpp)[1].all()


def test_a_truth_is_cut_as_its_picture_is():
    image = np.full((100, 150, 3), GLASS, np.uint8)
    mask = np.zeros((100, 150), bool)
    mask[20:50, 100:140] = True
    image[mask] = PURPLE
    views = cut(image, 1.0, TILE, 1.0)
    assert np.array_equal(cut_mask(views, mask), views.tiles[..., 1] == PURPLE[1])


# Asking


def test_an_exemplar_decides_and_the_rows_without_one_are_asked_beside_it(folder: Path):
    segmenter = LikeSegmenter()
    rows = read_manifest(
        manifest(
            folder, row("purple", "purple"), row("orange", "orange"), row("orange", "purple", id="no", mask=None),
            row("purple", None, id="named", query="Show the purple."),
        )
    )  # fmt: skip
    samples = list(evaluate(rows, segmenter, batch=3))
    assert [sample.score.emitted for sample in samples] == [True, True, False, True]
    assert all(sample.score.dice == 1.0 for sample in samples[:2])
    assert segmenter.seen[0].exemplars[2].image.shape == (TILE, TILE, 3)
    assert segmenter.seen[-1].exemplars == ()  # the last batch holds none


def test_what_the_exemplar_is_worth_is_told_by_asking_without_it(folder: Path):
    known = row("purple", "purple", id="known", group="b", zero_shot_query="Show the purple.")
    rows = read_manifest(manifest(folder, row("orange", "orange", group="a"), known, row("pale", "orange", mask=None)))
    samples = collect(evaluate(rows, LikeSegmenter(), one_shot_control=True))
    assert samples[0].one_shot_control.keys() == {"same_query", "inverted_exemplar"}
    told = samples[1].to_json()["one_shot_control"]
    assert told["same_query"] == {"emitted": False, "dice": 0.0, "iou": 0.0}
    assert told["zero_shot_query"] == {"emitted": True, "dice": 1.0, "iou": 1.0}
    assert told["inverted_exemplar"]["emitted"] and told["inverted_exemplar"]["dice"] == 0.0
    summary = summarise(samples, resamples=100)
    same = summary["one_shot"]["same_query"]
    assert (same["n"], same["with_exemplar"]["dice_with_misses"], same["control"]["dice_with_misses"]) == (3, 1.0, 0.0)
    assert same["difference"]["dice_with_misses"] == 1.0
    assert same["difference"]["intervals_95"]["dice_with_misses"] == (1.0, 1.0)
    assert summary["one_shot"]["zero_shot_query"]["difference"]["dice_with_misses"] == 0.0
    assert "against same_query" in summary_text(summary)
    json.dumps(summary, allow_nan=False)


def test_masks_are_told_with_confidence_and_iou(folder: Path):
    rows = read_manifest(
        manifest(folder, row("purple", "purple", group="g"), row("purple", "purple", id="trap", mask=None))
    )
    found, trap = collect(evaluate(rows, LikeSegmenter()))
    (mask,) = found.masks
    assert (mask.iou, mask.right, mask.group) == (1.0, True, "g")
    assert (mask.confidence, mask.raw_confidence) == pytest.approx((0.8, 0.6))
    assert [one.iou for one in trap.masks] == [0.0] and not trap.masks[0].right
    assert found.to_json()["masks"][0].keys() == {"confidence", "raw_confidence", "iou", "tile"}
    assert summarise([found, trap], resamples=10)["calibration"]["n_masks"] == 2


def test_an_outline_that_vanishes_at_this_scale_is_told_before_anything_is_asked(folder: Path):
    bad = row("orange", "purple", id="vanished")
    bad["exemplar"]["mpp"] = 0.01
    segmenter = LikeSegmenter()
    with pytest.raises(ManifestError, match="row 'vanished', field exemplar: .*at least 0.2% is due"):
        list(evaluate(read_manifest(manifest(folder, row("purple", "purple"), bad)), segmenter, batch=1))
    assert not segmenter.seen


def test_the_command_asks_again_when_told_to(folder: Path, capsys):
    path, out = manifest(folder, row("purple", "purple")), folder / "r.json"
    options = ["--model", "tests.model.test_oneshot:like_segmenter", "--bootstrap", "10", "--out", str(out)]
    assert run_evaluate([str(path), *options]) == 0
    assert "one_shot" not in json.loads(out.read_text())["summary"]
    assert run_evaluate([str(path), "--one-shot-control", *options]) == 0
    results = json.loads(out.read_text())
    assert results["options"]["one_shot_control"] and results["samples"][0]["exemplar"]
    assert results["summary"]["one_shot"].keys() == {"same_query", "inverted_exemplar"}
    assert "questions with their exemplar" in capsys.readouterr().out


# Our own questions


def scene(patient: str, key: str, number: int = 0) -> Scene:
    mask = np.zeros((80, 80), bool)
    mask[:40] = True
    others = frozenset({"polyp", "serrated", "low_grade"} - {key})
    image = np.full((80, 80, 3), number, np.uint8)
    return Scene(f"{patient}-{number}", "ebhi-seg", patient, image, {key: mask}, others, None, "colon", "CC-BY-4.0")


def test_what_is_taught_is_asked_without_its_name_by_another_patient():
    keys = ("polyp", "serrated", "low_grade")
    scenes = [scene(f"p{n}", keys[n % 3], n) for n in range(30)] + [scene("p0", "polyp", 99)]
    questions, again = (ask_like(scenes, keys, seed=1) for _ in range(2))
    assert [(q.query, q.exemplar.id) for q in questions] == [(q.query, q.exemplar.id) for q in again]
    assert len(questions) == 31 and sum(q.mask is None for q in questions) == round(0.45 * 31)
    for question in questions:
        assert question.exemplar.patient != question.scene.patient and question.concept in question.exemplar.masks
        assert question.kind == question.concept and question.zero_shot_query
        assert (question.mask is None) == (question.concept in question.scene.absent)


def test_nobody_is_shown_to_themselves():
    assert ask_like([scene("p", "polyp", 1), scene("p", "polyp", 2)], ("polyp",), 0, absent_share=0.0) == []


def test_foreign_matter_is_written_with_its_exemplar_and_differs_between_splits(tmp_path: Path):
    questions = ask_foreign("test", seed=0, count=9)
    assert sum(question.mask is None for question in questions) == 4
    other = ask_foreign("val", seed=0, count=9)
    assert not {q.scene.image.tobytes() for q in questions} & {q.scene.image.tobytes() for q in other}
    assert not {q.scene.patient for q in questions} & {q.scene.patient for q in other}
    assert write_manifest(tmp_path / "oneshot-foreign.jsonl", questions) == 9
    rows = read_manifest(tmp_path / "oneshot-foreign.jsonl")
    for question, one in zip(questions, rows, strict=True):
        assert np.array_equal(read_picture(one.exemplar.image), question.exemplar.image)
        assert read_mask(one.exemplar.mask).any() and one.zero_shot_query.startswith("Outline the")
        assert (one.mask is None) == (question.mask is None) and one.kind == question.kind


@pytest.mark.real
def test_nuclei_are_asked_by_other_patients_and_absent_only_where_that_is_known(shared_data: Path):
    crops = nuclei_crops(shared_data, seed=0)
    questions = ask_nuclei(crops, seed=0)
    assert {q.kind for q in questions} == {"monuseg", "tnbc", "monusac"} and len(questions) > 100
    absent = [question for question in questions if question.mask is None]
    assert 8 <= len(absent) <= 20 and {question.kind for question in absent} == {"tnbc"}
    for question in questions:
        assert question.scene.image.shape == (224, 224, 3) and question.scene.mpp == 0.25
        shown = question.exemplar
        assert (shown.source, shown.patient) != (question.scene.source, question.scene.patient)
        assert shown.masks["nuclei"].mean() >= 0.05
