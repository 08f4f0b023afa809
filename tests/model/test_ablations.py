"""The ablations: what each arm leaves out and nothing else, stages that are shared, intervals worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.cli import run_evaluate
from model.config import LanguageConfig
from model.data.chains import answer_absent, answer_present, answer_unknown
from model.data.scene import Scene
from model.data.synthetic import synthetic_scenes
from model.evaluation import metrics
from model.predictor import PathChatPredictor
from model.segmenter import SegmenterCard, TileBatch
from model.training import ablation_report as report
from model.training.ablation_arms import ARMS, BUDGETS, FULL, resolve
from model.training.ablation_data import FULL_PX, digest, shrunk
from model.training.ablation_runs import FixedEpisodes, FixedSegmenter, Workshop, course, fixed_insertion
from model.training.ablations import CONFIG, main, parser, read_settings
from model.training.episodes import EpisodeMaker
from model.training.pools import ScenePool
from tests.conftest import REPOSITORY
from tests.model.tiny import small_model

SMOKE = BUDGETS["smoke"]


def _settings():
    return read_settings(CONFIG, SMOKE)


def _resolved(name, seed=0):
    return resolve(ARMS[name], _settings(), SMOKE, seed, "data")


def _flat(value, path=""):
    """Path → leaf of nested JSON."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in _flat(part, f"{path}.{name}").items()}
    return {path.lstrip("."): value}


def _told(name):
    """What an arm's stages are given, without the hashes."""
    told = {}
    for step in _resolved(name).lineage():
        one = step.to_json()
        one["parents"] = [[parent.stage, list(taken)] for parent, taken in step.parents]
        told[f"{step.stage}{'+' if step.seed else ''}"] = one
    return _flat(told)


def _apart(name):
    """Path → (full, arm) where the two differ."""
    full, arm = _told(FULL), _told(name)
    both = {path: (full.get(path), arm.get(path)) for path in full.keys() | arm.keys()}
    return {path: (one, other) for path, (one, other) in both.items() if one != other}


RL = "so-grpo.section"
REWARD_ARMS = {
    "no-length-reward": {f"{RL}.rl.rewards.length": (None, 0.0)},
    "no-spatial-reward": {f"{RL}.rl.rewards.spatial": (None, 0.0)},
    "no-sparse-reward": {f"{RL}.rl.rewards.sparse": (None, 0.0)},
    "no-gae": {
        f"{RL}.rl.advantage": (None, "group"), f"{RL}.rl.value": (None, 0.0), f"{RL}.rl.value_warmup": (1, 0),
    },
    "no-differentiable-reward": {f"{RL}.rl.differentiable": (None, 0.0)},
    "no-scheduling": {f"{RL}.schedule": ("adaptive", "constant")},
    "standard-grpo": {
        f"{RL}.schedule": ("adaptive", "constant"), f"{RL}.rl.advantage": (None, "group"),
        f"{RL}.rl.value": (None, 0.0), f"{RL}.rl.value_warmup": (1, 0), f"{RL}.rl.differentiable": (None, 0.0),
        f"{RL}.rl.rewards.sparse": (None, 0.0), f"{RL}.rl.rewards.spatial": (None, 0.0),
        f"{RL}.rl.rewards.length": (None, 0.0), f"{RL}.rl.rewards.hard": (None, True),
    },
    "no-seg-adapter": {"sft.adapter": ("mlp", "linear"), "so-grpo.adapter": ("mlp", "linear")},
    "no-auto-emission": {
        "sft.fixed": (False, True), "so-grpo.fixed": (False, True), f"{RL}.rl.rewards.sparse": (None, 0.0),
        f"{RL}.rl.rewards.format": (None, 0.0),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REWARD_ARMS)
def test_an_arm_differs_in_what_it_leaves_out_and_in_nothing_else(name):
    assert _apart(name) == REWARD_ARMS[name]


def test_arms_without_a_stage_take_all_but_that():
    stages = {name: [step.stage for step in _resolved(name).lineage()] for name in ARMS}
    assert stages[FULL] == ["lm", "ssl", "pretrain", "sft", "so-grpo"]
    assert stages["no-ssl"] == ["lm", "pretrain", "sft", "so-grpo"]
    assert stages["no-sft"] == ["lm", "ssl", "pretrain", "so-grpo"]
    assert stages["no-pathology-encoder"] == ["lm", "ssl", "sft", "so-grpo"]
    assert stages["no-rl"] == ["lm", "ssl", "pretrain", "sft", "sft"]
    taken = {parent.stage: parts for parent, parts in _resolved("no-pathology-encoder").parents[0][0].parents}
    assert taken["ssl"] == ("sam_encoder.",), "nothing of the pathology encoder"
    more = _resolved("no-rl")
    assert more.section["steps"] == SMOKE.more_steps and more.seed != more.parents[0][0].seed, "other batches"
    assert set(REWARD_ARMS) | {FULL, "no-ssl", "no-sft", "no-pathology-encoder", "no-rl"} == set(ARMS)


def test_what_arms_begin_with_is_shared_and_the_hash_tells_all_else_apart():
    def keys(name, seed=0):
        return {f"{step.stage}{step.seed}": step.key for step in _resolved(name, seed).lineage()}

    full = keys(FULL)
    for name in ("no-gae", "no-rl", "standard-grpo", "no-length-reward"):
        assert keys(name)["sft0"] == full["sft0"], name
    assert keys("no-seg-adapter")["pretrain0"] == full["pretrain0"] and keys("no-seg-adapter")["sft0"] != full["sft0"]
    assert keys("no-ssl")["lm0"] == full["lm0"] and keys("no-ssl")["pretrain0"] != full["pretrain0"]
    assert len({_resolved(name).key for name in ARMS}) == len(ARMS), "no two arms end alike"
    assert not set(full.values()) & set(keys(FULL, seed=1).values())
    longer = replace(_settings(), stages=_settings().stages | {"lm": _settings().stages["lm"] | {"steps": 3}})
    assert resolve(ARMS[FULL], longer, SMOKE, 0, "data").key != full["so-grpo0"], "a parent's change reaches the end"
    assert resolve(ARMS[FULL], _settings(), SMOKE, 0, "other").key != full["so-grpo0"]


def test_fixed_insertion_puts_one_seg_behind_what_is_sought():
    rng, mask = np.random.default_rng(0), np.ones((64, 64), bool)
    facts = {}
    for answer in (
        answer_present({"gland": mask}, "gland", facts, rng), answer_absent("polyp", {"gland": mask}, facts, rng),
        answer_unknown("Where is the kidney?", rng),
    ):  # fmt: skip
        fixed = fixed_insertion(answer)
        assert fixed.count("<SEG>") == 1
        before = fixed.split("<SEG>")[0]
        assert before.startswith("<think> Looking for: ") and "." not in before, "nothing was observed yet"
        assert fixed.replace(" <SEG>", "").replace("for: ", "for ") == answer.replace(" <SEG>", "")


def _maker(kind):
    model = small_model()
    pool = ScenePool({"synthetic": [synthetic_scenes(np.random.default_rng(0), 9, 64)]}, 64, {"synthetic": 1.0})
    config = model.config
    return kind(
        pool, model.tokenizer, config.dense_classes, config.patch_grid, config.image_grid, config.mask_px, 6,
        exemplar_share=0.0,
    )  # fmt: skip


def test_fixed_episodes_carry_a_seg_each_and_empty_masks_where_nothing_is():
    plain, fixed = (_maker(kind).make(np.random.default_rng(3)) for kind in (EpisodeMaker, FixedEpisodes))
    seg = _maker(EpisodeMaker).tokenizer.seg
    assert torch.equal(fixed.images, plain.images) and torch.equal(fixed.present, plain.present), "the same draws"
    assert 0 < fixed.present.sum() < len(fixed.present)
    assert ((fixed.ids == seg).sum(1) == 1).all()
    assert len(fixed.masks) == len(fixed.ids)
    assert torch.equal(fixed.masks[fixed.present > 0.5], plain.masks)
    assert not fixed.masks[fixed.present < 0.5].any()


def test_the_fixed_segmenter_points_where_the_model_would_not():
    model = small_model()
    with torch.no_grad():
        model.language_model.text_model.embed_tokens.weight[model.tokenizer.seg] = 0
    predictor = PathChatPredictor(model, SegmenterCard("small", "0", 64, 1.0), bf16=False)
    pictures = (np.random.default_rng(0).random((3, 64, 64, 3)) * 255).astype(np.uint8)
    batch = TileBatch(pictures, np.full(3, np.nan, np.float32), ["Where is the tumour?"] * 3, np.zeros(3, bool))
    assert not any(answer.emitted for answer in predictor.predict(batch))
    answers = FixedSegmenter(predictor).predict(batch)
    assert [len(answer.masks) for answer in answers] == [1, 1, 1] and all(answer.emitted for answer in answers)
    assert all(answer.text.count("<SEG>") == 1 for answer in answers)


def test_all_weights_but_the_adapter_start_alike(tmp_path):
    settings = _settings()
    language = LanguageConfig(dim=32, depth=1, heads=2, kv_heads=1, mlp_dim=32, mrope_section=(2, 3, 3), vocabulary=400)
    settings = replace(settings, model=replace(settings.model, language=language))
    shop = Workshop(tmp_path, settings, None, SMOKE.corpus)
    steps = [replace(_resolved(name), parents=()) for name in (FULL, "no-seg-adapter")]
    full, linear = (shop._begin(step).state_dict() for step in steps)
    assert linear["seg_adapter.weight"].shape == (settings.model.sam.out_dim, 32)
    same = [name for name in full if not name.startswith("seg_adapter.")]
    assert len(same) > 100 and all(torch.equal(full[name], linear[name]) for name in same)


def test_a_shrunk_scene_shows_the_same_tissue():
    mask = np.zeros((FULL_PX, 2 * FULL_PX), bool)
    mask[:, : FULL_PX // 2] = True
    image = np.where(mask[..., None], 200, 40).astype(np.uint8).repeat(3, 2)
    scene = Scene("a", "ebhi-seg", "p", image, {"gland": mask, "tumour": mask}, frozenset(), 0.5, "colon", "CC0-1.0")
    small = shrunk(scene, FULL_PX // 4)
    assert small.image.shape == (FULL_PX // 4, FULL_PX // 2, 3) and small.mpp == 2.0
    assert small.masks["gland"].mean() == mask.mean() and small.masks["gland"] is small.masks["tumour"]
    assert shrunk(scene, FULL_PX) is scene and shrunk(replace(scene, mpp=None), 56).mpp is None


def test_the_digest_tells_pictures_and_masks_apart():
    scenes = synthetic_scenes(np.random.default_rng(0), 2, 64)
    flipped = [replace(scenes[0], masks={key: ~mask for key, mask in scenes[0].masks.items()}), scenes[1]]
    darker = [replace(scenes[0], image=scenes[0].image // 2), scenes[1]]
    told = {digest(ScenePool({"synthetic": [part]}, 64, {"synthetic": 1.0})) for part in (scenes, flipped, darker)}
    assert len(told) == 3
    assert digest(ScenePool({"synthetic": [list(scenes)]}, 64, {"synthetic": 1.0})) in told


def _row(identity, group, target, iou=None, text="<think> a b </think> c"):
    """An answered row whose mask overlaps by `iou`; None is silence."""
    score = metrics.Score(iou is not None, 100 * target, 0 if iou is None else 100, 0, 1000)
    terms = dict(zip(metrics.TERMS, metrics.terms([score])[0].tolist(), strict=True))
    terms |= {"iou": (iou or 0.0) * target, "dice": (iou or 0.0) * target}
    return {"id": identity, "group": group, "text": text, "terms": terms}


def test_differences_and_verdicts_are_those_worked_out_by_hand():
    """Patients A (target) and B (absent): drawn two of two, A counts 0, 1 or 2 times in ¼, ½ and ¼ of the resamples."""
    full = [_row("1", "A", 1, 0.5), _row("2", "B", 0)]
    missing = [_row("1", "A", 1), _row("2", "B", 0)]
    lying = [_row("1", "A", 1), _row("2", "B", 0, 0.0)]
    told = {
        FULL: {0: {"t": full}, 1: {"t": full}}, "no-gae": {0: {"t": missing}, 1: {"t": full}},
        "no-ssl": {0: {"t": lying}, 1: {"t": lying}},
    }  # fmt: skip
    found = report.compare_arms(told)
    assert found[FULL]["t"]["mean"]["giou_with_absent"] == pytest.approx(0.75)
    gae = found["no-gae"]["t"]["difference"]["giou_with_absent"]
    assert gae["by_seed"] == [pytest.approx(-0.25), 0.0] and gae["difference"] == pytest.approx(-0.125)
    assert gae["interval"] == [pytest.approx(-0.5), pytest.approx(0.0)], "A alone under the first seed twice: −0.5"
    assert gae["verdict"] == report.NONE
    ssl = found["no-ssl"]["t"]["difference"]["giou_with_absent"]
    assert ssl["difference"] == pytest.approx(-0.75), "0 against 0.75"
    assert ssl["interval"] == [pytest.approx(-1.0), pytest.approx(-0.5)] and ssl["verdict"] == report.HELPS
    assert found["no-ssl"]["t"]["difference"]["specificity"]["by_seed"] == [-1.0, -1.0]
    assert found[FULL]["t"]["mean"]["answer_words"] == 3 and found[FULL]["t"]["mean"]["bleu4"] is None


def test_other_rows_than_the_full_models_are_refused():
    told = {FULL: {0: {"t": [_row("1", "A", 1)]}}, "no-gae": {0: {"t": [_row("2", "A", 1)]}}}
    with pytest.raises(ValueError, match="no-gae.*not the rows"):
        report.compare_arms(told)


@pytest.mark.parametrize(
    ("name", "interval", "expected"),
    [
        ("giou_with_absent", (-0.3, -0.1), report.HELPS), ("giou_with_absent", (0.1, 0.3), report.HURTS),
        ("giou_with_absent", (-0.1, 0.1), report.NONE), ("giou_with_absent", (-0.1, 0.0), report.NONE),
        ("contradiction_rate", (0.1, 0.3), report.HELPS), ("contradiction_rate", (-0.3, -0.1), report.HURTS),
        ("answer_words", (1.0, 2.0), None), ("dice_with_misses", None, None),
    ],
)  # fmt: skip
def test_verdicts(name, interval, expected):
    assert report.verdict(name, interval) == expected


def test_the_course_of_a_run(tmp_path):
    rewards = [0.0, 1.0, 3.0, 2.0, 0.0]
    lines = [{"step": n, "reward": r, "norm": 1.0 + (n == 5), "loss_policy": 0} for n, r in enumerate(rewards, 1)]
    lines[0] = {"step": 1, "reward": 0.0, "norm": 99.0}  # the value head alone
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = course(tmp_path, window=2)
    assert told["best_step"] == 4 and told["best_reward"] == 2.5
    assert told["gradient_variance"] == pytest.approx(0.1875)


def _results():
    rows = {0: {"t": [_row("1", "A", 1, 0.5), _row("2", "B", 0)]}}
    sets = report.compare_arms({FULL: rows, "no-gae": rows, "no-rl": rows})
    spent = {"stages": [{"stage": "lm", "steps": 7}], "pictures": 1234, "answers_drawn": 0, "seconds": 5.0}
    arms = {
        name: {"words": ARMS[name].words, "kind": ARMS[name].kind, "note": ARMS[name].note, "budget": spent,
               "course": {"0": {"best_step": 9, "best_reward": 1, "gradient_variance": 0.5}}, "sets": sets[name]}
        for name in sets
    }  # fmt: skip
    tests = {"t": {"questions": 2, "absent": 1, "patients": 2}}
    return {"budget": "smoke", "seeds": [0], "parameters": 10, "tests": tests, "arms": arms}


def test_tables_state_figures_differences_and_budgets(tmp_path):
    text = report.tables(_results())
    assert "| full | full model | 0.500 | 1.000 | 0.750 | – | – |" in text
    assert "| rl | w/o GAE" not in text, "its table is that of SO-GRPO"
    assert "| w/o GAE | 0.500 | 0.750 (+0.000 [+0.000, +0.000]) | 1.000 | 9 | 0.5 | no difference shown |" in text
    assert "| full model | lm 7 | 1,234 | 0 | 5 | – |" in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n")
    report.write_table(page, text)
    assert "stale" not in page.read_text() and page.read_text().startswith("before\n")
    assert page.read_text().endswith(f"{report.END}\nafter\n") and text in page.read_text()
    report.draw(_results(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_the_page_names_every_arm_and_option():
    page = (REPOSITORY / "docs" / "ablations.md").read_text()
    assert [name for name in ARMS if f"`{name}`" not in page] == []
    options = [text for action in parser()._actions for text in action.option_strings if text.startswith("--")]
    assert [text for text in options if text != "--help" and f"`{text}" not in page] == []
    assert report.BEGIN in page and report.END in page


def test_unknown_arms_and_missing_data_are_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--arms", "no-luck"])
    assert "no-luck" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "out"), "--data", str(tmp_path)]) == 2
    assert "EBHI-SEG" in capsys.readouterr().err


@pytest.mark.slow
def test_smoke_budget_end_to_end_goes_on_where_it_was_killed(tmp_path):
    """Two arms beside the full model; what is finished is not done again, and what is lost is made again to the bit."""
    told = f"--ablations --budget smoke --seeds 0 --out {tmp_path} --bootstrap 50 --arms no-auto-emission no-rl".split()
    assert run_evaluate(told) == 0
    results = json.loads((tmp_path / "ablations.json").read_text())
    assert list(results["arms"]) == [FULL, "no-auto-emission", "no-rl"]
    fixed = results["arms"]["no-auto-emission"]["sets"]["synthetic"]["mean"]
    assert fixed["specificity"] == 0.0 and fixed["sensitivity"] == 1.0
    assert results["arms"][FULL]["course"]["0"]["best_step"] == 2 and not results["arms"]["no-rl"]["course"]
    assert [one["stage"] for one in results["arms"]["no-rl"]["budget"]["stages"]][-2:] == ["sft", "sft"]
    stages = sorted(path.name for path in (tmp_path / "stages").iterdir())
    assert [name.rpartition("-")[0] for name in stages] == ["lm", "pretrain", *["sft"] * 3, "so-grpo", "so-grpo", "ssl"]
    assert "w/o auto-emission" in (tmp_path / "ablations.md").read_text() and (tmp_path / "ablations.png").is_file()

    arm = next((tmp_path / "arms").glob("full-0-*.json"))
    answered = arm.read_text()
    arm.unlink()
    lost = tmp_path / "stages" / f"so-grpo-{list(results['arms'][FULL]['budget']['by_seed']['0'])[-1]}"
    weights = (lost / "checkpoint" / "model.safetensors").read_bytes()
    (lost / "done.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").glob("*/done.json")}
    assert main(told) == 0
    assert arm.read_text() == answered
    assert (lost / "checkpoint" / "model.safetensors").read_bytes() == weights
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
