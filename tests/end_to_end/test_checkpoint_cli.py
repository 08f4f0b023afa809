"""`slidereason checkpoint import|inspect|verify|average`: from published files to a model that answers."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import load_checkpoint, revision_of, save_checkpoint
from model.checkpoint_cli import run_checkpoint
from model.config import VisionConfig
from model.predictor import load_segmenter
from model.segmenter import TileBatch
from tests.model import published
from tests.model.tiny import TEXTS, TurnTokenizer, small_model, small_paper_config, tiles

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
CONFIG = small_paper_config(
    name="small",
    vision=VisionConfig(dim=32, depth=2, heads=2, mlp_ratio=4, stem="patch", drop_path=0.0, image_px=64, pos_px=48),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four published formats at small size, and the configuration that they fit."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "config.json").write_text(json.dumps(CONFIG.to_json()))
    qwen = published.make_qwen(CONFIG.language)
    published.write_qwen(folder / "qwen", qwen, CONFIG.language)
    published.write_adapter(folder / "adapter", qwen, r=4, target_modules=["q_proj", "v_proj"])
    published.write_timm_folder(folder / "vit", published.make_timm_vit(CONFIG.vision), heads=2)
    published.write_dinov2(folder / "dinov2", published.make_dinov2(CONFIG.vision))
    published.write_sam(folder / "medsam.pth", published.make_sam(CONFIG.sam), wrapped=True, prefix="module.")
    TurnTokenizer.train(TEXTS, 400).save(folder / "tokenizer.json")
    return folder


def given(sources: Path, *names: str) -> list[str]:
    """Options that name sources: `--language …/qwen` of `language`."""
    places = {"language": "qwen", "vision": "vit", "sam": "medsam.pth", "adapter": "adapter", "config": "config.json",
              "tokenizer": "tokenizer.json"}  # fmt: skip
    return [word for name in names for word in (f"--{name}", str(sources / places[name]))]


ALL = ("config", "language", "vision", "sam", "adapter")


@pytest.fixture(scope="module")
def imported(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of all sources; read only."""
    out = tmp_path_factory.mktemp("imported") / "small"
    assert run_checkpoint(["import", "--variant", "custom", *given(sources, *ALL), "--out", str(out)]) == 0
    return out


def told(capsys: pytest.CaptureFixture) -> tuple[str, str]:
    """Standard output and the one line on stderr of the last command."""
    said = capsys.readouterr()
    complaints = [line for line in said.err.splitlines() if line.startswith("slidereason checkpoint: ")]
    assert len(complaints) <= 1 and "Traceback" not in said.err
    return said.out, "".join(complaints).removeprefix("slidereason checkpoint: ")


# Import


def test_the_command_imports_inspects_and_verifies(sources: Path, tmp_path: Path):
    """As a user starts it: a process of its own."""
    command = [sys.executable, "-m", "service.cli", "checkpoint", "import", "--variant", "custom"]
    command += [*given(sources, *ALL), "--out", str(tmp_path / "out"), "--licence", "CC-BY-4.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines["language"].startswith("qwen2.5-vl, 27 keys used, 18 ignored (visual 18)")
    assert lines["vision"] == "timm-vit, 34 keys used, 0 ignored"
    assert lines["sam"].startswith("sam, ") and "15 ignored (prompt_encoder 15)" in lines["sam"]
    assert lines["adapter"] == "peft-lora, 8 keys used, 0 ignored"
    assert lines["fresh"].endswith("tensors (projector 6, sam_encoder 24, seg_adapter 4, mask_decoder 2, memory 2, "
                                   "matcher 12, emission_head 2)")  # fmt: skip
    revision = lines["checkpoint"].rpartition(" ")[2]
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["licence"] == "CC-BY-4.0" and list(card["provenance"]) == ["language", "vision", "sam", "adapter"]
    assert revision == revision_of(tmp_path / "out")


def test_an_imported_model_answers_a_tile(imported: Path):
    """Random weights say anything, but to the end; told what to say, they point as they say it."""
    segmenter = load_segmenter(str(imported), "cpu")
    assert (segmenter.card.name, segmenter.card.tile_size_px) == ("small", 128)
    batch = TileBatch(
        tiles(2, 128).numpy(), np.float32([0.25, np.nan]), ["Where is the tumour?"] * 2, np.zeros(2, bool)
    )
    assert all(len(answer.text) > len("<think>") for answer in segmenter.predict(batch))
    tokenizer = segmenter.model.tokenizer
    script = torch.tensor([[*tokenizer.encode("</think> Found: tumour <SEG>"), tokenizer.eos]] * 2)
    one, other = segmenter.predict(batch, script=script)
    assert one.text == "<think></think> Found: tumour <SEG>" and one.phrases == ("tumour",)
    for answer in (one, other):
        assert answer.masks.shape == (1, 128, 128) and np.isfinite(answer.masks).all() and answer.masks.std() > 1e-3
        assert 0 <= answer.confidence[0] <= 1
    assert not np.array_equal(one.masks, other.masks)


def test_every_source_arrives_in_the_model(sources: Path, imported: Path):
    model = load_checkpoint(imported)
    assert (model.config.mean, model.config.std) == ((0.5, 0.4, 0.3), (0.3, 0.2, 0.1))  # told by timm's config.json
    vit = torch.load(sources / "vit" / "pytorch_model.bin")
    assert torch.equal(model.pathology_encoder.vit.layernorm.weight, vit["norm.weight"])
    sam = torch.load(sources / "medsam.pth")["model"]
    assert torch.equal(model.sam_encoder.vit.pos_embed, sam["module.image_encoder.pos_embed"])
    own = model.language_model.text_model.layers[0].self_attn
    base = published.make_qwen(CONFIG.language).model.language_model.layers[0].self_attn
    assert torch.equal(own.k_proj.weight, base.k_proj.weight)
    halves = load_file(sources / "adapter" / "adapter_model.safetensors")
    before = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_"
    merged = base.q_proj.weight + 2 * halves[f"{before}B.weight"] @ halves[f"{before}A.weight"]
    torch.testing.assert_close(own.q_proj.weight, merged)


def test_a_checkpoint_is_a_source_too(sources: Path, imported: Path, tmp_path: Path, capsys):
    """No variant and no configuration: those of the checkpoint; another encoder takes the place of its own."""
    options = ["--checkpoint", str(imported), "--vision", str(sources / "dinov2"), "--dtype", "bfloat16"]
    assert run_checkpoint(["import", *options, "--out", str(tmp_path / "out")]) == 0
    out, _ = told(capsys)
    assert "vision: dinov2, " in out and "fresh: 0 of " in out
    old, new = (load_file(folder / "model.safetensors") for folder in (imported, tmp_path / "out"))
    assert {name.partition(".")[0] for name in old if not torch.equal(old[name].bfloat16(), new[name].bfloat16())} == {
        "pathology_encoder"
    }
    exact = {name for name, value in new.items() if value.dtype != torch.bfloat16}
    assert exact == {"mask_decoder.positions.positional_encoding_gaussian_matrix"}


def test_untrained_parts_come_from_the_seed(sources: Path, tmp_path: Path):
    options = [*given(sources, "config", "sam", "tokenizer"), "--variant", "custom", "--fresh-decoder"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run_checkpoint(["import", *options, "--seed", seed, "--out", str(tmp_path / name)]) == 0
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["projector.mlp.0.weight"], c["projector.mlp.0.weight"])
    decoder = [name for name in a if name.startswith("mask_decoder.decoder.") and a[name].ndim > 1]
    assert decoder and not any(torch.equal(a[name], c[name]) for name in decoder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--variant", "paper-7b"], "nothing to import: at least one of --checkpoint, --language, --vision, --sam"),
        (["--sam", "medsam.pth"], "--variant is needed: tiny, paper-3b, paper-7b or custom"),
        (["--variant", "huge", "--sam", "medsam.pth"], "--variant huge: accepted are tiny, paper-3b, paper-7b and"),
        (["--variant", "custom", "--sam", "medsam.pth"], "--variant custom: --config FILE is needed"),
        (["--variant", "tiny", "--config", "config.json", "--sam", "medsam.pth"], "--config: only with --variant"),
        (["--variant", "custom", "--config", "config.json", "--sam", "medsam.pth"], "a tokenizer is needed: --"),
        (["--variant", "custom", "--config", "nowhere.json", "--sam", "medsam.pth"], "nowhere.json: cannot be read"),
        (["--variant", "custom", "--config", "qwen/config.json", "--sam", "medsam.pth"], "vision is missing"),
        (["--checkpoint", "nowhere"], "checkpoint nowhere: config.json is missing"),
        (["--variant", "paper-7b", "--language", "qwen"], "language.dim is 64 in the file, 3584 in the configuration"),
        (
            ["--variant", "custom", "--config", "config.json", "--language", "qwen", "--sam", "vit/pytorch_model.bin"],
            "sam pytorch_model.bin: not a SAM",
        ),
        (
            ["--variant", "custom", "--config", "config.json", "--language", "qwen", "--adapter", "nowhere"],
            "adapter_config.json: cannot be read",
        ),
    ],
)  # fmt: skip
def test_what_is_not_accepted_is_said_and_nothing_is_written(
    sources: Path, tmp_path: Path, monkeypatch, capsys, options: list[str], said: str
):
    monkeypatch.chdir(sources)
    assert run_checkpoint(["import", *options, "--out", str(tmp_path / "out")]) == 2
    out, complaint = told(capsys)
    assert said in complaint and out == ""
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(sources: Path, tmp_path: Path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        assert run_checkpoint(["import", "--variant", "custom", *given(sources, *ALL), "--out", str(out)]) == 2
        assert f"--out {out}: exists and is not empty" in told(capsys)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("options", [["import"], ["verify"], [], ["import", "--dtype", "int8", "--out", "x"]])
def test_options_that_do_not_exist_end_with_2(options: list[str], capsys):
    with pytest.raises(SystemExit) as ended:
        run_checkpoint(options)
    assert ended.value.code == 2 and "usage: slidereason checkpoint" in capsys.readouterr().err


# Inspect


@pytest.mark.parametrize(
    ("name", "form", "config"),
    [
        ("qwen", "qwen2.5-vl", {"language": {"dim": 64, "depth": 2, "mrope_section": [2, 3, 3], "tied": False}}),
        ("vit", "timm-vit", {"vision": {"dim": 32, "depth": 2, "patch_px": 16, "pos_px": 48, "mlp_ratio": 4.0}}),
        ("dinov2", "dinov2", {"vision": {"dim": 32, "heads": 2, "patch_px": 16, "swiglu": False}}),
        ("medsam.pth", "sam", {"sam": {"dim": 32, "heads": 2, "window": 5, "global_blocks": [1], "image_px": 96}}),
        ("adapter", "peft-lora", {"r": 4, "lora_alpha": 8, "modules": 4, "replaced": []}),
    ],
)
def test_inspect_says_what_a_file_is(sources: Path, capsys, name: str, form: str, config: dict):
    assert run_checkpoint(["inspect", str(sources / name), "--json"]) == 0
    seen = json.loads(told(capsys)[0])
    assert seen["format"] == form and seen["keys"] == sum(row["count"] for row in seen["shapes"])
    assert seen["bytes"] == 4 * seen["parameters"] and seen["dtypes"] == {"float32": seen["keys"]}
    for part, fields in config.items():
        found = seen["config"][part]
        assert ({field: found[field] for field in fields} if isinstance(fields, dict) else found) == fields
    assert run_checkpoint(["inspect", str(sources / name)]) == 0
    lines = told(capsys)[0].splitlines()
    assert lines[0] == f"format: {form}" and lines[1] == f"files: {', '.join(seen['files'])}"
    assert sum(" × " in line for line in lines) == len(seen["shapes"])


def test_inspect_tells_revision_and_card_of_ours(imported: Path, capsys):
    assert run_checkpoint(["inspect", str(imported), "--json"]) == 0
    seen = json.loads(told(capsys)[0])
    assert seen["format"] == "slidereason" and seen["config"]["name"] == "small"
    assert run_checkpoint(["inspect", str(imported)]) == 0
    out = told(capsys)[0]
    assert f"revision: {seen['revision']}\n" in out and '"provenance"' in out and "\nlanguage: dim 64, " in out


def test_inspect_knows_when_it_does_not_know(tmp_path: Path, capsys):
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    assert run_checkpoint(["inspect", str(tmp_path / "other.safetensors")]) == 0
    assert told(capsys)[0].splitlines()[0] == "format: unknown"
    assert run_checkpoint(["inspect", str(tmp_path / "nowhere.pth")]) == 2
    assert told(capsys) == ("", f"{tmp_path / 'nowhere.pth'}: there is no such file")
    assert run_checkpoint(["inspect", str(tmp_path)]) == 2
    assert f"{tmp_path}: no weights; looked for" in told(capsys)[1]


# Verify


def test_verify_finds_nothing_wrong(imported: Path, capsys):
    revision = revision_of(imported)
    assert run_checkpoint(["verify", str(imported)]) == 0
    assert told(capsys)[0] == f"{imported}: sound, revision {revision}\n"


def test_verify_names_everything_that_is_wrong(tmp_path: Path, capsys):
    folder = tmp_path / "small"
    save_checkpoint(folder, small_model(), dtype=torch.float32)
    weights = load_file(folder / "model.safetensors")
    weights["memory.bias"][0] = torch.inf
    del weights["projector.norm.bias"]
    save_file(weights, folder / "model.safetensors")
    (folder / "card.json").unlink()
    assert run_checkpoint(["verify", str(folder)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    card, keys, values = said.err.splitlines()
    assert card == f"{folder}: card.json is missing"
    assert keys.startswith(f"{folder}: weights: missing ['projector.norm.bias'], unexpected []")
    assert values == f"{folder}: memory.bias: not all values are finite"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_verify_says_what_cannot_be_read(imported: Path, tmp_path: Path, capsys, name: str):
    shutil.copytree(imported, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(b"{")
    assert run_checkpoint(["verify", str(tmp_path / "copy")]) == 2
    assert name in told(capsys)[1]
    (tmp_path / "copy" / name).unlink()
    assert run_checkpoint(["verify", str(tmp_path / "copy")]) == 2
    assert f"checkpoint copy: {name} is missing" in told(capsys)[1]


def test_verify_holds_the_weights_against_the_configuration(imported: Path, tmp_path: Path, capsys):
    shutil.copytree(imported, tmp_path / "copy")
    deeper = replace(CONFIG, sam=replace(CONFIG.sam, depth=4))
    (tmp_path / "copy" / "config.json").write_text(json.dumps(deeper.to_json()))
    assert run_checkpoint(["verify", str(tmp_path / "copy")]) == 1
    assert "missing ['sam_encoder.vit.blocks.3.attention_adapter" in capsys.readouterr().err


# Documented


def test_every_command_of_the_page_is_one(tmp_path: Path, monkeypatch, capsys):
    """None of its files is here: each is understood, and then says what it misses."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    lines = [line.split()[2:] for line in page.splitlines() if line.startswith("    slidereason checkpoint ")]
    assert {line[0] for line in lines} == {"import", "inspect", "verify", "average"}
    for line in lines:
        assert run_checkpoint(line) == 2
        assert re.search(r"cannot be read|there is no such file|is missing", told(capsys)[1])
