"""Config files: those that ship are accepted, and what nobody reads is refused by its name."""

import json
from pathlib import Path

import pytest

from model.training.settings import STAGES, SettingsError, TrainSettings

FOLDER = Path(__file__).parents[2] / "model" / "training"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.name)
def test_every_shipped_config_is_accepted(path):
    settings = TrainSettings.read(path)
    assert settings.stages
    for name in settings.stages:
        assert settings.stage(name, steps=3).loop.steps == 3


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"variant": "tiny"}, "variant: no such field"),
        ({"model": "huge"}, "model='huge'.*paper-7b"),
        ({"data": {"slides": 1}}, "data.slides"),
        ({"sft": {"steps": 1, "batch_size": 1, "lrr": 1}}, "sft.lrr"),
        ({"sft": {"steps": 1}}, "batch_size"),
        ({"sft": {"steps": 0, "batch_size": 1}}, "steps=0"),
        ({"sft": {"steps": 1, "batch_size": 1, "lora": {"r": 4}}}, "sft.lora.r"),
        ({"model_changes": {"vision": {"dims": 4}}}, "model_changes"),
        ({"sft": []}, "sft: an object"),
    ],
)
def test_what_is_not_accepted_is_named(told, named, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(told))
    with pytest.raises(SettingsError, match=named):
        TrainSettings.read(path)


def test_a_missing_file_and_no_json_are_said(tmp_path):
    with pytest.raises(SettingsError, match="no config at"):
        TrainSettings.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SettingsError, match="not JSON"):
        TrainSettings.read(tmp_path / "bad.json")


def test_a_stage_without_section_is_said():
    with pytest.raises(SettingsError, match="no section 'sft'"):
        TrainSettings.from_json({}).stage("sft")


def test_numbers_of_the_model_may_differ():
    changes = {"tile_px": 64, "vision": {"depth": 2, "stem_channels": [8, 8, 8, 8]}}
    model = TrainSettings.from_json({"model_changes": changes}).model
    assert (model.tile_px, model.vision.depth, model.vision.stem_channels) == (64, 2, (8, 8, 8, 8))


def test_stages_are_the_papers():
    assert STAGES == ("lm", "ssl", "pretrain", "sft", "so-grpo")
