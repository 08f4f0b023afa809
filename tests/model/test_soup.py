"""The mean of several trainings is the mean, and what does not fit is refused by its name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint, read_config, revision_of, save_checkpoint, verify_checkpoint, weights_of
from model.checkpoint_cli import run_checkpoint
from tests.model.tiny import small_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of one shape with other weights; the first has a calibration."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        model = small_model(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        if seed == 0:
            model.config = replace(model.config, calibration=(1.0, 0.5))
        save_checkpoint(folder, model, card={"licence": "Apache-2.0"})
    return folders


@pytest.mark.parametrize(("parts", "shares"), [([], (0.5, 0.5)), (["--parts", "3", "1"], (0.75, 0.25))])
def test_every_weight_is_the_mean(
    trainings: list[Path], tmp_path: Path, parts: list[str], shares: tuple[float, float]
) -> None:
    out = tmp_path / "mean"
    assert run_checkpoint(["average", *map(str, trainings), *parts, "--out", str(out)]) == 0
    one, two, mean = (weights_of(load_checkpoint(folder)) for folder in (*trainings, out))
    for name, weight in mean.items():
        wanted = shares[0] * one[name] + shares[1] * two[name]
        assert torch.allclose(weight, wanted, rtol=2e-3, atol=2e-4), name
    assert list(verify_checkpoint(out)) == []
    assert read_config(out / "config.json").calibration is None, "it was fitted to other weights"
    card = json.loads((out / "card.json").read_text())
    assert card["licence"] == "Apache-2.0"
    made_of = [{"revision": revision_of(one), "part": part} for one, part in zip(trainings, shares, strict=True)]
    assert card["mean_of"] == made_of


def test_what_does_not_fit_is_refused(
    trainings: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    model = small_model()
    model.config = replace(model.config, default_mpp=0.7)
    save_checkpoint(other, model)
    out = tmp_path / "out"
    for given, word in (
        ([*trainings, other], "other: of another configuration"),
        (trainings[:1], "two or more"),
        ([*trainings, "--parts", "1"], "a positive part for each"),
        ([*trainings, "--parts", "1", "-1"], "a positive part for each"),
        ([*trainings, tmp_path / "none"], "config.json is missing"),
    ):
        assert run_checkpoint(["average", *map(str, given), "--out", str(out)]) == 2
        assert word in capsys.readouterr().err
    assert not out.exists()
    assert run_checkpoint(["average", *map(str, trainings), "--out", str(trainings[0])]) == 2
    assert "not empty" in capsys.readouterr().err
