"""`slidereason segment --exemplar`: shown instead of told, from slides and from pairs of pictures."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import zarr

from tests.jobs import COLOUR, HUE
from tests.made_slides import tissue_picture, write_pyramid
from worker import cli

DARK, GREEN = (70, 40, 110), (60, 150, 90)


def circle(x: float, y: float, radius: float) -> dict:
    angles = np.linspace(0, 2 * np.pi, 33)
    return {"type": "Polygon", "coordinates": [[[x + radius * np.cos(a), y + radius * np.sin(a)] for a in angles]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target with two dark discs and a green one; a reference of another scale, and a patch with its mask."""
    folder = tmp_path_factory.mktemp("slides")
    target = tissue_picture(1600, 1200)
    for x, colour in ((600, DARK), (800, GREEN), (1000, DARK)):
        cv2.circle(target, (x, 600), 60, colour, -1)
    write_pyramid(folder / "target.tif", target)
    reference = tissue_picture(1800, 1400, seed=3)
    for x, y, colour in ((800, 600, DARK), (1100, 700, GREEN)):
        cv2.circle(reference, (x, y), 100, colour, -1)
    write_pyramid(folder / "reference.tif", reference, mpp=0.25)
    (folder / "dark.geojson").write_text(json.dumps(circle(800, 600, 90)))
    (folder / "green.geojson").write_text(json.dumps(circle(1100, 700, 90)))
    patch = cv2.resize(reference[400:1000, 600:1300], (350, 300), interpolation=cv2.INTER_AREA)
    mask = np.zeros(patch.shape[:2], np.uint8)
    cv2.circle(mask, (250, 150), 45, 255, -1)
    cv2.imwrite(str(folder / "patch.png"), patch[..., ::-1])
    cv2.imwrite(str(folder / "mask.png"), mask)
    return folder


def segment(folder: Path, *arguments: object, model: str = COLOUR) -> int:
    common = [folder / "target.tif", "--model", model, "--quiet", "--mpp", 1]
    return cli.run_segment([str(argument) for argument in (*common, *arguments)])


def found(out: Path) -> list[int]:
    """Whether each of the three discs is in the overlay."""
    labels = zarr.open_array(str(out / "overlay.zarr/labels/0/0"), mode="r")
    return [int(labels[300, x] > 0) for x in (300, 400, 500)]


def test_the_command_shows_what_to_look_for(folder: Path, tmp_path: Path):
    """As a user starts it: a process of its own, no query, options before and after the slide."""
    command = [sys.executable, "-m", "service.cli", "segment", "--exemplar", str(folder / "reference.tif")]
    command += ["--exemplar-mask", str(folder / "dark.geojson"), str(folder / "target.tif"), "--out", str(tmp_path)]
    done = subprocess.run([*command, "--model", COLOUR, "--quiet"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert found(tmp_path) == [1, 0, 1]
    assert str(tmp_path / "exemplar.png") in done.stdout and (tmp_path / "exemplar.png").exists()
    assert "on slide reference.tif" in done.stdout and "Research use only" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["queries"][0]["query"] == "Find the same as in the example."


def test_another_outline_finds_other_things(folder: Path, tmp_path: Path):
    shown = ("--exemplar", folder / "reference.tif", "--exemplar-mask", folder / "green.geojson")
    assert segment(folder, "Where is more?", *shown, "--out", tmp_path / "out") == 0
    assert found(tmp_path / "out") == [0, 1, 0]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["queries"][0]["query"] == "Where is more?"


def test_a_picture_and_its_mask_are_an_exemplar(folder: Path, tmp_path: Path):
    pair = ("--exemplar", folder / "patch.png", "--exemplar-mask", folder / "mask.png")
    assert segment(folder, *pair, "--exemplar-mpp-override", 0.5, "--out", tmp_path / "out") == 0
    assert found(tmp_path / "out") == [0, 1, 0]


def test_a_roi_limits_what_is_shown(folder: Path, tmp_path: Path):
    (tmp_path / "roi.geojson").write_text(json.dumps(circle(800, 600, 130)))
    shown = ("--exemplar", folder / "reference.tif", "--exemplar-mask", folder / "dark.geojson")
    assert segment(folder, *shown, "--exemplar-roi", tmp_path / "roi.geojson", "--out", tmp_path / "out") == 0
    picture = cv2.imread(str(tmp_path / "out" / "exemplar.png"))
    assert (picture[:80] == 255).all() and found(tmp_path / "out") == [1, 0, 1]


@pytest.mark.parametrize(
    ("change", "says", "option"),
    [
        ({"--exemplar": "missing.tif"}, "missing.tif does not exist", "--exemplar"),
        ({"--exemplar": "text.svs"}, "text.svs: not a slide", "--exemplar"),
        ({"--exemplar": None}, "without its slide", "--exemplar-mask"),
        ({"--exemplar-mask": None}, "has no outline", "--exemplar-mask"),
        ({"--exemplar-mask": "missing.geojson"}, "missing.geojson", "--exemplar-mask"),
        ({"--exemplar-mask": "text.svs"}, "not JSON", "--exemplar-mask"),
        ({"--exemplar-mask": "far.geojson"}, "outside the exemplar's slide", "--exemplar-mask"),
        ({"--exemplar-mask": "speck.geojson"}, "at least 0.2%", "--exemplar-mask"),
        ({"--exemplar-mask": "mask.png"}, "1800 x 1400", "--exemplar-mask"),
        ({"--exemplar-mask": "mask.png", "--exemplar": "patch.png"}, "patch.png: the slide does not say", "mpp-"),
        (
            {"--exemplar-mask": "black.png", "--exemplar": "patch.png", "--exemplar-mpp-override": "0.5"},
            "nothing is marked", "--exemplar-mask",
        ),
        ({"--exemplar-roi": "far.geojson"}, "outside the exemplar's slide", "--exemplar-roi"),
        ({"--exemplar-roi": "text.svs"}, "not JSON", "--exemplar-roi"),
        ({"--model": HUE}, "hue takes no exemplar", "--exemplar"),
        ({"--device": "tpu"}, "auto, cpu, cuda", "--device"),
    ],
)
def test_bad_exemplars_are_one_line_and_leave_nothing(
    folder: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture, change: dict, says: str, option: str
):
    monkeypatch.chdir(tmp_path)
    for name in ("patch.png", "mask.png"):
        Path(name).write_bytes((folder / name).read_bytes())
    cv2.imwrite("black.png", np.zeros((300, 350), np.uint8))
    Path("text.svs").write_text("this is no slide and no JSON")
    Path("far.geojson").write_text(json.dumps(circle(90_000, 600, 90)))
    Path("speck.geojson").write_text(json.dumps(circle(800, 600, 5)))
    before = sorted(tmp_path.rglob("*"))
    options = {
        "--exemplar": str(folder / "reference.tif"), "--exemplar-mask": str(folder / "dark.geojson"), "--out": "out",
        **change,
    }  # fmt: skip
    named = [text for name, value in options.items() if value is not None for text in (name, value)]
    assert segment(folder, *named) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and option in said
    assert len(said.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_query_or_an_exemplar_is_due(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert segment(folder, "--out", tmp_path / "out") == 2
    assert "show an --exemplar" in capsys.readouterr().err


def test_the_device_is_told_to_what_loads_the_model(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLIDEREASON_DEVICE", "cuda:7")
    told = []

    def load(name: str):
        import os

        from tests.segmenters import hue_segmenter

        told.append(os.environ["SLIDEREASON_DEVICE"])
        return hue_segmenter()

    monkeypatch.setattr("model.cli.segmenter_by_name", load)
    assert segment(folder, "q", "--out", tmp_path / "a") == 0
    assert segment(folder, "q", "--out", tmp_path / "b", "--device", "cpu") == 0
    assert told == ["cuda:7", "cpu"]
