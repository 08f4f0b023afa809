"""Benchmarks run, keep what makes them repeatable, and say when something they need is not here."""

import json
import statistics
from pathlib import Path

from benchmarks.record import Measurement
from benchmarks.run import NAMES, UNAVAILABLE, main

HUE = ["--model", "tests.segmenters:hue_segmenter", "--quick"]


def test_a_benchmark_leaves_command_seed_data_and_spread(tmp_path: Path, capsys):
    assert main(["segmenter", "--here", "--seed", "3", "--out", str(tmp_path), *HUE]) == 0
    result = json.loads((tmp_path / "segmenter.json").read_text())
    assert (result["benchmark"], result["seed"], result["model"]) == ("segmenter", 3, HUE[1])
    assert "seed 3" in result["data"] and result["machine"]["cpus_usable"] >= 1 and result["commit"]
    assert result["measurements"][0]["unit"] == "tiles/s" and result["measurements"][0]["min"] > 0
    assert "batch 4, free" in capsys.readouterr().out


def test_a_measurement_keeps_every_repetition():
    values = (3.0, 1.0, 2.5)
    shown = Measurement("speed", "tiles/s", values).to_json()
    assert shown["values"] == values
    assert (shown["median"], shown["min"], shown["max"]) == (statistics.median(values), 1.0, 3.0)


def test_what_is_not_here_is_left_out_and_said(tmp_path: Path, capsys):
    assert main(["grid", "--here", "--model", "no.such:thing", "--out", str(tmp_path)]) == UNAVAILABLE
    assert "left out" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_an_unknown_benchmark_is_refused_with_the_names(capsys):
    assert main(["speed"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in NAMES)
