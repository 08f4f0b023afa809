"""Evaluation: manifests, views of pictures of any size, the walk from manifest to results."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.cli import run_evaluate, segmenter_by_name, summary_text
from model.dataset_cli import run_dataset
from model.evaluation.evaluate import collect, decisive, evaluate
from model.evaluation.manifest import ManifestError, read_manifest, read_mask, read_picture
from model.evaluation.summary import summarise
from model.evaluation.views import OVERLAP, cut, starts, stitch
from model.segmenter import TileAnswer
from tests.segmenters import HueSegmenter, hue_segmenter

PURPLE, PINK = (90, 40, 130), (240, 225, 238)


def picture(folder: Path, name: str, height: int, width: int, target: bool = True) -> np.ndarray:
    """Write a pink picture, with a purple rectangle as target, and its mask; returns the mask."""
    image = np.full((height, width, 3), PINK, np.uint8)
    mask = np.zeros((height, width), bool)
    if target:
        mask[height // 4 : height // 4 * 3, width // 4 : width // 2] = True
    image[mask] = PURPLE
    Image.fromarray(image).save(folder / f"{name}.png")
    Image.fromarray(mask).save(folder / f"{name}_mask.png")
    return mask


def write_manifest(folder: Path, rows: list) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n\n")
    return path


def row(name: str, **changes) -> dict:
    return {
        "id": name, "image": f"{name}.png", "mask": f"{name}_mask.png", "query": "nuclei", "mpp": None, **changes,
    }  # fmt: skip


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four pictures of several sizes with a target, two without, one of them asked of a picture that shows one."""
    picture(tmp_path, "square", 224, 224)
    picture(tmp_path, "small", 64, 70)
    picture(tmp_path, "wide", 300, 900)
    picture(tmp_path, "big", 700, 1000)
    picture(tmp_path, "pale", 224, 224, target=False)
    return write_manifest(
        tmp_path,
        [
            row("square", group="p1", kind="named"),
            row("small", mpp=2.0, group="p1", kind="implied"),
            row("wide", group="p2", kind="named", comment="fields that nobody knows are ignored"),
            row("big", mpp=0.8, group="p3", kind="implied"),
            row("pale", mask=None, group="p4", kind="absent"),
            row("square", id="trap", mask=None, group="p1", kind="absent"),
        ],
    )


# The manifest


def test_a_manifest_is_read_relative_to_itself(manifest: Path):
    rows = read_manifest(manifest)
    assert [one.id for one in rows] == ["square", "small", "wide", "big", "pale", "trap"]
    assert rows[0].image == manifest.parent / "square.png"
    assert (rows[1].mpp, rows[4].mask, rows[3].group, rows[2].kind) == (2.0, None, "p3", "named")


def test_without_group_every_row_stands_alone_and_mpp_may_be_left_out(tmp_path: Path):
    picture(tmp_path, "a", 64, 64)
    line = row("a")
    del line["mpp"]
    (only,) = read_manifest(write_manifest(tmp_path, [line]))
    assert (only.group, only.kind, only.mpp) == ("a", None, None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{oops", ["not JSON"]),
        ("[1]", ["an object is accepted"]),
        ({"image": "a.png", "mask": None, "query": "q"}, ["field id is missing"]),
        ({"id": "b", "image": "a.png", "query": "q"}, ["field mask is missing", "null"]),
        (row("a", id="b", query=3), ["field query", "text", "3"]),
        (row("a", id="b", query="  "), ["field query is empty"]),
        (row("a", id="b", mpp="0.5"), ["field mpp", "number or null"]),
        (row("a", id="b", mpp=-1), ["field mpp", "positive"]),
        (row("a", id="b", mpp=True), ["field mpp", "number or null"]),
        (row("a", id="b", image="gone.png"), ["field image", "no file", "gone.png"]),
        (row("a", id="b", image="text.png"), ["field image", "text.png"]),
        (row("a", id="b", mask="tiny.png"), ["field mask", "20 × 20", "64 × 64"]),
        (row("a", id="b", image="tiny.png"), ["field image", "at least 64"]),
        (row("a"), ["field id", "already on line 1"]),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, line, words):
    picture(tmp_path, "a", 64, 64)
    picture(tmp_path, "tiny", 20, 20)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ManifestError) as caught:
        read_manifest(write_manifest(tmp_path, [row("a"), line]))
    assert all(word in str(caught.value) for word in ["line 2", *words])


def test_all_bad_lines_are_told_at_once_but_not_without_end(tmp_path: Path):
    with pytest.raises(ManifestError) as caught:
        read_manifest(write_manifest(tmp_path, ["{"] * 30))
    assert "line 1:" in str(caught.value) and "line 20:" in str(caught.value)
    assert "and 10 more" in str(caught.value) and "line 21:" not in str(caught.value)


def test_no_manifest_and_an_empty_one_are_errors(tmp_path: Path):
    with pytest.raises(ManifestError, match="no manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="no rows"):
        read_manifest(write_manifest(tmp_path, []))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_masks_of_any_mode_are_read(tmp_path: Path, mode: str):
    mask = picture(tmp_path, "a", 64, 80)
    if mode == "P":
        index = Image.fromarray(mask.astype(np.uint8), "P")
        index.putpalette([0, 0, 0, 0, 0, 0])  # both entries black: the index decides, not the colour
        index.save(tmp_path / "m.png")
    else:
        Image.fromarray(mask).convert("L").convert(mode).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), mask)


def test_transparent_pixels_are_white(tmp_path: Path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:32, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_picture(tmp_path / "a.png")
    assert image.shape == (64, 64, 3) and image[0, 0, 0] == 0 and image[40, 0, 0] == 255


def test_a_cut_off_picture_is_a_manifest_error(tmp_path: Path):
    picture(tmp_path, "a", 300, 300)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError, match="cannot be read"):
        read_picture(tmp_path / "a.png")


# Views


@given(st.integers(1, 5000), st.integers(16, 512))
def test_tiles_cover_a_line_and_share_enough(length, tile):
    corners = starts(length, tile)
    assert corners[0] == 0 and corners[-1] + tile >= length and corners[-1] == max(0, length - tile)
    for left, right in zip(corners, corners[1:], strict=False):
        assert 0 < right - left <= tile * (1 - OVERLAP) + 1


@settings(deadline=None, max_examples=40)
@given(st.integers(64, 400), st.integers(64, 400), st.none() | st.floats(0.1, 4.0))
def test_a_map_comes_back_at_the_size_and_place_of_the_picture(height, width, mpp):
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2] = 200
    views = cut(image, mpp, 64, 1.0)
    assert views.tiles.shape[1:] == (64, 64, 3)
    back = stitch(views, views.tiles[..., 0] / np.float32(255))
    assert back.shape == (height, width)
    inner = max(2, math.ceil(4 * height / views.picture_xywh[3]))
    assert np.allclose(back[: height // 2 - inner], 200 / 255, atol=0.02)
    assert np.allclose(back[height // 2 + inner :], 0, atol=0.02)


def test_known_mpp_decides_the_scale_and_the_tiles_know_theirs():
    views = cut(np.zeros((522, 775, 3), np.uint8), 0.62, 256, 1.0)
    assert views.picture_xywh[2:] == (480, 324) and len(views.tiles) == 6
    assert views.mpp == pytest.approx(1.0, rel=0.01)


def test_a_picture_smaller_than_a_tile_keeps_its_detail_and_stands_on_white():
    views = cut(np.zeros((100, 120, 3), np.uint8), 0.25, 256, 1.0)
    assert views.picture_xywh == (68, 78, 120, 100) and views.mpp == pytest.approx(0.25)
    assert views.tiles[0, 0, 0].tolist() == [255, 255, 255] and views.tiles[0, 128, 128].tolist() == [0, 0, 0]


def test_without_mpp_a_photograph_becomes_one_tile_and_a_strip_several():
    photograph = cut(np.zeros((224, 224, 3), np.uint8), None, 256, 1.0)
    assert photograph.picture_xywh == (0, 0, 256, 256) and len(photograph.tiles) == 1 and math.isnan(photograph.mpp)
    strip = cut(np.zeros((100, 500, 3), np.uint8), None, 256, 1.0)
    assert strip.frame_hw == (256, 1280) and len(strip.tiles) == 7


def test_tiles_are_averaged_where_they_overlap():
    views = cut(np.zeros((64, 96, 3), np.uint8), 1.0, 64, 1.0)
    assert views.corners_px == ((0, 0), (32, 0))
    maps = np.stack([np.ones((64, 64)), np.zeros((64, 64))])
    assert stitch(views, maps)[0, [0, 31, 32, 63, 64, 95]].tolist() == [1, 1, 0.5, 0.5, 0, 0]


# The walk


def test_every_row_is_answered_in_order_whatever_the_batch(manifest: Path):
    rows = read_manifest(manifest)
    one = [sample.to_json() for sample in evaluate(rows, hue_segmenter(), batch=1)]
    many = [sample.to_json() for sample in evaluate(rows, hue_segmenter(), batch=64)]
    assert one == many and [sample["id"] for sample in one] == [line.id for line in rows]
    by_id = {sample["id"]: sample for sample in one}
    assert all(by_id[name]["dice"] > 0.9 for name in ("square", "small", "wide", "big"))
    assert by_id["big"]["tiles"] == 12 and 1 < by_id["big"]["n_seg"] < 12  # the rectangle does not touch every tile
    assert by_id["pale"] | {"emitted": False, "n_seg": 0, "dice": None, "iou": None} == by_id["pale"]
    assert by_id["trap"]["emitted"] and by_id["trap"]["dice"] is None and "<SEG>" in by_id["trap"]["text"]


def test_the_summary_counts_and_its_controls_know_better(manifest: Path):
    samples = collect(evaluate(read_manifest(manifest), hue_segmenter()))
    summary = summarise(samples, resamples=200)
    assert (summary["n"], summary["n_targets"], summary["n_absent"], summary["n_groups"]) == (6, 4, 2, 4)
    assert (summary["sensitivity"], summary["specificity"], summary["balanced_accuracy"]) == (1.0, 0.5, 0.75)
    assert summary["dice_emitted"] > 0.95
    low, high = summary["intervals_95"]["dice_emitted"]
    assert low <= summary["dice_emitted"] <= high
    assert summary["controls"]["all_ones"]["dice_emitted"] < 0.5
    assert summary["controls"]["all_ones"]["specificity"] == summary["specificity"]
    assert summary["controls"]["always_emitting"]["specificity"] == 0.0
    assert summary["by_kind"]["absent"]["specificity"] == 0.5 and summary["by_kind"]["absent"]["sensitivity"] is None
    assert summary["by_kind"]["named"]["n"] == 2
    json.dumps(summary, allow_nan=False)
    assert "dice_emitted" in summary_text(summary) and "always_emitting" in summary_text(summary)


def test_a_miss_counts_as_zero_and_a_forced_mask_recovers_it(tmp_path: Path):
    mask = picture(tmp_path, "a", 256, 256)
    rows = read_manifest(write_manifest(tmp_path, [row("a")]))
    shy = HueSegmenter(emit_share=2 * float(mask.mean()))
    (sample,) = evaluate(rows, shy)
    summary = summarise([sample], resamples=10)
    assert sample.to_json()["dice"] == 0.0 and not sample.score.emitted
    assert (summary["dice_emitted"], summary["dice_with_misses"], summary["sensitivity"]) == (None, 0.0, 0.0)
    assert summary["controls"]["always_emitting"]["dice_with_misses"] > 0.95


def test_the_answer_shown_is_that_of_the_largest_mask():
    def answer(text: str, share: float, p_seg: float) -> TileAnswer:
        masks = np.full((1, 4, 4), share, np.float16) if share else np.zeros((0, 4, 4), np.float16)
        return TileAnswer(text, masks, p_seg=p_seg)

    assert decisive([answer("small", 0.2, 0.9), answer("large", 0.8, 0.6), answer("silent", 0, 0.4)]).text == "large"
    assert decisive([answer("no", 0, 0.1), answer("hardly", 0, 0.3)]).text == "hardly"


@pytest.mark.parametrize("bad", [{"batch": 0}, {"mpp": 0.0}])
def test_impossible_options_are_refused(manifest: Path, bad):
    with pytest.raises(ValueError, match="is accepted"):
        list(evaluate(read_manifest(manifest), hue_segmenter(), **bad))


# The command


def test_the_command_writes_results_and_masks(manifest: Path, capsys):
    out, masks = manifest.parent / "results" / "r.json", manifest.parent / "masks"
    options = ["--model", "tests.segmenters:hue_segmenter", "--bootstrap", "100", "--batch", "3"]
    assert run_evaluate([str(manifest), "--out", str(out), "--masks", str(masks), *options]) == 0
    results = json.loads(out.read_text())
    assert [sample["id"] for sample in results["samples"]] == ["square", "small", "wide", "big", "pale", "trap"]
    assert {"id", "text", "emitted", "n_seg", "dice", "iou"} <= results["samples"][0].keys()
    assert results["model"]["name"] == "hue" and results["summary"]["sensitivity"] == 1.0
    assert results["manifest"].startswith("sha256:") and results["options"]["batch"] == 3
    written = sorted(path.name for path in masks.iterdir())
    assert written == ["00000_square.png", "00001_small.png", "00002_wide.png", "00003_big.png", "00005_trap.png"]
    assert read_mask(masks / "00002_wide.png").shape == (300, 900)
    assert str(out) in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["r.json"]


def test_the_command_says_what_is_wrong_before_anything_runs(manifest: Path, capsys):
    out = manifest.parent / "r.json"
    manifest.write_text(manifest.read_text().replace('"query": "nuclei"', '"query": ""', 1))
    assert run_evaluate([str(manifest), "--out", str(out), "--model", "no.such:thing"]) == 2
    assert "line 1: field query is empty" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["no.such:thing", "tests.segmenters:nothing", "builtins:dict"])
def test_a_model_that_is_none_is_refused(name: str):
    with pytest.raises(ValueError, match="accepted"):
        segmenter_by_name(name)


# Manifests from real data


@pytest.mark.real
def test_manifests_hold_unseen_patients_and_the_promised_shares(shared_data: Path, tmp_path: Path, capsys):
    from model.data.splits import split_of_patient

    assert run_dataset(["manifest", "--out", str(tmp_path), "--data", str(shared_data)]) == 0
    assert "ebhi.jsonl" in capsys.readouterr().out
    ebhi, unknown, glas = (read_manifest(tmp_path / f"{name}.jsonl") for name in ("ebhi", "unknown", "glas"))
    assert {split_of_patient(one.group) for one in ebhi} == {"test"}
    assert sum(one.mask is None for one in ebhi) / len(ebhi) == pytest.approx(0.45, abs=0.005)
    kinds = {f"{there}-{how}" for there in ("present", "absent") for how in ("named", "implied")}
    assert {one.kind for one in ebhi} == kinds
    assert len(unknown) == len({one.query for one in unknown}) == 30 and all(one.mask is None for one in unknown)
    assert len(glas) == 90 and all(one.mask is not None and one.mpp == 0.62 for one in glas)
    assert len({one.mask.read_bytes() for one in glas}) == 90  # a mask that is there twice belongs to one picture only
    present = next(one for one in ebhi if one.mask is not None)
    assert read_mask(present.mask).any() and read_picture(present.image).shape == (224, 224, 3)


def test_without_data_the_command_says_where_it_looked(tmp_path: Path, capsys):
    assert run_dataset(["manifest", "--out", str(tmp_path / "out"), "--data", str(tmp_path)]) == 2
    assert "SLIDEREASON_DATASETS" in capsys.readouterr().err
