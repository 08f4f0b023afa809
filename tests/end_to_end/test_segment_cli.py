"""`slidereason segment`: what it writes, what it says, and that an error leaves nothing."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import zarr

from tests.jobs import HUE
from tests.made_slides import tissue_picture, write_pyramid
from worker import cli


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = tissue_picture(1600, 1200)
    for x in (600, 800, 1000):
        cv2.circle(picture, (x, 600), 60, (70, 40, 110), -1)
    return write_pyramid(tmp_path_factory.mktemp("slide") / "discs.tif", picture)


def segment(*arguments: object) -> int:
    return cli.run_segment([str(argument) for argument in (*arguments, "--model", HUE, "--quiet")])


def test_the_command_writes_and_says_where(slide: Path, tmp_path: Path):
    """As a user starts it: the console script in a process of its own."""
    command = [sys.executable, "-m", "service.cli", "segment", str(slide), "Where are nuclei?", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--model", HUE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name in ("overlay.zarr", "regions.geojson", "report.json", "report.html"):
        assert (tmp_path / name).exists()
        assert str(tmp_path / name) in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["answer"] in done.stdout
    assert "Research use only" in done.stdout
    assert "100%" in done.stderr, "a progress bar"
    assert len(json.loads((tmp_path / "regions.geojson").read_text())["features"]) == 3


def test_magnification_is_ten_over_mpp(slide: Path, tmp_path: Path):
    assert segment(slide, "q", "--out", tmp_path / "a", "--magnification", 5) == 0
    assert segment(slide, "q", "--out", tmp_path / "b", "--mpp", 2) == 0
    shapes = [zarr.open_array(str(tmp_path / x / "overlay.zarr/labels/0/0"), mode="r").shape for x in "ab"]
    assert shapes == [(300, 400), (300, 400)]


def test_a_roi_limits_what_is_looked_at(slide: Path, tmp_path: Path):
    ring = [[500, 500], [700, 500], [700, 700], [500, 700], [500, 500]]
    (tmp_path / "roi.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    assert segment(slide, "q", "--out", tmp_path / "out", "--roi", tmp_path / "roi.geojson") == 0
    coverage = json.loads((tmp_path / "out" / "report.json").read_text())["coverage"]
    assert 0 < coverage["looked_at"] < coverage["skipped"]


def test_a_slide_without_mpp_needs_mpp_override(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "plain.png"
    cv2.imwrite(str(path), tissue_picture(600, 400))
    assert segment(path, "q", "--out", tmp_path / "out") == 2
    assert "--mpp-override" in capsys.readouterr().err
    assert segment(path, "q", "--out", tmp_path / "out", "--mpp-override", 0.5) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--slide", "missing.svs"], "does not exist"),
        (["--slide", "text.svs"], "text.svs"),
        (["--slide", "empty.svs"], "empty.svs"),
        (["--slide", "cut.tif"], "cut.tif"),
        (["--query", "  "], "query is empty"),
        (["--overlap", "0.9"], "overlap must be in"),
        (["--threshold", "7"], "threshold must be in"),
        (["--min-region-um2", "-1"], "must not be negative"),
        (["--roi", "missing.geojson"], "missing.geojson"),
        (["--roi", "text.svs"], "not JSON"),
        (["--roi", "far.geojson"], "roi"),
        (["--roi", "point.geojson"], "roi"),
        (["--out", "used"], "not empty"),
        (["--out", "text.svs"], "is a file"),
        (["--out", "text.svs/below"], "cannot be written"),
        (["--model", "no.such:model"], "no.such:model"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    slide: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture, change: list[str], says: str
):
    monkeypatch.chdir(tmp_path)
    Path("text.svs").write_text("this is no slide and no JSON")
    Path("empty.svs").touch()
    Path("cut.tif").write_bytes(slide.read_bytes()[:5000])
    far = [[[9e6, 9e6], [9e6 + 9, 9e6], [9e6, 9e6 + 9], [9e6, 9e6]]]
    Path("far.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": far}))
    Path("point.geojson").write_text(json.dumps({"type": "Point", "coordinates": [1, 2]}))
    Path("used").mkdir()
    Path("used/mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    options = {"--slide": str(slide), "--query": "q", "--out": "out", "--model": HUE}
    options |= dict([change])
    positional = [options.pop("--slide"), options.pop("--query")]
    named = [text for pair in options.items() for text in pair]
    assert cli.run_segment([*positional, *named, "--quiet"]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert len(said.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mpp", "1", "--magnification", "10"], "not allowed with"),
        (["--mpp", "0"], "not a positive number"),
        (["--mpp", "nan"], "not a positive number"),
        (["--magnification", "ten"], "invalid"),
        ([], "--out"),
    ],
)
def test_options_that_contradict_are_refused(slide: Path, tmp_path: Path, capsys, arguments: list[str], says: str):
    out = ["--out", str(tmp_path / "out")] if arguments else []
    with pytest.raises(SystemExit) as stopped:
        cli.run_segment([str(slide), "q", *out, *arguments])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_an_interrupt_leaves_nothing(slide: Path, tmp_path: Path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("worker.inline._drain", interrupt)
    assert segment(slide, "q", "--out", tmp_path / "out") == cli.STOPPED
    assert not (tmp_path / "out").exists()


def test_dice_of_a_perfect_overlay_is_one(tmp_path: Path):
    truth = np.zeros((40, 60), bool)
    truth[10:20, 10:30] = True
    array = zarr.create_array(store=str(tmp_path / "overlay.zarr/labels/0/0"), shape=(80, 120), dtype="uint32")
    array[...] = np.kron(truth, np.ones((2, 2))).astype(np.uint32) * 7
    assert cli.dice_of(tmp_path, truth) == 1.0
    array[...] = 0
    assert cli.dice_of(tmp_path, truth) == 0.0
    assert cli.dice_of(tmp_path, np.zeros((40, 60), bool)) == 1.0


@pytest.mark.slow
def test_the_demo_shows_the_whole_job(slide: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("SLIDE", str(slide))
    monkeypatch.setenv("QUERY", "Where are the discs?")
    assert cli.run_demo(["--out", str(tmp_path / "demo"), "--model", HUE, "--quiet"]) == 0
    assert cli.run_demo(["--out", str(tmp_path / "demo"), "--model", HUE, "--quiet"]) == 0, "a demo may be repeated"
    assert "report.html" in capsys.readouterr().out
