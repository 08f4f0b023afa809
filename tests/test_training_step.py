"""The benchmark of training steps runs the trainer's own steps."""

import json
from pathlib import Path

import pytest

from benchmarks.training_step import main

DRY = Path(__file__).parents[1] / "model" / "training" / "paper-dry.json"


def test_it_times_steps_of_a_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    told = ["--config", str(DRY), "--stages", "pretrain", "--warm", "1", "--steps", "2", "--scenes", "2"]
    assert main([*told, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "training_step.json").read_text())
    (step,) = result["measurements"]
    assert step["name"] == "pretrain: a step on one GPU" and len(step["values"]) == 2 and step["min"] > 0
    assert step["notes"] == {"micro-batch": 2, "accumulation": 2, "warm-up steps": 1}
    assert "pretrain: a step on one GPU" in capsys.readouterr().out
