"""Benchmarks run, keep what makes them repeatable, and say when something they need is not here."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines import CONTENDERS, Work
from benchmarks.decode import main as decode
from benchmarks.flops import prefill_flops, see_flops, survey_flops
from benchmarks.pairs import Clock, agreement
from benchmarks.record import Measurement
from benchmarks.run import NAMES, UNAVAILABLE, main
from benchmarks.workload import QUERY, chain_lengths, evenly, scripted
from model.predictor import PathChatPredictor
from model.segmenter import SegmenterCard
from model.stages import Stopwatch
from tests.model.tiny import small_model, tiles

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


@pytest.fixture(scope="module", params=["self", "predict"])
def predictor(request) -> PathChatPredictor:
    model = small_model(seg_bias=4.0, seg_state=request.param)
    return PathChatPredictor(model, SegmenterCard("small", "", 64, 1.0), bf16=False)


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "ours"])
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
def test_contenders_give_the_same_answers(predictor, name, share):
    images = tiles(6).numpy()
    work = Work(images, QUERY, 1.0) if share is None else scripted(predictor.model, images, share, seed=1)
    ours, theirs = (CONTENDERS[n](predictor, work, Stopwatch(on=True)) for n in ("ours", name))
    told = agreement(ours, theirs)
    assert told.same_text == 6 and told.max_difference < 1e-3
    if share is not None:
        assert sum(len(reply.masks) > 0 for reply in theirs) == round(share * 6)


def test_a_disagreement_is_seen(predictor):
    work = scripted(predictor.model, tiles(4).numpy(), 1.0, seed=1)
    ours = CONTENDERS["ours"](predictor, work, Stopwatch())
    for reply in (theirs := CONTENDERS["lisa"](predictor, work, Stopwatch())):
        reply.masks[:, :8] = 1 - reply.masks[:, :8]
    assert not agreement(ours, theirs).holds(0.01)


def test_formulas_count_what_torch_counts():
    model = small_model()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as seen:
            model.see(tiles(2))
        with FlopCounterMode(display=False) as surveyed:
            model.survey(tiles(2))
        with FlopCounterMode(display=False) as read:
            embeds = model.language_model.embed(torch.zeros(1, 20, dtype=torch.long))
            states = model.language_model(embeds, torch.arange(20).expand(3, 1, 20))
            model.language_model.logits(states[:, -1])
    assert seen.get_total_flops() == 2 * see_flops(model.config)
    assert surveyed.get_total_flops() == 2 * survey_flops(model.config)
    language = model.config.language
    never_looked_at = 4 * language.depth * language.dim * (20 * 20 - 20 * 21 // 2)
    assert read.get_total_flops() == prefill_flops(language, 0, 20) + never_looked_at


def test_lengths_follow_the_stated_distribution():
    lengths = chain_lengths(0, 4000, 112)
    assert lengths.min() >= 20 and lengths.max() <= 112 and abs(np.median(lengths) - 60) < 2
    points = np.arange(4000) < 400
    few = evenly(lengths, points, 40)
    assert points[few].sum() == 4 and abs(np.median(lengths[few]) - 60) < 4


def test_a_clock_that_ran_out_allows_nothing():
    assert Clock(1.0).allows(10) and not Clock(1.0).allows(59) and not Clock(0.0).allows(0.0)


def test_decoding_is_measured_and_told(tmp_path: Path):
    assert main(["decode", "--here", "--quick", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "decode.json").read_text())
    names = {measurement["name"] for measurement in result["measurements"]}
    assert any("ours against lisa" in name for name in names) and any("100% of tiles point" in name for name in names)
    assert "ours is faster by" in (tmp_path / "decode.md").read_text()


def test_any_model_takes_the_path_of_a_gpu_and_what_is_not_here_is_said(tmp_path: Path, capsys):
    small = ["--tiles", "4", "--slow-tiles", "2", "--repeats", "1", "--minutes", "0.5", "--out", str(tmp_path)]
    assert decode(["--variant", "tests.model.tiny:small_model", *small]) == 0
    result = json.loads((tmp_path / "decode-tests.model.tiny-small_model.json").read_text())
    prefill = next(m for m in result["measurements"] if m["name"].endswith("stage prefill"))
    assert 0 < prefill["notes"]["flops_share_of_ceiling"] < 1
    assert decode(["--variant", "tests.model.tiny:no_model", *small]) == UNAVAILABLE
    assert "no_model" in capsys.readouterr().err
