"""How far a stain is from the trained ones: measured on tissue alone, told by the checkpoint, far where it is."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.data.stain import restain_to, template_of
from model.data.stain_shift import (
    STAIN_FILE,
    TrainedStain,
    fit_trained_stain,
    pooled_template,
    read_stain_file,
    tissue_template,
)
from model.predictor import CHECKPOINTS
from model.training.trained_stain import main, measure_training
from tests.made_slides import tissue_picture


def stained(seed: int, size_px: int = 96) -> np.ndarray:
    """Grainy pink tissue without glass, a little different by seed."""
    rng = np.random.default_rng(seed)
    colour = np.array((200, 115, 165)) + rng.normal(0, 6, 3)
    return np.clip(colour + rng.normal(0, 10 + seed % 5, (size_px, size_px, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def trained() -> TrainedStain:
    return fit_trained_stain([("made", stained(seed)) for seed in range(60)])


def test_glass_and_padding_do_not_change_a_stain():
    tissue = stained(1)
    framed = np.full((192, 192, 3), (243, 243, 245), np.uint8)
    framed[:96, :96] = tissue
    framed[96:, 96:] = 0
    assert tissue_template(framed) == pytest.approx(tissue_template(tissue), abs=1e-3)


def test_a_tile_of_glass_has_no_stain():
    assert tissue_template(np.full((64, 64, 3), (243, 243, 245), np.uint8)) is None
    assert tissue_template(np.zeros((64, 64, 3), np.uint8)) is None


def test_a_stain_is_the_template_of_the_tissue():
    image = stained(3)
    sampled = np.ascontiguousarray(image[::4, ::4])
    assert tissue_template(image) == pytest.approx(template_of(sampled), abs=2e-3)


def test_training_pictures_are_near_and_another_stain_is_far(trained: TrainedStain):
    near = [trained.distance_sd(tissue_template(stained(seed))) for seed in range(60)]
    assert np.sqrt(np.mean(np.square(near))) == pytest.approx(1, abs=0.02)
    assert sum(distance > trained.limit_sd for distance in near) <= 1
    target = template_of(stained(0)) + np.array([-20, 15, -20, 0, 0, 0])
    assert trained.distance_sd(tissue_template(restain_to(stained(0), target))) > 2 * trained.limit_sd


def test_json_and_back(trained: TrainedStain):
    again = TrainedStain.from_json(json.loads(json.dumps(trained.to_json())))
    assert again.distance_sd(again.mean) == 0 and again.sources == {"made": 60} and again.images == 60
    assert again.limit_sd == pytest.approx(trained.limit_sd, abs=1e-4)
    assert TrainedStain.from_json({}) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"limit_sd": 0}, "limit_sd=0"),
        ({"mean": [1, 2]}, "six numbers"),
        ({"mood": 1}, "mood"),
        ({"std": [0] * 6}, "std"),
    ],
)
def test_a_wrong_file_is_refused_by_name(trained: TrainedStain, tmp_path: Path, change: dict, says: str):
    (tmp_path / STAIN_FILE).write_text(json.dumps(trained.to_json() | change))
    with pytest.raises(ValueError, match=says) as error:
        read_stain_file(tmp_path)
    assert STAIN_FILE in str(error.value)


def test_a_checkpoint_without_it_knows_nothing(tmp_path: Path):
    assert read_stain_file(tmp_path) == {}


def test_too_few_pictures_are_refused():
    glass = np.full((64, 64, 3), 243, np.uint8)
    with pytest.raises(ValueError, match="1 pictures with tissue"):
        fit_trained_stain([("made", stained(0)), ("made", glass)])


def test_pooled_by_area_without_a_division_by_nothing():
    assert pooled_template([[0.0] * 6, [4.0] * 6], [1, 3]) == [3.0] * 6
    assert pooled_template([[0.0] * 6, [4.0] * 6], [0, 0]) == [2.0] * 6


def test_without_a_checkpoint_or_pictures_it_says_so_and_writes_nothing(tmp_path: Path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    (tmp_path / "config.json").write_text((CHECKPOINTS / "tiny" / "config.json").read_text())
    assert main([str(tmp_path), "--data", str(tmp_path / "empty"), "--count", "1"]) == 2
    said = capsys.readouterr().err
    assert "none" in said and "no scenes" in said and not (tmp_path / "stain.json").exists()


def test_the_recipe_ends_with_the_stains_of_what_it_trained():
    """A checkpoint without them says of no region how far its stain is."""
    recipe = (CHECKPOINTS.parents[1] / "Makefile").read_text().partition("\ntrain:")[2].partition("else")[0]
    *_, last_stage, measured = recipe.strip().splitlines()
    trained = re.search(r"--out (\S+)", last_stage).group(1)
    assert measured.strip() == f"$(BIN)/python -m model.training.trained_stain {trained}/checkpoint"


def test_the_shipped_model_says_what_it_was_trained_on():
    known = TrainedStain.from_json(read_stain_file(CHECKPOINTS / "tiny"))
    assert known is not None and set(known.sources) <= {"bcss", "camelyon", "ebhi-seg"}
    assert known.images >= 1000 and 1 < known.limit_sd < 4
    green = tissue_picture(224, 224)[..., ::-1] * np.array([0.2, 1, 0.2])
    assert known.distance_sd(tissue_template(green.astype(np.uint8))) > known.limit_sd
    with pytest.raises(ValueError, match="positive"):
        replace(known, limit_sd=-1.0)


@pytest.mark.real
def test_training_pictures_are_measured_the_same_each_time(shared_data: Path):
    if not (shared_data / "camelyon" / "images").is_dir():
        pytest.skip("camelyon is not there")
    first, again, other = (measure_training(224, 20, seed, shared_data, {"camelyon": 1.0}) for seed in (0, 0, 1))
    assert first == again != other and first.sources == {"camelyon": 20}
    shipped = TrainedStain.from_json(read_stain_file(CHECKPOINTS / "tiny"))
    assert shipped.distance_sd(first.mean) < shipped.limit_sd
