"""What a file or folder of weights is: its format, its size, and the shape of the model inside."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import CARD, CONFIG, read_config, revision_of
from model.importers.dinov2 import bare_dinov2, guess_dinov2, is_dinov2
from model.importers.imported import without_prefix
from model.importers.peft_lora import sort_keys
from model.importers.qwen import guess_qwen
from model.importers.sam import guess_sam, is_sam
from model.importers.timm_vit import guess_timm_vit, is_timm_vit
from model.stored import Stored, Tensors, open_folder, open_tensors, read_json

WRAPPERS = ("module.", "_orig_mod.", "sam.")


@dataclass(frozen=True)
class Inspected:
    """What was found.

    Attributes:
        form: `slidereason`, `qwen2.5-vl`, `sam`, `timm-vit`, `dinov2`, `peft-lora` or `unknown`.
        files: names of the files of weights.
        tensors: all of them, unread.
        config: fields of our configuration, as far as names, shapes and `config.json` tell.
        more: revision and card of a checkpoint of ours.
    """

    form: str
    files: tuple[str, ...]
    tensors: Tensors
    config: dict[str, Any]
    more: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; shapes are given once for all that differ only by a number in their name."""
        sizes = [tensor.size for tensor in self.tensors.values()]
        return {
            "format": self.form,
            "files": list(self.files),
            "keys": len(self.tensors),
            "parameters": sum(sizes),
            "bytes": sum(tensor.size * tensor.dtype.itemsize for tensor in self.tensors.values()),
            "dtypes": dict(Counter(str(t.dtype).removeprefix("torch.") for t in self.tensors.values())),
            "config": self.config,
            **self.more,
            "shapes": summarise_shapes(self.tensors),
        }


def inspect_weights(path: Path) -> Inspected:
    """Recognise a format.

    Args:
        path: a file, or a folder in Hugging Face's layout or ours.

    Raises:
        CheckpointError: it is not there or cannot be read; the message names the file.
    """
    if path.is_dir():
        return _folder(path)
    tensors = open_tensors(path)
    form, config = recognise_keys(tensors, {})
    return Inspected(form, (path.name,), tensors, config, {})


def _folder(path: Path) -> Inspected:
    if (path / "adapter_config.json").is_file():
        tensors, files = open_folder(path, "adapter_model")
        return Inspected("peft-lora", _names(files), tensors, _adapter(path, tensors), {})
    about = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    tensors, files = open_folder(path)
    if {"vision", "language", "sam"} <= about.keys():
        card = read_json(path / CARD) if (path / CARD).is_file() else None
        more = {"revision": revision_of(path), "card": card}
        return Inspected("slidereason", _names(files), tensors, read_config(path / CONFIG).to_json(), more)
    if about.get("model_type") == "qwen2_5_vl":
        return Inspected("qwen2.5-vl", _names(files), tensors, {"language": guess_qwen(about)}, {})
    form, config = recognise_keys(tensors, about)
    return Inspected(form, _names(files), tensors, config, {})


def recognise_keys(tensors: dict[str, Stored], about: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Format and configuration from keys and shapes alone, and from what `config.json` tells about."""
    bare = without_prefix(tensors, WRAPPERS)
    if is_sam(bare):
        return "sam", {"sam": guess_sam(bare)}
    backbone = without_prefix(
        {key.removeprefix("backbone."): tensor for key, tensor in bare.items()}, ("model.", "encoder.", "trunk.")
    )
    if is_timm_vit(backbone):
        return "timm-vit", {"vision": guess_timm_vit(backbone)}
    if is_dinov2(hugging := bare_dinov2(bare)):
        shape = hugging["embeddings.cls_token"].shape
        return "dinov2", {"vision": {"dim": shape[-1], **guess_dinov2(about)}}
    return "unknown", {}


def _adapter(path: Path, tensors: dict[str, Stored]) -> dict[str, Any]:
    about = read_json(path / "adapter_config.json")
    halves, whole, _ = sort_keys(tensors)
    told = ("r", "lora_alpha", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern")
    return {**{name: about[name] for name in told if name in about}, "modules": len(halves), "replaced": whole}


def _names(files: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(file.name for file in files)


def summarise_shapes(tensors: Tensors) -> list[dict[str, Any]]:
    """Keys with their numbers written `N`, each with its shape and how often it occurs, in the order of the file."""
    seen = Counter((re.sub(r"(?<=\.)\d+(?=\.)", "N", key), tensor.shape) for key, tensor in tensors.items())
    return [{"key": key, "shape": list(shape), "count": count} for (key, shape), count in seen.items()]
