"""Files of weights: read one tensor at a time and never run, written and read again alike, checked from end to end."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.builders import SILENT
from model.checkpoint import (
    load_checkpoint,
    open_checkpoint,
    revision_of,
    save_checkpoint,
    shapes_of,
    verify_checkpoint,
    weights_of,
)
from model.importers.compose import Sources, compose, write_composed
from model.importers.recognise import inspect_weights
from model.shards import write_shards
from model.stored import CheckpointError, Stored, open_folder, open_tensors
from tests.model import published
from tests.model.tiny import TEXTS, TurnTokenizer, small_config, small_model, small_paper_config, small_paper_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-"


def refusal(path: Path) -> str:
    """What is said of a file or folder that cannot be read."""
    with pytest.raises(CheckpointError) as told:
        open_folder(path) if path.is_dir() else open_tensors(path)
    return str(told.value)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "sprung"))


# What is not read


@pytest.mark.parametrize("name", ["medsam_vit_b.pth", "adapter_model.bin", "model.pt"])
@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path: Path, name: str, how: str):
    sprung, path = tmp_path / "sprung", tmp_path / name
    weights = {"image_encoder.pos_embed": torch.zeros(2), "mask_decoder.trap": Trap(sprung)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(weights))
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=how == "torch")
    told = refusal(path)
    assert told.startswith(f"{path}: ") and not sprung.exists()
    if how != "pickle":
        assert "refused" in told and "code or objects beside tensors" in told
        torch.load(path, weights_only=False)  # the trap is one
        assert sprung.read_text() == "sprung"


def test_what_is_no_file_of_weights_is_named(tmp_path: Path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "half.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "half.pth").read_bytes()[:2000])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.bin").write_text("once upon a time")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save({"epoch": 3, "model": {"lr": 0.1}}, tmp_path / "none.pth")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name, said in {
        "absent.pth": "there is no such file",
        "half.pth": "cannot be read as a file of torch",
        "empty.pth": "cannot be read as a file of torch",
        "text.bin": "refused, since it is damaged or holds code",
        "list.pth": "no state dict inside",
        "none.pth": "no state dict inside",
        "empty.safetensors": "cannot be read as safetensors",
    }.items():
        told = refusal(tmp_path / name)
        assert told.startswith(f"{tmp_path / name}: ") and said in told, name
    assert refusal(tmp_path) == (
        f"{tmp_path}: no weights; looked for model.safetensors and pytorch_model.bin, whole or with .index.json"
    )


def test_a_truncated_safetensors_is_named(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(100.0), "b": torch.zeros(100)}, path)
    whole = path.read_bytes()
    for length in (4, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(path).startswith(f"{path}: cannot be read as safetensors")
    path.write_bytes(whole)
    assert torch.equal(open_tensors(path)["a"].read(), torch.arange(100.0))


# Shards


@pytest.fixture()
def shards(tmp_path: Path) -> Path:
    """Four tensors in two shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    weights = {name: torch.full((4,), float(i)) for i, name in enumerate("abcd")}
    for number, names in ((1, "ab"), (2, "cd")):
        save_file({name: weights[name] for name in names}, folder / f"model-0000{number}-of-00002.safetensors")
    listed = {name: f"model-0000{1 + (name in 'cd')}-of-00002.safetensors" for name in "abcd"}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 64}, "weight_map": listed}))
    return folder


def relist(folder: Path, **changes: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {k: v for k, v in (index["weight_map"] | changes).items() if v is not None}
    (folder / INDEX).write_text(json.dumps(index))


def test_shards_are_read_as_one(shards: Path):
    tensors, files = open_folder(shards)
    assert {name: tensor.read()[0].item() for name, tensor in tensors.items()} == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert [file.name for file in files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.mark.parametrize("outside", ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors"])
def test_an_index_that_leads_outside_its_folder_is_refused(shards: Path, outside: str):
    save_file({"d": torch.zeros(4)}, shards.parent / "model.safetensors")
    relist(shards, d=outside)
    assert refusal(shards) == f"{shards / INDEX}: weight_map leads outside its folder: ['{outside}']"


def test_index_and_shards_that_disagree_are_named(shards: Path):
    relist(shards, e="model-00002-of-00002.safetensors", c=None)
    told = refusal(shards)
    assert told.startswith(str(shards / "model-00002-of-00002.safetensors"))
    assert f"does not fit {INDEX}: missing ['e'], unexpected ['c']" in told
    (shards / "model-00002-of-00002.safetensors").unlink()
    assert refusal(shards) == f"{shards}: missing shards ['model-00002-of-00002.safetensors'], which {INDEX} names"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"), ("[1]", "found a list"), ("{}", "weight_map is missing"), ("\xff", "is not JSON"),
        ('{"weight_map": {"a": 1}}', "an object of keys and file names"),
    ],
)
def test_an_index_that_is_none_is_named(shards: Path, text: str, said: str):
    (shards / INDEX).write_bytes(text.encode("latin-1"))
    told = refusal(shards)
    assert told.startswith(f"{shards / INDEX}: ") and said in told


# Ours, written and read again


def in_shards(folder: Path, bytes_each: int = 60_000) -> Path:
    """The same checkpoint in shards."""
    _, _, tensors = open_checkpoint(folder)
    values = {name: tensor.read() for name, tensor in tensors.items()}
    held = {name: replace(tensor, read=partial(values.get, name)) for name, tensor in tensors.items()}
    write_shards(folder, held, bytes_each)
    return folder


@pytest.fixture()
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "small", small_model(), dtype=torch.float32, card={"licence": "test"})
    return tmp_path / "small"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_checkpoint_survives_the_disk(tmp_path: Path, tied: bool, sharded: bool, dtype: torch.dtype):
    model = small_model() if tied else small_paper_model()
    revision = save_checkpoint(tmp_path / "out", model, dtype=dtype)
    if sharded:
        in_shards(tmp_path / "out")
        assert not (tmp_path / "out" / "model.safetensors").exists()
        assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    else:
        assert revision == revision_of(tmp_path / "out")
    again = load_checkpoint(tmp_path / "out")
    assert again.config == model.config and again.tokenizer.seg == model.tokenizer.seg
    own, found = weights_of(model), weights_of(again)
    assert own.keys() == found.keys()
    for name, weight in own.items():
        exact = dtype == torch.float32 or name.endswith("gaussian_matrix")
        assert torch.equal(found[name], weight if exact else weight.to(dtype).float()), name


def test_our_safetensors_are_everyones(saved: Path):
    """The library's own reader finds the same in what is written tensor by tensor."""
    own = weights_of(load_checkpoint(saved))
    found = load_file(saved / "model.safetensors")
    assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)
    in_shards(saved)
    index = json.loads((saved / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in own.values())
    for file in set(index["weight_map"].values()):
        for name, tensor in load_file(saved / file).items():
            assert index["weight_map"].pop(name) == file and torch.equal(tensor, own[name])
    assert index["weight_map"] == {}


def test_every_width_of_number_is_written_where_it_belongs(tmp_path: Path):
    """Odd counts of narrow types before wide ones, scalars and empty tensors."""
    weights = {
        "a": torch.tensor([True, False, True]), "b": torch.arange(5, dtype=torch.int64), "c": torch.tensor(2.5),
        "d": torch.randn(3).bfloat16(), "e": torch.zeros(0, 4), "f": torch.randn(2, 3).half(),
    }  # fmt: skip
    save_file(weights, tmp_path / "theirs.safetensors")
    write_shards(tmp_path, open_tensors(tmp_path / "theirs.safetensors"))
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in weights.items())
    data = (tmp_path / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    starts = {name: header + place["data_offsets"][0] for name, place in json.loads(data[8:header]).items()}
    assert [name for name, start in starts.items() if start % weights[name].itemsize] == []


def test_a_checkpoint_that_does_not_load_names_its_keys(saved: Path):
    weights = load_file(saved / "model.safetensors")
    weights["stranger.weight"] = weights.pop("projector.norm.bias")
    weights["memory.bias"] = torch.zeros(3)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(CheckpointError) as told:
        load_checkpoint(saved)
    said = "missing ['projector.norm.bias'], unexpected ['stranger.weight'], of another shape ['memory.bias [3] instead"
    assert str(told.value).startswith("checkpoint small: ") and said in str(told.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_of_ours_is_named(saved: Path, name: str):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"checkpoint small: {name} is missing"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("vision", {"stem": "wave"}, "vision.stem='wave': accepted are"),
        ("vision", {"depths": 2}, "'depths'"),
        ("colour", {}, "'colour'"),
        ("sam", None, "sam is missing"),
    ],
)
def test_a_config_of_ours_that_no_part_takes_is_named(saved: Path, part: str, change: dict | None, said: str):
    config = json.loads((saved / "config.json").read_text())
    old = config.pop(part, {})
    if change is not None:
        config[part] = old | change
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as told:
        load_checkpoint(saved)
    assert str(told.value).startswith(f"{saved / 'config.json'}: ") and said in str(told.value)


# Verified


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "shards"])
def test_nothing_is_wrong_with_a_sound_checkpoint(saved: Path, sharded: bool):
    assert list(verify_checkpoint(in_shards(saved) if sharded else saved)) == []


def test_weights_that_are_not_finite_are_found(saved: Path):
    weights = load_file(saved / "model.safetensors")
    weights["memory.bias"][3] = torch.nan
    weights["projector.norm.weight"][0] = -torch.inf
    save_file(weights, saved / "model.safetensors")
    assert sorted(verify_checkpoint(saved)) == [
        f"{name}: not all values are finite" for name in ("memory.bias", "projector.norm.weight")
    ]


def test_a_tampered_shard_is_found(saved: Path):
    in_shards(saved)
    (shard,) = saved.glob(f"{SHARD}*")
    revision = revision_of(saved)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert list(verify_checkpoint(saved)) == [f"{shard.name}: its SHA-256 is not the one that {INDEX} tells"]
    assert revision_of(saved) == revision  # which is why it is verified


def test_missing_keys_and_a_missing_card_are_found(saved: Path):
    weights = load_file(saved / "model.safetensors")
    del weights["memory.bias"]
    save_file(weights, saved / "model.safetensors")
    (saved / "card.json").unlink()
    card, keys = verify_checkpoint(saved)
    assert card == "card.json is missing"
    assert keys == "weights: missing ['memory.bias'], unexpected [], of another shape []"


# What no source gives


def test_untrained_parts_are_the_same_for_the_same_seed(tmp_path: Path):
    config = small_paper_config()
    TurnTokenizer.train(TEXTS, 400).save(tmp_path / "tokenizer.json")
    sam = published.write_sam(tmp_path / "sam.pth", published.make_sam(config.sam))
    sources = Sources(sam=sam, tokenizer=tmp_path / "tokenizer.json")
    one, same, other = (compose(config, sources, seed) for seed in (1, 1, 2))
    assert one.fresh and one.fresh == same.fresh
    kept = set()
    for name in one.fresh:
        value = one.tensors[name].read()
        assert torch.equal(value, same.tensors[name].read()), name
        kept |= {name} if torch.equal(value, other.tensors[name].read()) else set()
        assert not value.any() or not name.endswith(SILENT), name
    assert all(one.tensors[name].read().ndim < 2 or name.endswith(SILENT) for name in kept)
    assert len(kept) < len(one.fresh)


def test_what_is_written_is_what_was_asked_for(tmp_path: Path):
    config = small_paper_config()
    TurnTokenizer.train(TEXTS, 400).save(tmp_path / "tokenizer.json")
    sam = published.write_sam(tmp_path / "sam.pth", published.make_sam(config.sam))
    made = compose(config, Sources(sam=sam, tokenizer=tmp_path / "tokenizer.json"))
    revision = write_composed(tmp_path / "out", made, licence="CC0", dtype=torch.float16)
    written = load_file(tmp_path / "out" / "model.safetensors")
    exact = {name for name, value in written.items() if value.dtype == torch.float32}
    assert exact == {"mask_decoder.positions.positional_encoding_gaussian_matrix"}
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    told = card["provenance"]["sam"]
    assert card["licence"] == "CC0" and card["fresh"] == list(made.fresh) and told["format"] == "sam"
    assert list(told["files"]) == ["sam.pth"] and len(told["files"]["sam.pth"]) == 64
    assert told["used"] == len(made.imported["sam"].used) and told["ignored"] == list(made.imported["sam"].ignored)
    seen = inspect_weights(tmp_path / "out").to_json()
    assert seen["format"] == "slidereason" and seen["revision"] == revision and seen["card"] == card
    assert seen["keys"] == len(made.tensors) and seen["config"]["sam"]["dim"] == 32
    assert list(verify_checkpoint(tmp_path / "out")) == []


PEAK = """
import sys
from pathlib import Path
from model.checkpoint import load_checkpoint, read_config
from model.importers.compose import Sources, compose, write_composed
def held(line):
    told = dict(row.split(":") for row in Path("/proc/self/status").read_text().splitlines())
    return int(told[line].split()[0]) * 1024
folder = Path(sys.argv[1])
compose(read_config(folder / "small.json"), Sources(vision=folder / "vit.bin", tokenizer=folder / "tokenizer.json"))
before = held("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
made = compose(read_config(folder / "large.json"), Sources(language=folder))
write_composed(folder / "out", made, licence="test")
written = held("VmHWM")
load_checkpoint(folder / "out")
print(written - before, held("VmHWM") - before)
"""


def test_an_import_holds_one_tensor_at_a_time_and_a_loaded_model_one_copy(tmp_path: Path):
    small = small_paper_config()
    language = replace(
        small.language, dim=512, depth=12, heads=4, mlp_dim=2048, mrope_section=(16, 24, 24), vocabulary=5_000
    )
    sizes = shapes_of(replace(small, language=language), TurnTokenizer.train(TEXTS, 400))
    names = {name: name.removeprefix("language_model.qwen.") for name in sizes if name.startswith("language_model.")}
    zeros = {key: Stored(sizes[name], torch.float32, partial(torch.zeros, sizes[name])) for name, key in names.items()}
    write_shards(tmp_path, zeros, shard_bytes=2**25)
    published.write_qwen_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "small.json").write_text(json.dumps(small.to_json()))
    (tmp_path / "large.json").write_text(json.dumps(replace(small, language=language).to_json()))
    torch.save(published.make_timm_vit(small.vision), tmp_path / "vit.bin")
    (tmp_path / "config.json").write_text(json.dumps(published.flat_config(language)))
    command, root = [sys.executable, "-c", PEAK, str(tmp_path)], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    written, loaded = map(int, done.stdout.split())
    size = sum(4 * tensor.size for tensor in zeros.values())
    assert size > 200e6
    assert written < 0.35 * size  # the largest tensor a few times, and what the importers themselves take
    assert 0.9 * size < loaded < 1.25 * size


def test_small_config_of_ours_is_recognised_with_its_shards(saved: Path):
    whole = inspect_weights(saved)
    sharded = inspect_weights(in_shards(saved))
    assert whole.form == sharded.form == "slidereason" and len(sharded.files) > 3
    assert whole.config == sharded.config == small_config().to_json()
