"""The run at paper size: what learns at its real size, what is held as what, and a dry run of the very same path."""

import json
import os
import re
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.builders import build
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.data import sample, synthetic
from model.prompt import SYSTEM
from model.training import pools
from model.training.devices import Devices
from model.training.loop import LoopConfig
from model.training.pools import BuiltScenes, ScenePool
from model.training.recompute import blocks_of, recompute_activations
from model.training.rewards import RewardWeights
from model.training.settings import _OWN as OWN
from model.training.settings import DataSettings, SettingsError, TrainSettings
from model.training.sft import SftWeights
from model.training.so_grpo import RlSettings
from model.training.stage import build_stage
from model.training.trainable import LoraSettings, RowAdapter, Trainable, merge_lora
from model.training.weights import start_model
from tests.model.tiny import small_model, small_paper_model

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "model" / "training"
PAPER, DRY = FOLDER / "paper.json", FOLDER / "paper-dry.json"
SIZES = {"batch_size", "steps", "warmup_steps"}
ALONE = Devices(torch.device("cpu"))


def test_the_dry_run_differs_in_sizes_and_data_alone():
    paper, dry = (json.loads(path.read_text()) for path in (PAPER, DRY))
    assert paper.keys() == dry.keys() - {"model_changes"}
    assert paper["model"] == dry["model"] == "paper-7b"
    for section in paper.keys() - {"model", "seed", "data"}:
        odd = {
            key
            for key in paper[section].keys() | dry[section].keys()
            if paper[section].get(key) != dry[section].get(key)
        }
        assert odd <= SIZES, section
    assert paper["data"].keys() == dry["data"].keys()
    words = {"stem", "scheme", "prompt", "rel_pos", "tied", "registers", "swiglu", "layer_scale", "adapter_ratio"}
    changes = dry["model_changes"]
    assert not words & {key for part in changes.values() if isinstance(part, dict) for key in part}


def test_a_step_is_the_papers_batch_of_64():
    for name in ("ssl", "pretrain", "sft", "so-grpo"):
        section = TrainSettings.read(PAPER).stage(name)
        assert 8 * section.batch_size * section.loop.accumulation == 64
        assert (section.loop.accumulation, section.loop.lr) == (2, 1e-4)
        assert section.loop.schedule == ("adaptive" if name == "so-grpo" else "cosine")


LORA_LLM = 28 * 16 * (2 * (3584 + 3584) + 2 * (3584 + 512))
LORA_VIT = 24 * 16 * 4 * (1024 + 1024)
ADAPTERS = 12 * 2 * (768 * 192 + 192 + 192 * 768 + 768)
SEG_ADAPTER = 3584 * 3584 + 3584 + 3584 * 256 + 256
PROJECTOR = 2 * 1024 + 4096 * 3584 + 3584 + 3584 * 3584 + 3584


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("ssl", {"pathology_encoder": 303_350_784, "sam_encoder": 89_670_912}),
        ("pretrain", {"pathology_encoder": 303_350_784, "projector": PROJECTOR}),
        ("sft", {
            "language_model": LORA_LLM + 2 * 3584, "pathology_encoder": LORA_VIT, "sam_encoder": ADAPTERS,
            "seg_adapter": SEG_ADAPTER, "mask_decoder": 4_059_624, "memory": 1024 * 3584 + 3584, "matcher": 142_564,
            "emission_head": 3585,
        }),
        ("so-grpo", {"language_model": LORA_LLM, "seg_adapter": SEG_ADAPTER, "mask_decoder": 4_059_624}),
    ],
)  # fmt: skip
def test_what_learns_at_the_real_size(stage, expected):
    """On `meta`: every pattern of the config finds something, and nothing else learns."""
    settings = TrainSettings.read(PAPER)
    model = build(settings.model, small_model().tokenizer, empty=True)
    settings.stage(stage).trainable.prepare(model)
    learns: dict[str, int] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            learns[name.partition(".")[0]] = learns.get(name.partition(".")[0], 0) + weight.numel()
    assert learns == expected


def test_the_papers_encoders_have_their_published_sizes():
    """ViT-L/16 at 224 px without its head, with DINOv2's LayerScale; the image encoder of SAM's ViT-B."""
    vit = 24 * (12 * 1024**2 + 13 * 1024 + 2 * 1024) + (3 * 256 + 1) * 1024 + 1024 * (1 + 197) + 2 * 1024
    block = 768 * 2304 + 2304 + 768 * 768 + 768 + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    places = 64 * (8 * 2 * 27 + 4 * 2 * 127)  # relative: eight windows of 14, four blocks that look everywhere
    neck = 768 * 256 + 9 * 256 * 256 + 4 * 256
    sam = (3 * 256 + 1) * 768 + 64 * 64 * 768 + 12 * block + places + neck
    assert (vit, sam) == (303_350_784, 89_670_912)


def test_what_stays_is_bfloat16_and_what_learns_is_not():
    section = TrainSettings.read(PAPER).stage("sft")
    model = small_paper_model()
    section.trainable.prepare(model)
    for name, weight in model.named_parameters():
        large = name.startswith(("language_model.", "pathology_encoder.", "sam_encoder."))
        assert weight.dtype == (torch.bfloat16 if large and not weight.requires_grad else torch.float32), name
    held = {"adapter": 0, ".lora_": 0}
    for name, weight in model.named_parameters():
        for kind in held:
            held[kind] += weight.requires_grad and kind in name
    assert all(held.values())


def test_a_mixed_model_takes_a_step_in_fp32(tmp_path):
    settings = TrainSettings.read(DRY)
    section = settings.stage("sft")
    model = small_paper_model()
    section.trainable.prepare(model)
    stage = build_stage(section, model, settings, tmp_path, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = stage.loss(model.train(), stage.batch(1), 0)
    loss.backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert all(grad.dtype == torch.float32 for grad in grads.values())
    for part in (".lora_B", "row_adapter", "mlp_adapter", "seg_adapter", "mask_decoder"):
        assert any(part in name and float(grad.abs().sum()) > 0 for name, grad in grads.items()), part


def test_questions_are_put_in_the_turns_that_the_model_serves(tmp_path):
    settings, model = TrainSettings.read(DRY), small_paper_model()
    batch = build_stage(settings.stage("sft"), model, settings, tmp_path, tmp_path).batch(1)
    opening = model.tokenizer.encode(SYSTEM + "<|im_start|>user\n")
    assert batch.ids[:, : len(opening)].tolist() == [opening] * len(batch.ids)


def test_frozen_bfloat16_wants_a_precision_that_goes_with_it():
    with pytest.raises(SettingsError, match="sft.frozen_dtype='bf16'.*bf16 or fp16"):
        TrainSettings.read(PAPER).stage("sft", precision="fp32")
    with pytest.raises(SettingsError, match="frozen_dtype='int8'"):
        TrainSettings.read(PAPER).stage("sft", frozen_dtype="int8")


def test_every_field_of_a_config_is_documented():
    page = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
    kinds = (LoopConfig, Trainable, LoraSettings, DataSettings, RlSettings, RewardWeights, SftWeights)
    names = {field.name for kind in kinds for field in fields(kind)}.union(*OWN.values())
    assert len(names) > 50
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
    script = (REPOSITORY / "scripts" / "train_paper.sh").read_text(encoding="utf-8")
    variables = set(re.findall(r"\$\{([A-Z]+):-", script)) - {"VENV"}
    assert variables == set(re.findall(r"^\| `([A-Z]+)` \|", page, re.MULTILINE))


# What a stage starts from


def test_weights_are_read_as_what_they_will_be(tmp_path):
    model = small_paper_model(seed=3)
    save_checkpoint(tmp_path / "whole", model, dtype=torch.float32)
    trainable = TrainSettings.read(PAPER).stage("sft").trainable
    started = start_model(model.config, tmp_path / "run", [tmp_path / "whole"], 0, trainable, ALONE)
    own = dict(model.named_parameters())
    types = {name: weight.dtype for name, weight in started.named_parameters()}
    for name, weight in started.named_parameters():
        assert torch.equal(weight, own[name].to(weight.dtype)), name
    trainable.prepare(started)
    now = {name.replace(".base_layer.", "."): weight.dtype for name, weight in started.named_parameters()}
    assert {name: now[name] for name in types} == types, "nothing is cast once it is there"
    assert set(types.values()) == {torch.float32, torch.bfloat16}
    assert (tmp_path / "run" / "tokenizer.json").is_file()


def test_of_an_earlier_stage_only_what_it_trained_is_taken(tmp_path):
    whole, earlier = small_paper_model(seed=1), small_paper_model(seed=2)
    save_checkpoint(tmp_path / "whole", whole, dtype=torch.float32)
    save_checkpoint(tmp_path / "ssl", earlier, dtype=torch.float32, card={"stage": "ssl"})
    started = start_model(whole.config, tmp_path / "run", [tmp_path / "whole", tmp_path / "ssl"], 0, Trainable(), ALONE)
    ours, theirs = dict(whole.named_parameters()), dict(earlier.named_parameters())
    for name, weight in started.named_parameters():
        source = theirs if name.startswith(("pathology_encoder.", "sam_encoder.")) else ours
        assert torch.equal(weight, source[name]), name


def test_what_does_not_fit_is_named(tmp_path):
    save_checkpoint(tmp_path / "whole", small_paper_model(), dtype=torch.float32)
    save_checkpoint(tmp_path / "ssl", small_model(), dtype=torch.float32, card={"stage": "ssl"})
    where = [tmp_path / "whole", tmp_path / "ssl"]
    with pytest.raises(CheckpointError, match="ssl.*does not fit this model.*encoder"):
        start_model(small_model().config, tmp_path / "run", where, 0, Trainable(), ALONE)


@pytest.mark.parametrize("make", [small_model, small_paper_model])
def test_a_row_stands_in_for_the_tables(make):
    """Tied and untied, the table in bfloat16: what is embedded and what is scored follow the row alone."""
    model = make().eval()
    model.language_model.bfloat16()
    Trainable(trained=("seg_adapter.*",), seg_row=True, frozen_dtype="bf16").prepare(model)
    language, seg = model.language_model, model.tokenizer.seg
    states = torch.randn(2, language.qwen.lm_head.in_features).bfloat16()
    ids = torch.tensor([seg, seg + 1])
    before, scored = language.embed(ids), language.logits(states)
    rows = [part for part in model.modules() if isinstance(part, RowAdapter)]
    assert len(rows) == (1 if language.tied else 2)
    with torch.no_grad():
        for part in rows:
            part.row += 1.0
    after, rescored = language.embed(ids), language.logits(states)
    assert torch.equal(after[1], before[1])
    assert torch.allclose(after[0].float(), before[0].float() + 1.0, atol=1e-2)
    assert [*(scored != rescored).any(0).nonzero()[:, 0]] == [seg]
    merge_lora(model)
    assert torch.equal(language.embed(ids), after)
    assert not any(isinstance(part, RowAdapter) for part in model.modules())
    assert torch.allclose(language.logits(states).float(), rescored.float(), atol=2e-2)


def test_small_changes_survive_being_folded_into_bfloat16():
    model = small_paper_model()
    TrainSettings.read(PAPER).stage("so-grpo").trainable.prepare(model)
    name, layer = next(
        (n, part) for n, part in model.named_modules() if n.endswith("q_proj") and hasattr(part, "lora_A")
    )
    before = layer.get_base_layer().weight.float().clone()
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(0, 1e-5)
    delta = layer.get_delta_weight("default").detach().float()
    merge_lora(model)
    assert torch.allclose(model.get_submodule(name).weight - before, delta, atol=3e-8)
    assert float(delta.abs().max()) > 3e-6


# What the backward pass computes again


def test_recomputed_activations_give_the_same_gradients():
    """In evaluation mode too, in which `transformers` would keep them all; every block of all three runs twice."""
    grads, runs = [], []
    for again in (False, True):
        model = small_paper_model().eval()
        Trainable(trained=("sam_encoder.*", "pathology_encoder.*", "language_model.*")).prepare(model)
        counts = [0] * len(list(blocks_of(model)))
        for place, block in enumerate(blocks_of(model)):
            norm = next(part for part in block.modules() if "norm" in type(part).__name__.lower())
            norm.register_forward_hook(
                lambda *_, place=place, counts=counts: counts.__setitem__(place, counts[place] + 1)
            )
        if again:
            recompute_activations(model)
        torch.manual_seed(4)
        images = torch.randint(0, 255, (2, model.config.tile_px, model.config.tile_px, 3), dtype=torch.uint8)
        seen = model.see(images).tokens
        positions = torch.arange(seen.shape[1]).expand(3, 2, -1)
        total = model.language_model(seen, positions).square().mean() + model.survey(images)[0].square().mean()
        total.backward()
        grads.append({name: w.grad for name, w in model.named_parameters() if w.grad is not None})
        runs.append(list(counts))
    assert runs[1] == [2 * count for count in runs[0]]
    with torch.no_grad():
        model.see(images)
    assert sum(counts) == sum(runs[1]) + model.config.vision.depth, "nothing is computed again without gradients"
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in grads[0])


# Where pictures come from


def test_synthetic_scenes_alone_read_nothing_else(monkeypatch, tmp_path):
    for reader in ("read_ebhi", "read_camelyon", "read_bcss", "BuiltScenes"):
        monkeypatch.setattr(pools, reader, lambda *_, **__: pytest.fail("a data set was read"))
    pool = ScenePool.load("train", 64, 9, 0, tmp_path, weights={"synthetic": 1})
    assert pool.sizes() == {"synthetic": 9}
    assert pool.draw(np.random.default_rng(0)).scene.source == "synthetic"


def test_sources_that_are_unknown_or_empty_are_said(tmp_path):
    with pytest.raises(KeyError, match="no source 'glas'.*'built'"):
        ScenePool.load("train", 64, 9, 0, tmp_path, weights={"glas": 1})
    with pytest.raises(FileNotFoundError, match="no scenes of \\['ebhi-seg'\\]"):
        ScenePool.load("train", 64, 9, 0, tmp_path, weights={"ebhi-seg": 1})


def test_pictures_of_a_built_set_are_read_when_drawn(monkeypatch, tmp_path):
    scenes = synthetic.synthetic_scenes(np.random.default_rng(0), 4, 64)
    _write_built(tmp_path, scenes)
    read = []
    monkeypatch.setattr(pools, "scene_of", lambda s, folder: read.append(s.scene) or sample.scene_of(s, folder))
    pool = ScenePool.load("train", 64, 0, 0, tmp_path, weights={"built": 1})
    assert pool.sizes() == {"built": 4} and read == []
    part = pool.groups["built"][0]
    assert isinstance(part, BuiltScenes)
    for place, scene in enumerate(scenes):
        again = part[place]
        assert (again.image == scene.image).all() and again.absent == scene.absent
        assert all((again.masks[key] == mask).all() for key, mask in scene.masks.items())
    assert pool.draw(np.random.default_rng(0)).scene.id in {scene.id for scene in scenes}


def _write_built(folder: Path, scenes: list) -> None:
    """Each picture with two questions."""
    from PIL import Image

    lines = []
    for number, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(folder / f"{number}.png")
        for key, mask in scene.masks.items():
            Image.fromarray((mask * 255).astype(np.uint8)).save(folder / f"{number}-{key}.png")
        for question in range(2):
            told = sample.Provenance("tests", "template", {"slidereason": "0"}, 0, (), sample.pixel_hash(scene.image))
            lines.append(
                sample.Sample(
                    id=f"{number}-{question}", scene=scene.id, image=f"{number}.png",
                    masks={key: f"{number}-{key}.png" for key in scene.masks}, absent=tuple(sorted(scene.absent)),
                    query="Is there bone?", chain="<think> No. </think> Not here.", targets=(), concept=None,
                    kind="unknown", organ=scene.organ, mpp=scene.mpp, stain="H&E", source=scene.source,
                    patient=scene.patient, licence=scene.licence, facts={}, provenance=told,
                )
            )  # fmt: skip
    sample.write_samples(folder / "train.jsonl", lines)


# The script


def _script(out: Path, **more: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OUT": str(out), "GPUS": "2", "WORKERS": "0", **more}
    environment.pop("INIT", None)
    environment.setdefault("ARGS", "--no-compile --device cpu --precision bf16 --frozen-dtype bf16 --recompute")
    script = REPOSITORY / "scripts" / "train_paper.sh"
    return subprocess.run([str(script)], env=environment, capture_output=True, text=True, check=False, timeout=800)


@pytest.mark.slow
def test_every_stage_runs_in_order_and_is_not_run_twice(tmp_path):
    """The path of 8 GPUs with two processes on a CPU: LoRA, freezing, bfloat16, recomputed activations and all."""
    done = _script(tmp_path, CONFIG=str(DRY))
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("ssl", "pretrain", "sft", "so-grpo"):
        card = json.loads((tmp_path / stage / "checkpoint" / "card.json").read_text())
        assert (card["stage"], card["steps"]) == (stage, 4)
        rows = [json.loads(line) for line in (tmp_path / stage / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == 4 and rows[-1]["skipped"] == 0
    assert len(re.findall("took .* of stage pretrain", done.stdout)) == 2, "by both processes"
    models = {s: load_checkpoint(tmp_path / s / "checkpoint") for s in ("ssl", "pretrain", "sft", "so-grpo")}
    _assert_moved(models, "ssl", "pretrain", {"pathology_encoder", "projector"})
    _assert_moved(models, "sft", "so-grpo", {"language_model", "seg_adapter", "mask_decoder"})
    again = _script(tmp_path, CONFIG=str(DRY))
    assert again.returncode == 0 and again.stdout.count("is done") == 4
    assert "torch" not in again.stderr
    (tmp_path / "sft" / "checkpoint" / "card.json").unlink()
    cut = _script(tmp_path, CONFIG=str(DRY), STAGES="sft")
    assert cut.returncode == 0, cut.stderr[-3000:]
    resumed = load_checkpoint(tmp_path / "sft" / "checkpoint").state_dict()
    assert all(torch.equal(resumed[name], weight) for name, weight in models["sft"].state_dict().items())


def _assert_moved(models: dict, before: str, after: str, parts: set[str]) -> None:
    old, new = models[before].state_dict(), models[after].state_dict()
    moved = {name.partition(".")[0] for name in old if not torch.allclose(old[name], new[name], rtol=8e-3, atol=1e-6)}
    assert moved == parts


def test_the_real_size_wants_a_checkpoint_to_start_from(tmp_path):
    refused = _script(tmp_path)
    assert refused.returncode == 2 and "INIT must name a checkpoint" in refused.stderr
    odd = _script(tmp_path, CONFIG=str(DRY), STAGES="rlhf")
    assert odd.returncode == 2 and "no stage rlhf" in odd.stderr


def test_paper_settings_are_what_the_paper_states():
    settings = TrainSettings.read(PAPER)
    assert settings.stage("ssl").own["mask_ratio"] == 0.75
    lora = settings.stage("sft").trainable.lora
    assert (lora.rank, lora.alpha, lora.dropout) == (16, 32, 0.1)
    assert settings.stage("so-grpo").loop.eta == 1e-4
    assert settings.stage("so-grpo").own["rl"]["rollouts"] == 8
    assert replace(lora, parts=("language_model.",), dropout=0.0) == settings.stage("so-grpo").trainable.lora
