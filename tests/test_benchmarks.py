"""Benchmarks run, keep what makes them repeatable, and say when something they need is not here."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines import CONTENDERS, Work
from benchmarks.decode import main as decode
from benchmarks.flops import prefill_flops, see_flops, survey_flops
from benchmarks.pairs import Clock, agreement
from benchmarks.record import Measurement
from benchmarks.revision import RevisionSegmenter, extract
from benchmarks.rivals import spread_over_patients
from benchmarks.robustness import conditions
from benchmarks.run import NAMES, UNAVAILABLE, main
from benchmarks.workload import QUERY, chain_lengths, evenly, scripted
from model.data.readers import EBHI_FOLDERS, read_ebhi
from model.data.splits import split_of_patient
from model.predictor import PathChatPredictor
from model.segmenter import SegmenterCard, TileBatch
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


@pytest.fixture
def biopsies(tmp_path: Path, monkeypatch) -> Path:
    """A folder of data with two held-out patients of EBHI, a purple gland each, in its published layout."""
    held_out = [str(n) for n in range(200) if split_of_patient(f"ebhi-seg/{n}") == "test"][:2]
    folder = tmp_path / "data" / "ebhi-seg"
    for patient, diagnosis in zip(held_out, EBHI_FOLDERS, strict=False):
        for part in ("images", "masks"):
            (folder / part / diagnosis).mkdir(parents=True)
        mask = np.zeros((128, 128), bool)
        mask[30:90, 20:70] = True
        image = np.full((128, 128, 3), (240, 225, 238), np.uint8)
        image[mask] = (90, 40, 130)
        Image.fromarray(image).save(folder / "images" / diagnosis / f"GT{patient}-1.jpg", quality=95)
        Image.fromarray(mask).save(folder / "masks" / diagnosis / f"GT{patient}-1.png")
    monkeypatch.setenv("SLIDEREASON_DATASETS", str(folder.parent))
    return folder.parent


def test_robustness_tells_figures_drops_and_a_plot(biopsies: Path, tmp_path: Path):
    options = ["--here", "--limit", "1", "--against", "tests.segmenters:hue_segmenter", "--out", str(tmp_path)]
    assert main(["robustness", *options, *HUE[:2]]) == 0
    result = json.loads((tmp_path / "robustness.json").read_text())
    told = {one["name"]: one for one in result["measurements"]}
    names = [condition.name for condition in conditions()]
    assert len(names) == 1 + 8 + 5 * 5 and names[0] == "clean"
    assert all(f"{name}, {role}: dice_forced" in told for name in names for role in ("model", "against"))
    clean = told["clean, model: dice_with_misses"]
    assert clean["median"] > 0.9 and clean["notes"]["n"] == 2
    assert told["stain faded, model: sensitivity, change"]["median"] == -1.0
    drops = [told[f"pen {strength}, model: dice_forced, change"]["median"] for strength in (1, 5)]
    assert drops[1] < drops[0] and told["pen 5: dice_forced, difference"]["median"] == 0.0
    assert "sha256:" in result["data"] and "seeds 0" in result["data"]
    with Image.open(tmp_path / "robustness.png") as plot:
        assert plot.width > 800 and np.asarray(plot.convert("L")).std() > 10


def test_gain_pairs_the_same_questions_over_several_seeds(biopsies: Path, tmp_path: Path, capsys):
    options = ["--here", "--seeds", "3", "4", "--out", str(tmp_path), *HUE[:2]]
    assert main(["gain", *options, "--against", "tests.segmenters:colour_segmenter"]) == 0
    result = json.loads((tmp_path / "gain.json").read_text())
    told = {one["name"]: one for one in result["measurements"]}
    # one points at every purple gland, asked for or not; the other never, as no exemplar is shown
    sensitivity = told["ebhi: sensitivity, difference"]
    assert sensitivity["values"] == [1.0, 1.0] and sensitivity["notes"]["pooled"] == 1.0
    assert sensitivity["notes"]["interval_95"] == [1.0, 1.0]
    assert sensitivity["notes"]["n"] == 2 * 2 * 4 and sensitivity["notes"]["n_groups"] == 2
    assert told["ebhi: specificity, difference"]["median"] == -1.0
    assert told["ebhi, present-implied: dice_with_misses, difference"]["median"] > 0.9
    assert "seeds 3, 4" in result["data"] and "against colour" in result["data"]
    assert main(["gain", *options]) == UNAVAILABLE
    assert main(["gain", *options, "--against-revision", "no-such-commit"]) == UNAVAILABLE
    assert "--against-revision" in (said := capsys.readouterr().out) and "no-such-commit" in said


def test_few_pictures_still_are_many_patients(biopsies: Path):
    scenes = [scene for scene in read_ebhi(biopsies / "ebhi-seg") for _ in range(3)]
    assert [scene.patient for scene in scenes[:3]] == [scenes[0].patient] * 3
    assert len({scene.patient for scene in spread_over_patients(scenes, 2)}) == 2
    assert len(spread_over_patients(scenes, None)) == 6


REVISION = {
    "segmenter.py": """
from dataclasses import dataclass

@dataclass
class TileBatch:  # of before exemplars
    images: object
    mpp: object
    queries: object
    forced: object
""",
    "predictor.py": """
from dataclasses import dataclass
import numpy as np
from model.segmenter import TileBatch

@dataclass
class Card:
    name: str
    revision: str = "old-1"
    tile_size_px: int = 64
    default_mpp: float = 1.0
    targets: tuple = ("gland",)

@dataclass
class Answer:
    text: str
    masks: object
    p_seg: float = 0.5

class Old:
    def __init__(self, name):
        if name == "gone":
            raise FileNotFoundError("no checkpoint gone")
        self.card = Card(name)
    def predict(self, batch):
        assert type(batch) is TileBatch
        print("chatter")
        if "fail" in batch.queries:
            raise KeyError("fail")
        return [Answer(q + "!", (i[None, ..., 0] > 9).astype(np.float16)) for q, i in zip(batch.queries, batch.images)]

load_segmenter = Old
""",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A revision whose segmenter knows less than today's."""
    (tmp_path / "model").mkdir()
    for name, text in REVISION.items():
        (tmp_path / "model" / name).write_text(text)
    (tmp_path / "model" / "__init__.py").touch()
    return tmp_path


def test_a_revision_answers_with_its_own_code(tree: Path):
    images = np.zeros((2, 64, 64, 3), np.uint8)
    images[1] = 200
    batch = TileBatch(images, np.ones(2, np.float32), ["a", "b"], np.zeros(2, bool))
    with RevisionSegmenter(tree, "old") as old:
        assert (old.card.name, old.card.revision, old.card.targets) == ("old", "old-1", ("gland",))
        for _ in range(2):
            first, second = old.predict(batch)
            assert (first.text, second.text) == ("a!", "b!") and first.p_seg == 0.5
            assert not first.masks.any() and second.masks.all() and second.masks.shape == (1, 64, 64)
        with pytest.raises(ValueError, match="KeyError"):
            old.predict(TileBatch(images[:1], np.ones(1, np.float32), ["fail"], np.zeros(1, bool)))


def test_a_revision_that_cannot_load_says_why_and_leaves_no_process(tree: Path):
    with pytest.raises(ValueError, match="no checkpoint gone"):
        RevisionSegmenter(tree, "gone")


def test_a_commit_is_laid_out_and_another_is_refused(tmp_path: Path):
    try:
        extract("HEAD", tmp_path / "now")
    except ValueError as error:
        pytest.skip(f"not a git clone: {error}")
    assert (tmp_path / "now" / "model" / "predictor.py").is_file()
    with pytest.raises(ValueError, match="'no-such-commit'.*accepted"):
        extract("no-such-commit", tmp_path / "none")
    with pytest.raises(ValueError):
        extract("--output=" + str(tmp_path / "x"), tmp_path / "option")
    assert not (tmp_path / "x").exists()
