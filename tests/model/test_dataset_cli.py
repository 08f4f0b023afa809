"""`slidereason dataset build`, `check`, `stats`, `inspect`: what the commands print and write, and what they refuse."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.composition import chain_words, compose
from model.data.sample import read_samples, write_samples
from model.data.sheet import COLUMN_PX, HALO, OUTLINE, choose, draw_sheet, outlined
from model.dataset_cli import run_dataset
from tests.model.published_sets import write_crag, write_glas
from tests.model.test_dataset_build import write_camelyon
from tests.model.test_dataset_sample import SAMPLE, write_set
from tests.model.test_published_slides import write_camelyon16


@pytest.fixture
def built(tmp_path: Path) -> Path:
    source = f"camelyon={write_camelyon(tmp_path / 'camelyon')}"
    assert run_dataset(["build", "--source", source, "--out", str(tmp_path / "set")]) == 0
    return tmp_path / "set"


def test_build_tells_what_it_wrote_and_that_the_sides_are_apart(capsys, built: Path):
    said = capsys.readouterr().out.splitlines()
    lines = {side: len((built / f"{side}.jsonl").read_text().splitlines()) for side in ("train", "val", "test")}
    assert sum(lines.values()) == 60
    for side, line in zip(lines, said, strict=False):
        assert line == f"{built / f'{side}.jsonl'}: {lines[side]} questions about {lines[side] // 2} pictures"
    assert said[-1] == "the sides are apart"


def test_build_takes_several_sources_and_every_option(tmp_path: Path):
    sources = (
        f"camelyon16={write_camelyon16(tmp_path / 'c16')}", f"crag={write_crag(tmp_path / 'crag')}",
        f"glas-official={write_glas(tmp_path / 'glas')}", "synthetic=2",
    )  # fmt: skip
    out = tmp_path / "set"
    argv = ["build", *(part for source in sources for part in ("--source", source)), "--out", str(out)]
    argv += ["--questions", "1", "--seed", "3", "--split-seed", "9", "--magnifications", "20", "40", "--tile-px", "64"]
    argv += ["--tiles-per-slide", "4", "--min-tissue", "0.5", "--train-on", "glas", "--share", "1"]
    assert run_dataset(argv) == 0
    samples = [sample for side in ("train", "val", "test") for sample in read_samples(out / f"{side}.jsonl")]
    found = {source: sum(sample.source == source for sample in samples) for source in {s.source for s in samples}}
    left_out = json.loads((out / "build.json").read_text())["left_out"]
    assert {sample.magnification for sample in samples if sample.source == "camelyon16"} <= {20, 40}
    assert found["crag"] == found["glas"] == found["synthetic"] == 2
    assert found["camelyon16"] + len(left_out) == 4 * 2 * 4  # slides, magnifications, tiles
    assert json.loads((out / "build.json").read_text())["plan"]["train_on"] == ["glas"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--source", "nothing=x"], "source 'nothing=x': NAME=FOLDER is accepted"),
        (["--source", "crag=nowhere"], "source crag: nowhere is not a folder"),
        (["--source", "synthetic=1", "--questions", "0"], "--questions 0: 1 or more is accepted"),
        (["--source", "synthetic=1", "--tile-px", "0"], "--tile-px 0: 1 or more is accepted"),
        (["--source", "synthetic=1", "--tiles-per-slide", "-1"], "--tiles-per-slide -1"),
        (["--source", "synthetic=1", "--share", "0"], "a share above 0"),
        (["--source", "synthetic=1", "--seed", "-1"], "--seed -1: 0 or more is accepted"),
        (["--source", "synthetic=1", "--train-on", "ebhi-seg"], "--train-on ebhi-seg: glas, monusac"),
        (["--source", "synthetic=1", "--train-on", "glas", "--shippable"], "not with --shippable"),
    ],
)
def test_build_says_what_it_does_not_accept(tmp_path: Path, capsys, options, problem):
    assert run_dataset(["build", *options, "--out", str(tmp_path / "set")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("slidereason dataset build: ") and problem in said


def test_chains_written_anew_are_read_as_samples(built: Path):
    out = built / "train-chains.jsonl"
    assert run_dataset(["chains", str(built / "train.jsonl"), "--out", str(out), "--limit", "8"]) == 0
    old = {sample.id: sample for sample in read_samples(built / "train.jsonl")}
    for sample in (new := list(read_samples(out))):
        before = old[sample.id]
        assert (sample.query, sample.masks, sample.image) == (before.query, before.masks, before.image)
        assert sample.provenance.reader == before.provenance.reader
    assert len(new) == 8


def test_check_lists_problems_and_fails(built: Path, capsys):
    assert run_dataset(["check", str(built), "--shippable"]) == 0
    stolen = next(read_samples(built / "test.jsonl"))
    write_samples(built / "train.jsonl", [*read_samples(built / "train.jsonl"), replace(stolen, id="stolen")])
    capsys.readouterr()
    assert run_dataset(["check", str(built)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "2 problems" and said[0].startswith("patient: camelyon/")
    assert run_dataset(["check", str(built), "--distance", "33"]) == 2
    assert run_dataset(["check", str(built.parent)]) == 2


def test_check_counts_what_it_does_not_list(built: Path, capsys):
    train = list(read_samples(built / "train.jsonl"))
    write_samples(built / "val.jsonl", train)
    write_samples(built / "test.jsonl", [])
    assert run_dataset(["check", str(built)]) == 1
    patients = len({sample.patient for sample in train})
    assert patients > 20 and f"patient: {patients - 20} more" in capsys.readouterr().out


def test_stats_writes_numbers_and_figures(built: Path, tmp_path: Path, capsys):
    assert run_dataset(["stats", str(built), "--out", str(tmp_path / "stats.json")]) == 0
    found = json.loads((tmp_path / "stats.json").read_text())
    assert sum(found["samples"].values()) == 60 and sum(found["pictures"].values()) == 30
    assert found["organs"] == {"lymph node": 60} and found["magnifications"] == {"10×": 60}
    assert found["licences"] == {"CC0-1.0": 60} and sum(found["kinds"].values()) == 60
    asked = sum(count["present"] + count["absent"] for count in found["targets"].values())
    assert asked + found["unknown_targets"] == 60
    assert run_dataset(["stats", str(built), "--out", str(tmp_path / "stats.png")]) == 0
    with Image.open(tmp_path / "stats.png") as figure:
        assert figure.width > 1200 and len(np.unique(np.array(figure.convert("L")))) > 50
    assert run_dataset(["stats", str(built), "--out", str(tmp_path / "stats.txt")]) == 2
    assert ".json, .png" in capsys.readouterr().err


def test_inspect_draws_the_sheet(built: Path, tmp_path: Path, capsys):
    out = tmp_path / "sheet.png"
    assert run_dataset(["inspect", str(built), "--out", str(out), "--n", "5", "--seed", "1", "--side", "train"]) == 0
    with Image.open(out) as sheet:
        assert sheet.width == 2 * 28 + 4 * COLUMN_PX + 3 * 22 and sheet.height > 2 * COLUMN_PX
    assert run_dataset(["inspect", str(built), "--out", str(out), "--n", "0"]) == 2
    assert "--n 0: 1 or more is accepted" in capsys.readouterr().err


# What the figures and the sheet are made of


def test_composition_counts_by_hand():
    chain = "<think> No. </think> None here."
    absent = replace(SAMPLE, id="b", targets=(), kind="absent", concept="tumour", chain=chain)
    other = replace(
        SAMPLE, id="c", mpp=None, kind="unknown", concept=None, targets=(), image="images/c.png", patient="valid",
        chain="<think> What? </think> I cannot.",
    )  # fmt: skip
    found = compose({"train": [SAMPLE, absent], "test": [other]})
    assert found["samples"] == {"train": 2, "test": 1} and found["pictures"] == {"train": 1, "test": 1}
    assert found["patients"] == {"train": 1, "test": 1}
    assert found["magnifications"] == {"20×": 2, "unknown": 1}
    assert found["targets"] == {"gland": {"present": 1, "absent": 0}, "tumour": {"present": 0, "absent": 1}}
    assert found["unknown_targets"] == 1 and found["reviews"] == {"unreviewed": 3}
    assert found["chain_words"] == {"n": 3, "mean": 7.0, "quartiles": [3, 3, 9], "counts": {"3": 2, "15": 1}}


def test_tokens_and_lone_signs_are_no_words():
    assert chain_words("<think> One gland - here. </think> Found: glands <SEG>.") == 5


def test_the_sheet_shows_every_kind_and_source_before_it_repeats_one():
    samples = [
        replace(SAMPLE, id=f"{source}{kind}{n}", source=source, kind=kind, image=f"{source}{n}{kind}")
        for source in ("a", "b") for kind in ("named", "absent") for n in range(9)
    ]  # fmt: skip
    chosen = choose(samples, 4, 0)
    assert {(one.source, one.kind) for one in chosen} == {(s, k) for s in "ab" for k in ("named", "absent")}
    assert choose(samples, 4, 0) == chosen and choose(samples, 4, 1) != chosen
    twice = choose([SAMPLE, replace(SAMPLE, id="again")], 5, 0)
    assert len(twice) == 2


def test_an_outline_lies_on_the_mask_s_edge_and_the_outside_is_paler():
    image = np.full((40, 40, 3), 100, np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    shown = outlined(image, [mask], 400)
    assert shown.shape == (400, 400, 3)
    assert tuple(shown[100, 200]) == OUTLINE and tuple(shown[200, 200]) == (100,) * 3
    assert tuple(shown[20, 20]) == (int(100 * 0.7 + 255 * 0.3),) * 3
    assert tuple(shown[97, 200]) == HALO
    assert (outlined(image, [], 400) == 100).all()


def test_a_wide_picture_keeps_its_shape_and_long_words_fit(tmp_path: Path):
    write_set(tmp_path)
    sheet = draw_sheet([replace(SAMPLE, query="x" * 300)], tmp_path)
    assert sheet.width == 2 * 28 + COLUMN_PX
    assert outlined(np.zeros((10, 40, 3), np.uint8), [], 400).shape == (100, 400, 3)
