"""Qwen2.5-VL as Hugging Face publishes it: `config.json`, shards with an index, `tokenizer.json`.

Two layouts are about: the published one (`model.layers.…`, `visual.…`, `lm_head.weight`) and that of newer
`transformers` (`model.language_model.layers.…`, `model.visual.…`). The vision tower has no place here.

Source: huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct; Bai et al. 2025, Qwen2.5-VL.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.config import LanguageConfig, PathChatConfig
from model.importers.imported import Imported, Piece, Shapes, assemble, check_numbers
from model.stored import CheckpointError, open_folder, read_json
from model.tokenizer import PathTokenizer

TEXT, HEAD = "language_model.qwen.model.language_model.", "language_model.qwen.lm_head.weight"
NUMBERS = {
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "mlp_dim",
    "vocab_size": "vocabulary",
    "rms_norm_eps": "rms_eps",
}
"""Fields of their `config.json` and of our `LanguageConfig`."""


def read_qwen(folder: Path, config: PathChatConfig, own: Shapes) -> Imported:
    """Read the language model of Qwen2.5-VL.

    Args:
        folder: as published.
        config: what it must fit.
        own: shape of each tensor of the model.

    Raises:
        CheckpointError: a file or shard is missing or unreadable; a number of `config.json` differs; keys are missing,
            unexpected or of another shape. The message names the file and the fields or keys.
    """
    where = f"language {folder.name}"
    check_numbers(where, "language", guess_qwen(read_qwen_config(folder)), config.language)
    found, files = open_folder(folder)
    ignored = {key for key in found if key.startswith(("visual.", "model.visual."))}
    if config.language.tied:
        ignored |= found.keys() & {"lm_head.weight"}
    theirs = {key: our_name(key) for key in found if key not in ignored}
    before = "model.language_model." if any(k.startswith("model.language_model.") for k in theirs) else "model."
    mine = [name for name in own if name.startswith("language_model.")]
    pieces = {name: Piece("lm_head.weight" if name == HEAD else name.replace(TEXT, before, 1)) for name in mine}
    tensors = assemble(where, {key: found[key] for key in theirs}, pieces, own)
    return Imported("qwen2.5-vl", files, tensors, tuple(sorted(theirs)), tuple(sorted(ignored)))


def read_qwen_config(folder: Path) -> dict[str, Any]:
    """Their `config.json`.

    Raises:
        CheckpointError: it is missing, or of another model; the message names it.
    """
    data = read_json(folder / "config.json")
    if data.get("model_type") != "qwen2_5_vl":
        found = data.get("model_type")
        raise CheckpointError(f"{folder / 'config.json'}: model_type={found!r}; accepted is 'qwen2_5_vl'")
    return data


def our_name(key: str) -> str:
    """Our name of a key in either layout; what is in neither comes back unchanged."""
    if key == "lm_head.weight":
        return HEAD
    for before in ("model.language_model.", "model."):
        if key.startswith(before):
            return TEXT + key.removeprefix(before)
    return key


def guess_qwen(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `LanguageConfig` that their `config.json` tells, flat as published or under `text_config`."""
    text = {**data, **(data.get("text_config") or {})}
    told = {ours: text[theirs] for theirs, ours in NUMBERS.items() if theirs in text}
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if "mrope_section" in rope:
        told["mrope_section"] = tuple(rope["mrope_section"])
    if theta := rope.get("rope_theta", text.get("rope_theta")):
        told["rope_theta"] = theta
    told["tied"] = bool(text.get("tie_word_embeddings", False))
    return told


def read_qwen_tokenizer(folder: Path, config: LanguageConfig) -> PathTokenizer:
    """Their tokenizer with our words on spare rows.

    Raises:
        CheckpointError: it is missing, of another model, or has more tokens than there are rows; the message names it.
    """
    try:
        return PathTokenizer.from_qwen(folder / "tokenizer.json", config.vocabulary)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
